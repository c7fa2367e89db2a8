"""Checkpoints that survive a kill at any instant: written beside, checksummed, renamed; the newest whole one counts."""

import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, BinaryIO

import torch

from container.train.disk import replace_file, require_free_space, state_bytes
from container.train.writer import BackgroundWriter

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
        self._writer = BackgroundWriter("checkpoint")

    @property
    def is_busy(self) -> bool:
        """Whether one is being written: another one now could have to wait for the disk."""
        return self._writer.is_busy

    def save(self, step: int, state: dict[str, Any], kind: str = "last") -> None:
        """Copy the state and write it in the background; training goes on as soon as it is copied.

        A loop that saves faster than the disk writes is held back when it is two checkpoints ahead.

        Args:
            step: optimizer steps so far; orders checkpoints.
            state: tensors, numbers, strings, lists and dicts: what `torch.load(weights_only=True)` takes.
            kind: `last` or `best`; of the best only one is kept.

        Raises:
            DiskFullError: the volume had no room for an earlier one.
            OSError: an earlier one could not be written.
        """
        if self.directory is not None:
            self._writer.submit(state, functools.partial(self._write, step, kind), reuse=kind == "last")

    def wait(self) -> None:
        """Until everything saved is durable on disk.

        Raises:
            DiskFullError: the volume had no room for it.
            OSError: it could not be written.
        """
        self._writer.wait()

    def _write(self, step: int, kind: str, state: dict[str, Any]) -> None:
        """Write a checkpoint durably, then remove the ones it makes superfluous."""
        assert self.directory is not None
        for left in self.directory.glob(f".{kind}-*"):
            left.unlink()  # of a job that was killed while it wrote
        require_free_space(self.directory, state_bytes(state), "a checkpoint")
        path, digest = self.directory / f"{kind}-{step:09d}.pt", hashlib.sha256()
        replace_file(path, lambda file: torch.save(state, _HashingFile(file, digest)))  # type: ignore[arg-type]
        manifest = {"step": step, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
        replace_file(path.with_suffix(".json"), lambda file: file.write(json.dumps(manifest).encode()))
        self._remove_all_but(path, kind)

    def _remove_all_but(self, newest: Path, kind: str) -> None:
        """Keep this one and those before it that are wanted; one with a higher step was not whole on resume."""
        kept = [path for path in self._manifests(kind) if step_of(path) < step_of(newest)]
        kept = [newest.with_suffix(".json"), *kept[: self.keep - 1 if kind == "last" else 0]]
        for suffix in (".json", ".pt"):  # in this order: without the first it does not count
            for path in newest.parent.glob(f"{kind}-*{suffix}"):
                if path.with_suffix(".json") not in kept:
                    path.unlink()

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
        return sorted(self.directory.glob(f"{kind}-*.json"), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Of a checkpoint's file or directory, by its name."""
    return int(path.stem.rpartition("-")[2])


class _HashingFile:
    """Passes bytes on to a file and hashes them on the way, so that the file need not be read again."""

    def __init__(self, file: BinaryIO, digest: "hashlib._Hash") -> None:
        self._file, self._digest = file, digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
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
