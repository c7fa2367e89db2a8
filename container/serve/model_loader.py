"""Loads the model file that `model_files` found, with the default steps it is served by."""

import argparse
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from container.model import (
    ModelFormatError,
    ModelSignature,
    build_network,
    load_model,
    read_signature,
    state_dict_of,
)
from container.serve.array_model import ArrayModel
from container.serve.classifier import ImageClassifier
from container.serve.model_files import (
    ALLOW_PICKLE,
    BUILT_IN_WEIGHTS,
    Format,
    ModelFile,
    ModelFileError,
    weights_alone,
)
from container.serve.plan import is_true

GPU_CONSTANT = r'torch\.device\("cuda[^)]*\)'
SAVE_AGAIN = "save the model again, and pack the whole file"


def load_defaults(
    found: ModelFile, device: str, default_accept: str, placeholders: bool, environ: Mapping[str, str]
) -> ImageClassifier | ArrayModel:
    """The model with its default steps: images and labels where there is a signature, else arrays.

    Raises:
        ModelFileError: the file is damaged, may not be unpickled, or lacks a signature.
        ModelFormatError: the signature is none, or the weights do not fit it.
    """
    if found.signature is None:
        module, example = _load_module(found, device, environ)
        return ArrayModel(module, device, default_accept, example, placeholders)
    if found.path.name == BUILT_IN_WEIGHTS:
        network, signature = load_model(found.path.parent, device)
    else:
        signature = read_signature(found.path.parent)
        network = _load_network(found, signature, device, environ)
    return ImageClassifier(network, signature, device, default_accept, placeholders)


def _load_network(found: ModelFile, signature: ModelSignature, device: str, environ: Mapping[str, str]) -> nn.Module:
    """The network that a signature describes: a program, or weights for the architecture it names."""
    if found.format is Format.SAFETENSORS:
        return _with_weights(found.path, load_file(found.path), signature, device)
    if found.format is Format.PICKLED:
        value = _unpickle(found, device, environ)
        if not isinstance(value, nn.Module):
            return _with_weights(found.path, value, signature, device)
        return value.to(device).eval()
    network = _load_module(found, device, environ)[0]
    images = torch.zeros(2, *signature.image_shape, device=device)
    with torch.inference_mode():
        try:
            network(images)
        except (RuntimeError, AssertionError):  # traced or exported for one image, or it does not fit the signature
            return OneByOne(network)
    return network


