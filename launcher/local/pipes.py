"""Pipe mode: a channel as one FIFO per epoch, fed with its objects as somebody reads them.

Source: "How Amazon SageMaker AI Provides Training Information" and RecordIO framing as in `records`.
"""

import contextlib
import errno
import gzip
import itertools
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from launcher.local.records import RECORDIO_MAGIC

OPEN_SECONDS = 0.05  # between two looks for a reader
PART_BYTES = 65536  # what a pipe holds
T = TypeVar("T")
Chunks = Callable[[], Iterator[bytes]]


class PipeFeeder:
    """Feeds one channel of one host: `<channel>_0`, `<channel>_1`, ... until it is stopped."""

    def __init__(self, directory: Path, channel: str, chunks: Chunks) -> None:
        self._directory = directory
        self._channel = channel
        self._chunks = chunks
        self._ended = threading.Event()
        self._make_pipe(0)  # the first is there before the container starts
        self._thread = threading.Thread(target=self._run, name=f"pipe {channel}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _make_pipe(self, epoch: int) -> Path:
        path = self._directory / f"{self._channel}_{epoch}"
        os.mkfifo(path)
        return path

    def _run(self) -> None:
        epoch = 0
        while not self._ended.is_set():
            descriptor = self._open(self._directory / f"{self._channel}_{epoch}")
            if descriptor is None:
                return
            self._make_pipe(epoch + 1)
            with contextlib.suppress(BrokenPipeError):  # a reader may close early: that ends its epoch
                for chunk in self._chunks():
                    self._write(descriptor, chunk)
            os.close(descriptor)
            epoch += 1

    def _open(self, path: Path) -> int | None:
        """The pipe once it has a reader; None if the job ends first."""
        while not self._ended.wait(OPEN_SECONDS):
            try:
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody reads yet
                    raise
        return None

    def _write(self, descriptor: int, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest and not self._ended.is_set():
            try:
                rest = rest[os.write(descriptor, rest[:PART_BYTES]) :]
            except BlockingIOError:
                self._ended.wait(OPEN_SECONDS / 10)  # the pipe is full: the reader works


def channel_chunks(groups: Sequence[Sequence[T]], read: Callable[[T], bytes], channel: Mapping[str, Any]) -> Chunks:
    """What an epoch of a channel streams: its objects, unpacked, framed and shuffled as the channel says.

    Args:
        groups: what stays together when the order is shuffled: an object, or the attributes of a manifest's line.
        read: the bytes of a group's member.
        channel: read are CompressionType (`Gzip` is undone), RecordWrapperType (`RecordIO` makes each member a record)
            and ShuffleConfig (another order in every epoch).
    """
    epochs = itertools.count()
    shuffling = channel.get("ShuffleConfig")

    def chunks() -> Iterator[bytes]:
        epoch, order = next(epochs), list(groups)
        if shuffling:
            random.Random(f"{shuffling['Seed']} {epoch}").shuffle(order)
        for content in (read(member) for group in order for member in group):
            unpacked = gzip.decompress(content) if channel.get("CompressionType") == "Gzip" else content
            yield recordio(unpacked) if channel.get("RecordWrapperType") == "RecordIO" else unpacked

    return chunks


def recordio(content: bytes) -> bytes:
    """One RecordIO record."""
    return struct.pack("<II", RECORDIO_MAGIC, len(content)) + content + b"\0" * (-len(content) % 4)
