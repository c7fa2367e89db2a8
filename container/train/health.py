"""Watching a training loop for what goes wrong without an exception; one line with the evidence each."""

import faulthandler
import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from types import TracebackType

from container import contract
from container.train.position import Position, ProgressBoard
from container.train.runtime import Runtime

logger = logging.getLogger(__name__)

RULES: Mapping[str, str] = {
    "nan": "stop",
    "exploding": "warn",
    "stalled": "warn",
    "starving": "warn",
    "gpu_idle": "warn",
}
"""Rule -> what it does by default: `stop` ends the job as failed, `warn` logs, `off` does nothing."""
EXPLOSION = 10.0  # times the lowest loss so far
# A lowest loss below this counts as this: so near to zero rounding or one hard sample is a factor of ten, and a loss
# that really grows without bounds leaves it behind at once.
EXPLOSION_FLOOR = 1e-3
STARVING_SHARE = 0.2  # of the time may go into waiting for data,
STARVING_SECONDS = 5.0  # and short jobs are not worth a word


def rules_from_env() -> dict[str, str]:
    """Rule -> action, as the variable SLIPWAY_HEALTH says.

    Raises:
        ValueError: an unknown rule or action.
    """
    pairs = [entry.partition("=") for entry in os.environ.get(contract.HEALTH_VARIABLE, "").split(",") if entry.strip()]
    rules = {rule.strip(): action.strip() for rule, _, action in pairs}
    _check_rules(rules)
    return rules


def _check_rules(rules: Mapping[str, str]) -> None:
    for name, action in rules.items():
        if name not in RULES or action not in ("warn", "stop", "off"):
            raise ValueError(f"health rule {name}={action!r}: rules are {', '.join(RULES)}; warn, stop or off")


class UnhealthyTraining(Exception):
    """A health rule set to `stop` was broken."""


class Health:
    """Five rules, each `warn`, `stop` or `off`.

    - nan: the loss is NaN or infinite
    - exploding: the loss is ten times the lowest one seen, and over 0.01
    - stalled: no step has ended for `stall_seconds`; the Python stacks of all threads go to the log
    - starving: over a fifth of the time went into waiting for data
    - gpu_idle: a GPU was busy for less than a tenth of five minutes; watched for every script, with or without `Health`

    Rules of the variable SLIPWAY_HEALTH, such as `exploding=stop,starving=off`, hold where the caller names none.

    Use it as a context manager around the loop; call `step()` after every step and `loss()` when a loss is known:

        with Health() as health:
            for batch in loader:
                health.step(waited_seconds)
                health.loss(loss.item())
    """

    def __init__(self, rules: Mapping[str, str] | None = None, stall_seconds: float = 600.0) -> None:
        """Args: see the class.

        Raises:
            ValueError: an unknown rule or action.
        """
        rules = {**rules_from_env(), **(rules or {})}
        _check_rules(rules)
        self.rules = {**RULES, **rules}
        self.stall_seconds = stall_seconds
        self._lowest = math.inf
        self._steps = 0
        self._last_step = self._began = time.monotonic()
        self._waited = 0.0
        self._said: set[str] = set()
        self._over = threading.Event()
        self._board: ProgressBoard | None = None

    def __enter__(self) -> "Health":
        self._last_step = self._began = time.monotonic()
        runtime = Runtime.from_env()
        if runtime is not None and "LOCAL_RANK" in os.environ:
            self._board = ProgressBoard(runtime, int(os.environ["LOCAL_RANK"]))
        if self.rules["stalled"] != "off":
            threading.Thread(target=self._watch, name="health", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if error is None:
            self._judge_waiting()

    def step(self, waited_seconds: float = 0.0) -> None:
        """A step has ended; before it, this long was spent waiting for its data."""
        self._steps += 1
        self._waited += waited_seconds
        self._last_step = time.monotonic()
        self._show()

    def loss(self, value: float) -> None:
        """Judge a loss.

        Raises:
            UnhealthyTraining: a rule that is set to `stop` is broken.
        """
        if not math.isfinite(value):
            self._report(
                "nan", f"the loss is {value} after {self._steps} steps: lower learning_rate, or look at the data"
            )
        elif self._lowest > 0 and value > EXPLOSION * max(self._lowest, EXPLOSION_FLOOR):
            self._report(
                "exploding", f"the loss is {value:.4g} after {self._steps} steps; it has been {self._lowest:.4g}"
            )
        else:
            self._lowest = min(self._lowest, value)

    def _show(self, stalled: bool = False) -> None:
        """For the hosts' agents, which know who is late."""
        if self._board is not None:
            self._board.show(Position(self._steps, self._last_step, stalled))

    def _judge_waiting(self) -> None:
        seconds = time.monotonic() - self._began
        share = self._waited / seconds if seconds else 0.0
        if self._waited > STARVING_SECONDS and share > STARVING_SHARE:
            evidence = (
                f"{share:.0%} of {seconds:.0f} s went into waiting for data: raise num_workers, or use smaller files"
            )
            self._report("starving", evidence)

    def _report(self, rule: str, evidence: str) -> None:
        """Say it once; raise where the rule says so."""
        action = self.rules[rule]
        if action == "off" or rule in self._said:
            return
        self._said.add(rule)
        logger.warning("health rule %s (%s): %s", rule, action, evidence)
        if action == "stop":
            raise UnhealthyTraining(f"{rule}: {evidence}")

    def _watch(self) -> None:
        """Runs in a thread, since a stalled loop calls nothing."""
        while not self._over.wait(min(5.0, self.stall_seconds / 4)):
            quiet = time.monotonic() - self._last_step
            if quiet < self.stall_seconds or "stalled" in self._said:
                continue
            self._show(stalled=True)
            stacks = python_stacks()
            try:
                self._report("stalled", f"no step for {quiet:.0f} s, {self._steps} before; Python stacks follow")
            except UnhealthyTraining as error:
                from container.train import rank  # it needs what only a rank started by our launcher has

                rank.end_with(error, stacks)
            sys.stderr.write(stacks)


def python_stacks() -> str:
    """The stacks of all threads, innermost frame first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
