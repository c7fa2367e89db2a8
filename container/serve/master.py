"""gunicorn's master with our own verdict on processes: which are missed, which replaced, and what ends the server."""

import logging
import os
import signal
import time
from contextlib import suppress
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from container.serve import failures, orphans
from container.serve.health import STUCK_SECONDS, State

logger = logging.getLogger(__name__)

CANNOT_LOAD = 3  # exit status
AGAIN_SECONDS = 10  # after a replacement that could not load, while others answer


class Master(Arbiter):
    """A process that has answered is replaced when it ends; one that cannot load ends the server, unless others answer.

    gunicorn's own verdict goes by exit status, and user code may end a process with any: what became of a process is in
    `Health`.
    """

    WORKER_BOOT_ERROR = APP_LOAD_ERROR = -1  # no process ends with it

    def __init__(self, app: Any) -> None:
        self._endings: dict[int, os.waitid_result] = {}
        self._not_before = 0.0
        self._daemons: set[int] = set()
        """Processes that left their parent while it lived: they end with the server."""
        orphans.adopt()
        super().__init__(app)

    def handle_int(self) -> None:
        """As SIGTERM; gunicorn's own would have the processes killed after 25 s. A second one ends them at once."""
        raise StopIteration

    handle_quit = handle_int

    def handle_hup(self) -> None:
        """Have every process replaced, one after another; gunicorn would end them before new ones have loaded."""
        self.app.renewal.renew(self.WORKERS)

    def handle_ttin(self) -> None:
        """The plan says how many processes there are."""

    handle_ttou = handle_usr2 = handle_ttin

    def stop(self, graceful: bool = True) -> None:
        """Gunicorn's, and the processes know that none of them stays."""
        self.app.health.stop()
        super().stop(graceful)
        orphans.end(orphans.children() - self.WORKERS.keys())

    def murder_workers(self) -> None:
        """Gunicorn's look at its processes, every second: ours is at what they answer and what they hold."""
        self._daemons = orphans.children() - self.WORKERS.keys()
        self.app.health.observe()
        for pid, worker in self.WORKERS.items():
            silent = time.monotonic() - worker.tmp.last_update()
            if self.app.health.hear(worker.slot, silent) is State.STUCK:
                logger.error(
                    "process %d answers nothing: its event loop has stood still for %d s, so something in it holds the "
                    "GIL; /ping is 503 until it moves again",
                    pid,
                    STUCK_SECONDS,
                )
        self.app.renewal.look(self)

    def manage_workers(self) -> None:
        """Start what is missing; after a replacement that failed not at once, unless nobody answers."""
        if time.monotonic() >= self._not_before or not self.app.health.any_ready():
            super().manage_workers()

    def reap_workers(self) -> None:
        """Note how processes ended before gunicorn takes their statuses and keeps them to itself."""
        for pid in self.WORKERS:
            with suppress(ChildProcessError):
                if ending := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    self._endings[pid] = ending
        super().reap_workers()

    def ended(self, worker: Any) -> None:
        """Told of every process that ended.

        Raises:
            HaltServer: it could not load the model, and no process answers that has loaded it.
        """
        orphans.end(orphans.children() - self.WORKERS.keys() - self._daemons)
        health, ending = self.app.health, self._endings.pop(worker.pid, None)
        was = health.leave(worker.slot)
        if self.app.renewal.exited(self, worker.pid) or not self.LISTENERS:  # none: the server is being stopped
            return
        if was in (State.READY, State.STUCK):
            logger.error("process %d ended%s: it is replaced", worker.pid, failures.how_it_ended(ending))
            self.app.restarted()
            return
        if was is State.LOADING:
            health.fail(failures.describe_ending(ending))
        if health.started and health.any_ready():
            self._not_before = time.monotonic() + AGAIN_SECONDS
            logger.error("no replacement yet, others answer; next try in %d s: %s", AGAIN_SECONDS, health.failure())
            health.forget_failure()
            return
        logger.error("%s", health.failure())
        for pid, other in list(self.WORKERS.items()):
            if not health.is_ready(other.slot):  # what still loads may not hear anything for minutes
                self.kill_worker(pid, signal.SIGKILL)
        raise HaltServer("a process could not load the model", CANNOT_LOAD)
