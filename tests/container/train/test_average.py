"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from container.train.average import MovingAverage


def test_it_moves_towards_the_weights_faster_at_first_and_copies_buffers():
    network = nn.BatchNorm1d(1)
    nn.init.zeros_(network.weight)
    average = MovingAverage(network, 0.9)
    average.update(network)  # the first is a copy
    nn.init.ones_(network.weight)
    network.running_mean.fill_(7)
    expected = 0.0
    for count in range(1, 200):
        average.update(network)
        decay = min(0.9, (1 + count) / (10 + count))
        expected = expected * decay + (1 - decay)
        assert average.network.weight.item() == pytest.approx(expected, abs=1e-6)
    assert average.network.running_mean.item() == 7
    assert average.count == 200


def test_it_goes_on_from_its_count():
    network = nn.Linear(1, 1)
    first, second = MovingAverage(network, 0.999), MovingAverage(network, 0.999)
    first.update(network)
    second.update(network)
    second.count = first.count
    with torch.no_grad():
        network.weight.add_(1)
    first.update(network)
    second.update(network)
    assert torch.equal(first.network.weight, second.network.weight)
