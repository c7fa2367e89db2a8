"""One queue feeds the compute threads, and what arrived while they were busy is the next batch.

A lone request never waits. A thread that becomes free takes its share of what waits, one part per compute thread, so
that nothing is batched while a core could be idle. Requests of different shapes never meet in a batch, and a batch
that fails is repeated request by request, so that a bad one fails alone.
"""

import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue

from container.serve.call import Call
from container.serve.exchange import Unavailable

logger = logging.getLogger(__name__)


QUIET_BATCHES = 4  # so many batches in a row without company, and the next may use every core
PATIENCE_SECONDS = 0.25  # what waits behind a batch that uses every core waits so long, and then shares them with it


class Cores:
    """The cores of this process: each batch takes its share, a lone one in quiet times all, where a share is one core.

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

    def take(self, alone: bool) -> int:
        """Wait for a share; returns how many cores the batch may use.

        Args:
            alone: whether no other request waits, and each that was taken has its answer. Who has answered gives its
                cores back at once: a batch that may have all of them waits for that.
        """
        if self._total == self._share:  # one thread: all of them are its own
            return self._share
        with self._changed:
            self._quiet = self._quiet + 1 if alone else 0
            if self._share == 1 and self._quiet > QUIET_BATCHES:
                self._changed.wait_for(self._all_free, self._patience)
                if self._all_free():
                    self._free = 0
                    return self._total
            while self._free < self._share:
                if not self._changed.wait(self._patience) and not self._shared:
                    self._shared = True
                    self._free += self._total - self._share
            self._free -= self._share
            return self._share

    def _all_free(self) -> bool:
        return self._free == self._total

    def give(self, width: int) -> None:
        if self._total == self._share:
            return
        with self._changed:
            if self._shared and width > self._share:
                width, self._shared = self._share, False
            self._free += width
            self._changed.notify_all()


_last_width = 0


def use_cores(width: int) -> None:
    """Have torch's operators on this thread use so many cores."""
    global _last_width
    torch = sys.modules.get("torch")
    if torch is None or (torch.get_num_threads() == width == _last_width):
        return
    _last_width = width  # OpenMP, which torch's builds for Linux use, counts per thread, but MKL for all of them
    torch.set_num_threads(width)


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
        self._torch_threads = torch_threads
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._wide: SimpleQueue[list[Call] | None] = SimpleQueue()
        """Batches that use every core. They have a thread of their own: OpenMP keeps helpers for each thread that ever
        used several cores, and with more helpers than cores it puts them to sleep between operators: twice as slow."""
        self._computing: list[list[Call]] = [[]] * (threads + 1)
        """What each thread has taken, and the wide one; empty while it waits."""
        self._last = time.monotonic()
        """When a batch ended last."""
        self._threads = [
            threading.Thread(target=self._run, args=(n,), name=f"compute-{n}", daemon=True) for n in range(threads)
        ]
        self._wide_thread = threading.Thread(target=self._run_wide, name="compute-wide", daemon=True)

    def start(self) -> None:
        for thread in (*self._threads, self._wide_thread):
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
        return all(thread.is_alive() for thread in self._threads) and self._wide_thread.is_alive()

    def waiting(self) -> int:
        return self._queue.qsize()

    def quiet_seconds(self) -> float:
        """How long nothing has been computed and nothing waits; 0 while something is."""
        return time.monotonic() - self._last if self.idle() else 0.0

    @contextlib.contextmanager
    def as_compute_thread(self) -> Iterator[None]:
        """For what is so quick that the caller's own thread computes it."""
        use_cores(self._torch_threads)
        try:
            yield
        finally:
            self._last = time.monotonic()

    def idle(self) -> bool:
        """Whether nothing is computed and nothing waits."""
        return not (any(self._computing) or self._queue.qsize())

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
            alone = self._queue.empty() and all(other.answered for batch in self._computing for other in batch)
            self._computing[number] = [call]
            width = self._cores.take(alone)
            batch = self._computing[number] = self._with_share(call)
            if width > self._torch_threads:
                self._computing[-1] = batch
                self._wide.put(batch)
            else:
                self._run_batch(batch, width)
            self._last = time.monotonic()
            self._computing[number] = []
            del call, batch  # while this thread waits it must not keep a model alive that is being unloaded
        self._wide.put(None)

    def _run_wide(self) -> None:
        for _ in self._threads:  # each says when it has ended
            while (batch := self._wide.get()) is not None:
                self._run_batch(batch, self._torch_threads * len(self._threads))
                self._last = time.monotonic()
                self._computing[-1] = []
                del batch

    def _run_batch(self, batch: list[Call], width: int) -> None:
        try:
            use_cores(width)
            self._compute(batch)
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
