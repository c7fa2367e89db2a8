"""What training and serving share: the network, and how an image becomes its input."""

import numpy
import torch
from PIL import Image
from torch import nn

SIZE = 16


def build(num_classes: int) -> nn.Module:
    """float32 [B, 3, SIZE, SIZE] to [B, num_classes]."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, num_classes),
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """float32 [3, SIZE, SIZE], -1..1."""
    pixels = numpy.asarray(image.convert("RGB").resize((SIZE, SIZE)), dtype=numpy.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
