"""Signs of life between the hosts of a job: who has died without a word, who is late, and at which step.

Each host's agent writes one small record per second into the store that the first host serves; the first host judges
the others by them, and the others the first one by its store. Where a rank has failed with an echo ("connection closed
by peer") a few seconds of silence are enough to name the host that died; without, it takes a minute.
"""

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from container.train import failure, peers
from container.train.failure import RankError
from container.train.position import positions
from container.train.runtime import Runtime

BEAT_SECONDS = 1.0
LATE_SECONDS = 10.0  # of silence are worth a line
DOUBT_SECONDS = 5.0  # of silence are a death where some rank has lost a connection
CAUSE_SECONDS = 10.0  # that a host with nothing but echoes waits for the cause
FAREWELL_SECONDS = 5.0  # for ranks to end with their own error after another host's is known; then for their SIGTERM
_RECONNECT_SECONDS = 3.0
DONE, STOPPING = "done", "stopping"


@dataclass(frozen=True)
class Place:
    """Where this host stands among the hosts of the job."""

    hosts: list[str]
    host_rank: int
    ranks_per_host: int

    def first_rank(self, host_rank: int) -> int:
        return host_rank * self.ranks_per_host


@dataclass
class Heard:
    """What was last heard of a host."""

    at: float
    """time.monotonic() of this host."""
    beat: dict[str, Any] = field(default_factory=dict)
    said_late: bool = False

    @property
    def is_over(self) -> bool:
        """Whether it said itself that nothing more is to be expected of it."""
        return bool(self.beat.get("word"))

    @property
    def step(self) -> str:
        """The last step that one of its ranks has told."""
        steps = [step for step, _ in self.beat.get("ranks", {}).values()]
        return f" after step {max(steps)}" if steps else ""


