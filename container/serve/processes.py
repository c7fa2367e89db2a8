"""What a process has used of the machine, as the kernel accounts for it: anybody of the same user may look."""

import os
from dataclasses import dataclass
from pathlib import Path

UTIME, RSS = 11, 21
"""Places in /proc/[pid]/stat after the name, which may hold anything; the system's time follows the user's."""


@dataclass(frozen=True)
class ProcessUse:
    """Of one process, since it began."""

    cpu_seconds: float
    """User's and system's, of all its threads, ended ones too."""
    resident_bytes: int
    """Shared pages included."""
    open_files: int
    """Descriptors: each connection is one."""


def read(pid: int) -> ProcessUse | None:
    """None where there is no such process any more.

    Source: proc_pid_stat(5).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        open_files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    ticks = int(fields[UTIME]) + int(fields[UTIME + 1])
    return ProcessUse(ticks / os.sysconf("SC_CLK_TCK"), int(fields[RSS]) * os.sysconf("SC_PAGE_SIZE"), open_files)
