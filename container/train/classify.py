"""The built-in program: image classification on folders of images. Runs once per rank, started by torchrun.

Reads top to bottom: `main` sets up, `train` is the loop, `finish` leaves the results.
"""

import contextlib
import csv
import json
import logging
import math
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from container.contract import OptMl
from container.model import ModelSignature, build_network, load_model, normalize, save_model
from container.train.checkpoint import Checkpoints
from container.train.data import (
    DataError,
    ImageData,
    augment,
    describe_images,
    epoch_draws,
    scan_folder,
    training_batches,
)
from container.train.disk import require_free_space, state_bytes
from container.train.environment import TrainingEnvironment, read_environment, usable_cores
from container.train.health import Health
from container.train.metrics import Metrics
from container.train.runtime import Runtime
from container.train.settings import HyperparameterError, Settings
from container.train.stop import STOP, GracefulStop

logger = logging.getLogger(__name__)

PEAK_LEARNING_RATE = 0.003  # for a batch of REFERENCE_BATCH
REFERENCE_BATCH = 64
EVALUATION_BATCH = 256
MODEL_CHANNEL = "model"  # an earlier artifact to go on from
LOSS_CHECK_STEPS = 10  # reading a loss from a GPU waits for it
CHECKPOINT = 1  # what a rank may wish for after a step, besides STOP


class TrainingError(Exception):
    """Training went through, and its result is worth nothing."""


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


