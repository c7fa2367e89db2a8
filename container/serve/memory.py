"""How much memory there is and who holds it: the machine's account, the cgroup's and a process's own."""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

CGROUP_2 = Path("/sys/fs/cgroup")
CGROUP_1 = Path("/sys/fs/cgroup/memory")  # hosts with Amazon Linux 2 still mount version 1


def limit_of_cgroup() -> str:
    """The cgroup's limit in bytes as it stands there; `max`, a number above the machine's memory or "" is none."""
    return _read(CGROUP_2 / "memory.max") or _read(CGROUP_1 / "memory.limit_in_bytes")


def available() -> int:
    """Bytes that can still be taken: by the machine's account and by the cgroup's, whichever is less.

    What the cgroup holds of files that nobody has looked at lately is not counted: the kernel lets go of it first.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit = limit_of_cgroup()
    used = _read(CGROUP_2 / "memory.current") or _read(CGROUP_1 / "memory.usage_in_bytes")
    if limit.isdecimal() and used.isdecimal():
        free = min(free, int(limit) - int(used) + _inactive_file())
    return free


def _inactive_file() -> int:
    text = _read(CGROUP_2 / "memory.stat") or _read(CGROUP_1 / "memory.stat")
    rows = dict(line.split() for line in text.splitlines())
    return int(rows.get("total_inactive_file") or rows.get("inactive_file") or 0)


def held(pid: int | str = "self") -> int:
    """Bytes of a process that only it accounts for: anonymous and shared memory, without the files it maps.

    Raises:
        OSError: there is no such process.
    """
    return _status(pid, "RssAnon:") + _status(pid, "RssShmem:")


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes that this process held at most while `work` ran, over what it held before; other threads' count as well.

    Where the kernel does not let the peak be reset (a seccomp profile may forbid it), what is held afterwards.
    """
    before = _status("self", "VmRSS:")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        work()
        return max(0, _status("self", "VmRSS:") - before)
    work()
    return max(0, _status("self", "VmHWM:") - before)


def bound_growth(by_bytes: int) -> None:
    """Let this process take so much more and no more: past it an allocation fails with MemoryError.

    Without this the kernel kills the process when the cgroup is full, with every model in it. Not done once CUDA is
    in use, whose mappings count as well.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = _status("self", "VmData:") + max(0, by_bytes)
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def give_back() -> None:
    """Give the memory of what nobody holds any more back to the system, so that others see it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)


def _status(pid: int | str, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
