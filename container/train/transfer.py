"""Where training starts: at weights of channel `weights`, at an earlier artifact of channel `model`, or anew."""

import argparse
import dataclasses
import logging
import pickle
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from container.model import ModelSignature, architectures, load_model, state_dict_of
from container.train.data import DEFAULT_PIXELS, DataError
from container.train.environment import TrainingEnvironment
from container.train.files import list_files

logger = logging.getLogger(__name__)

MODEL_CHANNEL = "model"  # an earlier artifact of the built-in program
WEIGHTS_CHANNEL = "weights"  # a checkpoint file of anybody's training
SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin"})
NAMED = 6  # names of tensors in a log line

# What torchvision's published weights were trained on: https://pytorch.org/vision/stable/models.html
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Start:
    """Trained weights, and what they say about network and images."""

    source: str
    """For people."""
    tensors: dict[str, torch.Tensor]
    architecture: str
    channels: int
    height: int = 0
    """0: the images decide."""
    width: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def adapt(self, signature: ModelSignature, image_size: int) -> ModelSignature:
        """The signature with the input that the weights were trained on; `image_size` is the job's own wish or 0."""
        changes: dict[str, Any] = {"channels": self.channels}
        if self.height and not image_size:
            changes |= {"height": self.height, "width": self.width}
        if self.mean:
            changes |= {"mean": self.mean, "std": self.std}
        return dataclasses.replace(signature, **changes)

    def load_into(self, network: nn.Module) -> str:
        """Copy the tensors that fit by name and shape; the others, such as another number of classes', start anew.

        Returns:
            What was taken and what not, for the log.

        Raises:
            DataError: nothing fits.
        """
        wanted = network.state_dict()
        fitting = {
            name: tensor
            for name, tensor in self.tensors.items()
            if name in wanted and wanted[name].shape == tensor.shape
        }
        if not fitting:
            raise DataError(
                f"no tensor of {self.source} fits the network: it has {_names(self.tensors)}; the network has "
                f"{_names(wanted)}. Set the hyperparameter `model` to the network that the weights belong to"
            )
        network.load_state_dict(fitting, strict=False)
        new = [
            f"{name} {_change(self.tensors.get(name), tensor)}"
            for name, tensor in wanted.items()
            if name not in fitting
        ]
        unused = [name for name in self.tensors if name not in wanted]
        parts = [f"{len(fitting)} of {len(wanted)} tensors come from {self.source}"]
        parts += [f"new: {_names(new)}"] if new else []
        parts += [f"not used: {_names(unused)}"] if unused else []
        return "; ".join(parts)


def _change(given: torch.Tensor | None, wanted: torch.Tensor) -> str:
    return f"{list(wanted.shape)}" + (f" for {list(given.shape)}" if given is not None else "")


def _names(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def find_start(environment: TrainingEnvironment, model: str) -> Start | None:
    """What the job's channels give to start from; None to start anew.

    Args:
        environment: of the job.
        model: its hyperparameter, "" where unset.

    Raises:
        DataError: both channels, no or several files, no state dict in it, or nothing that names its network.
        ModelFormatError: channel `model` has no artifact of the built-in program.
    """
    given = [name for name in (MODEL_CHANNEL, WEIGHTS_CHANNEL) if name in environment.channels]
    if len(given) > 1:
        raise DataError(f"channels {MODEL_CHANNEL!r} and {WEIGHTS_CHANNEL!r} both say where to start: give one of them")
    if not given:
        return None
    channel = environment.opt_ml.channel(given[0])
    return read_artifact(channel) if given[0] == MODEL_CHANNEL else read_weights(channel, model)


def read_artifact(channel: Path) -> Start:
    """An earlier job's `model.tar.gz`, as SageMaker writes it, or its files.

    Raises:
        ModelFormatError: no artifact of the built-in program.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        directory = channel
        if (channel / "model.tar.gz").is_file():
            directory = Path(unpacked)
            with tarfile.open(channel / "model.tar.gz") as archive:
                archive.extractall(directory, filter="data")
        network, signature = load_model(directory)
    return Start(
        source=f"channel {MODEL_CHANNEL!r}",
        tensors=network.state_dict(),
        architecture=signature.architecture,
        channels=signature.channels,
        height=signature.height,
        width=signature.width,
        mean=signature.mean,
        std=signature.std,
    )


def read_weights(channel: Path, model: str) -> Start:
    """A state dict, or a checkpoint that contains one, from safetensors or from `torch.save`.

    Raises:
        DataError: no or several files, no state dict in it, or nothing that names its network.
    """
    files = list_files(channel, SUFFIXES) if channel.is_dir() else []
    if len(files) != 1:
        found = _names(path.name for path in files) or "none"
        raise DataError(f"channel {WEIGHTS_CHANNEL!r} needs one file ({', '.join(sorted(SUFFIXES))}); found: {found}")
    path = files[0]
    # torchvision's files are named resnet50-11ad3fa6.pth
    architecture = model or next((name for name in (path.stem, path.stem.split("-")[0]) if name in architectures()), "")
    if not architecture:
        raise DataError(
            f"nothing says which network {path.name} belongs to: set the hyperparameter `model`, as in resnet50"
        )
    tensors = _state_dict(path)
    channels = next((tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 4), 3)
    published = architecture != "convnet"  # our own network has no usual size
    return Start(
        source=f"channel {WEIGHTS_CHANNEL!r} ({path.name})",
        tensors=tensors,
        architecture=architecture,
        channels=channels,
        height=DEFAULT_PIXELS if published else 0,
        width=DEFAULT_PIXELS if published else 0,
        mean=IMAGENET_MEAN if published and channels == 3 else (),
        std=IMAGENET_STD if published and channels == 3 else (),
    )


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors by the network's own names: out of wrappers such as DDP's `module.`.

    Raises:
        DataError: it cannot be read, or holds no state dict.
    """
    try:
        value = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; save the state dict alone: "
            "torch.save(network.state_dict(), ...)"
        ) from error
    tensors = state_dict_of(value)
    if not tensors:
        raise DataError(f"{path} holds no state dict: save it with torch.save(network.state_dict(), ...)")
    return tensors


def _unpickle(path: Path) -> Any:
    # torchvision's reference scripts keep their arguments beside the weights: a bag of attributes, nothing runs
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)
