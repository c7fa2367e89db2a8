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
from container.train.average import MovingAverage
from container.train.checkpoint import Checkpoints
from container.train.data import ImageData
from container.train.environment import TrainingEnvironment
from container.train.metrics import Metrics
from container.train.objective import Mix, Objective
from container.train.settings import Settings
from container.train.sharded import ShardedCheckpoints


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
    """With numbers where the data has decided."""
    process: Process
    signature: ModelSignature
    network: nn.Module
    """That learns: bare, or dealt out over the ranks."""
    average: MovingAverage | None
    objective: Objective
    mix: Mix | None
    data: dict[str, ImageData]
    """Channel name -> images, `train` always among them."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    checkpoints: Checkpoints
    """Written by rank 0; under `parallel=fsdp` of the best weights only."""
    sharded: ShardedCheckpoints | None
    """Under `parallel=fsdp`, written by every rank."""
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
    """On the CPU; under `parallel=fsdp` empty on every rank but the first."""

    @property
    def kept_network(self) -> nn.Module:
        """That is evaluated and becomes the model."""
        return self.average.network if self.average else self.network

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    @property
    def share_of_batch(self) -> float:
        """What a rank's summed loss is divided by, so that DDP's average over ranks is the mean over all images."""
        return self.batch_size / self.shard[1]

    @property
    def autocast(self) -> Any:
        dtype = amp_dtype(self.process.device, self.settings)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.process.device.type, dtype=dtype)


def amp_dtype(device: torch.device, settings: Settings) -> torch.dtype | None:
    """What networks compute in on this device beside float32; None for nothing else."""
    if device.type != "cuda" or not settings.compute.amp:
        return None
    if settings.compute.amp_dtype:
        return torch.bfloat16 if settings.compute.amp_dtype == "bfloat16" else torch.float16
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def local_world_size() -> int:
    """Ranks on this host."""
    return int(os.environ["LOCAL_WORLD_SIZE"])


def channels_last(process: Process, settings: Settings) -> bool:
    """Whether images lie in memory as convolutions on GPUs prefer it."""
    return process.device.type == "cuda" and settings.compute.channels_last


def to_device(job: Job, images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, C, H, W] as the network's normalised input on its device."""
    inputs = normalize(images.to(job.process.device, non_blocking=True), job.signature)
    return inputs.contiguous(memory_format=torch.channels_last) if channels_last(job.process, job.settings) else inputs
