"""Stopping a training loop well: every rank sees the stop at the same step, then saves and ends with exit code 0."""

import faulthandler
import os
import signal
import threading
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from container.train.runtime import Runtime

PEER_FAILED = 128 + signal.SIGTERM
STOP = 1_000  # above every other wish


class GracefulStop:
    """SIGTERM and SIGINT as a flag that all ranks read alike.

    Use it as a context manager around the loop, and call `agreed()` once per step on every rank:

        with GracefulStop() as stop:
            for step in range(steps):
                train_step()
                if stop.agreed():
                    break
        save()

    Before the `with`, a signal ends the process at once, which is right while there is nothing to save.
    A SIGTERM that torchrun sends because another rank has failed ends the process at once, too, even while it waits
    inside a collective for a peer that will never answer.
    """

    def __init__(self) -> None:
        self.requested = False
        self._runtime = Runtime.from_env()
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._pending: dist.Work | None = None
        self._previous: dict[int, object] = {}
        self._read_end, self._write_end = os.pipe()

    def __enter__(self) -> "GracefulStop":
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        threading.Thread(target=self._watch, name="graceful-stop", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the last exchange. Signals stay caught: a second SIGTERM must not break into the save."""
        if self._pending is not None and error is None:
            self._pending.wait()
            self._pending = None

    def agreed(self) -> bool:
        """Whether all ranks stop now; the same answer on every rank, one step after the first of them was asked."""
        return self.vote(0) == STOP

    def vote(self, wish: int) -> int:
        """The largest wish of all ranks, `STOP` being the largest of all; the same answer on every rank.

        The answer of one step travels while the next one computes, so that nobody waits for it: with several ranks it
        is that of the step before.

        Args:
            wish: below `STOP`; its meaning is the caller's, 0 should be none.
        """
        wish = STOP if self.requested else wish
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return wish
        answer = 0
        if self._pending is not None:
            self._pending.wait()
            answer = int(self._flag.item())
        self._flag = torch.tensor([wish])
        self._pending = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, async_op=True)
        return answer

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _watch(self) -> None:
        """Python runs `_on_signal` only between bytecodes; this thread hears of a signal even during a collective."""
        while numbers := os.read(self._read_end, 64):
            peer_failed = self._runtime is not None and not self._runtime.stop_requested
            if peer_failed and signal.SIGTERM in numbers:
                self._leave_stacks()
                os._exit(PEER_FAILED)

    def _leave_stacks(self) -> None:
        if self._runtime is not None and "RANK" in os.environ:
            with self._runtime.stack_file(int(os.environ["RANK"])).open("a") as stacks:
                faulthandler.dump_traceback(stacks, all_threads=True)
