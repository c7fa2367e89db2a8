"""torchrun, with its verdict left where the launcher finds it.

`python -m container.train.agent ARGS` is `torchrun ARGS`: the same parser, the same agent. Only what torchrun would
print as a traceback of its own (which rank ended with which exit code or signal) is written to the runtime directory.
"""

import os
import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from container import contract
from container.train import failure
from container.train.runtime import Runtime, end_with_parent

AGENT_RANK = -1  # in error records: torchrun itself
VERDICT_FILE = "torchrun.json"


def main(argv: list[str]) -> int:
    """Run torchrun; 0 when every rank has ended well.

    Args:
        argv: torchrun's arguments.
    """
    end_with_parent()
    runtime = Runtime.from_env()
    assert runtime is not None  # the launcher sets it
    try:
        run(parse_args(argv))
    except ChildFailedError as error:
        ends = [
            {"rank": rank, "exit_code": end.exitcode, "time": float(end.timestamp)}
            for rank, end in error.failures.items()
        ]
        runtime.write(VERDICT_FILE, ends)
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    except Exception as error:  # rendezvous and store errors of torch share no base class
        host = os.environ[contract.sm_variable("current_host")]
        failure.record(runtime.directory, failure.from_exception(error, AGENT_RANK, host))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
