"""One queue feeds the compute threads, and what arrived while they were busy is the next batch.

A lone request never waits. A thread that becomes free takes its share of what waits, one part per compute thread, so
that nothing is batched while a core could be idle. Requests of different shapes never meet in a batch, and a batch
that fails is repeated request by request, so that a bad one fails alone.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from container.serve.call import Call
from container.serve.exchange import Unavailable

logger = logging.getLogger(__name__)


class Batcher:
    """Runs `compute` on batches of calls, on `threads` threads."""

    def __init__(
        self, compute: Callable[[Sequence[Call]], None], threads: int, max_batch_size: int, max_queue: int
    ) -> None:
        self._compute = compute
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"compute-{n}", daemon=True) for n in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the threads end after what waits now."""
        for _ in self._threads:
            self._queue.put(None)

    def alive(self) -> bool:
        """Whether every compute thread can still take work."""
        return all(thread.is_alive() for thread in self._threads)

    def waiting(self) -> int:
        return self._queue.qsize()

    def submit(self, call: Call) -> None:
        """Queue a call; `call.done` gets the answer on a compute thread.

        Raises:
            Unavailable: as many calls wait as may wait.
        """
        if self._queue.qsize() >= self._max_queue:
            raise Unavailable(f"{self._max_queue} requests wait already; try again")
        self._queue.put(call)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            self._compute(self._with_share(first))

    def _with_share(self, first: Call) -> list[Call]:
        batch = [first]
        share = min(self._max_batch_size, math.ceil((self._queue.qsize() + 1) / len(self._threads)))
        try:
            while len(batch) < share:
                call = self._queue.get_nowait()
                if call is None:
                    self._queue.put(None)
                    break
                batch.append(call)
        except Empty:  # another thread was faster
            pass
        return batch
