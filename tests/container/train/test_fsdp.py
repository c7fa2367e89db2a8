"""What FSDP2 gathers together; whole jobs with it are in test_classify.py, an own script in tests/examples."""

import subprocess
import sys

import pytest
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


COPIES = """
import sys
import torch, torch.distributed as dist
from container.train import Checkpoints
from container.train.writer import copy_to_host
print("loaded for nothing:", "torch.distributed.tensor" in sys.modules)
from container.train import shard
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
network = torch.nn.Linear(4, 4)
shard(network, "cpu")
first = copy_to_host(network.state_dict())
places = [value.to_local().data_ptr() for value in first.values()]
for parameter in network.parameters():
    parameter.data.add_(1)
second = copy_to_host(network.state_dict(), first)
print("same memory:", places == [value.to_local().data_ptr() for value in second.values()])
same = [torch.equal(second[name].full_tensor(), v.full_tensor()) for name, v in network.named_parameters()]
print("new values:", all(same))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_sharded_state_is_copied_into_the_memory_of_an_earlier_copy(tmp_path):
    argv = [sys.executable, "-c", COPIES, str(tmp_path / "store")]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == ["loaded for nothing: False", "same memory: True", "new values: True"]