def main() -> None:
    """Train, evaluate and save as the job's `/opt/ml` says."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    phases = Phases(launch_phases())
    environment = read_environment(OptMl.from_env(), os.environ)
    settings = Settings.from_hyperparameters(environment.hyperparameters)
    process = join_process_group()
    torch.manual_seed(settings.seed)
    with phases.measure("data"):
        data, signature = load_data(environment, settings, process)
    job = prepare(environment, settings, process, signature, data, phases)
    resume(job)
    with GracefulStop() as stop, phases.measure("train"):
        train(job, stop)
    with phases.measure("checkpoint"):
        job.checkpoints.wait()
    finish(job)
    if process.world_size > 1:
        dist.destroy_process_group()


def launch_phases() -> dict[str, float]:
    """What happened before this line: start and peers from the launcher, then torchrun and our imports."""
    runtime = Runtime.from_env()
    launched = runtime.read("launch.json") if runtime else None
    if not launched:
        return {"start": 0.0, "peers": 0.0, "imports": 0.0}
    return {"start": launched["start"], "peers": launched["peers"], "imports": time.time() - launched["at"]}


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


def local_world_size() -> int:
    """Ranks on this host."""
    return int(os.environ["LOCAL_WORLD_SIZE"])


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


def train(job: Job, stop: GracefulStop) -> None:
    """The loop. Leaves when all steps are done or all ranks agree to stop, after a checkpoint in either case."""
    model, process = distributed(job), job.process
    wish = 0
    with Health(job.settings.health_rules, job.settings.stall_seconds) as health:
        while job.step < job.total_steps and wish != STOP and not out_of_patience(job):
            epoch, done = divmod(job.step, job.steps_per_epoch)
            batches = training_batches(len(job.data["train"]), job.batch_size, job.settings.seed, epoch, job.shard)
            draws = epoch_draws(len(job.data["train"]), job.settings.seed, epoch)
            totals, images_seen = torch.zeros(2, device=process.device), 0  # loss, correct
            began = fetched = time.monotonic()
            model.train()
            for images, labels, indices in job.data["train"].batches(batches[done : job.steps_per_epoch]):
                waited = time.monotonic() - fetched
                set_learning_rate(job)
                totals += train_step(job, model, images, labels, draws[indices])
                job.step, images_seen = job.step + 1, images_seen + len(labels)
                job.phases.seconds.setdefault("first_step", time.monotonic() - began)
                health.step(waited)
                if job.step % LOSS_CHECK_STEPS == 0:
                    health.loss(totals[0].item() / images_seen)
                wish = stop.vote(checkpoint_is_due(job))
                if wish == CHECKPOINT and job.step % job.steps_per_epoch:
                    save_checkpoint(job)
                if wish == STOP:
                    break
                fetched = time.monotonic()
            end_epoch(job, epoch + 1, torch.cat([totals.cpu(), torch.tensor([images_seen])]), time.monotonic() - began)
            save_checkpoint(job)
    if wish == STOP and process.is_first:
        logger.info("asked to stop: left the loop at step %d of %d", job.step, job.total_steps)


def distributed(job: Job) -> nn.Module:
    """The network as the loop calls it: compiled and averaging gradients over ranks, as the job wants."""
    if job.settings.compile:
        job.network.compile()  # in place: names in the state dict stay
    if job.process.world_size == 1:
        return job.network
    on_gpu = job.process.device.type == "cuda"
    return DistributedDataParallel(
        job.network, device_ids=[job.process.device] if on_gpu else None, gradient_as_bucket_view=True
    )


def train_step(
    job: Job, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, draws: torch.Tensor
) -> torch.Tensor:
    """One optimizer step on this rank's part of a batch.

    Args:
        job: the job.
        model: the network as `distributed` gives it.
        images: uint8 [B, C, H, W].
        labels: int64 [B].
        draws: float32 [B, 6], the randomness of each image's augmentation.

    Returns:
        float32 [2] on the device: summed loss and number of right answers.
    """
    settings, device = job.settings, job.process.device
    totals = torch.zeros(2, device=device)
    parts = list(zip(*(tensor.chunk(settings.accumulation_steps) for tensor in (images, labels, draws)), strict=True))
    for number, (part, targets, chances) in enumerate(parts, start=1):
        inputs, targets = to_device(job, part), targets.to(device, non_blocking=True)  # [b, C, H, W], [b]
        if settings.augment:
            inputs = augment(inputs, chances.to(device, non_blocking=True))
        is_last = number == len(parts)  # gradients travel with it
        alone = isinstance(model, DistributedDataParallel) and not is_last
        with model.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
            with job.autocast:
                logits = model(inputs)  # [b, num_classes]
                loss = functional.cross_entropy(
                    logits, targets, reduction="sum", label_smoothing=settings.label_smoothing
                )
            job.scaler.scale(loss / job.share_of_batch).backward()
        totals += torch.stack([loss.detach(), (logits.argmax(1) == targets).sum()])
    job.scaler.step(job.optimizer)
    job.scaler.update()
    job.optimizer.zero_grad(set_to_none=True)
    return totals


def out_of_patience(job: Job) -> bool:
    """Whether the validation accuracy has not risen for `patience` epochs."""
    if not job.settings.patience or job.best_step is None:
        return False
    return (job.step - job.best_step) >= job.settings.patience * job.steps_per_epoch


def checkpoint_is_due(job: Job) -> int:
    """Rank 0's wish after each step; the clocks of other ranks do not count."""
    due = job.process.is_first and time.monotonic() - job.saved_at >= job.settings.checkpoint_seconds
    return CHECKPOINT if due else 0


def set_learning_rate(job: Job) -> None:
    """Linear warm-up, then half a cosine down to 0 at the last step."""
    warmup = min(job.settings.warmup_epochs * job.steps_per_epoch, job.total_steps / 2)
    if job.step < warmup:
        factor = (job.step + 1) / (warmup + 1)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (job.step - warmup) / (job.total_steps - warmup)))
    for group in job.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def to_device(job: Job, images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, C, H, W] as the network's normalised input on its device."""
    inputs = normalize(images.to(job.process.device, non_blocking=True), job.signature)
    on_gpu = job.process.device.type == "cuda"
    return inputs.contiguous(memory_format=torch.channels_last) if on_gpu else inputs


