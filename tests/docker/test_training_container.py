"""The training image under plain `docker run`, with `/opt/ml` laid out as the service does it."""

import json
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from container.contract import OptMl
from launcher.local.opt_ml import write_training_input

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]


def lay_out(base: Path, digits: Path, **hyperparameters: str) -> OptMl:
    opt_ml = OptMl(base)
    request = {
        "HyperParameters": hyperparameters,
        "InputDataConfig": [{"ChannelName": "train"}, {"ChannelName": "test"}],
        "CheckpointConfig": {"S3Uri": "s3://unused/checkpoints"},
    }
    write_training_input(opt_ml, request, "algo-1", ["algo-1"])
    return opt_ml


def mounts(opt_ml: OptMl, digits: Path) -> list[str]:
    channels = [f"--volume={digits / name}:/opt/ml/input/data/{name}:ro" for name in ("train", "test")]
    return [f"--volume={opt_ml.base}:/opt/ml", *channels]


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)


def test_c7_c69_it_trains_without_network_from_a_closed_configuration_directory(train_image, docker, digits, tmp_path):
    opt_ml = lay_out(tmp_path, digits, epochs="1")
    opt_ml.config.chmod(0o644)
    done = docker("run", "--network", "none", *mounts(opt_ml, digits), train_image, "train", timeout=300)
    assert "test:accuracy=" in done.stdout
    assert sorted(path.name for path in opt_ml.model.iterdir()) == ["model.json", "model.safetensors"]
    assert not opt_ml.failure.exists()


def test_c51_c52_c55_docker_stop_leaves_a_checkpoint_and_the_job_resumes(train_image, docker, digits, tmp_path):
    opt_ml = lay_out(tmp_path, digits, epochs="500")
    run = ("run", "--detach", *mounts(opt_ml, digits), train_image, "train")
    first = docker(*run).stdout.strip()
    wait_for(lambda: any(opt_ml.checkpoints.rglob("*")), 120, "the first checkpoint")
    started = time.monotonic()
    docker("stop", "--time", "120", first, timeout=150)
    assert time.monotonic() - started < 90
    state = json.loads(docker("inspect", first).stdout)[0]["State"]
    assert state["ExitCode"] == 0, docker("logs", first).stdout[-2000:]
    stopped_at = last_epoch(docker("logs", first).stdout)

    second = docker(*run).stdout.strip()
    wait_for(lambda: last_epoch(docker("logs", second).stdout) > stopped_at, 120, "an epoch after the last one")
    docker("stop", "--time", "120", second, timeout=150)
    log = docker("logs", second).stdout
    assert first_epoch(log) in (stopped_at, stopped_at + 1), log[-2000:]


def epochs(log: str) -> list[int]:
    words = [word for line in log.splitlines() if "train:loss=" in line for word in line.split()]
    return [int(word.removeprefix("epoch=")) for word in words if word.startswith("epoch=")]


def first_epoch(log: str) -> int:
    return min(epochs(log), default=0)


def last_epoch(log: str) -> int:
    return max(epochs(log), default=0)


def test_c11_sigterm_reaches_a_users_script_within_a_second(train_image, docker, tmp_path):
    opt_ml = OptMl(tmp_path)
    write_training_input(
        opt_ml,
        {"HyperParameters": {"sagemaker_program": "train.py"}, "InputDataConfig": [{"ChannelName": "code"}]},
        "algo-1",
        ["algo-1"],
    )
    (opt_ml.channel("code") / "train.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('got SIGTERM', time.time(), flush=True), sys.exit(0)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    name = docker("run", "--detach", f"--volume={tmp_path}:/opt/ml", train_image, "train").stdout.strip()
    wait_for(lambda: "ready" in docker("logs", name).stdout, 60, "the script's start")
    sent = time.time()
    subprocess.run(["docker", "kill", "--signal", "TERM", name], check=True, capture_output=True)
    wait_for(lambda: "got SIGTERM" in docker("logs", name).stdout, 20, "the script's handler")
    line = next(line for line in docker("logs", name).stdout.splitlines() if "got SIGTERM" in line)
    assert float(line.split()[-1]) - sent < 2  # one second, and the engine's own time


def test_c42_c43_a_missing_channel_is_named_in_the_failure_file(train_image, docker, tmp_path):
    opt_ml = OptMl(tmp_path)
    write_training_input(opt_ml, {}, "algo-1", ["algo-1"])
    done = docker("run", f"--volume={tmp_path}:/opt/ml", train_image, check=False)
    assert done.returncode != 0
    assert "train" in opt_ml.failure.read_text()


def test_c61_c62_c63_two_hosts_meet_though_one_name_resolves_late(train_image, docker, digits, tmp_path):
    network = f"slipway-test-{uuid.uuid4().hex}"
    subprocess.run(["docker", "network", "create", network], check=True, capture_output=True)
    try:
        trees = {}
        request = {
            "HyperParameters": {"epochs": "1"},
            "InputDataConfig": [{"ChannelName": "train"}, {"ChannelName": "test"}],
        }
        for host in ("algo-1", "algo-2"):
            trees[host] = OptMl(tmp_path / host)
            write_training_input(trees[host], request, host, ["algo-2", "algo-1"])
        run = ("run", "--detach", "--network", network, "--hostname", "aws")
        second = docker(
            *run, "--network-alias=algo-2", *mounts(trees["algo-2"], digits), train_image, "train"
        ).stdout.strip()
        time.sleep(5)  # algo-1 does not exist yet: its name does not resolve
        first = docker(
            *run, "--network-alias=algo-1", *mounts(trees["algo-1"], digits), train_image, "train"
        ).stdout.strip()
        codes = [int(docker("wait", name, timeout=300).stdout) for name in (first, second)]
        assert codes == [0, 0], docker("logs", second).stdout[-2000:] + docker("logs", first).stdout[-2000:]
        assert (trees["algo-1"].model / "model.safetensors").is_file()
        assert not any(trees["algo-2"].model.iterdir())
    finally:
        left = docker(
            "network", "inspect", network, "--format", "{{range .Containers}}{{.Name}} {{end}}"
        ).stdout.split()
        if left:
            docker("rm", "--force", *left)
        subprocess.run(["docker", "network", "rm", network], capture_output=True, check=True)
