"""Which file of the model directory is the model, and of which format. Looks at names and bytes; imports no torch."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from container.serve.handlers import DEFAULT_PROGRAM
from container.serve.plan import is_true

SIGNATURE_FILE = "model.json"  # container.model's, as the next: that module imports torch
BUILT_IN_WEIGHTS = "model.safetensors"
MODEL_FILE = "SLIPWAY_MODEL_FILE"
ALLOW_PICKLE = "SLIPWAY_ALLOW_PICKLE"
SUFFIXES = (".pt", ".pth", ".pt2", ".ts", ".bin", ".ckpt", ".safetensors")
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
SIGNATURE_HINT = (
    'add model.json beside it, such as {"architecture": "resnet18", "classes": ["cat", "dog"], "height": 224, '
    '"width": 224}, or write model_fn in code/inference.py, or save the model with torch.export or TorchScript'
)


class ModelFileError(Exception):
    """What lies in the model directory cannot be served as it is."""

    def __init__(self, cause: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.cause = cause
        """The failure's class, as `failures` prints it."""
        self.fix = fix


class Format(Enum):
    """What a model file holds, in the words of the log."""

    TORCHSCRIPT = "TorchScript"
    EXPORTED = "torch.export program"
    PICKLED = "torch.save file"
    """Of a state dict or of a whole module: that shows when it is loaded."""
    SAFETENSORS = "safetensors"


@dataclass(frozen=True)
class ModelFile:
    """The model found in a model directory."""

    path: Path
    format: Format
    signature: Path | None
    """`model.json` beside it: images in, class probabilities out."""

    def is_complete(self, environ: Mapping[str, str]) -> bool:
        """Whether it certainly makes a model: weights alone say nothing of their network."""
        is_program = self.format in (Format.TORCHSCRIPT, Format.EXPORTED)
        return is_program or self.signature is not None or is_true(environ, ALLOW_PICKLE)


def find_model_file(model_dir: Path, environ: Mapping[str, str]) -> ModelFile | None:
    """The model in `model_dir`: the one `SLIPWAY_MODEL_FILE` names, the built-in program's, or the only one there.

    Returns:
        None where nothing there looks like a model.

    Raises:
        ModelFileError: several could be meant, or the one there cannot be served without more.
        PermissionError: this user may not read it.
    """
    chosen = environ.get(MODEL_FILE)
    signature = model_dir / SIGNATURE_FILE
    if chosen:
        paths = [model_dir / chosen]
        if not paths[0].is_file():
            raise ModelFileError("missing-file", f"{MODEL_FILE}={chosen!r} is not in {model_dir}", _put_in(model_dir))
    elif signature.is_file() and (model_dir / BUILT_IN_WEIGHTS).is_file():
        paths = [model_dir / BUILT_IN_WEIGHTS]
    else:
        paths = sorted(path for path in model_dir.glob("*.*") if path.suffix in SUFFIXES and path.is_file())
    if len(paths) > 1:
        raise ModelFileError(
            "several-models",
            f"{model_dir} holds {len(paths)} files that could be the model: {', '.join(path.name for path in paths)}",
            f"set {MODEL_FILE} to the one to serve, such as {MODEL_FILE}={paths[0].name}",
        )
    if not paths:
        if signature.is_file():
            raise ModelFileError(
                "missing-file", f"{signature} describes weights that are not there", _put_in(model_dir)
            )
        return None
    found = ModelFile(paths[0], identify(paths[0]), signature if signature.is_file() else None)
    if found.format is Format.SAFETENSORS and found.signature is None:
        raise weights_alone(found.path)
    return found


def weights_alone(path: Path) -> ModelFileError:
    """The failure of weights that nothing says the network of."""
    return ModelFileError("no-signature", f"{path} holds weights, and nothing says of which network", SIGNATURE_HINT)


def _put_in(model_dir: Path) -> str:
    return f"pack it into model.tar.gz, whose files become those of {model_dir}"


def identify(path: Path) -> Format:
    """The format of a model file, by its content.

    Raises:
        ModelFileError: none that can be served, or damaged.
        PermissionError: this user may not read it.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ModelFileError(
            "bad-model", f"{path} is a Git LFS pointer, not the model", "run git lfs pull, then pack it"
        )
    if path.suffix == ".safetensors":
        return Format.SAFETENSORS
    if head.startswith(b"PK"):
        return _identify_archive(path)
    if head.startswith(b"\x80"):  # torch.save before 1.6
        return Format.PICKLED
    raise ModelFileError(
        "bad-model",
        f"{path} ({path.stat().st_size} bytes) is neither TorchScript, a torch.export program nor a torch.save file",
        f"pack the model anew, or set {MODEL_FILE} to the file that is the model",
    )


def _identify_archive(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()} | set(archive.namelist())
    except zipfile.BadZipFile as error:
        raise ModelFileError("bad-model", f"{path} is damaged: {error}", "pack it anew: it was cut off") from None
    if "serialized_exported_program.json" in names or any(
        name.startswith("models/") and name.endswith(".json") for name in names
    ):
        return Format.EXPORTED
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return Format.TORCHSCRIPT
    if "data.pkl" in names:
        return Format.PICKLED
    raise ModelFileError(
        "bad-model",
        f"{path} is an archive without a model that this server reads",
        "save it with torch.export.save, torch.jit.save or safetensors; packages of compiled code are not served",
    )


def nothing_to_serve(model_dir: Path) -> ModelFileError:
    """The failure of a model directory in which there is neither a model nor code; says what is there instead."""
    names = sorted(path.name for path in model_dir.iterdir()) if model_dir.is_dir() else []
    listing = "it holds " + ", ".join(names[:8]) if names else "it is empty"
    message = f"{model_dir} holds neither a model file ({', '.join(SUFFIXES)}) nor code/inference.py: {listing}"
    fix = "put the model's files, or code/inference.py, into model.tar.gz without a folder around them"
    packed = next((name for name in names if name.endswith(ARCHIVES)), None)
    if packed:
        fix = f"{packed} lies inside of model.tar.gz: pack its files, not the archive"
    elif DEFAULT_PROGRAM in names:
        fix = f"put {DEFAULT_PROGRAM} into code/, where it is looked for"
    elif len(names) == 1 and (model_dir / names[0]).is_dir():
        fix = f"pack what lies in {names[0]}/, without that folder around it"
    return ModelFileError("no-model", message, fix)
