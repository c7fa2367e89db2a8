"""Files that are whole or not there: free space looked at before, written beside, renamed into place."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

RESERVE_BYTES = 64 * 1024**2  # kept free for logs, metrics and the failure file


class DiskFullError(OSError):
    """A volume has no room for what is about to be written."""


def require_free_space(path: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse early where a write would run out of space.

        require_free_space(opt_ml.checkpoints, state_bytes(state), "a checkpoint")

    Args:
        path: of the file or directory to write; need not exist yet.
        needed_bytes: about to be written, beside `RESERVE_BYTES` that stay free.
        purpose: what is written, for the message.

    Raises:
        DiskFullError: names need, free space and size of the volume, and the setting that makes it larger.
    """
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    usage = shutil.disk_usage(existing)
    if needed_bytes + RESERVE_BYTES <= usage.free:
        return
    raise DiskFullError(
        f"{purpose} needs {_gigabytes(needed_bytes)}, and {path} has {_gigabytes(usage.free)} free of "
        f"{_gigabytes(usage.total)}: raise ResourceConfig.VolumeSizeInGB, or keep fewer checkpoints"
    )


def state_bytes(state: Any) -> int:
    """Bytes of all tensors in nested mappings and sequences; tensors that share storage count once.

    What torch.save writes is this and a few hundred bytes per tensor.
    """
    storages: dict[tuple[str, int], int] = {}
    pending = [state]
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[(str(value.device), storage.data_ptr())] = storage.nbytes()
        elif isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
    return sum(storages.values())


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have a file written beside `path` and rename it into place: durable when this returns, and never half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the name, too
    finally:
        os.close(directory)


def export_weights(weights: Any, path: Path) -> None:
    """What `torch.save(weights, path)` does, but refused where there is no room, and never half a model.

        export_weights(network.state_dict(), environment.opt_ml.model / "model.pt")

    Args:
        weights: what torch.save takes; tensors in nested mappings and sequences count for the space.
        path: a file, in a directory that exists.

    Raises:
        DiskFullError: the volume has no room for it.
    """
    require_free_space(path, state_bytes(weights), "the model")
    replace_file(path, lambda file: torch.save(weights, file))


def _gigabytes(count: int) -> str:
    return f"{count / 1024**3:.2f} GiB"
