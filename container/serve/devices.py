"""How busy the GPUs are that this container may use, as NVIDIA's management library (NVML) tells.

It starts no CUDA and sees what every process does, so that whichever process is asked answers for all GPUs.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

Gpu = tuple[str, Any]
"""UUID and NVML's handle: of a whole GPU, or of an instance of one that is split (MIG)."""


@dataclass(frozen=True)
class DeviceUse:
    """What is going on in one GPU; None where NVML does not say, as for the load of a part of a split one."""

    index: int
    """N of `cuda:N`. CUDA counts as NVML does, by PCI bus, where the GPUs are of one kind."""
    uuid: str
    busy: float | None
    """Share of the last sampling period, a second at most, in which anything was computed, 0 to 1."""
    used_bytes: int | None
    total_bytes: int | None


def read(environ: Mapping[str, str]) -> list[DeviceUse]:
    """Every GPU that CUDA would show to a process of this environment; none where there is no driver."""
    try:
        gpus = _visible(environ.get("CUDA_VISIBLE_DEVICES"))
    except pynvml.NVMLError:
        return []
    return [_use(index, uuid, handle) for index, (uuid, handle) in enumerate(gpus)]


def _use(index: int, uuid: str, handle: Any) -> DeviceUse:
    rates, memory = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle), _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return DeviceUse(index, uuid, rates and rates.gpu / 100, memory and memory.used, memory and memory.total)


def _ask(function: Callable[..., Any], *arguments: Any) -> Any:
    with suppress(pynvml.NVMLError):
        return function(*arguments)
    return None


@functools.cache  # a failure is not kept: a driver that is being loaded is there the next time
def _visible(chosen: str | None) -> list[Gpu]:
    """The GPUs that a CUDA_VISIBLE_DEVICES chooses, in its order ("CUDA C++ Programming Guide", environment variables).

    Raises:
        NVMLError: there is no driver, or it does not answer.
    """
    pynvml.nvmlInit()
    instances = [_instances(number) for number in range(pynvml.nvmlDeviceGetCount())]
    firsts = [each[0] if each else None for each in instances]
    if chosen is None:
        return [first for first in firsts if first]
    found: list[Gpu] = []
    for name in chosen.split(","):
        gpu = _named(name.strip(), firsts, [gpu for each in instances for gpu in each])
        if gpu is None:  # CUDA shows what stands before the first name that means none
            break
        found.append(gpu)
    return found if len({uuid for uuid, _ in found}) == len(found) else []  # one named twice: CUDA shows none


def _named(name: str, firsts: list[Gpu | None], every: list[Gpu]) -> Gpu | None:
    if name.isdecimal():
        return firsts[int(name)] if int(name) < len(firsts) else None
    matching = [gpu for gpu in every if name and gpu[0].startswith(name)]  # the beginning is enough where one has it
    return matching[0] if len(matching) == 1 else None


def _instances(number: int) -> list[Gpu]:
    """The GPU of that number, or its parts that this container may use where it is split."""
    gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
    mode = _ask(pynvml.nvmlDeviceGetMigMode, gpu)  # None: of a kind that cannot be split
    if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [(pynvml.nvmlDeviceGetUUID(gpu), gpu)]
    places = range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu))
    parts = [_ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, place) for place in places]
    return [(pynvml.nvmlDeviceGetUUID(part), part) for part in parts if part]
