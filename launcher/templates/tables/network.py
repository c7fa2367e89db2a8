"""What training and serving share: the network, normalisation included."""

import torch
from torch import nn


class Normalize(nn.Module):
    """Columns with the training data's mean and standard deviation; both are saved with the weights."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.std


def build(columns: int, classes: int, mean: torch.Tensor | None = None, std: torch.Tensor | None = None) -> nn.Module:
    """float32 [B, columns] to [B, classes]."""
    mean = torch.zeros(columns) if mean is None else mean
    std = torch.ones(columns) if std is None else std
    return nn.Sequential(Normalize(mean, std), nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, classes))
