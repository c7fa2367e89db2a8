"""The role `process`: runs a script as a processing job, stops it in time, and leaves outputs that S3 can take.

`python -m container process SCRIPT [ARGUMENT ...]`, as `ContainerArguments` of a processing job. Any command works as
`ContainerEntrypoint`, too; this one adds what the platform does not do.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from container import contract, logs
from container.contract import truncate_utf8
from container.train.environment import ConfigError
from container.train.files import replace_links
from container.train.processing import PARTIAL_PREFIX, ProcessingEnvironment, processing_environment
from container.train.runtime import end_with_parent

logger = logging.getLogger(__name__)

STOP_SECONDS = 25.0  # from the stop signal to our SIGKILL: the platform's own may come after 30 s
LAST_LINES_SECONDS = 2.0  # where a process that was left behind keeps the pipe open
KEPT_LINES = 20  # of standard error, in which the reason is looked for
USAGE_ERROR = 64


def main(arguments: Sequence[str]) -> int:
    """Run the script; the container's exit status: the script's own, or 128 + the number of the signal that ended it.

    A script that fails leaves its last words on standard error as the job's ExitMessage, unless it has written one.
    """
    logs.configure(os.environ, logging.INFO)
    if not arguments:
        sys.stderr.write("process needs a script: its path in the container, such as /opt/ml/processing/code/prep.py\n")
        return USAGE_ERROR
    try:
        environment = processing_environment()
    except ConfigError as error:
        logger.error("%s", error)
        return 1
    job = _Script(_command(arguments))
    code = job.wait()
    finish_outputs(environment.outputs.values())
    if code != 0 and not job.stopped:
        _leave_message(environment, f"{job.last_words or 'it said nothing on standard error'} ({_ending(code)})")
    return code if code >= 0 else 128 - code


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-u", *arguments] if arguments[0].endswith(".py") else list(arguments)


class _Script:
    """A running script. SIGTERM and SIGINT reach it as SIGINT: in Python `finally` and `with` then do their work."""

    def __init__(self, command: list[str]) -> None:
        self.stopped = False
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self._killer: threading.Timer | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=end_with_parent
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._copy, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        if self.stopped:  # by a signal that came before there was a process
            self._interrupt()

    @property
    def last_words(self) -> str:
        """The last line that says something: of a Python traceback the exception."""
        return next((line for line in reversed(self._lines) if line.strip()), "").strip()

    def wait(self) -> int:
        """Its exit status, negative for a signal; whatever it has left running is ended."""
        assert self._process is not None
        code = self._process.wait()
        if self._killer is not None:
            self._killer.cancel()  # the outputs may take longer than the script had
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reader.join(LAST_LINES_SECONDS)
        return code

    def _stop(self, number: int, frame: object) -> None:
        if self.stopped:
            return  # a second signal must not break into what the first one has begun
        self.stopped = True
        if self._process is not None:
            self._interrupt()

    def _interrupt(self) -> None:
        assert self._process is not None
        seconds = float(os.environ.get(contract.STOP_SECONDS_VARIABLE, STOP_SECONDS))
        self._killer = threading.Timer(seconds, os.killpg, (self._process.pid, signal.SIGKILL))
        self._killer.daemon = True
        self._killer.start()
        self._process.send_signal(signal.SIGINT)

    def _copy(self, stderr: IO[bytes]) -> None:
        for line in stderr:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
            self._lines.append(line.decode(errors="replace"))


def finish_outputs(directories: Iterable[Path]) -> None:
    """Leave whole files only: no unfinished ones, and no links, which the platform does not follow."""
    for directory in directories:
        for partial in directory.rglob(f"{PARTIAL_PREFIX}*"):
            partial.unlink()
            logger.warning("%s was never finished, and is removed", partial)
        replace_links(directory)


def _leave_message(environment: ProcessingEnvironment, text: str) -> None:
    path = environment.opt_ml.exit_message
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The platform joins the hosts' messages without anything in between.
    path.write_bytes(truncate_utf8(f"{environment.current_host}: {text}\n", contract.EXIT_MESSAGE_LIMIT_BYTES).encode())


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by signal {-code} ({signal.Signals(-code).name})"
