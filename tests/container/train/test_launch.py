"""Whole jobs as processes: what a user's script gets, how failures are told, how signals travel."""

import dataclasses
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from container.contract import OptMl
from container.train import launch
from container.train.cluster import (
    PeersMissing,
    be_found,
    decide_cluster,
    network_interface,
    torchrun_argv,
    wait_for_hosts,
)
from container.train.environment import read_environment
from container.train.program import Program
from container.train.supervise import STOP_SIGNALS, planned_stop

SHOW = """
import json, os, sys, pathlib
out = pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"])
rank = os.environ["RANK"]
(out / f"seen-{rank}.json").write_text(json.dumps({"argv": sys.argv, "env": dict(os.environ), "cwd": os.getcwd()}))
model = pathlib.Path(os.environ["SM_MODEL_DIR"])
if rank == "0":
    (model / "weights").write_text("w")
    os.symlink(model / "weights", model / "link")
    os.symlink("/nowhere", model / "dangling")
print("val:loss=0.5;")
"""
AWKWARD = 'it\'s "quoted" $HOME `id` ; rm\n\ttab é 漢字 ' + "x" * 2400


def test_c17_c18_c31_c41_c48_c49_c62_c63_c65_c66_c69_two_hosts_with_two_ranks_each_run_the_users_script(training_job):
    hyperparameters = {
        "awkward": AWKWARD,
        "Upper.dot-dash": "1",
        "flag": "true",
        "_tuning_objective_metric": "validation:auc",
        "sagemaker_job_name": '"j"',
    }
    job = training_job(hosts=2, gpus=2, script=SHOW, hyperparameters=hyperparameters)
    del job.environ["OMP_NUM_THREADS"]
    (job.opt_ml("algo-1").model).rmdir()  # the platform may not have made it
    assert job.run() == {"algo-1": 0, "algo-2": 0}, job.log()
    seen = {}
    for host in job.hosts:
        for path in job.opt_ml(host).output_data.glob("seen-*.json"):
            seen[path.stem] = json.loads(path.read_text()) | {"host": host}
    assert [(name, one["host"]) for name, one in sorted(seen.items())] == [
        ("seen-0", "algo-1"), ("seen-1", "algo-1"), ("seen-2", "algo-2"), ("seen-3", "algo-2"),
    ]  # fmt: skip
    last = seen["seen-3"]
    assert os.path.basename(last["argv"][0]) == "train.py"
    assert last["argv"][1:] == ["--Upper.dot-dash", "1", "--awkward", AWKWARD, "--flag", "True"]
    assert last["env"]["SM_HP_AWKWARD"] == AWKWARD
    assert (last["env"]["WORLD_SIZE"], last["env"]["LOCAL_RANK"], last["env"]["SM_NUM_GPUS"]) == ("4", "1", "2")
    assert int(last["env"]["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 4)
    assert last["cwd"] == str(job.opt_ml("algo-2").channel("code"))
    model = job.opt_ml("algo-1").model
    assert {path.name: path.is_symlink() for path in model.iterdir()} == {"weights": False, "link": False}
    assert not any(job.opt_ml("algo-2").model.iterdir())
    assert re.search(r"^\[algo-1 rank 1\] val:loss=0.5;$", job.log("algo-1"), re.MULTILINE)
    assert not list(job.opt_ml("algo-1").channel("code").rglob("__pycache__"))


FAIL = """
import sys, time, os
import torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()

def load(path):
    raise ValueError("column 'price' is missing in " + path)

if dist.get_rank() == 2:
    load("a.csv")
import torch
dist.all_reduce(torch.ones(1))
"""


def test_c42_c43_c44_c64_the_first_failing_rank_is_told_and_its_victims_are_not(training_job):
    job = training_job(hosts=2, gpus=2, script=FAIL)
    codes = job.run()
    assert all(codes.values()), codes
    reason = job.failure("algo-2")
    assert reason.startswith("ValueError: column 'price' is missing in a.csv (train.py:8, rank 2 on algo-2)")
    assert len(reason.encode()) <= 1024
    trace = (job.opt_ml("algo-2").output_data / "errors" / "algo-2-rank-2.txt").read_text()
    assert 'load("a.csv")' in trace
    assert job.failure("algo-1") == reason  # the cause, not its echo
    assert "4 ranks on 2 hosts answer" in job.log()


@pytest.mark.slow
def test_c64_a_host_that_waits_for_ever_ends_promptly_with_the_cause_of_the_one_that_was_killed(training_job):
    script = """
import os, signal, time
if os.environ["SM_CURRENT_HOST"] == "algo-2":
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(100)  # as a collective that never ends
"""
    job = training_job(hosts=2, script=script)
    job.start()
    assert job.wait(40) == {"algo-1": 137, "algo-2": 137}, job.log()
    assert job.failure("algo-1") == job.failure("algo-2")
    assert job.failure("algo-1").startswith("killed by signal 9 (SIGKILL) (rank 1 on algo-2)")


def test_c45_c46_a_rank_killed_by_a_signal_is_named_and_an_existing_failure_file_stays(training_job):
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    job = training_job(script=script)
    assert job.run() == {"algo-1": 137}
    assert job.failure().startswith("killed by signal 9 (SIGKILL) (rank 0 on algo-1)\n(hint: out of memory?")

    job = training_job(script=script)
    job.opt_ml().failure.write_text("the script's own words")
    assert job.run() == {"algo-1": 137}
    assert job.failure() == "the script's own words"


def test_c47_a_failure_file_does_not_survive_success(training_job):
    job = training_job(script="import os; open(os.environ['SM_OUTPUT_FAILURE'], 'w').write('not so bad')")
    assert job.run() == {"algo-1": 0}
    assert not job.opt_ml().failure.exists()


HANDLE = """
import os, signal, sys, time
def on_sigterm(number, frame):
    print("got", number, "after", time.time(), flush=True)
    time.sleep(1)
    open(os.path.join(os.environ["SM_MODEL_DIR"], "saved-" + os.environ["RANK"]), "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, on_sigterm)
print("ready", flush=True)
time.sleep(60)
"""


def test_c11_c52_c53_sigterm_reaches_every_rank_within_a_second_and_a_second_one_breaks_nothing(training_job):
    job = training_job(gpus=2, script=HANDLE)
    job.start()
    job.wait_for("rank 0] ready")
    job.wait_for("rank 1] ready")
    sent = time.time()
    job.stop()
    job.wait_for("got 15")
    job.stop()
    assert job.wait(20) == {"algo-1": 0}, job.log()
    arrived = [float(when) for when in re.findall(r"got 15 after ([0-9.]+)", job.log())]
    assert len(arrived) == 2
    assert max(arrived) - sent < 1
    assert sorted(path.name for path in job.opt_ml().model.iterdir()) == ["saved-0", "saved-1"]
    assert "TCPStore" not in job.log()  # nothing of ours talks to a store that is gone


def test_a_script_that_does_nothing_about_sigterm_ends_with_143_and_without_a_failure(training_job):
    job = training_job(script="import time; print('ready', flush=True); time.sleep(60)")
    job.start()
    job.wait_for("ready")
    job.stop()
    assert job.wait(20) == {"algo-1": 143}
    assert job.failure() == ""


def test_c54_sigterm_while_waiting_for_a_missing_host_ends_the_job_at_once(training_job):
    job = training_job(hosts=1, script="print('never')")
    resources = {"current_host": "algo-1", "hosts": ["algo-1", "no-such-host.invalid"]}
    job.opt_ml().resource_config.write_text(json.dumps(resources))
    for name in ("SLIPWAY_MASTER_ADDR", "SLIPWAY_MASTER_PORT"):
        del job.environ[name]
    job.start()
    job.wait_for("no-such-host.invalid (its name does not resolve)")
    job.stop()
    assert job.wait(10) == {"algo-1": 143}
    assert job.failure() == ""


def test_a_host_whose_name_never_resolves_is_named_in_the_failure(training_job):
    job = training_job(script="print('never')")
    resources = {"current_host": "algo-1", "hosts": ["algo-1", "no-such-host.invalid"]}
    job.opt_ml().resource_config.write_text(json.dumps(resources))
    del job.environ["SLIPWAY_MASTER_ADDR"]
    job.environ["SLIPWAY_PEER_TIMEOUT_SECONDS"] = "0.3"
    assert job.run() == {"algo-1": 1}
    assert "no-such-host.invalid" in job.failure()
    assert "its name does not resolve" in job.failure()


def test_a_shell_script_runs_once_per_host_and_its_children_get_the_signal(training_job):
    job = training_job(hyperparameters={"sagemaker_program": "run.sh", "lr": "0.1"}, channels={"code": None})
    child = "sh -c 'trap \"echo child got it; exit 0\" TERM; echo ready; sleep 30 & wait'"
    script = f'echo "args $* rank $RANK"\n{child} &\nwait'
    (job.opt_ml().channel("code") / "run.sh").write_text(script)
    job.start()
    job.wait_for("ready")
    assert "args --lr 0.1 rank 0" in job.log()
    job.stop()
    assert job.wait(20) == {"algo-1": 143}
    assert "child got it" in job.log()


def test_a_shell_script_that_fails_gives_its_exit_code(training_job):
    job = training_job(hyperparameters={"sagemaker_program": "run.sh"}, channels={"code": None})
    (job.opt_ml().channel("code") / "run.sh").write_text("exit 7")
    assert job.run() == {"algo-1": 7}
    assert job.failure() == "exited with code 7 without an exception (rank 0 on algo-1)"


def test_a_missing_train_channel_is_told_before_torch_is_loaded(training_job):
    job = training_job()
    assert job.run() == {"algo-1": 1}
    assert job.failure().startswith("ProgramError: missing channel 'train' (found: none)")


def test_an_unknown_hyperparameter_is_told_with_the_nearest_name_before_torch_is_loaded(training_job, shapes):
    job = training_job(hyperparameters={"epoch": 1}, channels={"train": shapes / "train"})
    assert job.run() == {"algo-1": 1}
    assert job.failure() == "HyperparameterError: unknown hyperparameter 'epoch'; did you mean 'epochs'?"


def test_c29_a_host_outside_the_training_group_has_nothing_to_do_in_the_built_in_program(training_job):
    job = training_job(hosts=1, hyperparameters={"sagemaker_distribution_instance_groups": '["trainers"]'})
    groups = [
        {"instance_group_name": "trainers", "instance_type": "ml.p4d.24xlarge", "hosts": ["algo-2"]},
        {"instance_group_name": "loaders", "instance_type": "ml.c6i.xlarge", "hosts": ["algo-1"]},
    ]
    resources = {"current_host": "algo-1", "hosts": ["algo-1", "algo-2"], "instance_groups": groups}
    job.opt_ml().resource_config.write_text(json.dumps(resources | {"current_group_name": "loaders"}))
    assert job.run() == {"algo-1": 0}
    assert "in none of the groups that train" in job.log()


def test_c61_names_that_resolve_only_after_a_minute_are_waited_for():
    clock = [0.0]

    def reach(host):
        if host == "algo-2" and clock[0] < 60:
            raise socket.gaierror("not yet")

    def sleep(seconds):
        clock[0] += seconds

    wait_for_hosts(["algo-1", "algo-2"], 900, reach, sleep)
    assert 60 <= clock[0] < 75


def test_only_the_hosts_that_are_missing_are_named_with_what_is_wrong():
    def reach(host):
        if host == "algo-2":
            raise socket.gaierror("unknown")
        if host == "algo-3":
            raise ConnectionRefusedError(111, "Connection refused")

    text = r"algo-2 \(its name does not resolve\), algo-3 \(no connection: Connection refused\)\. The host"
    with pytest.raises(PeersMissing, match=f"^not there after 0 s: {text}"):
        wait_for_hosts(["algo-1", "algo-2", "algo-3"], 0, reach)


def test_a_host_that_listens_is_found_though_nothing_accepts(monkeypatch):
    monkeypatch.setattr("container.contract.PEER_PORT", 0)
    with be_found(0) as listener:
        monkeypatch.setattr("container.contract.PEER_PORT", listener.getsockname()[1])
        wait_for_hosts(["127.0.0.1", "localhost"], 0)
        with be_found(listener.getsockname()[1]) as second:  # two containers on one machine's network
            assert second is None


def test_the_second_host_joins_the_first_of_the_sorted_hosts(write_opt_ml):
    resources = {"current_host": "algo-2", "hosts": ["algo-2", "algo-10"]}
    environment = read_environment(write_opt_ml(resources=resources), {})
    program = Program("train.py", "script")
    argv = torchrun_argv(decide_cluster(environment, {}, program), program, ["--lr", "1"])
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=algo-10", "--master-port=7777"} <= set(argv)
    assert argv[-4:] == ["script", "train.py", "--lr", "1"]


def test_c29_a_host_outside_the_training_group_forms_a_group_of_its_own(write_opt_ml):
    groups = [
        {"instance_group_name": "trainers", "instance_type": "t", "hosts": ["algo-2", "algo-3"]},
        {"instance_group_name": "loaders", "instance_type": "t", "hosts": ["algo-1"]},
    ]
    resources = {"current_host": "algo-1", "hosts": ["algo-1", "algo-2", "algo-3"], "instance_groups": groups}
    hyperparameters = {"sagemaker_distribution_instance_groups": '["trainers"]'}
    environment = read_environment(write_opt_ml(hyperparameters, resources=resources), {})
    assert decide_cluster(environment, {}, Program("train.py", "script")).hosts == ("algo-1",)


def test_c27_an_interface_that_does_not_exist_is_replaced_by_the_first_real_one():
    assert network_interface("eth0", ["lo", "eth0"]) == "eth0"
    assert network_interface("ethwe", ["lo", "ens5"]) == "ens5"
    assert network_interface("ethwe", ["lo"]) == "lo"


def test_c68_caches_lie_in_the_warm_pools_directory_unless_the_job_says_otherwise(training_job, tmp_path):
    script = "import json, os; print('CACHES', json.dumps([os.environ[n] for n in ('PIP_CACHE_DIR', 'TORCH_HOME')]))"
    job = training_job(script=script)
    cache = tmp_path / "cache"
    cache.write_text("damaged: not even a directory")
    job.environ |= {"SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY": str(cache), "TORCH_HOME": "/elsewhere"}
    assert job.run() == {"algo-1": 0}, job.log()
    assert f'CACHES ["{cache}/slipway-1/pip", "/elsewhere"]' in job.log()
    assert launch.cache_variables({}) == {}


def test_network_variables_are_set_only_where_they_apply(write_opt_ml, tmp_path):
    resources = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo"}
    environment = read_environment(write_opt_ml(resources=resources), {})
    assert launch.network_variables(environment, tmp_path) == {"GLOO_SOCKET_IFNAME": "lo"}
    (tmp_path / "uverbs0").touch()
    resources["current_instance_type"] = "ml.p4d.24xlarge"
    environment = dataclasses.replace(environment, resource_config=resources, num_gpus=8)
    assert launch.network_variables(environment, tmp_path) == {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "FI_PROVIDER": "efa",
        "RDMAV_FORK_SAFE": "1",
        "FI_EFA_USE_DEVICE_RDMA": "1",
    }


def test_c12_nothing_a_killed_torchrun_left_behind_outlives_the_job(training_job):
    job = training_job(script="import os, time; print('pids', os.getpid(), os.getppid(), flush=True); time.sleep(60)")
    job.start()
    job.wait_for("pids")
    rank, agent = map(int, re.search(r"pids (\d+) (\d+)", job.log()).groups())
    os.kill(agent, signal.SIGKILL)
    assert job.wait(20) == {"algo-1": 137}
    command = Path(f"/proc/{rank}/cmdline")
    assert not command.exists() or command.read_bytes() == b""  # gone, or a zombie of this machine's init


def test_importing_the_launcher_loads_neither_torch_nor_matplotlib():
    import subprocess
    import sys

    code = "import sys, container.train.launch; print(sorted({'torch', 'matplotlib', 'boto3'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_main_reports_what_keeps_a_job_from_starting(write_opt_ml, monkeypatch):
    opt_ml: OptMl = write_opt_ml()
    opt_ml.resource_config.write_text("{}")
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(opt_ml.base))
    previous = [signal.getsignal(number) for number in STOP_SIGNALS]
    try:
        assert launch.main() == 1
    finally:
        for number, handler in zip(STOP_SIGNALS, previous, strict=True):
            signal.signal(number, handler)
    assert opt_ml.failure.read_text().startswith("ConfigError: ")


@pytest.mark.parametrize(
    ("script", "code", "start"),
    [
        ("import ctypes\nctypes.string_at(0)\n", 139, "killed by signal 11 (SIGSEGV) (train.py:2, rank 0 on algo-1)"),
        ("import os\nos._exit(7)\n", 7, "exited with code 7 without an exception (rank 0 on algo-1)"),
        (
            "import argparse\nargparse.ArgumentParser().parse_args()\n",
            2,
            "SystemExit: the script called sys.exit(2); last words: train.py: error: unrecognized arguments: --lr 1 "
            "(train.py:2, rank 0 on algo-1)\n(hint: compare the job's hyperparameters",
        ),
        (
            "import os, sys\nsys.stderr.buffer.write(b'\\xff\\xfe')\n"
            "raise OSError(os.fsdecode(b'caf\\xe9') + 'x' * 50_000)\n",
            1,
            "OSError: caf?xxxx",
        ),
        ("import os\nopen(os.environ['SM_CHANNEL_TRAIN'])\n", 1, "KeyError: 'SM_CHANNEL_TRAIN' (train.py:2, rank 0"),
    ],
    ids=["segfault", "os._exit", "argparse", "not-utf-8", "missing-channel"],
)
def test_c43_c46_every_way_to_fail_is_told_in_its_own_words(training_job, script, code, start):
    job = training_job(script=script, hyperparameters={"lr": "1"})
    assert job.run() == {"algo-1": code}, job.log()
    assert job.failure().startswith(start), job.failure()
    assert len(job.opt_ml().failure.read_bytes()) <= 1024
    assert code != 1 or "runpy" not in job.log()  # the trace of an exception begins in the script


def test_ranks_ended_because_of_another_leave_their_stacks(training_job):
    script = """
import os, time
def waits_for_the_other():
    time.sleep(60)
if os.environ["RANK"] == "1":
    time.sleep(1)
    raise RuntimeError("lost")
waits_for_the_other()
"""
    job = training_job(gpus=2, script=script)
    assert job.run() == {"algo-1": 1}, job.log()
    assert job.failure().startswith("RuntimeError: lost (train.py:7, rank 1 on algo-1)")
    stacks = (job.opt_ml().output_data / "errors" / "algo-1-rank-0.txt").read_text()
    assert "in waits_for_the_other" in stacks


def test_an_empty_model_directory_is_a_warning_or_a_failure_when_asked_for(training_job):
    job = training_job(script="pass")
    assert job.run() == {"algo-1": 0}
    assert "is empty: the job will have no model artifact" in job.log()

    job = training_job(script="pass")
    job.environ["SLIPWAY_REQUIRE_MODEL"] = "true"
    assert job.run() == {"algo-1": 1}
    assert job.failure().startswith("NoModel: training ended well but left nothing in")


@pytest.mark.slow
def test_a_job_near_its_time_limit_is_stopped_while_it_can_save(training_job):
    job = training_job(script=HANDLE)
    job.environ["SLIPWAY_MAX_RUNTIME_SECONDS"] = "8"
    began = time.monotonic()
    assert job.run() == {"algo-1": 0}, job.log()
    assert time.monotonic() - began < 20
    assert "the time limit is near" in job.log()
    assert (job.opt_ml().model / "saved-0").exists()


def test_the_planned_stop_keeps_a_tenth_of_the_limit_and_no_more_than_five_minutes():
    assert planned_stop(1000.0, 600) == 1540
    assert planned_stop(1000.0, 86_400) == 1000 + 86_400 - 300
    assert planned_stop(1000.0, None) == float("inf")


def test_progress_bars_and_half_lines_become_whole_lines(training_job):
    script = """
import sys, threading
for step in range(50):
    print(f"\\r{step}%", end="", file=sys.stderr)
print("\\rdone", file=sys.stderr)
threads = [threading.Thread(target=lambda: [sys.stdout.write("x" * 200 + "\\n") for _ in range(50)]) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print("no newline at the end", end="")
"""
    job = training_job(gpus=2, script=script)
    assert job.run() == {"algo-1": 0}, job.log()
    lines = job.log().splitlines()
    assert "[algo-1 rank 0] done" in lines
    assert sum("%" in line for line in lines) <= 2
    assert lines.count("[algo-1 rank 1] " + "x" * 200) == 200
    assert "[algo-1 rank 0] no newline at the end" in lines


def test_a_gpu_instance_whose_gpu_cannot_work_fails_before_torch_is_loaded(training_job):
    job = training_job(script="print('never')")
    del job.environ["SLIPWAY_LOCAL"]
    job.environ["PATH"] = str(job.base)  # no nvidia-smi
    path = job.opt_ml().resource_config
    path.write_text(json.dumps(json.loads(path.read_text()) | {"current_instance_type": "ml.g5.xlarge"}))
    assert job.run() == {"algo-1": 1}
    assert job.failure().startswith("CudaUnusable: ml.g5.xlarge has GPUs, but no NVIDIA driver is visible")
