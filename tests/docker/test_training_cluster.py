"""Two hosts as containers on one Docker network, as SageMaker's are: one fails or is killed, or all are stopped."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from container.contract import OptMl
from launcher.local.opt_ml import write_training_input

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]

HOSTS = ["algo-1", "algo-2"]
STOPPABLE = """
import signal, time
import torch, torch.distributed as dist
from container.train import Checkpoints, GracefulStop, training_environment
dist.init_process_group("gloo")
environment, rank = training_environment(), dist.get_rank()
checkpoints = Checkpoints(environment.checkpoint_dir)
with GracefulStop() as stop:
    on_signal = signal.getsignal(signal.SIGTERM)
    def tell(*arguments):
        print(f"told at {time.time()};", flush=True)
        on_signal(*arguments)
    signal.signal(signal.SIGTERM, tell)
    for step in range(100_000):
        time.sleep(0.01 * (1 + rank))
        if step == 20:
            print("training", flush=True)
        if stop.agreed():
            break
if rank == 0:
    checkpoints.save(step, {"weights": torch.ones(25_000_000)})
    checkpoints.wait()
print(f"stopped after {step} at {time.time()};", flush=True)
"""


# Way to die -> what the rank does, both containers' exit status, how the failure begins.
ENDS = {
    "exception": ("raise ValueError('label 4 is unknown')", "1", "ValueError: label 4 is unknown ("),
    "signal": ("os.kill(os.getpid(), signal.SIGKILL)", "137", "killed by signal 9 (SIGKILL) ("),
}


@pytest.fixture
def network(docker):
    name = f"slipway-cluster-{time.time_ns()}"
    docker("network", "create", name)
    yield name
    left = docker("ps", "--all", "--quiet", "--filter", f"network={name}").stdout.split()
    if left:
        docker("rm", "--force", *left)
    docker("network", "rm", name)


@pytest.fixture
def cluster(train_image, docker, network, tmp_path) -> Callable[[str], dict[str, str]]:
    """Start a script on both hosts, and wait until they train: host -> container."""

    def start(script: str) -> dict[str, str]:
        containers = {host: _start(docker, [train_image, "train"], tmp_path / host, network, script) for host in HOSTS}
        deadline = time.monotonic() + 180
        while not all("] training" in docker("logs", name).stdout for name in containers.values()):
            assert time.monotonic() < deadline, {host: docker("logs", name).stdout for host, name in containers.items()}
            time.sleep(0.5)
        return containers

    return start


def _start(docker, argv: list[str], base: Path, network: str, script: str) -> str:
    opt_ml, host = OptMl(base), base.name
    request = {
        "HyperParameters": {"sagemaker_program": "train.py"},
        "InputDataConfig": [{"ChannelName": "code"}],
        "CheckpointConfig": {"S3Uri": "s3://bucket/prefix"},
    }
    write_training_input(opt_ml, request, host, HOSTS)
    (opt_ml.channel("code") / "train.py").write_text(script)
    options = ["--network", network, "--network-alias", host, f"--volume={opt_ml.base}:/opt/ml"]
    return docker("run", "--detach", *options, *argv).stdout.strip()


def status(docker, container: str) -> str:
    return docker("wait", container, timeout=90).stdout.strip()


@pytest.mark.parametrize(("victim", "survivor"), [("algo-2", "algo-1"), ("algo-1", "algo-2")])
def test_c64_docker_kill_of_one_host_ends_the_other_with_its_name(
    docker, cluster, stepping_script, tmp_path, victim, survivor
):
    containers = cluster(stepping_script)
    docker("kill", containers[victim])
    assert status(docker, containers[survivor]) == "1", docker("logs", containers[survivor]).stdout
    reason = OptMl(tmp_path / survivor).failure.read_text()
    assert reason.startswith(f"HostLost: {victim} fell silent at "), reason


@pytest.mark.parametrize("victim", HOSTS)
@pytest.mark.parametrize("way", ENDS)
def test_c64_both_hosts_end_with_the_cause_from_the_one_whose_rank_died(
    docker, cluster, stepping_script, tmp_path, victim, way
):
    end, code, cause = ENDS[way]
    containers = cluster(stepping_script)
    path = OptMl(tmp_path / victim).output_data / "end"
    path.with_name("begun").write_text(end)
    path.with_name("begun").replace(path)
    assert {host: status(docker, containers[host]) for host in HOSTS} == dict.fromkeys(HOSTS, code)
    reasons = [OptMl(tmp_path / host).failure.read_text() for host in HOSTS]
    assert reasons[0] == reasons[1]
    assert reasons[0].startswith(cause)
    assert f"rank {HOSTS.index(victim)} on {victim})" in reasons[0]


def test_c51_c52_c53_a_stop_reaches_every_host_at_once_and_the_checkpoint_is_there_in_time(docker, cluster, tmp_path):
    containers = cluster(STOPPABLE)
    sent = time.time()
    docker("kill", "--signal", "TERM", *containers.values())
    logs = {}
    for host in HOSTS:
        assert status(docker, containers[host]) == "0", docker("logs", containers[host]).stdout
        logs[host] = docker("logs", containers[host]).stdout
    told = [float(re.search(r"told at ([0-9.]+);", log)[1]) - sent for log in logs.values()]
    stopped = [re.search(r"stopped after (\d+) at ([0-9.]+);", log) for log in logs.values()]
    assert max(told) < 30  # a tenth of a second where nothing else runs
    assert stopped[0][1] == stopped[1][1]  # the same step
    assert max(float(match[2]) for match in stopped) - sent < 120
    assert len(list(OptMl(tmp_path / "algo-1").checkpoints.glob("last-*.json"))) == 1
