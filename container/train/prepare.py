"""Sets a job of the built-in program up: process group, data, network, optimizer, and who does what of a batch."""

import logging
import os
import tarfile
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from container.model import ModelSignature, build_network, load_model
from container.train.checkpoint import Checkpoints
from container.train.data import (
    DataError,
    ImageData,
    describe_images,
    scan_folder,
)
from container.train.environment import TrainingEnvironment, usable_cores
from container.train.job import Job, Phases, Process, local_world_size
from container.train.metrics import Metrics
from container.train.settings import HyperparameterError, Settings

logger = logging.getLogger(__name__)

PEAK_LEARNING_RATE = 0.003  # for a batch of REFERENCE_BATCH
REFERENCE_BATCH = 64
MODEL_CHANNEL = "model"  # an earlier artifact to go on from


def join_process_group() -> Process:
    """Join the other ranks; NCCL for tensors on GPUs, gloo for all else."""
    world_size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Process(int(os.environ["RANK"]), world_size, device)


def load_data(
    environment: TrainingEnvironment, settings: Settings, process: Process
) -> tuple[dict[str, ImageData], ModelSignature]:
    """Every channel's images, and the signature that all ranks derive from channel `train`.

    Raises:
        DataError: channel `train` is empty on a host; every rank raises, so that none waits for another.
    """
    names = [name for name in ("train", "validation", "test") if name in environment.channels]
    folders = {name: scan_folder(environment.opt_ml.channel(name)) for name in names}
    counts = process.of_all((environment.current_host, len(folders["train"].files)))
    empty = sorted({host for host, count in counts if count == 0})
    if empty:
        raise DataError(
            f"channel 'train' has no <class>/<image> on {', '.join(empty)}: "
            "with ShardedByS3Key there must be more objects than hosts"
        )
    classes = sorted({name for names in process.of_all(set(folders["train"].class_names)) for name in names})
    signature = None
    if process.is_first:
        signature = describe_images(folders["train"], classes, settings.model, settings.image_size)
    signature = process.from_first(signature)
    ranks = local_world_size()
    workers = settings.num_workers if settings.num_workers >= 0 else max(1, usable_cores() // ranks)
    return {name: ImageData(folder, signature, workers, ranks) for name, folder in folders.items()}, signature


def prepare(
    environment: TrainingEnvironment,
    settings: Settings,
    process: Process,
    signature: ModelSignature,
    data: dict[str, ImageData],
    phases: Phases,
) -> Job:
    """Network, optimizer and the division of work, the same on every rank."""
    network = build_network(signature.architecture, len(signature.classes), signature.image_shape).to(process.device)
    if process.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network) if process.world_size > 1 else network
        network = network.to(memory_format=torch.channels_last)
    elif process.world_size > 1 and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()
    ):
        logger.warning(
            "%s normalises each rank's part of a batch alone: batch_size / ranks counts", signature.architecture
        )
    if MODEL_CHANNEL in environment.channels:
        load_earlier_model(environment.opt_ml.channel(MODEL_CHANNEL), network, process)
    batch_size, shard, steps = divide_work(environment, settings, process, len(data["train"]))
    learning_rate = settings.learning_rate or PEAK_LEARNING_RATE * settings.batch_size / REFERENCE_BATCH
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]  # biases and norms
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        eps=1e-6,  # 1e-8 turns rounding into steps where a gradient is almost 0
    )
    for group in optimizer.param_groups:
        group["peak_lr"] = learning_rate
    if process.is_first:
        logger.info(
            "%s for %d classes of %dx%dx%d, %d images, batch %d over %d rank(s), peak learning rate %g",
            *(signature.architecture, len(signature.classes), *signature.image_shape, len(data["train"])),
            *(settings.batch_size, process.world_size, learning_rate),
        )
    return Job(
        environment=environment,
        settings=settings,
        process=process,
        signature=signature,
        network=network,
        data=data,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(process.device.type, enabled=uses_float16(process, settings)),
        checkpoints=Checkpoints(environment.checkpoint_dir, settings.keep_checkpoints),
        metrics=Metrics(environment.opt_ml.output_data / "metrics.jsonl", process.rank),
        phases=phases,
        batch_size=batch_size,
        shard=shard,
        steps_per_epoch=steps,
    )


def load_earlier_model(channel: Path, network: nn.Module, process: Process) -> None:
    """Start from the weights of an earlier job's artifact; those that do not fit, such as other classes', start anew.

    Args:
        channel: holds `model.tar.gz`, as SageMaker writes it, or the artifact's files.
        network: gets the weights.
        process: the first rank says what was taken.

    Raises:
        ModelFormatError: no artifact of the built-in program.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        directory = channel
        if (channel / "model.tar.gz").is_file():
            directory = Path(unpacked)
            with tarfile.open(channel / "model.tar.gz") as archive:
                archive.extractall(directory, filter="data")
        earlier, _ = load_model(directory)
    wanted = network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in earlier.state_dict().items()
        if name in wanted and wanted[name].shape == tensor.shape
    }
    network.load_state_dict(fitting, strict=False)
    if process.is_first:
        logger.info("%d of %d tensors come from channel %r", len(fitting), len(wanted), MODEL_CHANNEL)


def uses_float16(process: Process, settings: Settings) -> bool:
    """Only float16 needs its loss scaled; bfloat16 has float32's range."""
    return process.device.type == "cuda" and settings.amp and not torch.cuda.is_bf16_supported()


def divide_work(
    environment: TrainingEnvironment, settings: Settings, process: Process, samples: int
) -> tuple[int, tuple[int, int], int]:
    """Batch size, this rank's share and steps per epoch; under ShardedByS3Key all three within this host.

    Raises:
        HyperparameterError: a rank would get no image of a batch.
    """
    batch_size, shard = settings.batch_size, (process.rank, process.world_size)
    if environment.channel_is_sharded("train"):
        hosts = process.world_size // local_world_size()
        batch_size, shard = batch_size // hosts, (process.rank % local_world_size(), local_world_size())
    batch_size = min(batch_size, *process.of_all(samples))
    if batch_size < shard[1]:
        raise HyperparameterError(
            f"batch_size={settings.batch_size} and {samples} images leave a rank without work: "
            f"{process.world_size} ranks need at least as many of each"
        )
    return batch_size, shard, min(process.of_all(samples // batch_size))
