"""Checkpoints that survive a kill at any instant: written beside, checksummed, renamed; the newest whole one counts."""

import hashlib
import json
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch

from container.train.disk import require_free_space, state_bytes

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoint directory, which SageMaker copies to S3 while the job runs; only one rank may write into it.

    Each checkpoint is `<kind>-<step>.pt` and, written after it, `<kind>-<step>.json` with its size and SHA-256. Without
    that second file, or when it does not fit, a checkpoint does not count.
    """

    def __init__(self, directory: Path | None, keep: int = 2) -> None:
        """Without a directory (a job without CheckpointConfig) nothing is written; `keep` newest ones stay."""
        self.directory = directory
        self.keep = keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any], kind: str = "last") -> None:
        """Copy the state and write it in the background; training goes on as soon as it is copied.

        Args:
            step: optimizer steps so far; orders checkpoints.
            state: tensors, numbers, strings, lists and dicts: what `torch.load(weights_only=True)` takes.
            kind: `last` or `best`; of the best only one is kept.

        Raises:
            DiskFullError: the volume has no room for it.
            OSError: the previous save failed.
        """
        if self.directory is None:
            return
        self.wait()  # first: else there would be two copies for a while
        copied = copy_to_host(state)
        require_free_space(self.directory, state_bytes(copied), "a checkpoint")
        self._writing = self._writer.submit(self._write, step, copied, kind)

    def wait(self) -> None:
        """Until everything saved is durable on disk.

        Raises:
            OSError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, state: dict[str, Any], kind: str) -> None:
        """Write a checkpoint durably, then remove the ones it makes superfluous."""
        assert self.directory is not None
        path = self.directory / f"{kind}-{step:09d}.pt"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            hashing = _HashingFile(file)
            torch.save(state, hashing)  # type: ignore[arg-type]  # torch needs write and flush only
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        manifest = {"step": step, "bytes": path.stat().st_size, "sha256": hashing.digest.hexdigest()}
        temporary.write_text(json.dumps(manifest))
        temporary.replace(path.with_suffix(".json"))
        for old in self._manifests(kind)[self.keep if kind == "last" else 1 :]:
            old.unlink()  # first: from now on it does not count
            old.with_suffix(".pt").unlink(missing_ok=True)

    def load(self, kind: str = "last") -> dict[str, Any] | None:
        """The newest whole checkpoint, on the CPU; None when there is none."""
        self.wait()
        for manifest in self._manifests(kind):
            path = manifest.with_suffix(".pt")
            problem = _damage(path, manifest)
            if problem is None:
                return torch.load(path, map_location="cpu", weights_only=True)
            logger.warning("checkpoint %s is skipped: %s", path.name, problem)
        return None

    def _manifests(self, kind: str) -> list[Path]:
        """Newest first."""
        if self.directory is None:
            return []
        return sorted(self.directory.glob(f"{kind}-*.json"), reverse=True)


def copy_to_host(value: Any) -> Any:
    """The same structure with every tensor copied into host memory, so that training may change the originals."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_host(item) for key, item in value.items()}
    return [copy_to_host(item) for item in value] if isinstance(value, list | tuple) else value


class _HashingFile:
    """Passes bytes on to a file and hashes them on the way, so that the file need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _damage(path: Path, manifest: Path) -> str | None:
    """What is wrong with a checkpoint; None when it is whole."""
    try:
        expected = json.loads(manifest.read_text())
        if path.stat().st_size != expected["bytes"]:
            return f"it has {path.stat().st_size} bytes, not {expected['bytes']}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                return "its checksum differs"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None
