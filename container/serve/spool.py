"""Large bodies lie on disk until they are computed: a few of them side by side would take all memory."""

import logging
import tempfile
import threading
from typing import IO

from container.serve.exchange import Unavailable

logger = logging.getLogger(__name__)

SPOOL_BYTES = 32 * 1024**2  # a body that is larger; SageMaker's real-time requests have 25 MB at most
WRITE_BYTES = 1024**2  # at once, so that the disk is asked a thousand times for a gigabyte


class Spool:
    """One body in a temporary file that has no name: nothing of it is left, however this process ends.

    Everything here may wait for the disk, and is done in threads: one at a time, but for `close`.

    Raises:
        Unavailable: there is no file to be had; so does `write` where the disk is full.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self.length = 0
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open until it is read or let go of
        except OSError as error:
            raise self._refused(error) from None

    def write(self, piece: bytes) -> None:
        """Append a piece."""
        assert self._file is not None
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._refused(error) from None
        self.length += len(piece)

    def _refused(self, error: OSError) -> Unavailable:
        reason = error.strerror or str(error)
        logger.error("a body is refused after %d bytes, for it cannot be kept on disk: %s", self.length, reason)
        return Unavailable(f"a body of more than {SPOOL_BYTES // 1024**2} MB cannot be kept on disk now: {reason}")

    def read(self) -> bytes:
        """The whole body, once: the file is gone afterwards.

        Raises:
            Unavailable: it was closed before; whoever sent the body has left.
        """
        with self._lock:
            file, self._file = self._file, None
        if file is None:
            raise Unavailable("the body is gone with its client")
        with file:
            file.seek(0)
            return file.read()

    def close(self) -> None:
        """Let go of what nobody has read."""
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            file.close()
