"""Why the server could not start, in one line: what, where, and what to do about it."""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from container import contract
from container.serve.causes import classify, text_of

logger = logging.getLogger(__name__)

LINE_LIMIT = 1000
SLOW_SECONDS = 60

# Of the causes of failed starts, those of failed requests, too.
REQUEST_CAUSES = (
    *("out-of-memory", "disk-full", "read-only", "permission", "missing-file", "missing-dependency", "wrong-version"),
    *("no-network", "aws-access", "no-cuda-driver", "bad-setting"),
)
ENDINGS = {
    "SIGKILL": "the kernel does that when memory is full: use an instance with more memory, or fewer processes: "
    "SAGEMAKER_MODEL_SERVER_WORKERS=1",
    "SIGILL": "a package was built for another CPU: install one for this instance type",
    "signal": "native code crashed: the log has the line of Python above; check the versions of the packages there",
    "status": "code that is imported or loads a model must not call os._exit",
}
"""How a process ended while it loaded the model -> what to do about it."""
SIGNALS = {number.value: number.name for number in signal.Signals}


def describe(error: BaseException, model_dir: Path | None = None) -> str:
    """One line for the log, such as `serve cannot start [syntax-error] code/inference.py:3: …; fix: …`."""
    cause, fix = classify(error, model_dir)
    where = location(error)
    message = _named(error)
    if error.__cause__ is not None and text_of(error.__cause__) not in text_of(error):
        message += f" (from {_named(error.__cause__)})"
    line = f"serve cannot start [{cause}]{' ' + where if where else ''}: {message}"
    return f"{line[:LINE_LIMIT]}; fix: {fix}"


def describe_request(error: BaseException) -> str:
    """What went wrong in a request, for the line above its trace; with a cause and a fix where the machine is it."""
    cause, fix = classify(error)
    where = location(error)
    line = f"{where + ': ' if where else ''}{_named(error)}"[:LINE_LIMIT]
    return f"[{cause}] {line}; fix: {fix}" if cause in REQUEST_CAUSES else line


def _named(error: BaseException) -> str:
    text = text_of(error) or _line_of(error)
    return " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")


def _line_of(error: BaseException) -> str:
    """The source line that raised it: all there is of a bare `assert`."""
    stack = traceback.extract_tb(error.__traceback__)
    return (stack[-1].line or "") if stack else ""


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


def slow_start(where: str, seconds: float) -> str:
    """What is said of a model without which the server cannot start."""
    return (
        f"serve is slow to start [slow-load] {where}: the model has been loading for {seconds:.0f} s, and /ping "
        "answers 503; fix: load less, or set ContainerStartupHealthCheckTimeoutInSeconds above the "
        f"{contract.STARTUP_TIMEOUT_SECONDS} s of its default"
    )


@contextmanager
def told_while_slow(say: Callable[[str, float], str] = slow_start, every: float = SLOW_SECONDS) -> Iterator[None]:
    """While this lasts, say now and then what this thread is at: the platform ends a slow start without a word.

    Args:
        say: makes the line, of a file and its line number and of the seconds since the beginning.
        every: so many seconds.
    """
    done, thread = threading.Event(), threading.get_ident()
    began = time.monotonic()

    def tell() -> None:
        while not done.wait(every):
            frame = sys._current_frames().get(thread)
            where = _users_last(traceback.extract_stack(frame)) if frame else ""
            logger.warning("%s", say(where or "the server's own code", time.monotonic() - began))

    threading.Thread(target=tell, name="slow-load", daemon=True).start()
    try:
        yield
    finally:
        done.set()
