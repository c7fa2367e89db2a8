"""The built-in program: image classification on folders of images. Runs once per rank, started by torchrun.

Reads top to bottom: `main` is the job (`prepare` sets it up, `results` leaves what it found), `train` is the loop.
"""

import contextlib
import logging
import math
import os
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from container.contract import OptMl
from container.train import fsdp
from container.train.data import TINY_PIXELS, augment, epoch_draws, training_batches
from container.train.environment import read_environment
from container.train.health import Health
from container.train.job import Job, Phases, to_device
from container.train.memory import keep_free_memory
from container.train.prepare import join_process_group, load_data, prepare
from container.train.results import evaluate, finish
from container.train.runtime import Runtime
from container.train.settings import Settings
from container.train.snapshot import resume, save_checkpoint
from container.train.stop import STOP, GracefulStop

logger = logging.getLogger(__name__)

LOSS_CHECK_STEPS = 10  # reading a loss from a GPU waits for it
CHECKPOINT = 1  # what a rank may wish for after a step, besides STOP


def main() -> None:
    """Train, evaluate and save as the job's `/opt/ml` says."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    phases = Phases(launch_phases())
    environment = read_environment(OptMl.from_env(), os.environ)
    settings = Settings.from_hyperparameters(environment.hyperparameters)
    process = join_process_group()
    torch.manual_seed(settings.seed)
    with phases.measure("data"):
        inputs = load_data(environment, settings, process)
    job = prepare(environment, settings, process, inputs, phases)
    if process.device.type == "cpu" and max(job.signature.image_shape) <= TINY_PIXELS:
        keep_free_memory()
    resume(job)
    with GracefulStop() as stop, phases.measure("train"):
        train(job, stop)
    with phases.measure("checkpoint"):
        job.checkpoints.wait()
        if job.sharded:
            job.sharded.wait()
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
            totals = job.process.total(torch.cat([totals.cpu(), torch.tensor([images_seen])]))
            health.loss(totals[0].item() / max(1.0, totals[2].item()))  # the same on every rank
            end_epoch(job, epoch + 1, totals, time.monotonic() - began)
            save_checkpoint(job)
    if wish == STOP and process.is_first:
        logger.info("asked to stop: left the loop at step %d of %d", job.step, job.total_steps)
    elif job.step < job.total_steps and process.is_first:
        logger.info(
            "out of patience: no validation accuracy over %.4f in %d epochs; left the loop at step %d of %d",
            *(job.best_accuracy, job.settings.patience, job.step, job.total_steps),
        )


def distributed(job: Job) -> nn.Module:
    """The network as the loop calls it: averaging gradients over ranks."""
    if job.process.world_size == 1 or fsdp.is_sharded(job.network):
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
    count = settings.compute.accumulation_steps
    parts = list(zip(*(tensor.chunk(count) for tensor in (images, labels, draws)), strict=True))
    for number, (part, targets, chances) in enumerate(parts, start=1):
        inputs, targets = to_device(job, part), targets.to(device, non_blocking=True)  # [b, C, H, W], [b]
        if settings.augmentation.augment:
            inputs = augment(inputs, chances.to(device, non_blocking=True))
        if job.mix:
            inputs, targets = job.mix(inputs, targets)  # [b, C, H, W], [b, num_classes]
        with contextlib.nullcontext() if number == len(parts) else fsdp.without_sync(model):
            with job.autocast:
                logits = model(inputs)  # [b, num_classes]
                loss = job.objective(logits, targets)
            job.scaler.scale(loss / job.share_of_batch).backward()
        wanted = targets.argmax(1) if targets.ndim == 2 else targets  # of a mixed image the class that is most of it
        totals += torch.stack([loss.detach(), (logits.argmax(1) == wanted).sum()])
    update_weights(job)
    return totals


def update_weights(job: Job) -> None:
    """The optimizer's step on the gradients that are there."""
    if job.settings.optimizer.clip_norm:
        job.scaler.unscale_(job.optimizer)
        nn.utils.clip_grad_norm_(job.network.parameters(), job.settings.optimizer.clip_norm)
    job.scaler.step(job.optimizer)
    job.scaler.update()
    job.optimizer.zero_grad(set_to_none=True)
    if job.average:
        job.average.update(job.network)


def out_of_patience(job: Job) -> bool:
    """Whether the validation accuracy has not risen for `patience` epochs."""
    if not job.settings.patience or job.best_step is None:
        return False
    return (job.step - job.best_step) >= job.settings.patience * job.steps_per_epoch


def checkpoint_is_due(job: Job) -> int:
    """Rank 0's wish after each step, never ahead of the disk; the clocks of other ranks do not count."""
    due = job.process.is_first and time.monotonic() - job.saved_at >= job.settings.checkpoint_seconds
    return CHECKPOINT if due and not (job.sharded or job.checkpoints).is_busy else 0


def set_learning_rate(job: Job) -> None:
    """Linear warm-up, then half a cosine down to 0 at the last step."""
    warmup = min(job.settings.optimizer.warmup_epochs * job.steps_per_epoch, job.total_steps / 2)
    if job.step < warmup:
        factor = (job.step + 1) / (warmup + 1)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (job.step - warmup) / (job.total_steps - warmup)))
    for group in job.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def end_epoch(job: Job, epoch: int, totals: torch.Tensor, seconds: float) -> None:
    """Evaluate on the validation channel, remember the best weights, report.

    Args:
        job: the job.
        epoch: from 1.
        totals: float64 [3] over all ranks: summed loss, right answers, images.
        seconds: that the epoch took.
    """
    loss, correct, images = totals.tolist()
    values = {
        "train:loss": loss / max(1, images),
        "train:accuracy": correct / max(1, images),
        "train:samples_per_second": images / seconds,
        "train:learning_rate": job.optimizer.param_groups[0]["lr"],
    }
    if "validation" in job.data:
        values["validation:loss"], values["validation:accuracy"], _ = evaluate(job, "validation")
        if values["validation:accuracy"] > job.best_accuracy:
            job.best_accuracy, job.best_step = values["validation:accuracy"], job.step
            job.best_weights = fsdp.full_state_dict(job.kept_network)
            if job.process.is_first:
                best = {"accuracy": job.best_accuracy, "step": job.step, "model": job.best_weights}
                job.checkpoints.save(job.step, best, kind="best")
    job.metrics.log(epoch, job.step, values)


if __name__ == "__main__":
    main()
