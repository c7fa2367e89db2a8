"""Watching torchrun: passing a stop on to every rank in time, and never waiting for what cannot come."""

import contextlib
import logging
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from types import FrameType

from container.train.runtime import Runtime

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
STOP_SECONDS = 105.0  # after SIGTERM; the platform sends SIGKILL after 120 s, and traces must be written before
ABORT_SECONDS = 2.0  # to write stacks
LINGER_SECONDS = 60.0  # torchrun waits 300 s for hosts that will never answer once its own ranks are done
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PLANNED_STOP_SHARE = 0.1  # of the time limit is kept for saving,
PLANNED_STOP_SECONDS = 300.0  # but no more than this


class Stopped(BaseException):
    """The platform asked for a stop while nothing ran yet that could be saved."""


class StopRequest:
    """The first stop signal of this process."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.planned = False
        """Whether it is our own, ahead of the time limit."""
        self.overdue_seconds = 0.0
        """After which the program was killed, because it had not stopped."""
        self.interrupts = True
        """Whether it raises `Stopped`: before training starts, whatever is waited for is given up."""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            if self.interrupts:
                raise Stopped


def planned_stop(started: float, limit_seconds: float | None) -> float:
    """When to stop by ourselves, seconds since the epoch, so that a model is saved before the platform ends the job.

    Args:
        started: when the container started, seconds since the epoch.
        limit_seconds: StoppingCondition.MaxRuntimeInSeconds; None where nobody told.
    """
    if limit_seconds is None:
        return float("inf")
    return started + limit_seconds - min(PLANNED_STOP_SECONDS, PLANNED_STOP_SHARE * limit_seconds)


@dataclass(frozen=True)
class Watch:
    """A started program and what is known about it."""

    process: subprocess.Popen[bytes]
    """torchrun, or the user's command."""
    ranks: int
    """Started by torchrun on this host; 0 for a command."""
    runtime: Runtime
    stop: StopRequest
    deadline: float
    """Of the planned stop, seconds since the epoch."""
    stop_seconds: float = STOP_SECONDS
    """That the program has between the stop signal and its end."""
    linger_seconds: float = LINGER_SECONDS
    """That this host waits for the others once its own ranks are done."""

    def wait(self) -> int:
        """Wait for the end; pass a stop on to every rank at once.

        Returns:
            The exit code, negative for a signal; 0 when this host's ranks are done but others keep torchrun waiting.
        """
        stopped_at = done_at = float("inf")
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(POLL_SECONDS)
                self._join_planned_stop()  # its echo may be what has ended this host
                return code
            now = time.monotonic()
            if self._must_stop() and stopped_at == float("inf"):
                stopped_at = now
                self._deliver_stop()
            if now - stopped_at > self.stop_seconds:
                logger.error("the program did not stop within %.0f s: killed", self.stop_seconds)
                self.stop.overdue_seconds = self.stop_seconds
                self._leave_stacks()
                self._kill()
            if 0 < self.ranks == self.runtime.done_ranks:
                done_at = min(done_at, now)
            if now - done_at > self.linger_seconds:
                logger.warning("this host is done, and others did not end within %.0f s", self.linger_seconds)
                self._kill()
                return 0

    def _must_stop(self) -> bool:
        self._join_planned_stop()
        if self.stop.signal is None and time.time() >= self.deadline:
            logger.warning("the time limit is near: stopping while the model can still be saved")
            self.stop.signal, self.stop.planned = signal.SIGTERM, True
        return self.stop.signal is not None

    def _join_planned_stop(self) -> None:
        if self.stop.signal is None and self.runtime.planned_elsewhere.exists():
            logger.warning("another host stops, because the time limit is near: so does this one")
            self.stop.signal, self.stop.planned = signal.SIGTERM, True

    def _deliver_stop(self) -> None:
        """Tell the program to stop.

        Ranks are told directly, not through torchrun: it would leave them 30 s. Where none runs yet torchrun is ended,
        and a rank that it may just be starting finds the stop request.
        """
        number = signal.Signals(self.stop.signal or signal.SIGTERM)
        logger.info("%s: asking the program to save and stop", number.name)
        self.runtime.request_stop(self.stop.planned)
        if self.ranks == 0:
            os.killpg(self.process.pid, number)
        elif self.runtime.signal_ranks(number) == 0 and self.runtime.done_ranks == 0:
            self.process.send_signal(signal.SIGTERM)

    def _leave_stacks(self) -> None:
        """Where the ranks stand that did not stop: their fault handlers write it down as they abort."""
        self.runtime.signal_ranks(signal.SIGABRT)
        deadline = time.monotonic() + ABORT_SECONDS
        while self.runtime.live_ranks() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _kill(self) -> None:
        self.runtime.kill_ranks()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
