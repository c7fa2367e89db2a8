"""FSDP2 for a network of any make: what is dealt out to the ranks together, and the whole of it again at the end."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

UNIT_PARAMETERS = 2**20  # a unit is gathered, used and let go of as one: smaller ones cost more messages than memory
NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)  # their forward does not run, so that nothing would gather them
WHOLE = (nn.MultiheadAttention,)  # uses its children's weights without calling them


def shard(network: nn.Module, device_type: str, unit_parameters: int = UNIT_PARAMETERS) -> None:
    """Deal a network's parameters out over all ranks of the process group, in place; call it on every rank.

    From the inside out, a module becomes a unit where it has `unit_parameters` that belong to none yet; the rest goes
    with the network itself. Make the optimizer afterwards: parameters are other objects now.

    Args:
        network: the same weights on every rank, on the device that computes.
        device_type: `cuda` or `cpu`.
        unit_parameters: numbers, not bytes.
    """
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for unit in units(network, unit_parameters):
        fully_shard(unit, mesh=mesh)
    fully_shard(network, mesh=mesh)


def units(network: nn.Module, unit_parameters: int) -> list[nn.Module]:
    """The modules within a network that are gathered one after the other, from the inside out."""
    found: list[nn.Module] = []

    def remaining(module: nn.Module) -> int:
        """Parameters below that belong to no unit."""
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if isinstance(module, WHOLE):
            return sum(parameter.numel() for parameter in module.parameters())
        return own + sum(unit_or_rest(child) for child in module.children())

    def unit_or_rest(module: nn.Module) -> int:
        count = remaining(module)
        if count < unit_parameters or isinstance(module, NEVER_CALLED):
            return count
        found.append(module)
        return 0

    remaining(network)
    return found


@contextlib.contextmanager
def without_sync(model: nn.Module) -> Iterator[None]:
    """Keep gradients on this rank for now: the ranks reduce them with those of a later part of the batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)
    elif isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def is_sharded(network: nn.Module) -> bool:
    """Whether `shard` has dealt the network out."""
    return isinstance(network, FSDPModule)


def full_state_dict(network: nn.Module) -> dict[str, Any]:
    """A copy of all weights on the CPU; call it on every rank. Of a sharded network rank 0 alone gets them."""
    if is_sharded(network):
        return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value.detach().to("cpu", copy=True) for name, value in network.state_dict().items()}


def load_full_state_dict(network: nn.Module, state: dict[str, Any]) -> None:
    """The reverse of `full_state_dict`; call it on every rank. Of a sharded network rank 0's `state` counts."""
    if is_sharded(network):
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(network, state, options=options)
    else:
        network.load_state_dict(state)
