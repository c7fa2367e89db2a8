"""The built-in program's hyperparameters: typed, nested, with defaults that suit images nobody has seen before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from container.train.health import RULES
from container.train.hyperparameters import HyperparameterError, build_config

ALGORITHMS = ("adamw", "sgd")
PARALLEL = ("ddp", "fsdp")
AMP_DTYPES = ("", "bfloat16", "float16")


def _at_least(low: float, section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value < low:
            rule = "must not be negative" if low == 0 else f"must be at least {low:g}"
            raise HyperparameterError(f"{name}={value} {rule}")


def _one_of(choices: tuple[str, ...], section: object, name: str) -> None:
    value = getattr(section, name)
    if value not in choices:
        raise HyperparameterError(f"{name}={value!r} is none of {', '.join(choice or 'empty' for choice in choices)}")


@dataclass(frozen=True)
class Optimizer:
    """How weights change."""

    algorithm: str = "adamw"
    """`adamw`, or `sgd` with Nesterov momentum."""
    learning_rate: float = 0.0
    """Peak, after warm-up; by default by algorithm, network and start, in proportion to the batch."""
    weight_decay: float = -1.0
    """Not on biases and norms; by default 0.05, for `sgd` 0.0001."""
    momentum: float = 0.9
    """Of `sgd`."""
    warmup_epochs: float = 1.0
    clip_norm: float = 0.0
    """Longest gradient; 0: any."""
    fused: bool = True
    """One kernel for all weights."""

    def __post_init__(self) -> None:
        _one_of(ALGORITHMS, self, "algorithm")
        _at_least(0, self, "learning_rate", "momentum", "warmup_epochs", "clip_norm")


@dataclass(frozen=True)
class Loss:
    """What is wrong with an answer."""

    label_smoothing: float = 0.05
    class_weights: str | dict[str, float] = ""
    """`balanced`: rare classes count as much as frequent ones together; or class name -> weight, 1 where none."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise HyperparameterError(f"label_smoothing={self.label_smoothing} must be in 0..1, without 1")
        if isinstance(self.class_weights, dict):
            negative = {name: weight for name, weight in self.class_weights.items() if not weight >= 0}
            if negative:
                raise HyperparameterError(f"class_weights={negative} must not be negative")
        else:
            _one_of(("", "balanced"), self, "class_weights")


@dataclass(frozen=True)
class Augmentation:
    """How training images differ from epoch to epoch."""

    augment: bool = True
    """Small random shifts, turns and zooms; above 64 pixels mirror images, too."""
    mixup: float = 0.0
    """Blend pairs of images: alpha of the Beta distribution; 0: never."""
    cutmix: float = 0.0
    """Paste a part of another image: alpha of the Beta distribution; with mixup each batch has one of the two."""

    def __post_init__(self) -> None:
        _at_least(0, self, "mixup", "cutmix")


@dataclass(frozen=True)
class Compute:
    """How the machine does it; only rounding differs."""

    amp: bool = True
    """Automatic mixed precision, on GPUs."""
    amp_dtype: str = ""
    """`bfloat16` or `float16`; by default bfloat16 where the GPU has it."""
    channels_last: bool = True
    """Images' memory layout that convolutions on GPUs prefer."""
    compile: bool = False
    """torch.compile: minutes at the start, faster steps afterwards; needs a C compiler."""
    accumulation_steps: int = 1
    """Parts a rank's share of the batch is computed in, one after the other: memory for time."""
    parallel: str = "ddp"
    """`ddp`, or `fsdp`: weights, gradients and the optimizer's state are dealt out over the ranks."""
    num_workers: int = -1
    """Decoding processes per rank for data too large for memory; by default the rank's share of the cores."""

    def __post_init__(self) -> None:
        _one_of(PARALLEL, self, "parallel")
        _one_of(AMP_DTYPES, self, "amp_dtype")
        _at_least(1, self, "accumulation_steps")


@dataclass(frozen=True)
class Settings:
    """What a job may set. Empty, 0 or -1 where the data decides."""

    model: str = ""
    """`convnet` or a torchvision classifier; by default `convnet` up to 64 pixels, else `resnet18`."""
    epochs: int = 0
    """By default 15; up to 60 where that would be fewer than 300 steps."""
    batch_size: int = 0
    """Images per optimizer step over all ranks together; by default 64, fewer below 640 images."""
    batch_size_per_rank: int = 0
    """In place of `batch_size`: the batch and the learning rate grow with the number of ranks."""
    image_size: int = 0
    """Height and width; by default the images' own when they agree and are at most 256, else near their median."""
    seed: int = 0
    ema_decay: float = 0.0
    """The model is a moving average of the weights; 0: the last weights themselves."""
    patience: int = 0
    """Epochs without a better validation accuracy after which training ends; 0: never."""
    health: str = ""
    """Health rules other than by default, as in `exploding=stop,starving=off`; see container/train/health.py."""
    stall_seconds: float = 600.0
    """Without a step ending, after which the rule `stalled` speaks."""
    checkpoint_seconds: float = 300.0
    """Within an epoch; after each epoch there is one anyway. 0: after every step."""
    keep_checkpoints: int = 2
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    augmentation: Augmentation = Augmentation()
    compute: Compute = Compute()

    def __post_init__(self) -> None:
        _at_least(1, self, "keep_checkpoints", "stall_seconds")
        _at_least(0, self, "epochs", "batch_size", "batch_size_per_rank", "image_size", "patience")
        _at_least(0, self, "checkpoint_seconds")
        if not 0 <= self.ema_decay < 1:
            raise HyperparameterError(f"ema_decay={self.ema_decay} must be in 0..1, without 1")
        for rule, action in self.health_rules.items():
            if rule not in RULES or action not in ("warn", "stop", "off"):
                raise HyperparameterError(f"health={self.health!r}: rules are {', '.join(RULES)}; =warn, =stop or =off")

    @property
    def health_rules(self) -> dict[str, str]:
        """Rule -> action, of those that `health` names."""
        pairs = [entry.partition("=") for entry in self.health.split(",") if entry.strip()]
        return {rule.strip(): action.strip() for rule, _, action in pairs}

    @classmethod
    def from_hyperparameters(cls, hyperparameters: Mapping[str, Any]) -> "Settings":
        """Settings from decoded hyperparameters; see `build_config` for how names are spelled.

        Raises:
            HyperparameterError: an unknown name, or a value of another type or out of range.
        """
        settings = build_config(cls, hyperparameters)
        if settings.batch_size and settings.batch_size_per_rank:
            raise HyperparameterError("batch_size counts over all ranks, batch_size_per_rank for each: set one of them")
        return settings
