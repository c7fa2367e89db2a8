"""What a person sees while something runs: lines, a bar on a terminal, colours only where they are wanted."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

PLAIN_INTERVAL_SECONDS = 2.0  # between two progress lines where there is no terminal
DIM, YELLOW, RESET = "\x1b[2m", "\x1b[33m", "\x1b[0m"


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether escape sequences are welcome (https://no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class LineHandler(logging.Handler):
    """Writes the launcher's log records as bare lines."""

    def __init__(self, stream: TextIO, colour: bool) -> None:
        super().__init__()
        self.stream, self.colour = stream, colour

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"warning: {text}"
        if self.colour:
            tint = YELLOW if record.levelno >= logging.WARNING else DIM if record.name.endswith(".container") else ""
            text = f"{tint}{text}{RESET}" if tint else text
        try:
            print(text, file=self.stream, flush=True)  # this handler is how the launcher prints
        except BrokenPipeError:
            self.handleError(record)


def show_log(stream: TextIO) -> None:
    """Send the launcher's own log to a stream, once, however often it is asked for."""
    launcher_logger = logging.getLogger("launcher")
    for handler in [item for item in launcher_logger.handlers if isinstance(item, LineHandler)]:
        launcher_logger.removeHandler(handler)
    launcher_logger.addHandler(LineHandler(stream, wants_colour(stream, os.environ)))
    launcher_logger.setLevel(logging.INFO)
    launcher_logger.propagate = False


def progress_for(stream: TextIO) -> Any:
    """A bar on a terminal, lines elsewhere."""
    return Bar(stream) if wants_colour(stream, os.environ) else Lines()


class Lines:
    """Progress as a line every few seconds."""

    def __init__(self) -> None:
        self.title, self.total, self.done, self.told = "", 0, 0, 0.0

    def start(self, title: str, total_bytes: int) -> None:
        self.title, self.total, self.done, self.told = title, total_bytes, 0, time.monotonic()

    def expect(self, count_bytes: int) -> None:
        self.total += count_bytes

    def advance(self, count_bytes: int) -> None:
        self.done += count_bytes
        if time.monotonic() - self.told >= PLAIN_INTERVAL_SECONDS:
            self.told = time.monotonic()
            share = min(100, 100 * self.done // max(self.total, 1))
            logging.getLogger("launcher.progress").info("   %s %d%%", self.title, share)

    def finish(self) -> None:
        pass


class Bar:
    """Progress as a bar with speed and time left."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.bar: Any = None

    def start(self, title: str, total_bytes: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self.bar = Progress(
            TextColumn("   {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=self.stream),
            transient=True,
        )
        self.bar.add_task(title, total=total_bytes)
        self.bar.start()

    def expect(self, count_bytes: int) -> None:
        self.bar.update(self.bar.task_ids[0], total=(self.bar.tasks[0].total or 0) + count_bytes)

    def advance(self, count_bytes: int) -> None:
        self.bar.advance(self.bar.task_ids[0], count_bytes)

    def finish(self) -> None:
        self.bar.stop()


def table(rows: list[list[str]], header: list[str]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    )


def stdout_or_stderr(json_wanted: bool) -> TextIO:
    """Where progress goes: with `--json`, standard output holds nothing but the result."""
    return sys.stderr if json_wanted else sys.stdout


def size_text(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
