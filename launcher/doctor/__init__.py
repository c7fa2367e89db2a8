"""Looks at this machine: what is there, what is missing, and what to do about it.

Standard library only, so that `python -m launcher.doctor` works where nothing is installed yet. It asks the engine and
the driver through their own clients, sends nothing anywhere, and changes nothing; `fix` removes what is certainly ours
and certainly dead.
"""

import os
import sys

from launcher.doctor import access, engine, machine, project
from launcher.doctor.engine import fix
from launcher.doctor.machine import Machine
from launcher.findings import Finding, failures, lines

__all__ = ["Machine", "doctor", "fix", "main"]


def doctor(here: Machine) -> list[Finding]:
    """Every check of this machine, in the order in which to mend what is wrong."""
    found = [machine.python(here), machine.packages(here), *machine.disk(here.directory)]
    found += [*machine.memory(here), machine.cores(here)]
    answered, docker = engine.docker(here)
    found += [*answered, *engine.engine_disk(docker), *engine.gpu(here, docker), *engine.leftovers(here, docker)]
    configured, settings = project.config(here)
    found += [configured, *project.images(here, docker, settings), *access.credentials(here), *access.endpoint(here)]
    return [*found, machine.port(here)]


def main() -> int:
    """`python -m launcher.doctor`: the checks as lines; 1 if one failed."""
    found = doctor(Machine(os.environ))
    sys.stdout.write("\n".join(lines(found)) + "\n")
    return 1 if failures(found) else 0
