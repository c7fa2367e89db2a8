"""A moving average of the weights: where noisy steps end up on the mean, evaluated and kept in place of the last."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage:
    """The exponential moving average of a network's weights; its buffers are those of the network.

    The decay grows from 0.1 to its value, so that a short job's average does not stay at the first weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start at the network's weights, in a copy of it."""
        self.decay = decay
        self._model = AveragedModel(network, multi_avg_fn=self._move)

    @property
    def network(self) -> nn.Module:
        """With the averaged weights."""
        return self._model.module

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Go a step towards the network's weights."""
        self._model.update_parameters(network)

    def _move(
        self,
        averages: tuple[torch.Tensor, ...] | list[torch.Tensor],
        weights: tuple[torch.Tensor, ...] | list[torch.Tensor],
        _: torch.Tensor | int,  # the count, on the GPU: reading it there would wait for it
    ) -> None:
        count = self.count
        torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + count) / (10 + count)))

    @property
    def count(self) -> int:
        """Updates so far."""
        return int(self._model.n_averaged)

    @count.setter
    def count(self, count: int) -> None:
        self._model.n_averaged.fill_(count)
