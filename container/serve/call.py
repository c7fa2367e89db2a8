"""One request on its way through the core."""

import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from container.serve.exchange import Request, Response
from container.serve.handlers import Context
from container.serve.spool import Spool

if TYPE_CHECKING:
    from container.serve.predictor import Predictor


class Call:
    """A request, who waits for its answer, and what the stages leave for each other."""

    __slots__ = (
        "answered",
        "arrived",
        "bad",
        "bare",
        "cancelled",
        "context",
        "data",
        "decoded",
        "done",
        "key",
        "predicted",
        "predictor",
        "release",
        "request",
        "spool",
        "started",
    )

    def __init__(self, request: Request, done: Callable[[Response], None]) -> None:
        self.request = request
        self.spool: Spool | None = None
        """Where the body lies while the call waits, if it is large; the request's is empty so long."""
        self.done = done
        """Takes the answer, on any thread."""
        self.arrived = time.monotonic()
        self.started = 0.0
        """When a compute thread took it; 0.0 while it waits."""
        self.decoded = self.predicted = 0.0
        """When its data was ready and when its prediction was; 0.0 before."""
        self.answered = False
        self.cancelled = False
        """Set when nobody waits any more; work that has not begun is dropped."""
        self.bad: dict[int, str] = {}
        """Records that cannot be read, and why, where placeholders were asked for."""
        self.bare = False
        """Whether the records came as a bare JSON list, so that the answer is one, too."""
        self.predictor: Predictor | None = None
        self.release: Callable[[], None] = _nothing
        """Lets go of the model; called once, when the call is answered or dropped."""
        self.data: Any = None
        self.key: Hashable = None
        """What may share a batch has the same one; None shares none."""
        self.context: Context | None = None
        """Only where the user wrote handlers."""

    def answer(self, response: Response) -> None:
        """Hand out the answer and let go of the model."""
        self.release()
        self.answered = True  # before the caller has it, who may send the next at once
        self.done(response)

    def load_body(self) -> None:
        """Bring a body that lies on disk into memory.

        Raises:
            Unavailable: its client has left.
        """
        if self.spool is not None:
            self.request = replace(self.request, body=self.spool.read())

    def let_go_of_body(self) -> None:
        """And of what was made of it: nobody will look at it again."""
        self.request, self.data = replace(self.request, body=b""), None

    def cancel(self) -> None:
        """Nobody waits any more: what has not begun never will, and need not keep its body until its turn comes."""
        self.cancelled = True
        if not self.started:  # who begins looks again, after saying so
            self.let_go_of_body()


def _nothing() -> None:
    """A model that is there for ever needs no letting go."""
