"""What torchrun starts for every rank: runs the program and, should it fail, records why.

`python -m container.train.rank KIND NAME ARGS...`, KIND being script, package or builtin. The program needs nothing of
ours for it: its own exception is recorded with time, place and full trace, so that the first one to fail can be told.
"""

import contextlib
import dataclasses
import faulthandler
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from typing import NoReturn

from container import contract
from container.train import failure, lines
from container.train.lines import LineStream
from container.train.phases import PROGRAM_FILE
from container.train.runtime import Runtime, end_with_parent

EXIT_SECONDS = 20.0  # for a failed rank's atexit handlers and threads; then it is ended, so that the job can end
STORE_SECONDS = 5.0  # to reach the first host, which may be the one that died
STOPPED = 128 + signal.SIGTERM
OWN_FRAMES = frozenset({__file__, "<frozen runpy>"})


def main(argv: list[str]) -> int:
    """Run the program as `__main__`; its exit status.

    Args:
        argv: KIND, NAME and the program's own arguments.
    """
    kind, name, *arguments = argv
    runtime = Runtime.from_env()
    assert runtime is not None  # the launcher sets it
    _prepare_process(runtime)
    if runtime.stop_requested:
        return STOPPED
    try:
        if int(os.environ["GROUP_WORLD_SIZE"]) > 1:
            _meet_other_hosts(runtime)
        _run_program(kind, name, arguments)
    except SystemExit as error:
        if error.code in (None, 0):
            runtime.mark_done(int(os.environ["LOCAL_RANK"]))
            return 0
        return _fail(runtime, error)
    except BaseException as error:  # KeyboardInterrupt, too, is a reason worth telling
        return _fail(runtime, error)
    runtime.mark_done(int(os.environ["LOCAL_RANK"]))
    return 0


def _prepare_process(runtime: Runtime) -> None:
    # An ignored SIGTERM would be inherited through exec; a script must be stoppable without doing anything for it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent()
    runtime.register_rank(int(os.environ["LOCAL_RANK"]))
    stacks = runtime.stack_file(int(os.environ["RANK"])).open("w")  # open until the end: a crash writes into it
    faulthandler.enable(stacks)
    # Ended by torchrun because another rank has failed, a rank leaves its stacks; a handler of the script's own wins.
    faulthandler.register(signal.SIGTERM, stacks, all_threads=True, chain=True)
    prefix = f"[{_host()} rank {os.environ['RANK']}] " if int(os.environ["WORLD_SIZE"]) > 1 else ""
    place: dict[str, str | int] | None = None
    if lines.are_json(os.environ):
        place = {"host": _host(), "rank": int(os.environ["RANK"])}
    sys.stdout = LineStream(sys.stdout.buffer, prefix, place)
    sys.stderr = LineStream(sys.stderr.buffer, prefix, place, level="WARNING")


def _run_program(kind: str, name: str, arguments: list[str]) -> None:
    runtime = Runtime.from_env()
    if runtime is not None and os.environ["LOCAL_RANK"] == "0":
        runtime.write(PROGRAM_FILE, time.time())
    sys.argv = [name, *arguments]
    if kind == "builtin":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return
    sys.path.insert(0, os.getcwd())
    if kind == "package":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        script = os.path.abspath(name)
        sys.path[0] = os.path.dirname(script)  # what `python script.py` does
        runpy.run_path(script, run_name="__main__")


def _meet_other_hosts(runtime: Runtime) -> None:
    from container.train import peers  # it loads torch, which a script on one host need not

    rank, local_world_size = int(os.environ["RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    hosts = [host for host in runtime.read("launch.json")["hosts"] for _ in range(local_world_size)]
    if len(hosts) == int(os.environ["WORLD_SIZE"]):  # else hosts differ in GPUs, and who has which rank is torchrun's
        seconds = float(os.environ.get(contract.PEER_TIMEOUT_SECONDS_VARIABLE) or contract.PEER_TIMEOUT_SECONDS)
        peers.check(peers.connect_rank(seconds), rank, hosts, seconds)


def _tell_other_hosts(record: failure.RankError) -> None:
    from container.train import peers

    with contextlib.suppress(Exception):  # the first host may be gone; this host's own error stands in any case
        peers.publish(peers.connect_rank(STORE_SECONDS), record)


def _host() -> str:
    return os.environ[contract.sm_variable("current_host")]


def _fail(runtime: Runtime, error: BaseException) -> int:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None and frame.tb_frame.f_code.co_filename in OWN_FRAMES:
        frame = frame.tb_next
    error.__traceback__ = frame  # the trace begins in the program, not with how it was started
    record = failure.from_exception(error, int(os.environ["RANK"]), _host(), os.getcwd())
    if isinstance(error, SystemExit) and isinstance(sys.stderr, LineStream) and sys.stderr.last_line:
        # argparse, for one, prints what is wrong and exits with 2
        record = dataclasses.replace(record, message=f"{record.message}; last words: {sys.stderr.last_line}")
    failure.record(runtime.directory, record)
    if int(os.environ["GROUP_WORLD_SIZE"]) > 1 and not record.is_secondary:
        _tell_other_hosts(record)
    traceback.print_exception(error)
    sys.stderr.flush()
    deadline = threading.Timer(EXIT_SECONDS, os._exit, (record.exit_code,))
    deadline.daemon = True
    deadline.start()
    return record.exit_code


def end_with(error: Exception, trace: str) -> NoReturn:
    """End this rank from a thread of its own, because its main thread cannot any more.

    Args:
        error: what is told as the reason.
        trace: stacks of the main thread.
    """
    runtime = Runtime.from_env()
    if runtime is not None:
        record = failure.from_exception(error, int(os.environ["RANK"]), _host())
        place = failure.location_in_stack(trace, os.getcwd())
        failure.record(runtime.directory, dataclasses.replace(record, trace=trace, location=place))
    sys.stderr.write(f"{error}\n{trace}")
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
