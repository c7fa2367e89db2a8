"""What the images' ENTRYPOINT runs: a role, `train`, `serve` or `process`, or whatever command the arguments are.

Processing jobs and the SageMaker SDK start images with commands of their own, so a command is executed in place of this
process and gets its signals.
"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from container.cuda import forward_compatible_environment

ROLES = {
    "train": "container.train.launch",
    "process": "container.train.process",
    "serve": "container.serve.server",
}
USAGE_ERROR = 64  # EX_USAGE of sysexits.h
COMMAND_NOT_FOUND = 127  # what a shell and Docker report


def main(argv: Sequence[str]) -> int:
    """Run the role or the command that `argv` names; a command does not return."""
    if not argv:
        return _usage("no argument was given", USAGE_ERROR)
    environ = forward_compatible_environment(os.environ)
    if environ is not None:
        # The dynamic linker reads LD_LIBRARY_PATH once, at the start of a process: start this one again.
        os.execve(sys.executable, [sys.executable, "-m", "container", *argv], environ)
    if argv[0] in ROLES:
        return _run_role(*argv)
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        return _usage(f"cannot execute {argv[0]!r}: {error.strerror}", COMMAND_NOT_FOUND)


def _run_role(role: str, *arguments: str) -> int:
    if find_spec(ROLES[role].rpartition(".")[0]) is None:
        return _usage(f"this image cannot {role}: it holds the other role only", USAGE_ERROR)
    if role == "train":
        from container.train import launch  # each image holds one role

        return launch.main()
    if role == "process":
        from container.train import process

        return process.main(arguments)
    from container.serve import server

    return server.main()


def _usage(problem: str, status: int) -> int:
    sys.stderr.write(f"{problem}. Usage: docker run IMAGE train | serve | process SCRIPT | COMMAND [ARGUMENT ...]\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
