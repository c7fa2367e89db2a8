"""torchrun, with its verdict left where the launcher finds it.

`python -m container.train.agent ARGS` is `torchrun ARGS`: the same parser, the same agent. Only what torchrun would
print as a traceback of its own (which rank ended with which exit code or signal) is written to the runtime directory.
"""

import argparse
import contextlib
import os
import sys
import time
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from container import contract
from container.train import failure, gpu_idle, peers
from container.train.gpu_idle import GpuWatch
from container.train.health import RULES, rules_from_env
from container.train.heartbeat import DONE, Heartbeat, Place, end_ranks
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
    heartbeat = start_heartbeat(arguments, runtime)
    gpus = watch_gpus(arguments, runtime, heartbeat)
    code = _run_torchrun(arguments, runtime, heartbeat)
    if gpus is not None:
        gpus.close()
    if heartbeat is not None:
        heartbeat.goodbye(DONE if code == 0 else f"ended with {code}")
    return code


def end_process(code: int) -> NoReturn:
    """End without the interpreter's own end, which aborts where a thread still waits for the store, in C++."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads any more
            stream.flush()
    os._exit(code)


def start_heartbeat(arguments: argparse.Namespace, runtime: Runtime) -> Heartbeat | None:
    """Signs of life; None where nobody would listen, since there is one rank."""
    place = Place(runtime.read("launch.json")["hosts"], arguments.node_rank, int(arguments.nproc_per_node))
    if len(place.hosts) * place.ranks_per_host == 1:
        return None
    lost = float(os.environ.get(contract.HOST_LOST_SECONDS_VARIABLE) or contract.HOST_LOST_SECONDS)

    def connect(timeout_seconds: float) -> dist.Store:
        if len(place.hosts) == 1:
            return dist.HashStore()  # nobody else reads it
        return peers.connect(arguments.master_addr, arguments.master_port, timeout_seconds)

    return Heartbeat(place, runtime, connect, lost)


def watch_gpus(arguments: argparse.Namespace, runtime: Runtime, heartbeat: Heartbeat | None) -> GpuWatch | None:
    """The health rule on GPUs; None where there are none, or where it is off."""
    action = {**RULES, **rules_from_env()}["gpu_idle"]
    read = gpu_idle.nvml_reader() if action != "off" else None
    if read is None:
        return None
    ranks = int(arguments.nproc_per_node)
    rank, host = int(arguments.node_rank) * ranks, os.environ[contract.sm_variable("current_host")]

    def stop(evidence: str) -> None:
        error = failure.RankError(rank, host, time.time(), "UnhealthyTraining", f"gpu_idle: {evidence}")
        failure.record(runtime.directory, error)
        if heartbeat is not None:
            heartbeat.tell(error)
        end_ranks(runtime)

    return GpuWatch(read, ranks, action, stop)


def _run_torchrun(arguments: argparse.Namespace, runtime: Runtime, heartbeat: Heartbeat | None) -> int:
    try:
        run(arguments)
    except ChildFailedError as error:
        ends = [
            {"rank": rank, "exit_code": end.exitcode, "time": float(end.timestamp)}
            for rank, end in error.failures.items()
        ]
        runtime.write(VERDICT_FILE, ends)
        if heartbeat is not None and int(arguments.nnodes) > 1:
            with contextlib.suppress(SignalException):  # stopped meanwhile
                _agree_on_cause(arguments, runtime, ends, heartbeat)
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    except Exception as error:  # rendezvous and store errors of torch share no base class
        host = os.environ[contract.sm_variable("current_host")]
        failure.record(runtime.directory, failure.from_exception(error, AGENT_RANK, host))
        return 1
    return 0


def _agree_on_cause(
    arguments: argparse.Namespace, runtime: Runtime, ends: list[dict[str, Any]], heartbeat: Heartbeat
) -> None:
    """Tell the other hosts why this one has failed, or learn it from them where there are only echoes here."""
    recorded = failure.recorded(runtime.directory)
    told = {error.rank for error in recorded}
    host, stacks = os.environ[contract.sm_variable("current_host")], runtime.stacks()
    deaths = [  # ranks tell why they failed themselves, unless a signal ended them
        failure.RankError(
            end["rank"], host, end["time"], "", "", trace=stacks.get(end["rank"], ""), exit_code=end["exit_code"]
        )
        for end in ends
        if end["rank"] not in told
    ]
    cause = failure.first_cause([*recorded, *deaths])
    if cause is not None and cause.is_secondary and not runtime.stop_requested:
        learned = heartbeat.await_cause()
        if learned is not None:
            failure.record(runtime.directory, learned)
    elif cause is not None:
        with contextlib.suppress(Exception):  # the first host, which serves the store, may have ended before
            peers.publish(peers.connect(arguments.master_addr, arguments.master_port, 5.0), cause)
    if arguments.node_rank == 0:
        time.sleep(STORE_SECONDS)


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
