"""Which error is told, and how it is cut to what SageMaker shows."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from container.contract import OptMl
from container.train import failure
from container.train.failure import RankError, first_cause, from_exception, reason


def rank_error(rank=0, time=0.0, type="ValueError", message="bad", **more):
    return RankError(rank=rank, host="algo-1", time=time, type=type, message=message, **more)


def died(rank, time, exit_code):
    return rank_error(rank, time, type="", message="", exit_code=exit_code)


def test_c44_the_earliest_error_is_told():
    assert first_cause([rank_error(3, 5.0), rank_error(1, 4.0), rank_error(0, 6.0)]).rank == 1


@pytest.mark.parametrize(
    ("type", "message"),
    [
        ("RuntimeError", "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"),
        ("DistBackendError", "NCCL error: remote process exited or there was a network error"),
        ("DistNetworkError", "The client socket has failed to connect"),
        ("BrokenPipeError", "[Errno 32] Broken pipe"),
    ],
)
def test_an_echo_of_another_ranks_end_never_wins_though_it_came_first(type, message):
    echo, cause = rank_error(0, 1.0, type, message), rank_error(2, 2.0)
    assert first_cause([echo, cause]) is cause
    assert first_cause([echo]) is echo
    assert "another rank or host failed first" in reason(echo)


@pytest.mark.parametrize(
    ("type", "message"),
    [
        ("ConnectionRefusedError", "[Errno 111] Connection refused"),
        ("ConnectionError", "HTTPSConnectionPool(host='my-database'): Connection aborted."),
        ("TimeoutError", "timed out waiting for the feature store"),
        ("KeyError", "'heartbeat'"),
    ],
)
def test_a_scripts_own_broken_connection_is_a_cause_like_any_other(type, message):
    cause = rank_error(1, 2.0, type, message)
    assert first_cause([rank_error(0, 1.0, "RuntimeError", "Connection closed by peer"), cause]) is cause
    assert "another rank" not in reason(cause)


def aborted_by(thread):
    """What a process records that its own main thread, or one that is not Python's, aborts."""
    script = f"""
import ctypes, faulthandler, sys, time
faulthandler.enable()
libc = ctypes.CDLL(None)
if {thread!r} == "main":
    libc.abort()
libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(libc.abort, ctypes.c_void_p), None)
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return rank_error(0, 1.0, type="", message="", exit_code=done.returncode, trace=done.stderr)


def test_c44_an_abort_by_nccls_watchdog_is_an_echo_and_one_by_the_script_is_not():
    cause, watchdog, script = rank_error(2, 2.0), aborted_by("watchdog"), aborted_by("main")
    assert (watchdog.exit_code, script.exit_code) == (-signal.SIGABRT, -signal.SIGABRT)
    assert first_cause([watchdog, cause]) is cause
    assert first_cause([script, cause]) is script
    assert reason(script) == "killed by signal 6 (SIGABRT) (rank 0 on algo-1)"


def test_a_volume_that_is_full_is_told_though_torch_does_not_say_so():
    with pytest.raises(RuntimeError) as raised:
        torch.save({"weight": torch.rand(1_000_000)}, "/dev/full")
    assert "(hint: the volume is full: raise VolumeSizeInGB" in reason(from_exception(raised.value, 0, "algo-1"))


def test_torchruns_own_sigterm_never_wins_over_the_signal_that_started_it():
    assert first_cause([died(0, 1.0, -signal.SIGTERM), died(1, 2.0, -signal.SIGSEGV)]).rank == 1


@pytest.mark.parametrize(
    ("error", "start", "hint"),
    [
        (died(1, 0, -9), "killed by signal 9 (SIGKILL) (rank 1 on algo-1)", "out of memory?"),
        (died(1, 0, -11), "killed by signal 11 (SIGSEGV)", "a native library crashed"),
        (died(1, 0, -7), "killed by signal 7 (SIGBUS)", "shared memory is too small"),
        (died(1, 0, 3), "exited with code 3 without an exception (rank 1", ""),
        (rank_error(type="OutOfMemoryError", message="CUDA out of memory."), "OutOfMemoryError: CUDA", "batch_size"),
        (rank_error(type="OSError", message="[Errno 28] No space left on device"), "OSError: [Errno 28]", "VolumeSize"),
        (rank_error(type="ModuleNotFoundError", message="No module named 'x'"), "ModuleNotFound", "requirements.txt"),
        (rank_error(type="SystemExit", message="unrecognized arguments: True"), "SystemExit: ", "action='store_true'"),
        (rank_error(type="RuntimeError", message="worker is killed by signal: Bus error"), "Runtime", "shared memory"),
    ],
)  # fmt: skip
def test_known_causes_come_with_a_hint(error, start, hint):
    text = reason(error)
    assert text.startswith(start)
    assert text.endswith(")")  # SageMaker goes on with ", exit code: 1"
    assert (f"(hint: {hint}" in text) if hint == "out of memory?" else hint in text


@pytest.mark.parametrize("message", ["x" * 50_000, "é" * 50_000, "漢" * 50_000, "bad \udcff byte " * 5_000])
def test_c43_a_huge_message_leaves_room_for_type_place_and_hint(message):
    error = rank_error(type="RuntimeError", message="CUDA out of memory " + message, location="train.py:7")
    text = reason(error)
    encoded = text.encode()
    assert len(encoded) <= 1024
    assert text.startswith("RuntimeError: CUDA out of memory")
    assert "... (train.py:7, rank 0 on algo-1)\n(hint: lower batch_size" in text


def test_the_users_own_line_is_named_not_the_librarys(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import json\n\njson.loads('{')\n")
    with pytest.raises(ValueError, match="Expecting") as raised:
        exec(compile(script.read_text(), str(script), "exec"))
    error = from_exception(raised.value, 0, "algo-1", str(tmp_path))
    assert error.location == "train.py:3"


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ValueError("label 4 is unknown")  # the line that is told


def test_what_a_dataloaders_worker_raises_is_told_first_with_its_own_line():
    with pytest.raises(ValueError, match="Original Traceback") as raised:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    error = from_exception(raised.value, 0, "algo-1", str(Path(__file__).parent))
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("that is told"))
    assert reason(error) == (
        "ValueError: label 4 is unknown; Caught ValueError in DataLoader worker process 0 "
        f"(test_failure.py:{line}, rank 0 on algo-1)"
    )
    assert "Original Traceback" in error.trace


def test_what_a_spawned_process_raises_is_told_first():
    trace = 'Traceback (most recent call last):\n  File "/code/train.py", line 7, in work\n    load()\n    ^^^^\n'
    wrapper = RuntimeError(f"\n\n-- Process 1 terminated with the following error:\n{trace}KeyError: 'price'\n")
    error = from_exception(wrapper, 0, "algo-1", "/code")
    told = "RuntimeError: KeyError: 'price'; -- Process 1 terminated with the following error (train.py:7, rank 0"
    assert reason(error).startswith(told)


def test_a_syntax_error_names_the_users_line(tmp_path):
    with pytest.raises(SyntaxError) as raised:
        compile("x = 1\ny = = 2\n", "train.py", "exec")
    assert from_exception(raised.value, 0, "algo-1").location == "train.py:2"


@pytest.mark.parametrize(("status", "code"), [("no data", 1), (3, 3), (2, 2), (-1, 255), (256, 1)])
def test_sys_exit_is_told_with_its_own_status(status, code):
    error = from_exception(SystemExit(status), 0, "algo-1")
    assert error.exit_code == code
    assert reason(error).startswith(f"SystemExit: the script called sys.exit({status!r})")


def test_c45_an_existing_failure_file_is_kept_and_an_empty_one_is_not(tmp_path):
    opt_ml = OptMl(tmp_path)
    failure.write_failure(opt_ml, "first")
    failure.write_failure(opt_ml, "second")
    assert opt_ml.failure.read_text() == "first"
    opt_ml.failure.write_text("")
    failure.write_failure(opt_ml, "x" * 3000)
    assert len(opt_ml.failure.read_bytes()) == 1024
    assert [path.name for path in opt_ml.output.iterdir()] == ["failure"]


def test_the_first_record_of_a_rank_stays(tmp_path):
    failure.record(tmp_path, rank_error(message="first \udcff"))
    failure.record(tmp_path, rank_error(message="second"))
    assert [error.message[:5] for error in failure.recorded(tmp_path)] == ["first"]
