"""What the data decides where a job sets nothing: batch, epochs, learning rate; and the optimizer that comes of it."""

import dataclasses
import math

import torch
from torch import nn

from container.train.settings import Settings

REFERENCE_BATCH = 64
SMALLEST_BATCH = 8
STEPS_PER_EPOCH = 10  # with fewer, batches get smaller
EPOCHS, MOST_EPOCHS, FEWEST_STEPS = 15, 60, 300

# Peak for a batch of 64: `convnet` and torchvision's classifiers from scratch, then either from trained weights.
PEAKS = {"adamw": (3e-3, 1e-3, 3e-4), "sgd": (5e-2, 2.5e-2, 5e-3)}
WEIGHT_DECAY = {"adamw": 0.05, "sgd": 1e-4}
HIGHEST_PEAK = {"adamw": 4e-3, "sgd": 3.2}  # where growing in proportion to the batch ends: beyond, steps diverge


def resolve(settings: Settings, samples: int, ranks: int) -> Settings:
    """The settings with a number for batch size and epochs.

    Args:
        settings: of the job.
        samples: images of channel `train` on all hosts.
        ranks: of the job.
    """
    batch_size = settings.batch_size or settings.batch_size_per_rank * ranks
    if not batch_size:
        batch_size = REFERENCE_BATCH
        while samples < STEPS_PER_EPOCH * batch_size and batch_size > SMALLEST_BATCH:
            batch_size //= 2
        batch_size = max(batch_size, ranks)
    steps = max(1, samples // batch_size)
    epochs = settings.epochs or min(max(EPOCHS, math.ceil(FEWEST_STEPS / steps)), MOST_EPOCHS)
    return dataclasses.replace(settings, batch_size=batch_size, epochs=epochs)


def peak_learning_rate(settings: Settings, architecture: str, is_trained: bool, ranks: int) -> tuple[float, str]:
    """The learning rate after warm-up, linear in the global batch, and how it came about.

    Args:
        settings: as the job gave them, but with its batch size.
        architecture: of the network.
        is_trained: it starts from weights of an earlier training.
        ranks: of the job.
    """
    algorithm, given = settings.optimizer.algorithm, settings.optimizer.learning_rate
    if given and not settings.batch_size_per_rank:
        return given, f"{given:g}, as given"
    if given:
        return given * ranks, f"{given:g} x {ranks} rank(s) = {given * ranks:g}"
    tiny, scratch, trained = PEAKS[algorithm]
    peak = trained if is_trained else tiny if architecture == "convnet" else scratch
    scaled, highest = peak * settings.batch_size / REFERENCE_BATCH, HIGHEST_PEAK[algorithm]
    reason = f"{peak:g} x {settings.batch_size} / {REFERENCE_BATCH} images = {scaled:g}"
    if scaled > highest:
        return highest, f"{reason}, and at most {highest:g} unless you set learning_rate"
    return scaled, reason


def build_optimizer(network: nn.Module, settings: Settings, peak: float) -> torch.optim.Optimizer:
    """AdamW or SGD over the network's weights; biases and norms do not decay.

    Each group has its `peak_lr`, from which `set_learning_rate` goes.
    """
    options = settings.optimizer
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    decay = options.weight_decay if options.weight_decay >= 0 else WEIGHT_DECAY[options.algorithm]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if options.algorithm == "sgd":
        optimizer = torch.optim.SGD(groups, peak, options.momentum, nesterov=options.momentum > 0, fused=options.fused)
    else:
        # 1e-8, the usual eps, turns rounding into steps where a gradient is almost 0
        optimizer = torch.optim.AdamW(groups, peak, eps=1e-6, fused=options.fused)
    for group in optimizer.param_groups:
        group["peak_lr"] = peak
    return optimizer
