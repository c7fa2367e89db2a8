"""Stopping a training loop well: every rank sees the stop at the same step, then saves and ends with exit code 0."""

import faulthandler
import itertools
import os
import signal
import threading
from types import FrameType, TracebackType

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store  # the one way to it, whatever init_method was

from container.train.agreement import Agreement
from container.train.runtime import Runtime

PEER_FAILED = 128 + signal.SIGTERM
STOP = 1_000  # no other wish may have this number
_numbers = itertools.count()  # of the loops of this process: each has keys of its own, the same on every rank


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
        self._agreement: Agreement | None = None
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
        """Leave the agreement. Signals stay caught: a second SIGTERM must not break into the save."""
        if self._agreement is not None:
            self._agreement.close()
            self._agreement = None

    def agreed(self) -> bool:
        """Whether all ranks stop now: the same answer everywhere, a step or two after the first was asked."""
        return self.vote(0) == STOP

    def vote(self, wish: int) -> int:
        """What all ranks do now: 0 for nothing, `STOP`, or the wish of one of them; the same answer on every rank.

        As long as nobody wishes anything this costs a microsecond: see container/train/agreement.py.

        Args:
            wish: from 1 below `STOP`, its meaning being the caller's; 0 for none.
        """
        wish = STOP if self.requested else wish
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return wish
        if self._agreement is None:
            store = dist.PrefixStore(f"slipway/stop/{next(_numbers)}", _get_default_store())
            self._agreement = Agreement(store, dist.get_rank(), dist.get_world_size())
        return self._agreement.vote(wish)

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
