"""Processes that user code has started and that its serving process left behind: a pool's, a helper's.

They would keep memory, and the listening socket with it, and the process that takes the place starts its own.
"""

import ctypes
import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def adopt() -> None:
    """Have this process become the parent of what its descendants leave behind, as PID 1 of a container is."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def children() -> set[int]:
    """Processes whose parent is this one; empty where the kernel does not tell (CONFIG_PROC_CHILDREN)."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def end(pids: Collection[int]) -> None:
    """Kill processes; whoever waits for any child reaps them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
