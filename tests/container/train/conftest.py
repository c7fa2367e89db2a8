"""Jobs as the platform starts them: one process per host, each with an /opt/ml of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from container.contract import OptMl
from launcher.local.containers import free_port
from launcher.local.opt_ml import write_training_input


@dataclass
class TrainingJob:
    """Hosts of one job as processes on this machine, as the local SageMaker's process mode runs them."""

    base: Path
    hosts: tuple[str, ...]
    environ: dict[str, str]
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    host_environ: dict[str, dict[str, str]] = field(default_factory=dict)
    """Host -> variables that it alone has."""

    def opt_ml(self, host: str = "algo-1") -> OptMl:
        return OptMl(self.base / host)

    def log(self, host: str = "algo-1") -> str:
        path = self.base / f"{host}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def failure(self, host: str = "algo-1") -> str:
        path = self.opt_ml(host).failure
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        for host in self.hosts:
            environ = self.environ | {"SAGEMAKER_BASE_DIR": str(self.opt_ml(host).base)}
            environ |= self.host_environ.get(host, {})
            with (self.base / f"{host}.log").open("wb") as log:
                self.processes[host] = subprocess.Popen(
                    [sys.executable, "-m", "container", "train"],
                    env=environ,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.base,
                )

    def wait(self, timeout: float = 250) -> dict[str, int]:
        deadline = time.monotonic() + timeout
        return {host: p.wait(max(0.1, deadline - time.monotonic())) for host, p in self.processes.items()}

    def run(self) -> dict[str, int]:
        self.start()
        return self.wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)

    def wait_for(self, text: str, host: str = "algo-1", timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.log(host):
            assert time.monotonic() < deadline, f"{text!r} never came:\n{self.log(host)}"
            assert self.processes[host].poll() is None, f"ended before {text!r}:\n{self.log(host)}"
            time.sleep(0.02)


@pytest.fixture
def training_job(tmp_path: Path) -> Iterator[Callable[..., TrainingJob]]:
    """Build a job: `training_job(hosts=2, hyperparameters={...}, script="...", channels={"train": directory})`."""
    jobs: list[TrainingJob] = []

    def build(
        hosts: int = 1,
        hyperparameters: Mapping[str, Any] | None = None,
        script: str | None = None,
        channels: Mapping[str, Path] | None = None,
        gpus: int = 0,
        checkpoints: bool = False,
    ) -> TrainingJob:
        base = tmp_path / f"job-{len(jobs)}"
        base.mkdir()
        names = tuple(f"algo-{number}" for number in range(1, hosts + 1))
        path = os.environ["PATH"]
        if gpus:
            path = f"{_pretended_gpus(base, gpus)}:{path}"
        environ = {"PATH": path, "HOME": str(base), "LANG": "C.UTF-8", "TRAINING_JOB_NAME": "a-job"}
        environ |= {"SLIPWAY_LOCAL": "true"}  # the request names no instance type, and this machine has none
        environ |= {"OMP_NUM_THREADS": "1"}  # other tests and builds share this machine
        environ |= {"SLIPWAY_MASTER_ADDR": "127.0.0.1", "SLIPWAY_MASTER_PORT": str(free_port())}
        given = {"code": None, **(channels or {})} if script else dict(channels or {})
        request = {
            "HyperParameters": {name: str(value) for name, value in (hyperparameters or {}).items()},
            "InputDataConfig": [{"ChannelName": name, "DataSource": {}} for name in given],
        }
        if checkpoints:
            request["CheckpointConfig"] = {"S3Uri": "s3://bucket/prefix"}
        jobs.append(TrainingJob(base, names, environ))
        for host in names:
            _write_host(jobs[-1].opt_ml(host), request, (host, names), given, script)
        return jobs[-1]

    yield build
    for process in [process for job in jobs for process in job.processes.values()]:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def _write_host(opt_ml, request, host_and_hosts, channels, script) -> None:
    write_training_input(opt_ml, request, *host_and_hosts, "lo")
    for name, source in channels.items():
        if source is not None:
            opt_ml.channel(name).rmdir()
            opt_ml.channel(name).symlink_to(source)
    if script:
        (opt_ml.channel("code") / "train.py").write_text(script)


def _pretended_gpus(base: Path, count: int) -> Path:
    """A directory with an `nvidia-smi` that lists GPUs: several processes per host without having any."""
    directory = base / "bin"
    directory.mkdir()
    program = directory / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: pretended'\n" for i in range(count)))
    program.chmod(0o755)
    return directory


@pytest.fixture
def write_opt_ml(tmp_path: Path) -> Callable[..., OptMl]:
    """Write the configuration files as given, nothing else: for what no real request would lead to."""

    def write(
        hyperparameters: Any = None,
        channels: Any = None,
        resources: Any = None,
        hosts: Sequence[str] = ("algo-1",),
    ) -> OptMl:
        opt_ml = OptMl(tmp_path / "ml")
        opt_ml.config.mkdir(parents=True, exist_ok=True)
        resources = resources or {"current_host": hosts[0], "hosts": list(hosts)}
        for path, value in (
            (opt_ml.hyperparameters, hyperparameters),
            (opt_ml.input_data_config, channels),
            (opt_ml.resource_config, resources),
        ):
            if value is not None:
                path.write_text(json.dumps(value))
        return opt_ml

    return write


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set a network learns in seconds: 12x12 grey images, bars lying or standing, in train and test."""
    import torch
    from torchvision.io import write_png

    root = tmp_path_factory.mktemp("shapes")
    generator = torch.Generator().manual_seed(0)
    for channel, count in (("train", 80), ("test", 20)):
        for label in ("lying", "standing"):
            directory = root / channel / label
            directory.mkdir(parents=True)
            for number in range(count):
                image = torch.randint(0, 60, (1, 12, 12), generator=generator, dtype=torch.uint8)
                at = int(torch.randint(3, 9, (1,), generator=generator))
                image[0, at, 1:11] = 250
                write_png(
                    image if label == "lying" else image.transpose(1, 2).contiguous(),
                    str(directory / f"{number:03d}.png"),
                )
    return root
