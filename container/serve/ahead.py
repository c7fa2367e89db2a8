"""Decoding and encoding beside the device: while one batch is on the GPU, the CPU's cores make the next one ready.

On a CPU there is nothing beside: the cores that would decode are those that predict, and each compute thread does all
three steps of its batch.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from container.serve.call import Call
from container.serve.exchange import ServeError, Unavailable


class Ahead:
    """Threads that decode calls before they are queued for the device, and encode answers after it.

    Args:
        threads: how many calls are decoded at once.
        decode: makes a call's data ready; False where the call has its answer already.
        queue: takes a call whose data is ready; may raise `ServeError`.
        bound: how many calls may wait here.
    """

    def __init__(self, threads: int, decode: Callable[[Call], bool], queue: Callable[[Call], None], bound: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._decode = decode
        self._queue = queue
        self._bound = bound
        self._waiting = 0
        self._lock = threading.Lock()

    def submit(self, call: Call) -> None:
        """Have a call decoded and queued.

        Raises:
            Unavailable: as many calls wait as may wait.
        """
        with self._lock:
            if self._waiting >= self._bound:
                raise Unavailable(f"{self._bound} requests wait already; try again")
            self._waiting += 1
        self._pool.submit(self._make_ready, call)

    def waiting(self) -> int:
        """Calls that are not decoded yet."""
        return self._waiting

    def run(self, step: Callable[..., Any], *arguments: Any) -> None:
        """Have a later step of a call done on one of these threads; on this one when they have ended."""
        try:
            self._pool.submit(step, *arguments)
        except RuntimeError:
            step(*arguments)

    def stop(self) -> None:
        """Decode what waits, then end the threads."""
        self._pool.shutdown()

    def _make_ready(self, call: Call) -> None:
        try:
            if call.cancelled:
                call.release()
            elif self._decode(call):
                self._queue(call)
        except ServeError as error:
            call.answer(error.response())
        finally:
            with self._lock:
                self._waiting -= 1
