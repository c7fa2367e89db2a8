"""What training minimises: cross entropy, with weights per class and smoothed labels, over images that may be mixed."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from container.train.hyperparameters import HyperparameterError
from container.train.settings import Augmentation, Loss

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Images [B, C, H, W] and labels int64 [B] to mixed images and what share of each class is in them [B, classes]."""


def class_weights(loss: Loss, classes: Sequence[str], counts: torch.Tensor) -> torch.Tensor | None:
    """float32 [classes], or None where all count alike.

    Args:
        loss: whose `class_weights` are asked for.
        classes: in the order of the network's outputs.
        counts: int64 [classes], training images of each.

    Raises:
        HyperparameterError: a weight for a class that is none.
    """
    given = loss.class_weights
    if not given:
        return None
    if isinstance(given, str):  # `balanced`: 1 on average over all images
        return (counts.sum() / (len(counts) * counts.clamp(min=1))).float()
    unknown = sorted(set(given) - set(classes))
    if unknown:
        raise HyperparameterError(f"class_weights names {', '.join(unknown)}; the classes are {', '.join(classes)}")
    return torch.tensor([given.get(name, 1.0) for name in classes])


class Objective(nn.Module):
    """The summed loss of a batch."""

    weights: torch.Tensor | None

    def __init__(self, label_smoothing: float, weights: torch.Tensor | None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", weights)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """From float [B, classes] and int64 [B] or float [B, classes] to float []."""
        return functional.cross_entropy(
            logits, targets, self.weights, reduction="sum", label_smoothing=self.label_smoothing
        )


def mixing(augmentation: Augmentation, num_classes: int) -> Mix | None:
    """Mixup, CutMix, or one of the two for each batch; None where neither is wanted.

    Its random numbers come from torch's generator on the CPU, whose state is in every checkpoint.
    """
    transforms: list[Mix] = []
    if augmentation.mixup:
        transforms.append(v2.MixUp(alpha=augmentation.mixup, num_classes=num_classes))
    if augmentation.cutmix:
        transforms.append(v2.CutMix(alpha=augmentation.cutmix, num_classes=num_classes))
    if len(transforms) > 1:
        return v2.RandomChoice(transforms)
    return transforms[0] if transforms else None