def end_epoch(job: Job, epoch: int, totals: torch.Tensor, seconds: float) -> None:
    """Evaluate on the validation channel, remember the best weights, report.

    Raises:
        TrainingError: the loss is not finite.
    """
    loss, correct, images = job.process.total(totals).tolist()
    values = {
        "train:loss": loss / max(1, images),
        "train:accuracy": correct / max(1, images),
        "train:samples_per_second": images / seconds,
        "train:learning_rate": job.optimizer.param_groups[0]["lr"],
    }
    if not math.isfinite(loss):
        raise TrainingError(f"the training loss is {loss} in epoch {epoch}: lower learning_rate, or look at the data")
    if "validation" in job.data:
        values["validation:loss"], values["validation:accuracy"], _ = evaluate(job, "validation")
        if values["validation:accuracy"] > job.best_accuracy:
            job.best_accuracy, job.best_step = values["validation:accuracy"], job.step
            job.best_weights = {name: value.detach().cpu().clone() for name, value in job.network.state_dict().items()}
            if job.process.is_first:
                best = {"accuracy": job.best_accuracy, "step": job.step, "model": job.best_weights}
                job.checkpoints.save(job.step, best, kind="best")
    job.metrics.log(epoch, job.step, values)


@torch.inference_mode()
def evaluate(job: Job, channel: str) -> tuple[float, float, torch.Tensor]:
    """Loss and accuracy over a channel, and on this rank the probabilities of its share.

    Returns:
        Mean loss and accuracy over all ranks; float32 [images of this rank, num_classes] on the CPU.
    """
    data, process = job.data[channel], job.process
    if process.world_size > 1:
        for buffer in job.network.buffers():
            dist.broadcast(buffer, src=0)  # running statistics differ by rank; rank 0's are the ones that are saved
    job.network.eval()
    totals = torch.zeros(3, dtype=torch.float64)  # loss, correct, images
    probabilities = [torch.empty(0, len(job.signature.classes))]
    for images, labels, _ in data.batches(list(evaluation_share(job, channel).split(EVALUATION_BATCH))):
        if not len(labels):
            continue
        with job.autocast:
            logits = job.network(to_device(job, images))
        logits = logits.float().cpu()  # [B, num_classes]
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([loss, (logits.argmax(1) == labels).sum(), torch.tensor(len(labels))]).double()
        probabilities.append(logits.softmax(1))
    loss_sum, correct, images_seen = process.total(totals).tolist()
    return loss_sum / max(1, images_seen), correct / max(1, images_seen), torch.cat(probabilities)


def evaluation_share(job: Job, channel: str) -> torch.Tensor:
    """int64 indices of the images that this rank evaluates; each image of the job belongs to exactly one rank."""
    rank, ranks = job.process.rank, job.process.world_size
    if job.environment.channel_is_sharded(channel):
        rank, ranks = rank % local_world_size(), local_world_size()
    return torch.arange(len(job.data[channel]))[rank::ranks]


def save_checkpoint(job: Job) -> None:
    """Everything a job needs to go on as if nothing had happened. Called on every rank, written by the first."""
    if job.checkpoints.directory is None:
        return
    with job.phases.measure("checkpoint"):
        generators = job.process.of_all(random_state(job.process.device))
        if job.process.is_first:
            state = {
                "model": job.network.state_dict(),
                "optimizer": job.optimizer.state_dict(),
                "scaler": job.scaler.state_dict(),
                "generators": generators,
                "step": job.step,
                "steps_per_epoch": job.steps_per_epoch,
                "architecture": job.signature.architecture,
                "classes": list(job.signature.classes),
                "history": job.metrics.history,
            }
            job.checkpoints.save(job.step, state)
        job.saved_at = time.monotonic()


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Dropout's generators on this rank: CPU, then the GPU where there is one."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def resume(job: Job) -> None:
    """Continue from the newest whole checkpoint of the first rank, on every rank; without one, start afresh.

    Raises:
        DataError: the checkpoint belongs to another network or other classes.
    """
    process = job.process
    state, best = process.from_first(
        (job.checkpoints.load(), job.checkpoints.load("best")) if process.is_first else (None, None)
    )
    if state is None:
        return
    if (state["architecture"], tuple(state["classes"])) != (job.signature.architecture, job.signature.classes):
        raise DataError(
            f"the checkpoint is of {state['architecture']} for classes {state['classes']}, the job of "
            f"{job.signature.architecture} for {list(job.signature.classes)}: use an empty checkpoint location"
        )
    job.network.load_state_dict(state["model"])
    job.optimizer.load_state_dict(state["optimizer"])
    job.scaler.load_state_dict(state["scaler"])
    # Another number of steps per epoch (the data has changed): the epoch counts, not the step.
    job.step = state["step"] * job.steps_per_epoch // state["steps_per_epoch"]
    if process.rank < len(state["generators"]):
        cpu, *gpu = state["generators"][process.rank]
        torch.set_rng_state(cpu)
        if gpu and process.device.type == "cuda":
            torch.cuda.set_rng_state(gpu[0], process.device)
    job.metrics = Metrics(job.environment.opt_ml.output_data / "metrics.jsonl", process.rank, state["history"])
    if best is not None:
        job.best_accuracy, job.best_step, job.best_weights = best["accuracy"], best["step"], best["model"]
    if process.is_first:
        logger.info("resumed from the checkpoint of step %d of %d", job.step, job.total_steps)


