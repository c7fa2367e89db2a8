"""Why the server could not start, in one line: what, where, and what to do about it."""

import errno
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from container import contract
from container.serve.model_files import ModelFileError

logger = logging.getLogger(__name__)

LINE_LIMIT = 1000
SLOW_SECONDS = 60

CAUSES = {
    "out-of-memory": "use an instance with more memory (of the GPU, where CUDA is named), or fewer processes: "
    "SAGEMAKER_MODEL_SERVER_WORKERS=1",
    "syntax-error": "correct the file",
    "missing-dependency": "bake the package into the image, or ask for it in code/requirements.txt",
    "wrong-version": "the package is there and another version is needed: ask for it in code/requirements.txt",
    "permission": "the file must be readable by the user the container runs as",
    "read-only": "the model directory and the image are read-only: write below /tmp",
    "disk-full": "make room: less in model.tar.gz, or an instance with a larger volume",
    "missing-file": "put the file into model.tar.gz",
    "bad-model": "pack exactly what the training job left in its model directory",
    "wrong-architecture": "the weights belong to another network than the code builds",
    "pickled-model": "save the model's state_dict() instead, or trust the file and load it with weights_only=False",
    "missing-class": "the file was pickled where the class was defined in another module: put that module into code/",
    "bad-handler": "correct code/inference.py, or the variable that names it",
    "bad-setting": "correct the variable in the model's Environment",
    "requirements": "bake the packages into the image, or ship their wheels in code/wheels of model.tar.gz",
    "port-taken": "set SAGEMAKER_BIND_TO_PORT to a free port, or end the process that holds this one",
    "no-network": "the container reaches no such host: pack what the code downloads into model.tar.gz",
    "no-cuda-driver": "use a GPU instance whose driver runs this image's CUDA (InferenceAmiVersion), or context.device",
    "needs-gpu": "the model was saved on a GPU: load it with map_location=context.device",
    "exit": "code that is imported or loads a model must not call sys.exit",
    "warm-up": "the model does not answer its own example: the log has the reason above",
    "handler-error": "the code raised while it was loaded; run it with the same model directory",
}
"""Class of a failure -> what to do about it."""

ENDINGS = {
    "SIGKILL": "the kernel does that when memory is full: use an instance with more memory, or fewer processes: "
    "SAGEMAKER_MODEL_SERVER_WORKERS=1",
    "SIGILL": "a package was built for another CPU: install one for this instance type",
    "signal": "native code crashed: the log has the line of Python above; check the versions of the packages there",
    "status": "code that is imported or loads a model must not call os._exit",
}
"""How a process ended while it loaded the model -> what to do about it."""
SIGNALS = {number.value: number.name for number in signal.Signals}

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
    "HandlerError": "bad-handler",
    "PlanError": "bad-setting",
    "RequirementsError": "requirements",
    "PortTaken": "port-taken",
    "SystemExit": "exit",
    "gaierror": "no-network",
    "URLError": "no-network",
    "ConnectionError": "no-network",
}
# By what the message says, before the class: torch raises RuntimeError for nearly everything.
MESSAGES = (
    (r"CUDA driver version is insufficient|Found no NVIDIA driver|not compiled with CUDA", "no-cuda-driver"),
    (r"Attempting to deserialize object on a CUDA device", "needs-gpu"),
    (r"(?i)out of memory|can't allocate memory", "out-of-memory"),
    (r"load_state_dict|Error\(s\) in loading state_dict", "wrong-architecture"),
    (r"Weights only load failed", "pickled-model"),
    (r"Can't get attribute .* on <module", "missing-class"),
    (r"PytorchStreamReader failed", "bad-model"),
    (r"the warm-up request was answered", "warm-up"),
    (r"attempted relative import", "bad-handler"),
)
ERRNOS = {errno.EROFS: "read-only", errno.ENOSPC: "disk-full"}


def describe(error: BaseException) -> str:
    """One line for the log, such as `serve cannot start [syntax-error] code/inference.py:3: …; fix: …`."""
    cause, fix = classify(error)
    where = location(error)
    message = _named(error)
    if error.__cause__ is not None:
        message += f" (from {_named(error.__cause__)})"
    line = f"serve cannot start [{cause}]{' ' + where if where else ''}: {message}"
    return f"{line[:LINE_LIMIT]}; fix: {fix}"


def _named(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {_text(error)}".split()).removesuffix(":")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # user code's own class
        return "(an error that cannot be written as text)"


def describe_ending(ending: os.waitid_result | None) -> str:
    """The line of a process that ended while it loaded the model, and raised nothing."""
    name = _signal_of(ending)
    fix = ENDINGS.get(name, ENDINGS["signal"]) if name else ENDINGS["status"]
    return f"serve cannot start [died]: the process ended{how_it_ended(ending)} while it loaded the model; fix: {fix}"


def how_it_ended(ending: os.waitid_result | None) -> str:
    """Such as ` by SIGKILL` or ` with status 3`; empty where that was not seen."""
    if ending is None:
        return ""
    return f" by {name}" if (name := _signal_of(ending)) else f" with status {ending.si_status}"


def _signal_of(ending: os.waitid_result | None) -> str:
    if ending is None or ending.si_code == os.CLD_EXITED:
        return ""
    return SIGNALS.get(ending.si_status, f"signal {ending.si_status}")


def classify(error: BaseException) -> tuple[str, str]:
    """The cause's class and what to do."""
    if isinstance(error, ModelFileError):
        return error.cause, error.fix
    cause = _cause(error)
    return cause, CAUSES[cause]


def _cause(error: BaseException) -> str:
    text = _text(error)
    for pattern, cause in MESSAGES:
        if re.search(pattern, text):
            return cause
    if isinstance(error, OSError) and error.errno in ERRNOS:
        return ERRNOS[error.errno]
    return next((CLASSES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in CLASSES), "handler-error")


def location(error: BaseException) -> str:
    """File and line of the user's own last frame: outside the packages, outside this server."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}" if error.lineno else error.filename
    return _users_last(traceback.extract_tb(error.__traceback__))


def _users_last(stack: traceback.StackSummary) -> str:
    own = str(Path(__file__).parents[1])
    frames = [
        frame
        for frame in stack
        if not frame.filename.startswith((own, "<frozen"))
        and "site-packages" not in frame.filename
        and "/lib/python3" not in frame.filename
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


@contextmanager
def told_while_slow(seconds: float = SLOW_SECONDS) -> Iterator[None]:
    """While this lasts, say now and then what this thread is at: the platform ends a slow start without a word."""
    done, thread = threading.Event(), threading.get_ident()
    began = time.monotonic()

    def tell() -> None:
        while not done.wait(seconds):
            frame = sys._current_frames().get(thread)
            where = _users_last(traceback.extract_stack(frame)) if frame else ""
            logger.warning(
                "serve is slow to start [slow-load] %s: the model has been loading for %.0f s, and /ping answers 503; "
                "fix: load less, or set ContainerStartupHealthCheckTimeoutInSeconds above the %d s of its default",
                where or "the server's own code",
                time.monotonic() - began,
                contract.STARTUP_TIMEOUT_SECONDS,
            )

    threading.Thread(target=tell, name="slow-load", daemon=True).start()
    try:
        yield
    finally:
        done.set()
