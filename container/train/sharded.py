"""Checkpoints of models that no rank holds whole: every rank writes its part, and any number of ranks reads them back.

The format is torch.distributed.checkpoint's. Around it is what a SageMaker job needs: written in the background,
checksummed, whole or not counted, and file names that do not collide in the one S3 prefix that all hosts share.
"""

import functools
import hashlib
import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from container.train.checkpoint import step_of
from container.train.disk import DiskFullError, replace_file, require_free_space, state_bytes
from container.train.writer import BackgroundWriter

logger = logging.getLogger(__name__)

MANIFEST, EXTRA, METADATA = "manifest.json", "extra.pt", ".metadata"


class CheckpointMismatchError(Exception):
    """A checkpoint belongs to another model or optimizer."""


class ShardedCheckpoints:
    """The checkpoints of a model under FSDP2 (`fully_shard`), or of any other; every rank makes one, and calls it.

    Each is a directory `sharded-<step>`: one file per rank, what every rank has alike, and last the manifest with all
    sizes and SHA-256. Without it, or where a file does not fit, a checkpoint does not count.
    """

    def __init__(self, directory: Path | None, keep: int = 2) -> None:
        """Without a directory (a job without CheckpointConfig) nothing is written; `keep` newest ones stay."""
        self.directory, self.keep = directory, keep
        self._rank, self._local_rank, self._ranks_per_host = 0, 0, 1
        self._group: dist.ProcessGroup | None = None
        if dist.is_initialized():
            # of its own: the background's collectives must not get between the script's
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)  # it would be a number for a rank outside, and there is none
            self._group = group
            self._rank = dist.get_rank()
            self._local_rank = int(os.environ.get("LOCAL_RANK", self._rank))
            self._ranks_per_host = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
        self._writer = BackgroundWriter("sharded-checkpoint")

    @property
    def is_busy(self) -> bool:
        """Whether this rank still writes one: another one now could have to wait for the disk."""
        return self._writer.is_busy

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any]) -> None:
        """Copy this rank's part and write it in the background; training goes on as soon as it is copied.

        A loop that saves faster than the disk writes is held back when it is two checkpoints ahead.

        Args:
            step: optimizer steps so far; orders checkpoints.
            model: as `fully_shard` made it, or any other.
            optimizer: of its parameters.
            extra: rank 0's counts: tensors, numbers, strings, lists and dicts that every rank gets back.

        Raises:
            DiskFullError: the volume of a host had no room for an earlier one.
            OSError: an earlier one could not be written.
        """
        if self.directory is None:
            return
        weights, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": optimizer_state, "extra": extra}
        self._writer.submit(state, functools.partial(self._write, step))

    def wait(self) -> None:
        """Until everything saved is durable on disk, on all ranks.

        Raises:
            DiskFullError: the volume of a host had no room for it.
            OSError: it could not be written.
        """
        self._writer.wait()

    def _write(self, step: int, state: dict[str, Any]) -> None:
        assert self.directory is not None
        path = self.directory / f"sharded-{step:09d}"
        if self._local_rank == 0:
            shutil.rmtree(path, ignore_errors=True)  # one that was not whole, and is done again
        self._require_free_space(state)
        parts = {name: state[name] for name in ("model", "optimizer")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its directory exists (other ranks made it), or there is one rank only
            dcp.save(parts, checkpoint_id=path, process_group=self._group)
        if self._rank == 0:
            replace_file(path / EXTRA, lambda file: torch.save(state["extra"], file))
        mine = [*path.glob(f"__{self._rank}_*"), *([path / METADATA, path / EXTRA] if self._rank == 0 else [])]
        files = {
            name: entry
            for entries in self._gather({file.name: [file.stat().st_size, _sha256(file)] for file in mine})
            for name, entry in entries.items()
        }
        if self._rank == 0:
            manifest = json.dumps({"step": step, "files": files}).encode()
            replace_file(path / MANIFEST, lambda file: file.write(manifest))
        self._gather(None)  # the new one counts before an old one goes
        if self._local_rank == 0:
            self._remove_all_but(path)

    def _require_free_space(self, state: dict[str, Any]) -> None:
        """On every rank, or on none: a rank that gave up alone would leave the others waiting for it."""
        assert self.directory is not None
        problem = None
        try:
            require_free_space(self.directory, state_bytes(_local(state)) * self._ranks_per_host, "a checkpoint")
        except DiskFullError as error:
            problem = str(error)
        problems = [text for text in self._gather(problem) if text]
        if problems:
            raise DiskFullError(problems[0])

    def _remove_all_but(self, newest: Path) -> None:
        """Keep this one and those before it that are wanted; one with a higher step was not whole on resume."""
        found = sorted(newest.parent.glob("sharded-*"), key=step_of, reverse=True)
        newer = [path for path in found if step_of(path) > step_of(newest)]
        older = [path for path in found if step_of(path) <= step_of(newest)]
        for path in newer + older[self.keep :]:
            (path / MANIFEST).unlink(missing_ok=True)  # first: from now on it does not count
            shutil.rmtree(path, ignore_errors=True)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Put the newest whole checkpoint into model and optimizer, and return its `extra`; None when there is none.

        Raises:
            CheckpointMismatchError: it belongs to another model or optimizer.
        """
        self.wait()
        path = self._newest()
        if path is None:
            return None
        weights, optimizer_state = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": weights, "optimizer": optimizer_state}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # there is one rank only
                dcp.load(state, checkpoint_id=path, process_group=self._group)
        except (dcp.api.CheckpointException, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointMismatchError(
                f"{path} does not fit the job's model and optimizer: {_first_line(error)}: use an empty checkpoint "
                "location, or the settings that it was made with"
            ) from error
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return torch.load(path / EXTRA, map_location="cpu", weights_only=True)

    def _newest(self) -> Path | None:
        """Of the checkpoints that are whole on every host; each host's first rank looks for all of its ranks."""
        found = [] if self.directory is None else [path.name for path in self.directory.glob("sharded-*")]
        names = {name for names in self._gather(found) for name in names}
        for name in sorted(names, key=lambda name: step_of(Path(name)), reverse=True):
            assert self.directory is not None
            path = self.directory / name
            problem = _damage(path) if self._local_rank == 0 else None
            problems = [text for text in self._gather(problem) if text]
            if not problems:
                return path
            if self._rank == 0:
                logger.warning("checkpoint %s is skipped: %s", name, problems[0])
        return None

    def _gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values


def _local(value: Any) -> Any:
    """The same structure with this rank's part in place of each sharded tensor."""
    if isinstance(value, DTensor):
        return value.to_local()
    if isinstance(value, dict):
        return {key: _local(item) for key, item in value.items()}
    return [_local(item) for item in value] if isinstance(value, list | tuple) else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint on this host; None when it is whole."""
    try:
        for name, (size, digest) in json.loads((path / MANIFEST).read_text())["files"].items():
            if (path / name).stat().st_size != size or _sha256(path / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
