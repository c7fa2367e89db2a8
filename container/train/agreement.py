"""Agreeing with all ranks on what to do after which step, at no cost per step.

A collective per step would do it, too: on the CPU, which a process group with NCCL alone cannot, and over connections
from every rank to every other. Wishes are rare. So a rank that has one opens a round in the store which every process
group has anyway. A thread of each rank answers with the step its rank is at, and waits there if it goes on; what is
wished for happens on the step after the last of these. Nobody can have passed it, and nobody waits for a rank's
computation.
"""

import threading

import torch.distributed as dist

POLL_SECONDS = 0.25  # until a rank notices the wish of another one
_EACH_OTHER_SECONDS = 0.02


class Agreement:
    """One rank's part of it; every rank makes its own and calls `vote` equally often."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        """`store` must be shared by all ranks, and its keys by nobody else."""
        self._store, self._rank, self._world_size = store, rank, world_size
        self._changed = threading.Condition()  # guards what follows
        self._step = 0
        self._round = 0
        self._answer: int | None = None
        self._decision: tuple[int, int] | None = None
        """Step and wish."""
        self._error: Exception | None = None
        self._over = False
        self._listener = threading.Thread(target=self._listen, name="agreement", daemon=True)
        self._listener.start()

    def vote(self, wish: int) -> int:
        """The wish that all ranks fulfil now, after as many calls of each; 0 for none.

        Args:
            wish: this rank's, which holds until it is fulfilled; 0 for none.

        Raises:
            RuntimeError: the store is gone, and with it the first host.
        """
        with self._changed:
            self._step += 1
            if self._answer is None:
                opens = wish != 0
            else:
                opens = False
                # Beyond the answered step only with a decision: it could be this one.
                self._changed.wait_for(lambda: self._decision is not None or self._error is not None)
                if self._decision is not None and self._decision[0] == self._step:
                    return self._begin_round()
            if self._error is not None:
                raise self._error
            round_number = self._round
        if opens:
            self._store.compare_set(f"{round_number}/wish", "", str(wish))  # of several ranks, the first one's
            with self._changed:
                self._changed.notify_all()
        return 0

    def close(self) -> None:
        """Leave the loop: whoever still waits for this rank's answer gets it."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._listener.join(5)  # longer only where the store does not answer any more

    def _begin_round(self) -> int:
        assert self._decision is not None
        wish = self._decision[1]
        self._round, self._answer, self._decision = self._round + 1, None, None
        return wish

    def _listen(self) -> None:
        try:
            while not self._over:
                if self._answer is None and self._store.check([f"{self._round}/wish"]):
                    self._decide()
                with self._changed:
                    if not self._over:
                        self._changed.wait(POLL_SECONDS)
            if self._answer is None:
                self._store.set(self._key(self._rank), str(self._step))
        except RuntimeError as error:  # torch's DistError is one
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _decide(self) -> None:
        """Answer, and wait for the answers of all."""
        with self._changed:
            self._answer = self._step
        self._store.set(self._key(self._rank), str(self._answer))
        keys = [self._key(rank) for rank in range(self._world_size)]
        while not self._store.check(keys):
            with self._changed:
                if self._over:
                    return
                self._changed.wait(_EACH_OTHER_SECONDS)
        steps = [self._store.get(key) for key in keys]
        wish = int(self._store.get(f"{self._round}/wish"))
        with self._changed:
            self._decision = (max(map(int, steps)) + 1, wish)
            self._changed.notify_all()

    def _key(self, rank: int) -> str:
        return f"{self._round}/at/{rank}"
