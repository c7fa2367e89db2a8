"""Which file of the model directory is the model, and of which format. Looks at names and bytes; imports no torch."""

import os
import zipfile
from collections.abc import Iterator, Mapping
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
LFS_POINTER = b"version https://git-lfs"  # "Git LFS Specification": how each pointer file begins,
POINTER_BYTES = 1024  # and how long it may be
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
        paths = [path for path in _visible(model_dir) if path.suffix in SUFFIXES and path.is_file()]
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


def _visible(directory: Path) -> list[Path]:
    """What somebody put there: macOS packs a `._name` beside each file that has extended attributes."""
    return sorted(path for path in directory.glob("*") if not path.name.startswith((".", "__MACOSX")))


def weights_alone(path: Path) -> ModelFileError:
    """The failure of weights that nothing says the network of."""
    message = f"{path} holds weights, and nothing says of which network"
    return ModelFileError("no-signature", message, misplaced_code(path.parent) or SIGNATURE_HINT)


def misplaced_code(model_dir: Path) -> str:
    """What to do with code that lies where it is not looked for; empty where there is none."""
    code_dir = model_dir / "code"
    if (model_dir / DEFAULT_PROGRAM).is_file():
        return f"{DEFAULT_PROGRAM} lies beside the model: put it into code/, where it is looked for"
    if (archive := model_dir / "code.zip").is_file() or (archive := model_dir / "code.tar.gz").is_file():
        return f"{archive.name} is not unpacked: put its files into code/"
    programs = [path.name for path in _visible(code_dir) if path.suffix == ".py"]
    if programs:
        return (
            f"code/ holds {', '.join(programs[:8])} and no {DEFAULT_PROGRAM}: name the one with your functions so, or "
            f"set SAGEMAKER_PROGRAM={programs[0]}"
        )
    nested = next((path for path in sorted(code_dir.glob(f"*/{DEFAULT_PROGRAM}"))), None)
    return f"{nested.relative_to(model_dir)} lies one folder too deep: put it right into code/" if nested else ""


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
    if head.startswith(LFS_POINTER):
        raise _pointer(path)
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


def _pointer(path: Path) -> ModelFileError:
    return ModelFileError("bad-model", f"{path} is a Git LFS pointer, not the file", "run git lfs pull, then pack it")


def broken_files(model_dir: Path) -> Iterator[ModelFileError]:
    """Files that whoever reads them cannot know to be broken: Git LFS pointers, and files of no bytes but `.py`."""
    for path in sorted(model_dir.rglob("*")):
        if path.is_file() and os.access(path, os.R_OK):
            if path.stat().st_size == 0 and path.suffix != ".py":
                yield ModelFileError("bad-model", f"{path} is empty", "pack it anew")
            elif path.stat().st_size < POINTER_BYTES and path.read_bytes().startswith(LFS_POINTER):
                yield _pointer(path)


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
    there = _visible(model_dir)
    names = [path.name for path in there]
    listing = "it holds " + ", ".join(names[:8]) if names else "it is empty"
    message = f"{model_dir} holds neither a model file ({', '.join(SUFFIXES)}) nor code/{DEFAULT_PROGRAM}: {listing}"
    fix = "put the model's files, or code/inference.py, into model.tar.gz without a folder around them"
    packed = next((name for name in names if name.endswith(ARCHIVES)), None)
    if misplaced := misplaced_code(model_dir):
        fix = misplaced
    elif packed:
        fix = f"{packed} lies inside of model.tar.gz: pack its files, not the archive"
    elif folder := next((path for path in there if path.is_dir() and (len(there) == 1 or _holds_a_model(path))), None):
        fix = f"pack what lies in {folder.name}/, without that folder around it"
    return ModelFileError("no-model", message, fix)


def _holds_a_model(folder: Path) -> bool:
    return any(path.suffix in SUFFIXES or path.name == DEFAULT_PROGRAM for path in folder.rglob("*.*"))
