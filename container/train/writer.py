"""Writing in the background what training goes on changing: a copy in host memory, and one thread that writes it."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from container import contract

logger = logging.getLogger(__name__)

LONG_SECONDS = contract.TRAINING_STOP_SECONDS / 2  # for one checkpoint: another may be under way when the stop comes
COPIES = 2  # one that is being written, and one that waits for it: so far a loop may be ahead of the disk


class BackgroundWriter:
    """Writes one state after the other, in the order in which they came; none is left out."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._writing: deque[Future[None]] = deque()
        self._said_long = False
        self._spare: Any = None
        """A copy that is written: its memory is there already, which is most of the time of the next copy."""

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be written."""
        return any(not writing.done() for writing in self._writing)

    def submit(self, state: Any, write: Callable[[Any], None], reuse: bool = True) -> None:
        """Copy a state and have it written; waits for the disk only where two copies are on their way to it already.

        Args:
            state: as `copy_to_host` takes it.
            write: gets the copy, in the thread.
            reuse: whether the next state is likely to be of the same tensors.

        Raises:
            OSError: what an earlier `write` raised.
        """
        while self._writing and (self._writing[0].done() or len(self._writing) >= COPIES):
            self._writing.popleft().result()
        spare = None
        if reuse:
            spare, self._spare = self._spare, None
        copied = copy_to_host(state, spare)

        def write_and_keep() -> None:
            began = time.monotonic()
            write(copied)
            self._judge(time.monotonic() - began)
            if reuse:
                self._spare = copied

        self._writing.append(self._thread.submit(write_and_keep))

    def _judge(self, seconds: float) -> None:
        """Say it when a job that is told to stop might not get its checkpoint to disk."""
        if seconds > LONG_SECONDS and not self._said_long:
            self._said_long = True
            logger.warning(
                "writing a checkpoint took %.0f s; SageMaker ends a job %d s after it told it to stop: a larger "
                "volume writes faster, and so do the parts of ShardedCheckpoints",
                *(seconds, contract.TRAINING_STOP_SECONDS),
            )

    def wait(self) -> None:
        """Until everything is written; gives the memory back.

        Raises:
            OSError: what a `write` raised.
        """
        while self._writing:
            self._writing.popleft().result()
        self._spare = None


def copy_to_host(value: Any, into: Any = None) -> Any:
    """The same structure with every tensor copied into host memory, so that training may change the originals.

    Args:
        value: tensors in nested dicts, lists and tuples (which become lists); all else is taken as it is.
        into: an earlier copy, whose tensors are used again where shape and type are the same.
    """
    if isinstance(value, torch.Tensor):
        return _copy_tensor(value.detach(), into)
    if isinstance(value, dict):
        earlier = into if isinstance(into, dict) else {}
        return {key: copy_to_host(item, earlier.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        others = into if isinstance(into, list) and len(into) == len(value) else [None] * len(value)
        return [copy_to_host(item, other) for item, other in zip(value, others, strict=True)]
    return value


def _copy_tensor(value: Any, into: Any) -> Any:
    """Of a tensor of whatever kind; `into` is used where it is a tensor that is like it."""
    if type(into) is not type(value) or (into.shape, into.dtype) != (value.shape, value.dtype):
        return value.to("cpu", copy=True)
    if type(value) is torch.Tensor:
        return into.copy_(value)
    from torch.distributed.tensor import DTensor  # half a second: only where there are tensors of another kind

    if isinstance(value, DTensor) and into.placements == value.placements:
        into.to_local().copy_(value.to_local())  # alone: a copy's mesh is still that of the GPUs
        return into
    return value.to("cpu", copy=True)
