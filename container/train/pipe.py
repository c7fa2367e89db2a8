"""Pipe channels: the platform streams S3 objects into one FIFO per epoch, `<channel>_0`, `<channel>_1` and so on."""

import contextlib
import fcntl
import io
import logging
import os
import select
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils.data import IterableDataset, get_worker_info

from container.recordio import NoRecordIO, RecordIOError, read_records
from container.train.environment import TrainingEnvironment
from container.train.files import ChannelError, channel_config
from container.train.runtime import Runtime

logger = logging.getLogger(__name__)

WAIT_SECONDS = 600.0  # for the next FIFO or the next byte; listing and shuffling a large prefix takes minutes
SAY_SECONDS = 15.0  # a wait longer than this is worth a line
POLL_SECONDS = 0.05
BUFFER_BYTES = 1024**2  # one read; also the largest pipe an unprivileged process may ask the kernel for


class PipeChannel(IterableDataset[Any]):
    """A Pipe channel; each pass over it reads the next epoch's FIFO.

        channel = PipeChannel.from_environment(environment, "train", decode=to_example)
        for epoch in range(3):
            for batch in DataLoader(channel, batch_size=64, num_workers=1):
                train_step(batch)

    A FIFO has one reader. With several DataLoader workers the first one reads and the others get nothing; a second
    process, such as another rank on the same host, gets an error. A pass may be left early: its FIFO is closed, and the
    next pass opens the next one. At most one record and `BUFFER_BYTES` are held in memory.
    """

    def __init__(
        self,
        path: Path,
        records: bool,
        decode: Callable[[bytes], Any] = bytes,
        timeout_seconds: float = WAIT_SECONDS,
    ) -> None:
        """A channel by its path; `from_environment` knows path and framing.

        Args:
            path: of the FIFOs, less `_<epoch>`.
            records: whether they are framed as RecordIO; otherwise items are pieces of `BUFFER_BYTES`, the last one
                shorter, with no regard to where one S3 object ends.
            decode: from a record's payload to an item; runs in the reading process.
            timeout_seconds: to wait for the next FIFO, and for each further byte.
        """
        self.path, self.records, self.decode, self.timeout_seconds = path, records, decode, timeout_seconds
        # In shared memory: DataLoader starts new workers, copies of this object, for every epoch.
        self._next_epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @classmethod
    def from_environment(
        cls,
        environment: TrainingEnvironment,
        channel: str,
        decode: Callable[[bytes], Any] = bytes,
        timeout_seconds: float = WAIT_SECONDS,
    ) -> "PipeChannel":
        """The channel as the job's inputdataconfig.json describes it.

        Raises:
            ChannelError: the job has no such channel, or its TrainingInputMode is not Pipe.
        """
        config = channel_config(environment, channel)
        path = environment.opt_ml.channel(channel)
        if config["TrainingInputMode"] != "Pipe":
            raise ChannelError(
                f"channel {channel!r} has TrainingInputMode {config['TrainingInputMode']}: "
                f"read the files in {path}, or set InputMode to Pipe"
            )
        return cls(path, config.get("RecordWrapperType") == "RecordIO", decode, timeout_seconds)

    @property
    def epoch(self) -> int:
        """Of the FIFO that is opened next."""
        return int(self._next_epoch)

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The next epoch's FIFO as a buffered binary file, for data such as CSV that has a framing of its own.

            with channel.open() as file:
                for line in file: ...

        Raises:
            ChannelError: the FIFO or its bytes did not come in time, or another process reads or has read it.
        """
        fifo = self.path.with_name(f"{self.path.name}_{self.epoch}")
        self._next_epoch += 1
        self._wait_for(fifo)
        with _only_reader(fifo):
            descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            with io.BufferedReader(_Fifo(fifo, descriptor, self.timeout_seconds), BUFFER_BYTES) as file:
                yield file

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None and worker.id > 0:
            if worker.id == 1 and self.epoch <= 1:
                logger.info(
                    "%s: one of %d DataLoader workers reads, a FIFO has one reader", self.path, worker.num_workers
                )
            return
        with self.open() as file:
            pieces = self._records(file) if self.records else iter(lambda: file.read(BUFFER_BYTES), b"")
            yield from map(self.decode, pieces)

    def _records(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            yield from read_records(file)
        except NoRecordIO as error:
            raise ChannelError(f"{self.path}: {error}: was the channel made with RecordWrapperType RecordIO?") from None
        except RecordIOError as error:
            why = "its writer failed or was stopped, or the data are damaged"
            raise ChannelError(f"{self.path}: {error}: {why}") from None

    def _wait_for(self, fifo: Path) -> None:
        started, said = time.monotonic(), False
        while not fifo.exists():
            waited = time.monotonic() - started
            if waited >= self.timeout_seconds:
                raise ChannelError(
                    f"{fifo} did not appear within {self.timeout_seconds:.0f} s: the platform makes one FIFO per epoch "
                    "once the last one is closed; is an earlier pass over the channel still open?"
                )
            if waited >= SAY_SECONDS and not said:
                logger.info("waiting for %s, at most %.0f s", fifo, self.timeout_seconds)
                said = True
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _only_reader(fifo: Path) -> Iterator[None]:
    """Make this process the FIFO's only reader: two would each get a part of the bytes, and nobody would notice.

    A lock does so while both are there. Within a job the mark stays when its reader ends: the bytes are gone, and a
    process that comes late need not wait for them.
    """
    runtime = Runtime.from_env()
    directory = runtime.directory if runtime else Path(tempfile.gettempdir())
    status = fifo.stat()
    mark = os.open(directory / f"slipway-fifo-{status.st_dev}-{status.st_ino}", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        locked = _try_lock(mark)
        reader = os.read(mark, 32).decode()
        if not locked or (runtime and reader):
            raise ChannelError(
                f"{fifo} has one reader, and that is process {reader or '?'}, not {os.getpid()}. With several ranks on "
                "a host give each a Pipe channel of its own, or use FastFile"
            )
        os.ftruncate(mark, 0)
        os.pwrite(mark, str(os.getpid()).encode(), 0)
        yield
    finally:
        fcntl.flock(mark, fcntl.LOCK_UN)  # a process forked meanwhile holds it, too, and would keep it
        os.close(mark)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Fifo(io.RawIOBase):
    """A FIFO for reading whose every wait is bounded: for its writer as well as for the next byte."""

    def __init__(self, path: Path, descriptor: int, timeout_seconds: float) -> None:
        """Args: descriptor: of `path`, non-blocking; closed with this object."""
        self._path, self._descriptor, self._timeout_seconds = path, descriptor, timeout_seconds
        with contextlib.suppress(OSError):  # only faster: the kernel may have no pages left for this user
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, BUFFER_BYTES)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._has_writer = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._has_writer:  # until there was one, a read would look like the end
            self._wait("no writer opened it (has another process read it?)")
            self._has_writer = True
        while True:
            try:
                return os.readv(self._descriptor, [buffer])
            except BlockingIOError:
                self._wait("no byte came")

    def _wait(self, what: str) -> None:
        if not self._poll.poll(self._timeout_seconds * 1000):
            raise ChannelError(f"{self._path}: {what} within {self._timeout_seconds:.0f} s")

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
