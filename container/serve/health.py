"""Which processes can answer, in memory that the master shares with all of them."""

import mmap
import time
from enum import IntEnum

import orjson

from container import contract
from container.serve.accept import Counts
from container.serve.exchange import Response

FAILURE_BYTES = 4096
STUCK_SECONDS = 60  # a process whose event loop stands still for so long answers nobody; predictions leave it free
REPLACEMENT_SECONDS = 60.0  # so long at least a dead process may be missing while others answer,
REPLACEMENT_STARTS = 3  # or so many times what the server took to start: a replacement shares the cores with requests
FIRST, MISSING, STOPPING = range(3)


class State(IntEnum):
    """Of one serving process."""

    ABSENT = 0
    LOADING = 1
    READY = 2
    FAILED = 3
    STUCK = 4
    """It was ready, and its event loop stands still."""


class Health:
    """One byte per process slot. The master creates it before it forks; each process writes its own byte.

    Once every process has answered, the server is healthy as long as one answers and none is stuck, unless a dead one
    is missing for longer than a replacement may take: the platform replaces an instance whose `/ping` fails, which
    takes minutes and the processes that answer with it.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.started_at = time.monotonic()
        # Twice the slots: during a reload the new processes load while the old ones still answer.
        self._slots = mmap.mmap(-1, 2 * processes)
        self._failure = mmap.mmap(-1, FAILURE_BYTES)
        self.connections = Counts(2 * processes)
        self._times = memoryview(mmap.mmap(-1, 24)).cast("d")
        """When every process was ready first, since when one is missing, when the server was told to stop; 0.0: not.

        The master alone writes them.
        """

    def claim(self) -> int:
        """A free slot, marked as loading; the master calls it before it forks."""
        slot = self._slots[:].index(State.ABSENT)
        self._slots[slot] = State.LOADING
        self.connections.set(slot, 0)
        return slot

    def mark(self, slot: int, state: State) -> None:
        self._slots[slot] = state

    def leave(self, slot: int) -> State:
        """Free the slot of a process that ended; returns what it was doing. The master's."""
        self.observe()
        was = State(self._slots[slot])
        self._slots[slot] = State.ABSENT
        self.observe()
        return was

    def observe(self) -> None:
        """Note whether a process is missing, and since when; the master calls it every second."""
        now = time.monotonic()
        if self.is_complete():
            self._times[FIRST] = self._times[FIRST] or now
            self._times[MISSING] = 0.0
        elif self.started:
            self._times[MISSING] = self._times[MISSING] or now

    def hear(self, slot: int, silent_seconds: float) -> State | None:
        """Take note of how long a process has not moved; returns its state if that is another one now. The master's."""
        was = self._slots[slot]
        state = State.STUCK if silent_seconds > STUCK_SECONDS else State.READY
        if was not in (State.READY, State.STUCK) or was == state:
            return None
        self._slots[slot] = state
        return state

    def fail(self, line: str) -> bool:
        """Leave the reason why the server cannot start, which the master says; returns whether it is the first."""
        if self.failure():
            return False
        line = contract.truncate_utf8(line, FAILURE_BYTES)
        self._failure[: len(line.encode())] = line.encode()
        return True

    def failure(self) -> str:
        return self._failure[:].rstrip(b"\0").decode("utf-8", "replace")

    def forget_failure(self) -> None:
        """It did not keep the server from going on."""
        self._failure[:] = bytes(FAILURE_BYTES)

    @property
    def started(self) -> bool:
        """Whether every process has been ready at once."""
        return self._times[FIRST] > 0

    @property
    def stopping(self) -> bool:
        """Whether every process is to end, and not one that is replaced."""
        return self._times[STOPPING] > 0

    def stop(self) -> None:
        """Told by the master before it tells its processes."""
        self._times[STOPPING] = time.monotonic()

    def is_complete(self) -> bool:
        """Whether every process is ready."""
        return self.ready() >= self.processes

    def state(self) -> State:
        """READY once every process is, and while one of them is replaced in time; else what is in the way."""
        slots = self._slots[:]
        if State.STUCK in slots:
            return State.STUCK
        if slots.count(State.READY) >= self.processes or (State.READY in slots and self._is_being_replaced()):
            return State.READY
        for state in (State.FAILED, State.LOADING):
            if state in slots:
                return state
        return State.ABSENT

    def _is_being_replaced(self) -> bool:
        first, missing, _ = self._times
        if not missing:
            return first > 0
        allowed = max(REPLACEMENT_SECONDS, REPLACEMENT_STARTS * (first - self.started_at))
        return time.monotonic() - missing < allowed

    def is_ready(self, slot: int) -> bool:
        return self._slots[slot] == State.READY

    def any_ready(self) -> bool:
        return State.READY in self._slots[:]

    def occupied(self) -> list[int]:
        """Slots of the processes that live."""
        return [slot for slot, state in enumerate(self._slots[:]) if state != State.ABSENT]

    def ready_slots(self) -> list[int]:
        """Slots of the processes that can answer."""
        return [slot for slot, state in enumerate(self._slots[:]) if state == State.READY]

    def ready(self) -> int:
        """How many processes can answer."""
        return self._slots[:].count(State.READY)

    def response(self) -> Response:
        """The answer to `/ping`: an empty 200, or 503 with what the server is waiting for."""
        state = self.state()
        if state is State.READY:
            return Response(200, b"")
        body = {
            "state": state.name.lower(),
            "elapsed_seconds": round(time.monotonic() - (self._times[MISSING] or self.started_at), 1),
            "ready_processes": self.ready(),
            "processes": self.processes,
        }
        if state is State.FAILED and self.failure():
            body["error"] = self.failure()
        return Response(503, orjson.dumps(body), headers=(("Retry-After", "1"),))
