"""What FSDP2 gathers together; whole jobs with it are in test_classify.py, an own script in tests/examples."""

import torch
from torch import nn

from container.model import build_network
from container.train.fsdp import full_state_dict, is_sharded, load_full_state_dict, units, without_sync


def names(network, unit_parameters):
    known = {module: name for name, module in network.named_modules()}
    return [known[unit] for unit in units(network, unit_parameters)]


def test_a_large_module_is_a_unit_and_small_ones_go_with_what_is_around_them():
    network = build_network("resnet18", 10, (3, 64, 64))
    found = ["layer3.1", "layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"]
    assert names(network, 1_000_000) == found
    assert names(network, 10**9) == []


def test_what_uses_its_childrens_weights_without_calling_them_is_one_unit():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2)
            self.choices = nn.ModuleList([nn.Linear(16, 16)])

    assert names(Block(), 200) == ["attention", "choices.0"]
    assert names(Block(), 10_000) == []


def test_a_network_that_is_not_dealt_out_is_copied_whole():
    network = nn.Linear(2, 2)
    state = full_state_dict(network)
    assert not is_sharded(network)
    with without_sync(network):
        nn.init.zeros_(network.weight)
    assert not torch.equal(network.weight, state["weight"])
    load_full_state_dict(network, state)
    assert torch.equal(network.weight, state["weight"])
