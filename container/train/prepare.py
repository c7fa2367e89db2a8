"""Sets a job of the built-in program up: process group, data, network, optimizer, and who does what of a batch."""

import logging
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from container.model import ModelSignature, build_network
from container.train import fsdp
from container.train.average import MovingAverage
from container.train.backend import process_group_backend
from container.train.checkpoint import Checkpoints
from container.train.data import (
    SUFFIXES,
    DataError,
    ImageData,
    ImageFolder,
    describe_images,
    other_files,
    scan_folder,
)
from container.train.environment import TrainingEnvironment, usable_cores
from container.train.hyperparameters import HyperparameterError
from container.train.job import Job, Phases, Process, amp_dtype, channels_last, local_world_size
from container.train.metrics import Metrics
from container.train.objective import Objective, class_weights, mixing
from container.train.recipe import build_optimizer, peak_learning_rate, resolve
from container.train.settings import Settings
from container.train.sharded import ShardedCheckpoints
from container.train.transfer import Start, find_start

logger = logging.getLogger(__name__)

IMBALANCE = 10  # times the smallest class, from which the largest one is worth a line


@dataclass(frozen=True)
class Inputs:
    """What the channels give."""

    data: dict[str, ImageData]
    """Channel name -> images, `train` always among them."""
    signature: ModelSignature
    """Of the model to come."""
    start: Start | None
    """Trained weights."""


def join_process_group() -> Process:
    """Join the other ranks; NCCL for tensors on GPUs, gloo for all else."""
    world_size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group(process_group_backend(device.type == "cuda"))
    return Process(int(os.environ["RANK"]), world_size, device)


def load_data(environment: TrainingEnvironment, settings: Settings, process: Process) -> Inputs:
    """Every channel's images, and the signature that all ranks derive from channel `train` and the weights to start at.

    Raises:
        DataError: a channel without images, or one class alone; every rank raises, so that none waits for another.
            Or there are no weights where there should be some: see `find_start`.
    """
    start = find_start(environment, settings.model)
    names = [name for name in ("train", "validation", "test") if name in environment.channels]
    folders = {name: scan_folder(environment.opt_ml.channel(name)) for name in names}
    check_folders(environment, process, folders)
    classes = sorted({name for names in process.of_all(set(folders["train"].class_names)) for name in names})
    if len(classes) == 1:
        raise DataError(one_class(folders["train"]))
    signature = describe(folders["train"], classes, settings, start) if process.is_first else None
    signature = process.from_first(signature)
    ranks, workers = local_world_size(), settings.compute.num_workers
    workers = workers if workers >= 0 else max(1, usable_cores() // ranks)
    data = {name: ImageData(folder, signature, workers, ranks) for name, folder in folders.items()}
    return Inputs(data, signature, start)


def check_folders(environment: TrainingEnvironment, process: Process, folders: dict[str, ImageFolder]) -> None:
    """Make sure that there are images: in channel `train` on every host, in the others anywhere.

    Raises:
        DataError: on every rank; says how images have to lie, and what lies there instead.
    """
    for name, folder in folders.items():
        others = other_files(folder.root) if int(os.environ["LOCAL_RANK"]) == 0 else {}
        listed = ", ".join(f"{count} x {suffix}" for suffix, count in sorted(others.items()))
        if listed and folder.files:
            logger.warning("channel %r: by their names no images, and left out: %s", name, listed)
        found = process.of_all((environment.current_host, len(folder.files), listed))
        empty = sorted({host for host, count, _ in found if count == 0})
        hosts = {host for host, _, _ in found}
        if empty and (name == "train" or len(empty) == len(hosts)):
            instead = next((text for _, _, text in found if text), "")
            raise DataError(
                f"channel {name!r} has no <class>/<image> on {', '.join(empty)} ({', '.join(sorted(SUFFIXES))}"
                f"{f'; there are {instead}' if instead else ''})"
                + (": with ShardedByS3Key there must be more objects than hosts" if len(empty) < len(hosts) else "")
            )


def one_class(folder: ImageFolder) -> str:
    """What is wrong with a channel that has a single class: most often a folder too many."""
    name = folder.class_names[0]
    below = sorted({parts[1] for file in folder.files if len(parts := file.split("/")) > 2})
    hint = f": it holds the folders {', '.join(below[:5])}; give the channel the S3Uri of {name}/" if below else ""
    return f"channel 'train' has one class, {name!r}, and a classifier needs two{hint}"


def describe(folder: ImageFolder, classes: list[str], settings: Settings, start: Start | None) -> ModelSignature:
    """The signature of the model to come: what the job wants, else what its weights need, else what images say."""
    architecture = settings.model or (start.architecture if start else "")
    signature = describe_images(folder, classes, architecture, settings.image_size)
    return start.adapt(signature, settings.image_size) if start else signature


def prepare(
    environment: TrainingEnvironment, settings: Settings, process: Process, inputs: Inputs, phases: Phases
) -> Job:
    """Network, optimizer and the division of work, the same on every rank."""
    data, signature = inputs.data, inputs.signature
    settings = resolve(settings, job_samples(environment, process, data), process.world_size)
    batch_size, shard, steps = divide_work(environment, settings, process, len(data["train"]))
    network = starting_network(settings, process, signature, inputs.start)
    average = MovingAverage(network, settings.ema_decay) if settings.ema_decay else None
    if settings.compute.parallel == "fsdp" and process.world_size > 1:
        fsdp.shard(network, process.device.type)
        if average:
            fsdp.shard(average.network, process.device.type)
    peak, reason = peak_learning_rate(settings, signature.architecture, inputs.start is not None, process.world_size)
    if process.is_first:
        logger.info(
            "%s for %d classes of %dx%dx%d, %d images, batch %d over %d rank(s), %d epochs of %d steps, %s rate %s",
            *(signature.architecture, len(signature.classes), *signature.image_shape, len(data["train"])),
            *(settings.batch_size, process.world_size, settings.epochs, steps, "peak learning", reason),
        )
    counts = sum(process.of_all(torch.bincount(data["train"].labels, minlength=len(signature.classes))))
    assert isinstance(counts, torch.Tensor)
    weights = class_weights(settings.loss, signature.classes, counts)
    if weights is None and process.is_first:
        say_imbalance(signature.classes, counts)
    return Job(
        environment=environment,
        settings=settings,
        process=process,
        signature=signature,
        network=network,
        average=average,
        objective=Objective(settings.loss.label_smoothing, weights).to(process.device),
        mix=mixing(settings.augmentation, len(signature.classes)),
        data=data,
        optimizer=build_optimizer(network, settings, peak),
        scaler=torch.amp.GradScaler(process.device.type, enabled=amp_dtype(process.device, settings) == torch.float16),
        checkpoints=Checkpoints(environment.checkpoint_dir, settings.keep_checkpoints),
        sharded=ShardedCheckpoints(environment.checkpoint_dir, settings.keep_checkpoints)
        if settings.compute.parallel == "fsdp"
        else None,
        metrics=Metrics(environment.opt_ml.output_data / "metrics.jsonl", process.rank),
        phases=phases,
        batch_size=batch_size,
        shard=shard,
        steps_per_epoch=steps,
    )


def say_imbalance(classes: tuple[str, ...], counts: torch.Tensor) -> None:
    """One line where some classes have many times more images than others.

    Args:
        classes: in the order of the network's outputs.
        counts: int64 [classes], training images of each.
    """
    fewest, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] > IMBALANCE * counts[fewest]:
        logger.warning(
            "class %r has %d images, %r %d: class_weights=balanced makes rare classes count as much as frequent ones",
            *(classes[fewest], int(counts[fewest]), classes[most], int(counts[most])),
        )


