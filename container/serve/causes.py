"""What kind of failure an exception of a start is, and what to do about it: by its class, its words, and the files."""

import errno
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from container.serve.model_files import ModelFileError, broken_files

CAUSES = {
    "out-of-memory": "use an instance with more memory (of the GPU, where CUDA is named), or fewer processes: "
    "SAGEMAKER_MODEL_SERVER_WORKERS=1",
    "syntax-error": "correct the file",
    "missing-dependency": "bake the package into the image, or ask for it in code/requirements.txt; a module of yours "
    "belongs into code/",
    "wrong-version": "the package is there and another version is needed: ask for it in code/requirements.txt",
    "permission": "the file must be readable by the user the container runs as",
    "read-only": "the model directory and the image are read-only: write below /tmp",
    "disk-full": "make room: less in model.tar.gz, or an instance with a larger volume",
    "missing-file": "put the file into model.tar.gz",
    "bad-model": "pack exactly what the training job left in its model directory",
    "wrong-architecture": "the weights belong to another network than the code or model.json builds",
    "pickled-model": "save the model's state_dict() instead, or trust the file and load it with weights_only=False",
    "missing-class": "the file was pickled where the class was defined in another module: put that module into code/",
    "bad-handler": "correct code/inference.py, or the variable that names it",
    "bad-setting": "correct the variable in the model's Environment",
    "requirements": "bake the packages into the image, or ship their wheels in code/wheels of model.tar.gz",
    "port-taken": "set SAGEMAKER_BIND_TO_PORT to a free port, or end the process that holds this one",
    "no-network": "the container reaches no such host: pack what the code downloads into model.tar.gz",
    "aws-access": "the model's execution role must allow it, and under network isolation there is no role: pack what "
    "the code fetches into model.tar.gz",
    "no-cuda-driver": "on a GPU instance choose one whose driver runs this image's CUDA (InferenceAmiVersion); on a "
    "CPU instance use context.device in place of 'cuda', as map_location, too",
    "needs-gpu": "the model was saved on a GPU: load it with map_location=context.device",
    "exit": "code that is imported or loads a model must not call sys.exit",
    "warm-up": "the model does not answer its own example: the log has the reason above",
    "handler-error": "the code raised while it was loaded; run it with the same model directory",
}
"""Class of a failure -> what to do about it, unless a rule below knows better."""

# By the exception's class name (its own and its bases'), because torch is not imported to look at an exception.
CLASSES = {
    "OutOfMemoryError": "out-of-memory",
    "MemoryError": "out-of-memory",
    "SyntaxError": "syntax-error",
    "ModuleNotFoundError": "missing-dependency",
    "ImportError": "wrong-version",
    "PermissionError": "permission",
    "FileNotFoundError": "missing-file",
    "ModelFormatError": "bad-model",
    "SafetensorError": "bad-model",
    "BadZipFile": "bad-model",
    "EOFError": "bad-model",
    "SystemExit": "exit",
    "gaierror": "no-network",
    "URLError": "no-network",
    "ConnectionError": "no-network",
    "ConnectError": "no-network",
    "ConnectTimeout": "no-network",
    "LocalEntryNotFoundError": "no-network",
    "NoCredentialsError": "aws-access",
    "NoRegionError": "aws-access",
}
# Modules that users miss most -> what pip calls their packages.
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "sagemaker_huggingface_inference_toolkit": "sagemaker-huggingface-inference-toolkit",
    "sagemaker_inference": "sagemaker-inference",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
OURS = {
    "HandlerError": "bad-handler",
    "PlanError": "bad-setting",
    "CudaError": "no-cuda-driver",
    "RequirementsError": "requirements",
    "PortTaken": "port-taken",
}
ERRNOS = {errno.EROFS: "read-only", errno.ENOSPC: "disk-full"}


@dataclass(frozen=True)
class Rule:
    """What the words of a message say, before the class: torch raises RuntimeError for nearly everything."""

    pattern: str
    cause: str
    fix: str = ""
    """In place of the usual one; `{0}` is the pattern's first group."""


