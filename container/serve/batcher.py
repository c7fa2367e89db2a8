"""One queue feeds the compute threads, and what arrived while they were busy is the next batch.

A lone request never waits. A thread that becomes free takes its share of what waits, one part per compute thread, so
that nothing is batched while a core could be idle. Requests of different shapes never meet in a batch, and a batch
that fails is repeated request by request, so that a bad one fails alone.
"""

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from container.serve.call import Call
from container.serve.exchange import Unavailable

logger = logging.getLogger(__name__)


QUIET_BATCHES = 4  # so many batches in a row without company, and the next may use every core
PATIENCE_SECONDS = 0.25  # what waits behind a batch that uses every core waits so long, and then shares them with it


class Cores:
    """The cores of this process: each batch takes its share, a lone one in quiet times all.

    A batch alone on a network that is worth several cores is answered sooner when its operators use them all. Never
    more are used than there are, except beside a lone one that takes long: it may be waiting for something else.
    """

    def __init__(self, threads: int, torch_threads: int, patience: float = PATIENCE_SECONDS) -> None:
        self._share = torch_threads
        self._total = self._free = threads * torch_threads
        self._patience = patience
        self._quiet = 0
        self._shared = False
        """Whether the batch that uses every core counts for one share by now."""
        self._changed = threading.Condition()

    def take(self, others_wait: bool) -> int:
        """Wait for a share; returns how many cores the batch may use."""
        if self._total == self._share:  # one thread: all of them are its own
            return self._share
        with self._changed:
            alone = not others_wait and self._free == self._total
            self._quiet = self._quiet + 1 if alone else 0
            while self._free < self._share:
                if not self._changed.wait(self._patience) and not self._shared:
                    self._shared = True
                    self._free += self._total - self._share
            width = self._total if self._quiet > QUIET_BATCHES and self._free == self._total else self._share
            self._free -= width
            return width

    def give(self, width: int) -> None:
        if self._total == self._share:
            return
        with self._changed:
            if self._shared and width > self._share:
                width, self._shared = self._share, False
            self._free += width
            self._changed.notify_all()


def use_cores(width: int) -> None:
    """Have torch's operators on this thread use so many cores."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != width:
        torch.set_num_threads(width)  # per thread with OpenMP, which torch's builds for Linux use


class Batcher:
    """Runs `compute` on batches of calls, on `threads` threads."""

    def __init__(
        self,
        compute: Callable[[Sequence[Call]], None],
        threads: int,
        max_batch_size: int,
        max_queue: int,
        torch_threads: int = 1,
    ) -> None:
        self._compute = compute
        self._cores = Cores(threads, torch_threads)
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._computing = [False] * threads
        self._last = time.monotonic()
        """When a batch ended last."""
        self._threads = [
            threading.Thread(target=self._run, args=(n,), name=f"compute-{n}", daemon=True) for n in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the threads end after what waits now."""
        for _ in self._threads:
            self._queue.put(None)

    def limit(self, max_batch_size: int) -> None:
        """Form no larger batches than these from now on."""
        self._max_batch_size = min(self._max_batch_size, max_batch_size)

    def alive(self) -> bool:
        """Whether every compute thread can still take work."""
        return all(thread.is_alive() for thread in self._threads)

    def waiting(self) -> int:
        return self._queue.qsize()

    def quiet_seconds(self) -> float:
        """How long nothing has been computed and nothing waits; 0 while something is."""
        return 0.0 if any(self._computing) or self._queue.qsize() else time.monotonic() - self._last

    def submit(self, call: Call) -> None:
        """Queue a call; `call.done` gets the answer on a compute thread.

        Raises:
            Unavailable: as many calls wait as may wait.
        """
        if self._queue.qsize() >= self._max_queue:
            raise Unavailable(f"{self._max_queue} requests wait already; try again")
        self._queue.put(call)

    def _run(self, number: int) -> None:
        while (call := self._queue.get()) is not None:
            self._computing[number] = True
            self._run_batch(call)
            self._last = time.monotonic()
            self._computing[number] = False
            del call  # while this thread waits it must not keep a model alive that is being unloaded

    def _run_batch(self, first: Call) -> None:
        width = self._cores.take(others_wait=not self._queue.empty())
        try:
            use_cores(width)
            self._compute(self._with_share(first))
        finally:
            self._cores.give(width)

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
