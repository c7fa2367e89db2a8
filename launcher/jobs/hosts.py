"""Which GPU host image (AMI) a container needs: contract.md 3.12, as a table and two functions."""

import re
from dataclasses import dataclass

from launcher.config import Config

CUDA_VERSION = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class Ami:
    """One value of InferenceAmiVersion or TransformAmiVersion."""

    name: str
    cuda: tuple[int, int]
    """Newest CUDA its driver runs natively."""
    families: frozenset[str]
    """Instance families it can be asked for on."""


@dataclass(frozen=True)
class HostChoice:
    """What to ask for, and what the user should know about it."""

    ami: str | None
    warning: str | None = None


def _families(text: str) -> frozenset[str]:
    return frozenset(text.split())


# "Best practices to minimize interruptions during GPU driver upgrades"; ProductionVariantInferenceAmiVersion
DEFAULT_CUDA = {
    **dict.fromkeys(("p4d", "p4de", "g4dn", "g5"), (11, 4)),
    **dict.fromkeys(("p5", "g6", "g6e"), (12, 2)),
    **dict.fromkeys(("p5e", "p5en"), (12, 4)),
    **dict.fromkeys(("p6", "g7", "g7e"), (13, 0)),
}
INFERENCE_AMIS = (
    Ami("al2-ami-sagemaker-inference-gpu-2-1", (12, 2), _families("p4d p4de g4dn g5 p5 g6 g6e")),
    Ami("al2-ami-sagemaker-inference-gpu-3-1", (12, 4), _families("p4d p4de p5 g4dn g5 g6 g6e p5e p5en")),
    Ami(
        "al2023-ami-sagemaker-inference-gpu-4-1",
        (13, 0),
        _families("p4d p4de p5 g4dn g5 g6 g6e p5e p5en p6 g7 g7e"),
    ),
)
TRANSFORM_AMIS = (Ami("al2-ami-sagemaker-batch-gpu-535", (12, 2), _families("g4dn g5 g6")),)
TRANSFORM_DEFAULT_CUDA = {"g4dn": (11, 4), "g5": (11, 4), "g6": (12, 2)}


def family(instance_type: str) -> str:
    """`g5` of `ml.g5.xlarge`."""
    return instance_type.split(".")[1] if instance_type.count(".") == 2 else instance_type


def inference_ami(instance_type: str, cuda: str | None) -> HostChoice:
    """InferenceAmiVersion for an endpoint variant."""
    return _choose(INFERENCE_AMIS, DEFAULT_CUDA, family(instance_type), cuda)


def transform_ami(instance_type: str, cuda: str | None) -> HostChoice:
    """TransformAmiVersion for a batch transform job; there is none above CUDA 12.2."""
    return _choose(TRANSFORM_AMIS, TRANSFORM_DEFAULT_CUDA, family(instance_type), cuda)


def _choose(amis: tuple[Ami, ...], defaults: dict[str, tuple[int, int]], wanted: str, cuda: str | None) -> HostChoice:
    match = CUDA_VERSION.match(cuda or "")
    if not match or wanted not in defaults:
        return HostChoice(None)  # a CPU image, or a family without a choice of hosts
    needed = (int(match[1]), int(match[2]))
    if defaults[wanted] >= needed:
        return HostChoice(None)
    fitting = [ami for ami in amis if wanted in ami.families]
    native = [ami for ami in fitting if ami.cuda >= needed]
    if native:
        return HostChoice(min(native, key=lambda ami: ami.cuda).name)
    best = max(fitting, key=lambda ami: ami.cuda, default=None)
    newest = best.cuda if best else defaults[wanted]
    return HostChoice(
        best.name if best and best.cuda > defaults[wanted] else None,
        f"CUDA {cuda} is newer than the {newest[0]}.{newest[1]} that any host of ml.{wanted} runs natively; it works "
        "only through the image's forward-compatibility libraries",
    )


def warnings(config: Config, kind: str) -> list[str]:
    """What the user should know about the hosts a deployment or transform job will run on."""
    cuda = config.images.serving.cuda
    if kind == "transform" and not config.transform.ami:
        choices = [transform_ami(config.transform.instance_type, cuda)]
    elif kind == "deploy" and not (config.endpoint.ami or config.endpoint.serverless):
        types = {variant.instance_type or config.endpoint.instance_type for variant in config.endpoint.variants}
        choices = [inference_ami(name, cuda) for name in sorted(types or {config.endpoint.instance_type})]
    else:
        choices = []
    return [choice.warning for choice in choices if choice.warning]