IN_PACKAGES = r"(?:site|dist)-packages"
ANOTHER_TORCH = (
    "the file needs another version of torch than this image's: save the model's state_dict() with that one, or use an "
    "image with it"
)
RULES = (
    Rule(r"CUDA driver version is insufficient|Found no NVIDIA driver|not compiled with CUDA", "no-cuda-driver"),
    Rule(r"Attempting to deserialize object on a CUDA device", "needs-gpu"),
    Rule(r"(?i)out of memory|can't allocate memory", "out-of-memory"),
    Rule(r"GLOBAL torch\._\w+\.\w+|Attempted to read a PyTorch file with version", "wrong-version", ANOTHER_TORCH),
    Rule(r"Unsupported operand \d|invalid load key|pickle data was truncated|Ran out of input", "bad-model"),
    Rule(r"Weights only load failed", "pickled-model"),
    Rule(
        r"Can't get attribute '(\w+)' on <module '(?:container\.)?__main__'",
        "missing-class",
        "the file was pickled by the script that defined the class, as __main__.{0}: save the state_dict() instead, or "
        "define {0} in inference.py, followed by `import __main__; __main__.{0} = {0}`",
    ),
    Rule(r"Can't get attribute .* on <module 'torch\.", "wrong-version", ANOTHER_TORCH),
    Rule(rf"Can't get attribute .* on <module .*{IN_PACKAGES}/", "wrong-version"),
    Rule(r"Can't get attribute .* on <module", "missing-class"),
    Rule(r"size changed, may indicate binary incompatibility|pickle has an incompatible dtype", "wrong-version"),
    Rule(r"PytorchStreamReader failed", "bad-model"),
    Rule(r"build the image with torchvision", "missing-dependency", "this image has no torchvision: build one with it"),
    Rule(r"unknown architecture", "wrong-architecture", "correct `architecture` in model.json"),
    Rule(r"the warm-up request was answered", "warm-up"),
    Rule(r"attempted relative import", "bad-handler"),
    Rule(
        r"signal only works in main thread",
        "handler-error",
        "your functions run in threads, and SIGTERM is the server's business: leave signals alone",
    ),
    Rule(r"name resolution|Name or service not known|Network is unreachable|couldn't connect to", "no-network"),
    Rule(r"An error occurred \((?:AccessDenied\w*|403|UnauthorizedOperation)\) when calling", "aws-access"),
)


def classify(error: BaseException, model_dir: Path | None = None) -> tuple[str, str]:
    """The cause's class and what to do.

    Args:
        error: whatever ended a load.
        model_dir: where the model lies; its files are looked at where they may be the reason.
    """
    if isinstance(error, ModelFileError):
        return error.cause, error.fix
    cause, fix = next(filter(None, (look(error) for look in LOOKS)), None) or _by_class(error)
    if cause == "missing-file" and isinstance(error, FileNotFoundError):
        return cause, _where_the_file_is(error, model_dir) or fix
    if cause in ("bad-model", "pickled-model", "handler-error") and model_dir is not None:
        return next(((broken.cause, f"{broken}: {broken.fix}") for broken in broken_files(model_dir)), (cause, fix))
    return cause, fix


def text_of(error: BaseException) -> str:
    """What an exception says, without what torch adds for those who may unpickle whatever comes."""
    try:
        text = str(error)
    except Exception:  # user code's own class
        return "(an error that cannot be written as text)"
    if "Weights only load failed" in text:
        reason = text.partition("WeightsUnpickler error: ")[2].strip().partition("\n")[0].partition(" Please use")[0]
        return f"Weights only load failed: {reason}"
    return text


def _by_words(error: BaseException) -> tuple[str, str] | None:
    text = text_of(error)
    for rule in RULES:
        if match := re.search(rule.pattern, text):
            return rule.cause, rule.fix.format(*match.groups()) or CAUSES[rule.cause]
    return None


def _by_class(error: BaseException) -> tuple[str, str]:
    if isinstance(error, OSError) and error.errno in ERRNOS:
        cause = ERRNOS[error.errno]
    else:
        names = (kind.__name__ for kind in type(error).__mro__)
        cause = next((CLASSES[name] for name in names if name in CLASSES), "handler-error")
    return cause, CAUSES[cause]


