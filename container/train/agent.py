"""torchrun, with its verdict left where the launcher finds it.

`python -m container.train.agent ARGS` is `torchrun ARGS`: the same parser, the same agent. Only what torchrun would
print as a traceback of its own (which rank ended with which exit code or signal) is written to the runtime directory.
"""

import argparse
import contextlib
import os
import sys
import time
from typing import Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from container import contract
from container.train import failure, peers
from container.train.runtime import Runtime, end_with_parent

AGENT_RANK = -1  # in error records: torchrun itself
VERDICT_FILE = "torchrun.json"
STORE_SECONDS = 3.0  # that the first host serves the store after a failure, for the others to read the cause


def main(argv: list[str]) -> int:
    """Run torchrun; 0 when every rank has ended well.

    Args:
        argv: torchrun's arguments.
    """
    end_with_parent()
    runtime = Runtime.from_env()
    assert runtime is not None  # the launcher sets it
    arguments = parse_args(argv)
    try:
        run(arguments)
    except ChildFailedError as error:
        ends = [
            {"rank": rank, "exit_code": end.exitcode, "time": float(end.timestamp)}
            for rank, end in error.failures.items()
        ]
        runtime.write(VERDICT_FILE, ends)
        if int(arguments.nnodes) > 1:
            _tell_other_hosts(arguments, runtime, ends)
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    except Exception as error:  # rendezvous and store errors of torch share no base class
        host = os.environ[contract.sm_variable("current_host")]
        failure.record(runtime.directory, failure.from_exception(error, AGENT_RANK, host))
        return 1
    return 0


def _tell_other_hosts(arguments: argparse.Namespace, runtime: Runtime, ends: list[dict[str, Any]]) -> None:
    """Ranks tell why they failed themselves, unless a signal ended them."""
    told = {error.rank for error in failure.recorded(runtime.directory)}
    host = os.environ[contract.sm_variable("current_host")]
    deaths = [
        failure.RankError(end["rank"], host, end["time"], "", "", exit_code=end["exit_code"])
        for end in ends
        if end["rank"] not in told
    ]
    cause = failure.first_cause(deaths)
    if cause is not None:
        with contextlib.suppress(Exception):  # the first host, which serves the store, may have ended before
            peers.publish(peers.connect(arguments.master_addr, arguments.master_port, 5.0), cause)
    if arguments.node_rank == 0:
        time.sleep(STORE_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
