"""Why the server could not start, in one line: what, where, and what to do about it."""

import traceback
from pathlib import Path

from container.serve.model_files import ModelFileError

LINE_LIMIT = 1000

# By the exception's class name (its own and its bases'), because torch is not imported to look at an exception.
CAUSES = {
    "OutOfMemoryError": ("out-of-memory", "use an instance with more GPU memory, or fewer processes per GPU"),
    "MemoryError": ("out-of-memory", "use an instance with more memory, or set SAGEMAKER_MODEL_SERVER_WORKERS=1"),
    "SyntaxError": ("syntax-error", "correct the file"),
    "ModuleNotFoundError": (
        "missing-dependency",
        "bake the package into the image, or ship it beside the code in code/",
    ),
    "ImportError": ("missing-dependency", "the package is there and another version is needed"),
    "PermissionError": ("permission", "the file must be readable by the user the container runs as"),
    "FileNotFoundError": ("missing-file", "put the file into model.tar.gz"),
    "ModelFormatError": ("bad-model", "pack exactly what the training job left in its model directory"),
    "HandlerError": ("bad-handler", "correct code/inference.py"),
    "SafetensorError": ("bad-model", "the weights file is damaged: pack it again"),
    "PlanError": ("bad-setting", "correct the variable in the model's Environment"),
    "RequirementsError": (
        "requirements",
        "bake the packages into the image, or ship their wheels in code/wheels of model.tar.gz",
    ),
    "PortTaken": ("port-taken", "set SAGEMAKER_BIND_TO_PORT to a free port, or end the process that holds this one"),
    "SystemExit": ("exit", "code that is imported or loads a model must not call sys.exit"),
}


def describe(error: BaseException) -> str:
    """One line for the log, such as `serve cannot start [syntax-error] code/inference.py:3: …; fix: …`."""
    cause, fix = classify(error)
    where = location(error)
    message = " ".join(f"{type(error).__name__}: {error}".split())
    line = f"serve cannot start [{cause}]{' ' + where if where else ''}: {message}"
    return f"{line[:LINE_LIMIT]}; fix: {fix}"


def classify(error: BaseException) -> tuple[str, str]:
    """The cause's class and what to do."""
    if isinstance(error, ModelFileError):
        return error.cause, error.fix
    text = str(error)
    if "CUDA driver version is insufficient" in text or "Found no NVIDIA driver" in text:
        return "no-cuda-driver", "set InferenceAmiVersion to one whose driver runs this CUDA version"
    if "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return CAUSES["OutOfMemoryError" if "cuda" in text.lower() else "MemoryError"]
    if "load_state_dict" in text or "Error(s) in loading state_dict" in text:
        return "wrong-architecture", "the weights belong to another network than the code builds"
    for kind in type(error).__mro__:
        if kind.__name__ in CAUSES:
            return CAUSES[kind.__name__]
    return "handler-error", "the code raised while it was loaded; run it with the same model directory"


def location(error: BaseException) -> str:
    """File and line of the user's own last frame: outside the packages, outside this server."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    own = str(Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, "<frozen"))
        and "site-packages" not in frame.filename
        and "/lib/python3" not in frame.filename
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
