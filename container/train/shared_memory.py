"""/dev/shm, through which DataLoader workers hand over batches: where it is too small a worker dies of a bus error.

Both of torch's sharing strategies use /dev/shm. What helps is to send a batch by value, through the pipe between worker
and rank: it costs copies of the batch, and no shared memory.
"""

import logging
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate
from torch.utils.data._utils import worker

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
PREFETCH_FACTOR = 2  # DataLoader's own default: batches that each worker has ready
MARGIN = 1.25  # over the sum of all batches: one that is being used, allocation in whole pages
SPARE_DESCRIPTORS = 256  # for everything else a process has open


@dataclass(frozen=True)
class Limits:
    """What this machine gives a process."""

    shared_memory_bytes: int
    """Free in /dev/shm."""
    open_files: int
    """RLIMIT_NOFILE's soft limit."""

    @classmethod
    def of_this_process(cls) -> "Limits":
        free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(free, soft)


@dataclass(frozen=True)
class Handover:
    """How DataLoader workers hand over batches."""

    by_value: bool = False
    reason: str = ""
    """One line for the log; empty where nothing had to change."""


def decide_handover(num_workers: int, batch: Any, ranks_per_host: int, limits: Limits) -> Handover:
    """By shared memory where it and the open files suffice for what all ranks' workers have ready, else by value.

    Args:
        num_workers: of each rank.
        batch: a collated one: tensors in mappings and sequences.
        ranks_per_host: share /dev/shm.
        limits: of the machine.
    """
    sizes = [tensor.nbytes for tensor in _tensors(batch)]
    in_flight = num_workers * PREFETCH_FACTOR
    needed = int(in_flight * sum(sizes) * ranks_per_host * MARGIN)
    if needed > limits.shared_memory_bytes:
        return Handover(
            by_value=True,
            reason=f"/dev/shm has {_megabytes(limits.shared_memory_bytes)} free, and {num_workers} DataLoader workers "
            f"for each of {ranks_per_host} rank(s) want {_megabytes(needed)}: batches go through pipes instead",
        )
    if in_flight * len(sizes) + SPARE_DESCRIPTORS > limits.open_files:
        return Handover(
            by_value=True,
            reason=f"{limits.open_files} open files are too few for the {in_flight * len(sizes)} tensors that "
            f"{num_workers} DataLoader workers share: batches go through pipes instead",
        )
    return Handover()


def loader_options(
    samples: Sequence[Any],
    batch_size: int,
    num_workers: int,
    collate: Callable[[list[Any]], Any] = default_collate,
    ranks_per_host: int = 1,
) -> dict[str, Any]:
    """Arguments for a DataLoader that works with whatever /dev/shm this machine has; logs a line if that took a change.

        DataLoader(dataset, batch_size=64, **loader_options([dataset[0]], batch_size=64, num_workers=8))

    Args:
        samples: one or more, from which the size of a batch is estimated.
        batch_size: of a rank.
        num_workers: of a rank; 0 needs no shared memory.
        collate: from samples to a batch.
        ranks_per_host: LOCAL_WORLD_SIZE.
    """
    batch = collate([samples[index % len(samples)] for index in range(batch_size)])
    handover = decide_handover(num_workers, batch, ranks_per_host, Limits.of_this_process())
    if handover.reason:
        logger.warning(handover.reason)
    options: dict[str, Any] = {"num_workers": num_workers, "collate_fn": collate}
    if num_workers:
        options["prefetch_factor"] = PREFETCH_FACTOR
    if handover.by_value:
        options["collate_fn"] = partial(_collate_by_value, collate)
    return options


def _collate_by_value(collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    info = worker._worker_info
    worker._worker_info = None  # default_collate, where it sees a worker, builds the batch in shared memory right away
    try:
        return _by_value(collate(samples))
    finally:
        worker._worker_info = info


def _by_value(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return _ByValue(batch)
    if isinstance(batch, dict):
        return {name: _by_value(value) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        values = [_by_value(value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


class _ByValue:
    """Pickles as the tensor's bytes, and unpickles as the tensor: the DataLoader's other end sees no difference."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:
        flat = self.tensor.detach().contiguous().view(-1).view(torch.uint8)  # numpy lacks bfloat16
        return _rebuild, (flat.numpy().tobytes(), self.tensor.dtype, tuple(self.tensor.shape))


def _rebuild(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)  # frombuffer refuses an empty buffer
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


def _tensors(batch: Any) -> list[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _megabytes(count: int) -> str:
    return f"{count / 1024**2:.0f} MiB"
