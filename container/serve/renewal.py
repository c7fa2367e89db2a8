"""Processes are replaced while the others answer, one at a time, and no request is lost.

One that has grown past its bound is; and on SIGHUP each, so that all serve what lies in the model directory by then.
The replacement loads first and the old process drains then, where memory holds both; else the old one drains first,
and connections wait at the listening socket, which the master holds open, until another process takes them.
"""

import logging
import signal
import time
from collections.abc import Iterable
from typing import Any

from container.serve import memory
from container.serve.health import Health

logger = logging.getLogger(__name__)

GROWTH = 1.2  # at least so much over what the process held when it began: a model that large is no leak
AGAIN_SECONDS = 60  # after a replacement that could not load


class Renewal:
    """The master's watch over which processes are to be replaced; `look` is called every second."""

    def __init__(self, health: Health, bound_bytes: int | None) -> None:
        self._health = health
        self._bound_bytes = bound_bytes
        """None: processes may grow as they like."""
        self._fresh_bytes: dict[int, int] = {}
        self._due: set[int] = set()
        """To be replaced whatever they hold."""
        self._old: int | None = None
        self._new: int | None = None
        """The process that loads beside the old one; None where there is none."""
        self._not_before = 0.0

    def renew(self, pids: Iterable[int]) -> None:
        """Have these processes replaced."""
        if self._bound_bytes is None:
            logger.warning("no process is replaced: the models that it has loaded would be gone")
            return
        self._due.update(pids)

    def look(self, arbiter: Any) -> None:
        """Begin a replacement where one is due, or take the next step of the one under way.

        Args:
            arbiter: gunicorn's master.
        """
        if self._bound_bytes is None:
            return
        if self._old is None:
            self._begin(arbiter)
        elif self._new is not None and self._health.is_ready(arbiter.WORKERS[self._new].slot):
            self._new = None
            arbiter.kill_worker(self._old, signal.SIGTERM)

    def _begin(self, arbiter: Any) -> None:
        if not self._health.is_complete() or time.monotonic() < self._not_before:
            return
        held = {pid: memory.held(pid) for pid in arbiter.WORKERS}
        self._fresh_bytes = {pid: self._fresh_bytes.get(pid, size) for pid, size in held.items()}
        self._due &= held.keys()
        pid = next((pid for pid, size in held.items() if pid in self._due or size > self._allowed(pid)), None)
        if pid is None:
            return
        both = memory.available() > GROWTH * self._fresh_bytes[pid]
        logger.warning(
            "process %d %s: it is replaced %s",
            pid,
            "got SIGHUP"
            if pid in self._due
            else f"holds {held[pid] / 1e6:.0f} MB, more than {self._allowed(pid) / 1e6:.0f} MB",
            "once another one is ready" if both else "after it has ended, for memory does not hold two",
        )
        self._old = pid
        if both:
            arbiter.num_workers += 1
            self._new = arbiter.spawn_worker()
        else:
            arbiter.kill_worker(pid, signal.SIGTERM)

    def _allowed(self, pid: int) -> float:
        assert self._bound_bytes is not None
        return max(self._bound_bytes, GROWTH * self._fresh_bytes[pid])

    def exited(self, arbiter: Any, pid: int) -> bool:
        """Told of every process that ends; returns whether the server goes on without it: it was a replacement."""
        failed = pid == self._new
        if failed:
            self._not_before = time.monotonic() + AGAIN_SECONDS
            self._due.clear()  # the others would fare no better
            logger.warning("its replacement ended; process %d goes on: %s", self._old, self._health.failure())
            self._health.forget_failure()
        elif pid == self._old:
            logger.info("process %d has ended, and was replaced", pid)
        else:
            return False
        arbiter.num_workers = self._health.processes
        self._old = self._new = None
        return failed
