"""Which predictions are so quick that handing them to another thread and back would take as long as they do.

Those are made on the event loop's own thread. So that nothing can hold up the loop, and with it `/ping`, they are only
those whose time is known: no code of the user's takes part, the body is small, and an input of the same shape with at
least as many rows was seen to be quick on a compute thread. What turns out slow goes back there.
"""

from collections.abc import Hashable

from container.serve import codec
from container.serve.call import Call

QUICK_SECONDS = 0.001  # a hand-over costs 0.03 ms of computing, and two switches of threads on a busy machine
QUICK_BESIDE_OTHERS_SECONDS = 0.0002  # several compute threads would do what takes longer at the same time
SLOW_SECONDS = 0.005
TURN_SECONDS = 0.005  # after so long the loop looks at its connections again
BODY_BYTES = 32 * 1024  # parsed in a fraction of a millisecond
MAX_SHAPES = 64  # callers choose them


class Quick:
    """What is known of how long one model takes.

    Args:
        trusted: whether its author says that the handlers never wait: then code of theirs may take part.
        seconds: what takes no longer is quick.
    """

    def __init__(self, trusted: bool = False, seconds: float = QUICK_SECONDS) -> None:
        self.trusted = trusted
        self._seconds = seconds
        self._rows: dict[Hashable, int] = {}
        """Per batch key the most rows that were quick."""
        self._suspects: set[Hashable] = set()
        """Keys that took long the last time; one time may be the machine's fault."""

    def may_read(self, call: Call) -> bool:
        """Whether it takes no time worth mentioning to find out what a request asks: an image may unfold to much."""
        if not self._rows or call.spool is not None or len(call.request.body) > BODY_BYTES:
            return False
        return self.trusted or codec.media_type(call.request.headers.get("content-type")) in codec.ARRAY_TYPES

    def knows(self, key: Hashable, rows: int) -> bool:
        """Whether so many rows of inputs with this batch key are quick."""
        return rows <= self._rows.get(key, -1)

    def saw(self, key: Hashable, rows: int, seconds: float) -> None:
        """Learn from a prediction, on whatever thread it was made."""
        if key is None and not self.trusted:
            return
        known = self._rows.get(key)
        if seconds <= self._seconds:
            self._suspects.discard(key)
            if known is None and len(self._rows) < MAX_SHAPES or known is not None and rows > known:
                self._rows[key] = rows
        elif seconds > SLOW_SECONDS and self.knows(key, rows):
            if key in self._suspects:
                self._suspects.remove(key)
                del self._rows[key]
            else:
                self._suspects.add(key)
