"""What a job of the built-in program works on: this rank, its data and network, and how long each phase took."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from container.model import ModelSignature, normalize
from container.train.checkpoint import Checkpoints
from container.train.data import (
    ImageData,
)
from container.train.environment import TrainingEnvironment
from container.train.metrics import Metrics
from container.train.settings import Settings


@dataclass
class Phases:
    """Seconds per phase of the job, for the report."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


@dataclass(frozen=True)
class Process:
    """This rank."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def of_all(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise sum over all ranks, on the CPU."""
        values = values.detach().to("cpu", torch.float64)
        if self.world_size > 1:
            dist.all_reduce(values)
        return values


@dataclass
class Job:
    """What one training job works on."""

    environment: TrainingEnvironment
    settings: Settings
    process: Process
    signature: ModelSignature
    network: nn.Module
    data: dict[str, ImageData]
    """Channel name -> images, `train` always among them."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    checkpoints: Checkpoints
    metrics: Metrics
    phases: Phases
    batch_size: int
    """Over all ranks of one shard."""
    shard: tuple[int, int]
    """This rank and the number of ranks among which the train channel is dealt out."""
    steps_per_epoch: int
    step: int = 0
    """Optimizer steps done."""
    saved_at: float = field(default_factory=time.monotonic)
    """When the last checkpoint was taken."""
    best_accuracy: float = -1.0
    best_step: int | None = None
    best_weights: dict[str, torch.Tensor] | None = None

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    @property
    def share_of_batch(self) -> float:
        """What a rank's summed loss is divided by, so that DDP's average over ranks is the mean over all images."""
        return self.batch_size / self.shard[1]

    @property
    def autocast(self) -> Any:
        on_gpu = self.process.device.type == "cuda" and self.settings.amp
        dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast(self.process.device.type, dtype=dtype, enabled=on_gpu)


def local_world_size() -> int:
    """Ranks on this host."""
    return int(os.environ["LOCAL_WORLD_SIZE"])


def to_device(job: Job, images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, C, H, W] as the network's normalised input on its device."""
    inputs = normalize(images.to(job.process.device, non_blocking=True), job.signature)
    on_gpu = job.process.device.type == "cuda"
    return inputs.contiguous(memory_format=torch.channels_last) if on_gpu else inputs
