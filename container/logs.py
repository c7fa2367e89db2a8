"""Log lines on standard output, which CloudWatch reads: as text, or one JSON object a line."""

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping

from container import contract

TEXT = "%(asctime)s %(levelname)s %(process)d %(message)s"


def are_json(environ: Mapping[str, str]) -> bool:
    """Whether `SLIPWAY_LOG_FORMAT` asks for JSON."""
    return (environ.get(contract.LOG_FORMAT) or "text").strip().lower() == "json"


def configure(environ: Mapping[str, str], level: str | int, fields: Callable[[], Mapping[str, str]] = dict) -> None:
    """Send every logger's records to standard output, in the form that `SLIPWAY_LOG_FORMAT` asks for.

    Args:
        environ: the container's environment.
        level: a number such as 20, also as text, or a name.
        fields: what else belongs to the record at hand (whose request it is about); called in the thread that logs.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # else what user code prints comes 8 KB later, or never
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if are_json(environ) else TextFormatter(TEXT))
    handler.addFilter(_Fields(fields))
    number = level if isinstance(level, int) else int(level) if level.isdecimal() else level.upper()
    logging.basicConfig(level=number, handlers=[handler], force=True)


class _Fields(logging.Filter):
    """Adds to each record what is known of its request."""

    def __init__(self, fields: Callable[[], Mapping[str, str]]) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        record.fields = dict(self._fields())
        return True


class TextFormatter(logging.Formatter):
    """The usual line, the fields at the end of its first line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's own name
        """The line before any trace."""
        fields = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())])


class JsonFormatter(logging.Formatter):
    """One object a line: time in UTC, level, logger, process, message, the request's fields, and a trace as text."""

    def format(self, record: logging.LogRecord) -> str:
        """The object; a line feed in the message or the trace is escaped, so that a record is one event."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": _message(record),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        text = json.dumps(line, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace").decode()  # half a character becomes JSON's own escape of it


def _message(record: logging.LogRecord) -> str:
    """The message, also of a line whose author got its arguments wrong: logging would print a trace of its own."""
    try:
        return record.getMessage()
    except Exception as error:
        message = record.msg if isinstance(record.msg, str) else f"a {type(record.msg).__name__}"
        return f"{message} (cannot be formatted: {type(error).__name__}: {error})"
