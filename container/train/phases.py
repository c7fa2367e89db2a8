"""Where a job's time went, in one line."""

import time

from container.train.runtime import Runtime

PROGRAM_FILE = "program.json"  # when the first rank of the host reached the program's first line
PHASES_FILE = "phases.json"  # phase -> seconds, of a program that tells them


def phase_line(runtime: Runtime, started: float) -> str:
    """`start 0.21 s, peers 0.00 s, imports 2.31 s, program 20.11 s; 22.63 s in all`.

    The built-in program tells its phases itself, in place of `program`.

    Args:
        runtime: of a program that has ended.
        started: when the container started, seconds since the epoch.
    """
    now, launched = time.time(), runtime.read("launch.json")
    seconds = {"start": launched["start"], "peers": launched["peers"]}
    began = runtime.read(PROGRAM_FILE)
    if began is not None:
        seconds |= {"imports": began - launched["at"]}
        seconds |= runtime.read(PHASES_FILE, {"program": now - began})
    return f"{', '.join(f'{name} {spent:.2f} s' for name, spent in seconds.items())}; {now - started:.2f} s in all"
