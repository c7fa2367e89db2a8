"""How many bytes of request bodies one process holds in memory: the queue's bound on requests is none on their size."""

from container.serve.exchange import Unavailable

FEW_BYTES = 256 * 1024  # what one read from a connection brings; a body of that size the queue's bound is enough for


class Waiting:
    """The account of one process; its event loop alone keeps it."""

    def __init__(self, bound_bytes: int) -> None:
        self.bound_bytes = bound_bytes
        self.bytes = 0


class Share:
    """What one body holds of the account, from its first piece until its answer."""

    __slots__ = ("_bytes", "_waiting")

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._bytes = 0

    def add(self, count: int) -> None:
        """Hold so many bytes more.

        Raises:
            Unavailable: together with the others that is too much; alone none is.
        """
        self._bytes += count
        self._waiting.bytes += count
        if self._bytes < self._waiting.bytes > self._waiting.bound_bytes:
            self.release()
            raise Unavailable(f"{self._waiting.bytes} bytes of other requests wait already; try again")

    def release(self) -> None:
        """Hold nothing any more."""
        self._waiting.bytes -= self._bytes
        self._bytes = 0
