"""With JSON logs every line is an object: what code prints, warnings and traces nobody caught go through the log, too.

What native code writes by itself stays as it is: a crash must not depend on a thread that copies its last words.
"""

import io
import logging
import sys
import threading
from types import TracebackType
from typing import Any, TextIO

logger = logging.getLogger(__name__)


def log_what_is_printed() -> None:
    """From here on; the log's own handler must have the real standard output already."""
    sys.stdout = PrintedLines(sys.stdout, "stdout", logging.INFO)
    sys.stderr = PrintedLines(sys.stderr, "stderr", logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _ended


class PrintedLines(io.TextIOWrapper):
    """A text stream each of whose lines is a log line, with the fields of the request that the thread works on."""

    def __init__(self, stream: TextIO, name: str, level: int) -> None:
        super().__init__(stream.buffer, encoding="utf-8", errors="backslashreplace", write_through=True)
        self._logger, self._level = logging.getLogger(name), level
        self._thread = threading.local()  # lines of several threads never mix

    def write(self, text: str) -> int:
        """Log each line that is complete; of one that was drawn over (a progress bar) its last form."""
        *lines, pending = (getattr(self._thread, "pending", "") + text.replace("\r\n", "\n")).split("\n")
        self._thread.pending = pending.rpartition("\r")[2]
        for line in lines:
            if shown := line.rpartition("\r")[2]:
                record = self._logger.makeRecord(self._logger.name, self._level, "", 0, shown, (), None)
                self._logger.handle(record)  # whatever the log's level: it was printed to be seen
        return len(text)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logger.critical("an exception ended the process", exc_info=(kind, error, trace))


def _unraisable(args: Any) -> None:
    logger.error("%s %r", args.err_msg or "Exception ignored in", args.object, exc_info=args.exc_value)


def _ended(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else "unknown"
        logger.error("an exception ended the thread %s", name, exc_info=args.exc_value)
