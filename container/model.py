"""The artifact's format: the one thing training and serving share.

An artifact is a directory (the root of `model.tar.gz`) of two files: `model.safetensors`, the weights, and
`model.json`, the signature that says which network they belong to and how an image becomes its input. Preparing an
image is defined here, once, so that an endpoint answers exactly what the training job measured.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

try:
    import torchvision
except ModuleNotFoundError:  # a small image for the CPU may do without: it knows `convnet` alone
    torchvision = None

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
SIGNATURE_FILE = "model.json"
FORMAT = 1
# Under which key training scripts keep a state dict in a checkpoint, an averaged one first.
CHECKPOINT_KEYS = ("model_ema", "state_dict", "model_state_dict", "model", "network")
# What DDP or AveragedModel, torch.compile and Lightning put before each name.
NAME_PREFIXES = ("module.", "_orig_mod.", "model.")
# What a signature written by hand may leave out: colour images, on the scale of torchvision's published weights.
OPTIONAL_FIELDS = {
    "format": FORMAT,
    "architecture": "",
    "channels": 3,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


class ModelFormatError(Exception):
    """The model directory does not hold an artifact this code can load."""


@dataclass(frozen=True)
class ModelSignature:
    """What a caller and a server must know about the weights beside it."""

    architecture: str
    """`convnet`, or a torchvision classifier's name such as `resnet18`; empty beside a program that holds its own."""
    classes: tuple[str, ...]
    """Class names, in the order of the network's outputs."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    height: int
    width: int
    mean: tuple[float, ...]
    """Per channel, on the 0..1 scale."""
    std: tuple[float, ...]
    torch_version: str = ""
    torchvision_version: str = ""
    format: int = FORMAT

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        return (self.channels, self.height, self.width)


class ConvNet(nn.Module):
    """A small classifier for tiny images (8 to 64 pixels), where a ResNet's first strides would leave one pixel.

    Group, not batch, normalisation and no dropout: an image's output and gradient depend on nothing but that image, so
    that a batch split over any number of ranks gives the same step.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv_block(channels, 32), *_conv_block(32, 64), nn.MaxPool2d(2), *_conv_block(64, 128)
        )
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128 * 4, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, num_classes]
        return self.classifier(self.features(images))


def _conv_block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU(inplace=True)]


def architectures() -> list[str]:
    """Names `build_network` takes: `convnet` and every torchvision classifier."""
    return ["convnet", *(torchvision.models.list_models(module=torchvision.models) if torchvision else ())]


def build_network(architecture: str, num_classes: int, image_shape: Sequence[int]) -> nn.Module:
    """An untrained classifier.

    Args:
        architecture: one of `architectures()`.
        num_classes: length of the output.
        image_shape: [C, H, W] of one input image.

    Raises:
        ModelFormatError: no architecture of that name.
    """
    channels, height, _ = image_shape
    if architecture == "convnet":
        return ConvNet(channels, num_classes)
    if architecture not in architectures():
        known = "a torchvision classifier" if torchvision else "build the image with torchvision"
        raise ModelFormatError(f"unknown architecture {architecture!r}; use 'convnet' or {known}")
    extra: dict[str, object] = {}
    if architecture.startswith("vit_"):
        extra["image_size"] = height  # its position embedding has one entry per patch
    if architecture in ("googlenet", "inception_v3"):
        extra |= {"aux_logits": False, "init_weights": True}  # one output in training, as every other classifier has
    network = torchvision.models.get_model(architecture, weights=None, num_classes=num_classes, **extra)
    if channels != 3:
        _replace_first_convolution(network, channels)
    return network


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    name, first = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    parent = network.get_submodule(name.rpartition(".")[0])
    replacement = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]  # torch types these tuples as tuple[int, ...]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    setattr(parent, name.rpartition(".")[2], replacement)