def _state_dict(error: BaseException) -> tuple[str, str] | None:
    """Weights that do not fit, and why not, where their names tell."""
    text = text_of(error)
    if "load_state_dict" not in text and "Error(s) in loading state_dict" not in text:
        return None
    missing, unexpected = _names(text, "Missing"), _names(text, "Unexpected")
    wrapper = next((name for name in unexpected if name in ("state_dict", "model_state_dict", "model")), None)
    if wrapper:
        fix = f"the file holds a checkpoint around the weights: load the part {wrapper!r} of it"
    elif prefix := _prefix(unexpected, missing):
        fix = (
            f"every name in the file begins with {prefix!r}, which DataParallel, DDP and torch.compile put there: load "
            f"{{name.removeprefix({prefix!r}): tensor for name, tensor in state_dict.items()}}"
        )
    elif prefix := _prefix(missing, unexpected):
        fix = f"the network's names begin with {prefix!r}, those in the file do not: load into the network inside of it"
    else:
        fix = CAUSES["wrong-architecture"]
    return "wrong-architecture", fix


def _names(text: str, kind: str) -> list[str]:
    listed = re.search(rf'{kind} key\(s\) in state_dict: ((?:"[^"]*"(?:, )?)+)', text)
    return re.findall(r'"([^"]*)"', listed[1]) if listed else []


def _prefix(longer: list[str], shorter: list[str]) -> str:
    """What stands before each of `shorter`'s names in `longer`; empty where nothing does."""
    if not longer or not shorter or not longer[0].endswith(shorter[0]):
        return ""
    prefix = longer[0].removesuffix(shorter[0])
    return prefix if [prefix + name for name in shorter] == longer else ""


def _missing_module(error: BaseException) -> tuple[str, str] | None:
    """A package that is asked for by another name, or a part of one that other versions of it have: so say pickles."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    name, _, part = error.name.partition(".")
    package = sys.modules.get(name)
    if part and package is not None and re.search(IN_PACKAGES, getattr(package, "__file__", None) or ""):
        return "wrong-version", CAUSES["wrong-version"]
    if distribution := DISTRIBUTIONS.get(name):
        return "missing-dependency", f"bake {distribution} into the image, or ask for it in code/requirements.txt"
    return None


def _missing_variable(error: BaseException) -> tuple[str, str] | None:
    """`os.environ["NAME"]` of a variable that nobody set."""
    if not isinstance(error, KeyError) or len(error.args) != 1 or not isinstance(error.args[0], str):
        return None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_globals.get("__name__") != os.__name__:
        return None
    return "bad-setting", f"set {error.args[0]} in the model's Environment"


def _own_server(error: BaseException) -> tuple[str, str] | None:
    """Code that brings a server of its own, as a container without ours needs one."""
    if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
        return None
    return "bad-handler", "this server listens there already: inference.py has functions, and no server of its own"


def _ours(error: BaseException) -> tuple[str, str] | None:
    """What this server found itself, and words whatever it quotes."""
    cause = OURS.get(type(error).__name__)
    return (cause, CAUSES[cause]) if cause else None


LOOKS: tuple[Callable[[BaseException], tuple[str, str] | None], ...] = (
    _ours,
    _state_dict,
    _missing_variable,
    _own_server,
    _missing_module,
    _by_words,
)


def _where_the_file_is(error: FileNotFoundError, model_dir: Path | None) -> str:
    """Where in the model a file lies that the code looked for elsewhere, or else what there is."""
    if not isinstance(error.filename, str) or model_dir is None:
        return ""
    name = Path(error.filename).name
    found = next((path for path in sorted(model_dir.rglob("*")) if path.name == name and path.is_file()), None)
    if found is None:
        there = sorted(path.name for path in model_dir.iterdir()) if model_dir.is_dir() else []
        inside = Path(error.filename).parent == model_dir
        return f"put the file into model.tar.gz, which holds {', '.join(there[:8])}" if inside and there else ""
    place = found.relative_to(model_dir)
    if place.parts[0] == "code":
        return f"it is {place} of the model: os.path.join(os.path.dirname(__file__), {str(Path(*place.parts[1:]))!r})"
    return f"it is {place} of the model: os.path.join(model_dir, {str(place)!r})"
