"""A user's first week, command by command: the launcher as a process, a real registry, the local SageMaker."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.docker]

ROLLOUT = "endpoint.rollout={type: canary, percent: 50, wait: 10m, alarms: [wines-errors]}"
SETTINGS = ["--set", ROLLOUT, "--set", "endpoint.instance_count=2"]
MISTAKE = """

def predict_fn(data, model):
    if len(data) > 1:
        raise KeyError("price")
    return the_good_one(data, model)
"""
EPOCHS = 6000  # some seconds: each tenth leaves a checkpoint


class Launcher:
    """`python -m launcher` in a project directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ = {**os.environ, "SLIPWAY_LOCAL_RUNTIME": "process", "SLIPWAY_LOCAL_SPEED": "60"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "launcher", *arguments]
        return subprocess.run(
            command, cwd=self.directory, env=self.environ, capture_output=True, text=True, check=False
        )

    def __call__(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def client(self, service: str) -> Any:
        """boto3's client of the local SageMaker, or of what stands beside it."""
        lines = [shlex.split(line)[1].partition("=") for line in self("local", "env").splitlines()]
        environ = {name: value for name, _, value in lines}
        return boto3.client(
            service,
            endpoint_url=environ["AWS_ENDPOINT_URL"],
            region_name=environ["AWS_REGION"],
            aws_access_key_id=environ["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environ["AWS_SECRET_ACCESS_KEY"],
        )

    def json(self, *arguments: str) -> dict:
        return json.loads(self(*arguments, "--json"))

    def until(self, *arguments: str, shows: str, seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        while shows not in (text := self(*arguments)):
            assert time.monotonic() < deadline, text
            time.sleep(0.3)
        return text


@pytest.fixture
def week(tmp_path, registry_host, image_names) -> Iterator[Callable]:
    launcher = Launcher(tmp_path)
    assert "next: cd wines" in launcher("init", "wines", "--template", "tables")
    project = launcher.directory = tmp_path / "wines"
    for kind in ("train", "serve"):
        (project / f"Dockerfile.{kind}").write_text(f"FROM scratch\nCOPY src /opt/{kind}\n")
    settings = yaml.safe_load((project / "launcher.yaml").read_text())
    settings["images"] = {
        "registry": registry_host,
        "training": {"cuda": None, "repository": image_names("train"), "dockerfile": "Dockerfile.train"},
        "serving": {"cuda": None, "repository": image_names("serve"), "dockerfile": "Dockerfile.serve"},
    }
    settings["training"] |= {"spot": True, "max_runtime": "10m"}
    (project / "launcher.yaml").write_text(yaml.safe_dump(settings))
    yield launcher
    launcher("local", "down")


def test_from_an_empty_directory_to_an_endpoint_that_scales_rolls_back_and_is_reaped(week):
    monday_builds_and_pushes(week)
    job = tuesday_trains_on_spot_and_is_interrupted(week)
    wednesday_scores_a_batch(week, job)
    thursday_deploys(week, job)
    friday_ships_a_mistake(week, job)
    saturday_scales_and_cleans_up(week, job)


def monday_builds_and_pushes(launcher: Launcher) -> None:
    assert launcher("build").count("-> built") == 2
    pushed = launcher.json("push", "--local")
    assert all("@sha256:" in pushed[kind]["uri"] for kind in ("training", "serving"))
    (launcher.directory / "src" / "train.py").open("a").write("# a change\n")
    launcher("build")
    again = launcher.json("push", "--local")
    assert 0 < again["training"]["uploaded_bytes"] < 1_000_000
    (call,) = launcher.json("train", "--dry-run", "--set", "role=arn:aws:iam::111122223333:role/jobs")
    assert call["request"]["AlgorithmSpecification"]["TrainingImage"] == again["training"]["uri"]


def tuesday_trains_on_spot_and_is_interrupted(launcher: Launcher) -> str:
    name = launcher.json("train", "--local", "--no-wait", "--set", f"training.hyperparameters.epochs={EPOCHS}")["name"]
    launcher.until("logs", name, "--local", shows="epoch=")
    assert f"interrupted {name}" in launcher("local", "interrupt", name)
    assert "-> trained" in launcher("attach", name, "--local")
    log = launcher("logs", name, "--local")
    assert "goes on after epoch" in log
    assert f"epoch={EPOCHS}" in log
    assert "Interrupted" in launcher("show", name, "--local")
    return name


def wednesday_scores_a_batch(launcher: Launcher, job: str) -> None:
    done = launcher.json("transform", job, "--local")
    launcher("download", done["output"], "scores", "--local")
    (scored,) = (launcher.directory / "scores").rglob("*.out")
    assert len(scored.read_text().splitlines()) == 36


def thursday_deploys(launcher: Launcher, job: str) -> None:
    assert "is in service" in launcher("deploy", job, "--local", *SETTINGS)
    assert predicted(launcher)[:2] == [0, 1]
    launcher.client("cloudwatch").put_metric_alarm(
        AlarmName="wines-errors",
        Namespace="AWS/SageMaker",
        MetricName="Invocation5XXErrors",
        Dimensions=[{"Name": "EndpointName", "Value": "wines"}, {"Name": "VariantName", "Value": "main"}],
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="notBreaching",
    )


def friday_ships_a_mistake(launcher: Launcher, job: str) -> None:
    """It passes the warm-up, and fails on what users send."""
    before = launcher.client("sagemaker").describe_endpoint(EndpointName="wines")["EndpointConfigName"]
    answers = predicted(launcher)
    handlers = launcher.directory / "src" / "inference.py"
    good = handlers.read_text()
    handlers.write_text(good.replace("def predict_fn(", "def the_good_one("))
    with handlers.open("a") as file:
        file.write(MISTAKE)
    launcher("deploy", job, "--local", "--no-wait", *SETTINGS)
    statuses = set()
    deadline = time.monotonic() + 120
    while "RollingBack" not in statuses or status_of(launcher) != "InService":
        statuses.add(status_of(launcher))
        launcher.run("invoke", "sample.json", "--local")  # half of them meet the mistake
        assert time.monotonic() < deadline, statuses
    assert launcher.client("sagemaker").describe_endpoint(EndpointName="wines")["EndpointConfigName"] == before
    assert predicted(launcher) == answers
    assert "wines-errors" in launcher("explain", "wines", "--local")
    handlers.write_text(good)


def saturday_scales_and_cleans_up(launcher: Launcher, job: str) -> None:
    scaling = ["--set", "endpoint.scaling={min: 1, max: 2, target: 100}"]
    launcher("deploy", job, "--local", *SETTINGS, *scaling)
    (target,) = launcher.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")[
        "ScalableTargets"
    ]
    assert (target["ResourceId"], target["MaxCapacity"]) == ("endpoint/wines/variant/main", 2)
    assert "nothing to delete" in launcher("endpoints", "reap", "--local", "--dry-run")
    assert "wines" in launcher("endpoints", "reap", "--idle", "1s", "--local")
    assert json.loads(launcher("endpoints", "--local", "--json")) == []


def predicted(launcher: Launcher) -> list[int]:
    """The classes that the endpoint finds in the sample."""
    rows = json.loads(launcher("invoke", "sample.json", "--local"))
    return [max(range(3), key=row.__getitem__) for row in rows]


def status_of(launcher: Launcher) -> str:
    return launcher.client("sagemaker").describe_endpoint(EndpointName="wines")["EndpointStatus"]