class OneByOne(nn.Module):
    """A network that takes one image at a time, as one that takes several."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, num_classes]
        return torch.cat([self.network(image[None]) for image in images])


def _with_weights(path: Path, value: Any, signature: ModelSignature, device: str) -> nn.Module:
    network = build_network(signature.architecture, len(signature.classes), signature.image_shape)
    try:
        network.load_state_dict(state_dict_of(value))
    except (RuntimeError, TypeError) as error:
        raise ModelFormatError(f"{path} does not fit {signature.architecture!r} of model.json: {error}") from None
    return network.to(device).eval()


def _load_module(found: ModelFile, device: str, environ: Mapping[str, str]) -> tuple[nn.Module, np.ndarray | None]:
    """A module that can be called, and an input it was exported with, where the file holds one."""
    if found.format is Format.EXPORTED:
        return _load_exported(found.path, device, environ)
    if found.format is Format.TORCHSCRIPT:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; what was saved with it is still read
            try:
                module = torch.jit.load(found.path, map_location=device)
            except RuntimeError as error:
                raise _damaged(found.path, error) from None
        if device == "cpu":
            check_runs_without_gpu(found.path)
        return module, None
    value = _unpickle(found, device, environ)
    if not isinstance(value, nn.Module):
        raise weights_alone(found.path)
    return value, None


def check_runs_without_gpu(path: Path) -> None:
    """Refuse a program that was traced on a GPU and makes tensors there: the device is a constant of its code.

    Code with branches may be for both, and gets the benefit of the doubt.

    Raises:
        ModelFileError: it was.
    """
    with zipfile.ZipFile(path) as archive:
        sources = [archive.read(name).decode(errors="replace") for name in archive.namelist() if name.endswith(".py")]
    found = next((match for source in sources if (match := re.search(GPU_CONSTANT, source))), None)
    if found and not any(re.search(r"^ +if ", source, re.MULTILINE) for source in sources):
        raise ModelFileError(
            "needs-gpu",
            f"{path} was made for a GPU: its code holds {found[0]}",
            "trace or script it on the CPU, its example there, too; or use a GPU instance",
        )


def _load_exported(path: Path, device: str, environ: Mapping[str, str]) -> tuple[nn.Module, np.ndarray | None]:
    if not is_true(environ, ALLOW_PICKLE) and _is_pickled(path):
        raise ModelFileError(
            "pickled-model",
            f"{path} holds pickled Python objects, which run any code when they are loaded",
            f"export it with this image's torch and tensors alone, or trust the file: {ALLOW_PICKLE}=true",
        )
    try:
        program = torch.export.load(path)
    except Exception as error:  # its readers raise whatever the damage leads to
        raise _damaged(path, error) from None
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    inputs = program.example_inputs
    tensors = [tensor for tensor in inputs[0] if isinstance(tensor, torch.Tensor)] if inputs else []
    return program.module(), tensors[0].numpy(force=True) if len(tensors) == 1 else None


def check_takes_one_input(model: Any, path: Path) -> None:
    """Refuse a program that the default steps cannot call: they have one array to give.

    Raises:
        ModelFileError: it takes none, or several.
    """
    if isinstance(model, torch.jit.ScriptModule):
        schema: Any = model.forward.schema  # type: ignore[attr-defined]  # torch declares forward as any callable
        names = [argument.name for argument in schema.arguments[1:] if not argument.has_default_value()]
    elif isinstance(model, torch.fx.GraphModule):
        names = [node.name for node in model.graph.nodes if node.op == "placeholder"]
    else:
        return
    if len(names) != 1:
        raise ModelFileError(
            "bad-model",
            f"{path} takes {len(names)} inputs ({', '.join(names)}), and a request is one array",
            "write predict_fn in code/inference.py, or save a module that takes one tensor",
        )


def _is_pickled(path: Path) -> bool:
    """Whether `torch.export.load` would unpickle objects: the old format always, the new one its constants.

    Source: torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py of torch 2.14.
    """
    names = zipfile.ZipFile(path).namelist()
    return any(
        name.endswith("serialized_exported_program.json")
        or "constants/opaque_obj" in name
        or "constants/custom_obj" in name
        for name in names
    )


def _unpickle(found: ModelFile, device: str, environ: Mapping[str, str]) -> Any:
    """What torch.save wrote: tensors in containers; anything else only where the switch allows it."""
    trusted = is_true(environ, ALLOW_PICKLE)
    code = str(found.path.parent / "code")
    if trusted and Path(code).is_dir() and code not in sys.path:
        sys.path.insert(0, code)  # a pickled module finds its class there
    try:
        # Reference scripts keep their arguments beside the weights: a bag of attributes, of which nothing runs.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(found.path, map_location=device, weights_only=not trusted)
    except (RuntimeError, EOFError) as error:
        raise _damaged(found.path, error) from None
    except Exception as error:
        if trusted:
            raise
        raise ModelFileError(
            "pickled-model",
            f"{found.path} is a pickled object ({_refused(error)}), and unpickling one runs any code it holds",
            "save the model with torch.export or TorchScript, or its state_dict() with a model.json; or, to trust the "
            f"file, set {ALLOW_PICKLE}=true and put its classes into code/",
        ) from None


def _refused(error: Exception) -> str:
    """What the weights-only loader met, of a message that explains itself for twenty lines."""
    words = str(error).partition("GLOBAL ")[2].split()
    return words[0] if words else type(error).__name__


def _damaged(path: Path, error: Exception) -> ModelFileError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return ModelFileError("bad-model", f"{path} cannot be read: {type(error).__name__}: {reason}", SAVE_AGAIN)