def finish(job: Job) -> None:
    """Evaluate the best network on the test channel, save it, and leave report, predictions and plots."""
    if job.best_weights is not None:
        job.network.load_state_dict(job.best_weights)
    report: dict[str, Any] = {"classes": list(job.signature.classes), "world_size": job.process.world_size}
    if "test" in job.data:
        report |= test(job)
    if not job.process.is_first:
        return
    with job.phases.measure("export"):
        require_free_space(job.environment.opt_ml.model, state_bytes(job.network.state_dict()), "the model")
        save_model(job.environment.opt_ml.model, job.network, job.signature)
        load_model(job.environment.opt_ml.model)  # raises where the artifact cannot be served
        plot(job, report)
    write_report(job, report)
    for name, seconds in job.phases.seconds.items():
        logger.info("phase %s: %.2f s", name, seconds)


def test(job: Job) -> dict[str, Any]:
    """Metrics of the test channel; on rank 0 also the predictions file and the confusion matrix."""
    loss, accuracy, probabilities = evaluate(job, "test")
    epoch = -(-job.step // job.steps_per_epoch)
    job.metrics.log(epoch, job.step, {"test:loss": loss, "test:accuracy": accuracy})
    share = evaluation_share(job, "test").tolist()
    data = job.data["test"]
    mine = [
        (data.folder.files[i], int(data.labels[i]), row) for i, row in zip(share, probabilities.tolist(), strict=True)
    ]
    rows = sorted(row for rows in job.process.of_all(mine) for row in rows)
    matrix = [[0] * len(job.signature.classes) for _ in job.signature.classes]
    for _, label, scores in rows:
        matrix[label][scores.index(max(scores))] += 1
    if job.process.is_first:
        write_predictions(job, rows)
    return {"test:accuracy": accuracy, "test:loss": loss, "confusion_matrix": matrix}


def write_predictions(job: Job, rows: list[tuple[str, int, list[float]]]) -> None:
    """`file,label,predicted,p:<class>...`, one line per test image."""
    classes = job.signature.classes
    with (job.environment.opt_ml.output_data / "test_predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "predicted", *(f"p:{name}" for name in classes)])
        for name, label, scores in rows:
            predicted = classes[scores.index(max(scores))]
            writer.writerow([name, classes[label], predicted, *(f"{score:.7g}" for score in scores)])


def plot(job: Job, report: dict[str, Any]) -> None:
    """The plots; matplotlib is loaded only now, when nothing waits for it any more."""
    from container.train import plots

    directory = job.environment.opt_ml.output_data
    plots.plot_learning_curve(directory / "learning_curve.png", job.metrics.history)
    if "confusion_matrix" in report:
        plots.plot_confusion_matrix(
            directory / "confusion_matrix.png", report["confusion_matrix"], job.signature.classes
        )


def write_report(job: Job, report: dict[str, Any]) -> None:
    """report.json: what the job measured, for programs to read."""
    epochs = [entry["train:samples_per_second"] for entry in job.metrics.history if "train:samples_per_second" in entry]
    report["samples_per_second"] = sum(epochs) / max(1, len(epochs))
    report["phases"] = {"checkpoint": 0.0, "first_step": 0.0, **job.phases.seconds}
    (job.environment.opt_ml.output_data / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