class Heartbeat:
    """Two threads of an agent: one talks to the store, and one judges, because the first may hang with the store."""

    def __init__(self, place: Place, runtime: Runtime, connect: Callable[[float], dist.Store], lost: float) -> None:
        """Begin.

        Args:
            place: this host's.
            runtime: of this host.
            connect: a client of the first host's store; its argument is how long it may take, in seconds.
            lost: seconds of silence after which a host is given up.
        """
        self.cause: RankError | None = None
        """Why the job has failed, as far as the hosts know."""
        self._place, self._runtime, self._connect, self._lost = place, runtime, connect, lost
        self._store: dist.Store | None = None
        self._heard: dict[int, Heard] = {}
        self._last_words = ""
        self._doubts = False
        self._said_stall = -1
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True) for target in (self._talk, self._judge)
        ]
        for thread in self._threads:
            thread.start()

    def goodbye(self, word: str) -> None:
        """Say how this host ended, while there is a store to say it to; `DONE` every beat has said since it was."""
        self._last_words = word
        self._over.set()
        for thread in self._threads:
            thread.join(_RECONNECT_SECONDS)

    def await_cause(self) -> RankError | None:
        """Called by a host whose ranks have only lost connections: who died? None where nobody finds out in time."""
        self._doubts = True
        deadline = time.monotonic() + CAUSE_SECONDS
        while self.cause is None and time.monotonic() < deadline and not self._runtime.planned_elsewhere.exists():
            time.sleep(0.05)
        return self.cause

    def tell(self, error: RankError) -> None:
        """Tell all hosts why the job fails."""
        with contextlib.suppress(RuntimeError):
            if self._store is not None:
                peers.publish(self._store, error)

    def _talk(self) -> None:
        try:
            self._store = self._connect(peers.CHECK_SECONDS)
        except RuntimeError:
            return  # torchrun says the same, with more words
        is_last = False
        while not is_last:
            is_last = self._over.wait(BEAT_SECONDS)
            if is_last and self._last_words == DONE:
                return  # the store has ended with the first host's torchrun
            try:
                self._exchange(self._store)
            except RuntimeError:
                if is_last or not self._reconnect():
                    return

    def _reconnect(self) -> bool:
        try:
            self._store = self._connect(_RECONNECT_SECONDS)
        except RuntimeError:
            if 0 in self._heard:
                self._heard[0].at = -float("inf")
            return False
        return True

    def _exchange(self, store: dist.Store) -> None:
        ranks = self._place.ranks_per_host
        word = DONE if self._runtime.done_ranks == ranks else self._last_words
        if word != DONE and self._runtime.stop_requested:
            word = STOPPING
        mine = {
            "time": time.time(),
            "word": word,
            "planned": self._runtime.stop_is_planned,
            "doubts": self._doubts,
            "ranks": {rank: (at.step, at.stalled) for rank, at in positions(self._runtime, ranks).items()},
        }
        store.set(f"beat/{self._place.host_rank}", json.dumps(mine))
        for host_rank in range(len(self._place.hosts)) if self._place.host_rank == 0 else (0,):
            if store.check([f"beat/{host_rank}"]):
                beat = json.loads(store.get(f"beat/{host_rank}"))
                if host_rank not in self._heard or beat != self._heard[host_rank].beat:
                    self._heard[host_rank] = Heard(time.monotonic(), beat)
        self.cause = self.cause or peers.published(store)

    def _judge(self) -> None:
        while not self._over.wait(BEAT_SECONDS / 4):
            if self._runtime.stop_requested or self._runtime.done_ranks == self._place.ranks_per_host:
                continue
            if self._place.host_rank == 0:
                self._name_the_stalled()
            for host_rank, heard in list(self._heard.items()):
                self._judge_host(host_rank, heard)
            if self.cause is not None:
                self._end_ranks(self.cause)
                return

    def _judge_host(self, host_rank: int, heard: Heard) -> None:
        if host_rank == self._place.host_rank or self.cause is not None:
            return
        if heard.beat.get("planned"):
            self._runtime.planned_elsewhere.touch()  # the launcher looks for it
            return
        host, silent = self._place.hosts[host_rank], time.monotonic() - heard.at
        doubts = self._doubts or any(other.beat["doubts"] for other in self._heard.values())
        if heard.is_over:
            if doubts and heard.beat["word"] == STOPPING:
                self._give_up(host_rank, "HostStopped", f"{host} was told to stop, by SIGTERM, and this host was not")
        elif silent > (DOUBT_SECONDS if doubts else self._lost):
            since = time.strftime("%H:%M:%S UTC", time.gmtime(heard.beat["time"]))
            self._give_up(host_rank, "HostLost", f"{host} fell silent at {since}{heard.step} and said no goodbye")
        elif silent > LATE_SECONDS and not heard.said_late:
            heard.said_late = True
            _say(f"{host} is late: nothing heard from it for {silent:.0f} s, {heard.step.strip() or 'before any step'}")

    def _give_up(self, host_rank: int, kind: str, message: str) -> None:
        place = self._place
        error = RankError(place.first_rank(host_rank), place.hosts[host_rank], time.time(), kind, message)
        self.cause = error
        if host_rank != 0:  # its store is gone with it
            self.tell(error)

    def _end_ranks(self, cause: RankError) -> None:
        """End the ranks of this host, whatever they wait for, with the cause beside their own errors."""
        failure.record(self._runtime.directory, cause)
        if cause.host == self._place.hosts[self._place.host_rank]:
            return  # our own: torchrun is about to end the others
        self._over.wait(FAREWELL_SECONDS)
        if self._runtime.live_ranks():
            _say(f"ending this host's ranks, because of {cause.host}: {cause.summary}")
            end_ranks(self._runtime)

    def _name_the_stalled(self) -> None:
        """One line per stall: which rank is behind, or that all stand at the same step."""
        steps = {
            (self._place.first_rank(host_rank) + int(rank), self._place.hosts[host_rank]): (step, stalled)
            for host_rank, heard in self._heard.items()
            for rank, (step, stalled) in heard.beat.get("ranks", {}).items()
        }
        if not any(stalled for _, stalled in steps.values()):
            return
        last, first = min(step for step, _ in steps.values()), max(step for step, _ in steps.values())
        if last == self._said_stall:
            return
        self._said_stall = last
        late = ", ".join(f"rank {rank} on {host}" for (rank, host), (step, _) in steps.items() if step == last)
        everybody = f"all {len(steps)} ranks stand at step {last}"
        _say("stalled: " + (everybody if last == first else f"{late} at step {last}, others at step {first}"))


def end_ranks(runtime: Runtime) -> None:
    """End this host's ranks, whatever they wait for; they leave their stacks."""
    runtime.signal_ranks(signal.SIGTERM)
    deadline = time.monotonic() + FAREWELL_SECONDS
    while runtime.live_ranks() and time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 4)
    runtime.kill_ranks()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
