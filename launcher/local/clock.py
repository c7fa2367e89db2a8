"""How long a wait of the service takes here, and who wakes up each moment to look at alarms and scaling.

Waits of the service are minutes: a canary bakes, an alarm looks at periods, autoscaling cools down. They last as long
here, unless `SLIPWAY_LOCAL_SPEED` says how many times shorter all of them are. Whoever asks is told: the endpoint's
VariantStatus names the speed.
"""

import logging
import threading
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)
SPEED_VARIABLE = "SLIPWAY_LOCAL_SPEED"
TICK_SECONDS = 1.0
SHORTEST_TICK_SECONDS = 0.1


def read_speed(text: str | None) -> float:
    """The speed that the variable asks for; 1 where it is unset.

    Raises:
        SystemExit: not a number of at least 1.
    """
    try:
        speed = float(text or 1)
    except ValueError:
        speed = 0.0
    if not 1 <= speed < float("inf"):
        raise SystemExit(f"{SPEED_VARIABLE}={text!r} must be a number of at least 1: how many times shorter waits are")
    return speed


def tick_seconds(speed: float) -> float:
    """How often alarms and scaling are looked at."""
    return max(SHORTEST_TICK_SECONDS, TICK_SECONDS / speed)


class Heartbeat:
    """Calls functions every so many seconds, on a thread of its own."""

    def __init__(self, seconds: float, functions: Sequence[Callable[[], None]]) -> None:
        self._seconds = seconds
        self._functions = functions
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            for function in self._functions:
                try:
                    function()
                except Exception:  # the next moment is another chance; the trace is in the server's log
                    logger.exception("heartbeat")
