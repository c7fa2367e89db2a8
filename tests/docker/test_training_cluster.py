"""Two hosts as containers on one Docker network, as SageMaker's are: one is killed, the other says so."""

import time
from pathlib import Path

import pytest

from container.contract import OptMl
from launcher.local.opt_ml import write_training_input

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]

HOSTS = ["algo-1", "algo-2"]
SCRIPT = """
import time
import torch, torch.distributed as dist
from container.train import Health
dist.init_process_group("gloo")
with Health() as health:
    for step in range(100_000):
        time.sleep(0.05)
        dist.all_reduce(torch.ones(1))
        health.step()
        if step == 20:
            print("training", flush=True)
"""


@pytest.fixture
def network(docker):
    name = f"slipway-cluster-{time.time_ns()}"
    docker("network", "create", name)
    yield name
    left = docker("ps", "--all", "--quiet", "--filter", f"network={name}").stdout.split()
    if left:
        docker("rm", "--force", *left)
    docker("network", "rm", name)


def start(docker, image: str, base: Path, network: str) -> dict[str, str]:
    """Host -> container."""
    containers = {}
    for host in HOSTS:
        opt_ml = OptMl(base / host)
        request = {
            "HyperParameters": {"sagemaker_program": "train.py"},
            "InputDataConfig": [{"ChannelName": "code"}],
        }
        write_training_input(opt_ml, request, host, HOSTS)
        (opt_ml.channel("code") / "train.py").write_text(SCRIPT)
        options = ["--network", network, "--network-alias", host, f"--volume={opt_ml.base}:/opt/ml"]
        containers[host] = docker("run", "--detach", *options, image, "train").stdout.strip()
    return containers


@pytest.mark.parametrize(("victim", "survivor"), [("algo-2", "algo-1"), ("algo-1", "algo-2")])
def test_c64_docker_kill_of_one_host_ends_the_other_with_its_name(
    train_image, docker, network, tmp_path, victim, survivor
):
    containers = start(docker, train_image, tmp_path, network)
    deadline = time.monotonic() + 180
    while not all("] training" in docker("logs", name).stdout for name in containers.values()):
        assert time.monotonic() < deadline, {host: docker("logs", name).stdout for host, name in containers.items()}
        time.sleep(0.5)
    docker("kill", containers[victim])
    status = docker("wait", containers[survivor], timeout=90).stdout.strip()
    log = docker("logs", containers[survivor]).stdout
    assert status == "1", log
    reason = OptMl(tmp_path / survivor).failure.read_text()
    assert reason.startswith(f"HostLost: {victim} fell silent at "), log