def resize_image(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[..., C, H, W] of any dtype to the given size; untouched where it already has it."""
    if image.shape[-2:] == (height, width):
        return image
    pixels = image.reshape(-1, *image.shape[-3:])
    if 1 in image.shape[-2:]:  # torch 2.14 goes by the stride there, which may be anything, and reads foreign memory
        pixels = pixels.clone(memory_format=torch.contiguous_format)
    native = pixels.is_floating_point() or (pixels.dtype == torch.uint8 and pixels.device.type == "cpu")
    resized = nn.functional.interpolate(
        pixels if native else pixels.float(), (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    if not native:
        resized = resized.round().to(image.dtype)
    return resized.reshape(*image.shape[:-2], height, width)


def normalize(images: torch.Tensor, signature: ModelSignature) -> torch.Tensor:
    """Pixel values as the network's input.

    Args:
        images: uint8 or float [B, C, H, W], 0..255.
        signature: whose mean and std apply.

    Returns:
        float32 [B, C, H, W] on the images' device.
    """
    mean = torch.tensor(signature.mean, device=images.device).view(-1, 1, 1) * 255.0
    std = torch.tensor(signature.std, device=images.device).view(-1, 1, 1) * 255.0
    return (images.float() - mean) / std


def save_model(directory: Path, network: nn.Module, signature: ModelSignature) -> None:
    """Write the artifact; a crash in between leaves what stood there before, never half a file.

    Args:
        directory: created when missing.
        network: the bare module (no DDP or compile wrapper); moved to nothing, read as it is.
        signature: written last, so that a directory with a signature is complete.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    temporary = directory / f".{WEIGHTS_FILE}.{os.getpid()}"
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors gives it to its owner alone; a serverless endpoint reads it as somebody else
    temporary.replace(directory / WEIGHTS_FILE)
    stamped = asdict(signature) | {"torch_version": torch.__version__}
    if torchvision:
        stamped["torchvision_version"] = torchvision.__version__
    temporary = directory / f".{SIGNATURE_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(stamped, indent=1))
    temporary.replace(directory / SIGNATURE_FILE)


def read_signature(directory: Path) -> ModelSignature:
    """The signature of the artifact in `directory`.

    Raises:
        ModelFormatError: there is none, or it is not of this format.
    """
    path = directory / SIGNATURE_FILE
    if not path.is_file():
        raise ModelFormatError(f"{path} is missing: not an artifact of the built-in program")
    try:
        written = json.loads(path.read_text())
        fields = OPTIONAL_FIELDS | written
        if fields["format"] != FORMAT:
            raise ModelFormatError(f"{path} has format {fields['format']!r}, this image reads format {FORMAT}")
        lists = {name: tuple(fields[name]) for name in ("classes", "mean", "std")}
        if not len(lists["mean"]) == len(lists["std"]) == fields["channels"]:
            raise ModelFormatError(f"{path}: mean and std need a number for each of {fields['channels']!r} channels")
        if not written.keys() >= {"mean", "std"}:  # weights trained on another scale give confident nonsense
            logger.warning(
                "%s names no mean and std: pixels are scaled to mean=%s std=%s", path, fields["mean"], fields["std"]
            )
        return ModelSignature(**(fields | lists))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFormatError(f"{path} is not a model signature: {type(error).__name__}: {error}") from error


def load_model(directory: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, ModelSignature]:
    """The network of the artifact in `directory`, in eval mode on `device`, and its signature.

    Raises:
        ModelFormatError: a file is missing or damaged, or the weights do not fit the signature.
        PermissionError: this user may not read the weights.
    """
    signature = read_signature(directory)
    network = build_network(signature.architecture, len(signature.classes), signature.image_shape)
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise ModelFormatError(f"{path} is missing beside {SIGNATURE_FILE}")
    path.open("rb").close()  # safetensors calls a file that it may not read a missing one
    try:
        network.load_state_dict(load_file(path))
    except Exception as error:  # safetensors' and torch's own errors share no base class
        raise ModelFormatError(f"{path} does not fit its signature: {type(error).__name__}: {error}") from error
    return network.to(device).eval(), signature


def state_dict_of(value: Any) -> dict[str, torch.Tensor]:
    """The tensors of a state dict by the network's own names; empty where there are none.

    Args:
        value: what a file held: a state dict, or a checkpoint around one, with whatever wrappers' prefixes.
    """
    while isinstance(value, dict):
        inner = next((value[key] for key in CHECKPOINT_KEYS if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        value = inner
    tensors = {
        name: tensor
        for name, tensor in (value.items() if isinstance(value, dict) else ())
        if isinstance(tensor, torch.Tensor) and name != "n_averaged"  # AveragedModel's own count
    }
    for prefix in NAME_PREFIXES:
        if tensors and all(str(name).startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