def starting_network(settings: Settings, process: Process, signature: ModelSignature, start: Start | None) -> nn.Module:
    """The network on its device, with the weights to start at."""
    network = build_network(signature.architecture, len(signature.classes), signature.image_shape)
    if start is not None:
        taken = start.load_into(network)
        if process.is_first:
            logger.info("%s", taken)
    network = network.to(process.device)
    if process.world_size > 1 and process.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    elif process.world_size > 1 and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()
    ):
        logger.warning(
            "%s normalises each rank's part of a batch alone: batch_size / ranks counts", signature.architecture
        )
    if channels_last(process, settings):
        network = network.to(memory_format=torch.channels_last)
    if settings.compute.compile:
        compile_network(network, process)
    return network


def compile_network(network: nn.Module, process: Process) -> None:
    """Have torch.compile make the network faster, in place so that names in the state dict stay, where it can."""
    missing = missing_for_compile(process.device.type)
    if missing is None:
        network.compile()
    elif process.is_first:
        logger.warning("compile=true needs %s, which this image lacks: the network runs as it is", missing)


def missing_for_compile(device_type: str) -> str | None:
    """What torch.compile needs, and this machine has not: Triton builds C, Inductor on CPUs C++, both for Python."""
    name, package = ("CC", "gcc") if device_type == "cuda" else ("CXX", "g++")
    compilers = {"CC": ("cc", "gcc", "clang"), "CXX": ("c++", "g++", "clang++")}[name]
    if not any(shutil.which(compiler) for compiler in (os.environ.get(name, package), *compilers)):
        return f"a compiler ({package} and libc6-dev)"
    return None if (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file() else "Python's headers (python3-dev)"


def job_samples(environment: TrainingEnvironment, process: Process, data: dict[str, ImageData]) -> int:
    """Images of channel `train` on all hosts together."""
    if not environment.channel_is_sharded("train"):
        return len(data["train"])
    firsts = process.of_all(len(data["train"]) if int(os.environ["LOCAL_RANK"]) == 0 else 0)
    return sum(firsts)


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
