"""What the sections share: jobs' directories, ranks as plain processes, and measuring by turns."""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from container.contract import OptMl
from launcher.local.opt_ml import write_training_input

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, "-m", "container", "train"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def alternate(*measures: Callable[[], float], rounds: int = 3) -> list[float]:
    """The median of each measure, taken in turns after one round that does not count."""
    for measure in measures:
        measure()
    results = [[measure() for measure in measures] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*results, strict=True)]


def job_tree(
    base: Path, host: str, hosts: list[str], hyperparameters: Mapping[str, object], channels: Mapping[str, Path | None]
) -> OptMl:
    """One host's /opt/ml; channels that name a directory are links to it. No checkpoints: see `with_checkpoints`."""
    opt_ml = OptMl(base / host)
    request = {
        "HyperParameters": {name: str(value) for name, value in hyperparameters.items()},
        "InputDataConfig": [{"ChannelName": name} for name in channels],
    }
    write_training_input(opt_ml, request, host, hosts, "lo")
    for name, source in channels.items():
        if source is not None:
            opt_ml.channel(name).rmdir()
            opt_ml.channel(name).symlink_to(source)
    return opt_ml


def with_checkpoints(opt_ml: OptMl) -> OptMl:
    """The same job, with a CheckpointConfig."""
    opt_ml.checkpoint_config.write_text(json.dumps({"LocalPath": "/opt/ml/checkpoints"}))
    opt_ml.checkpoints.mkdir(exist_ok=True)
    return opt_ml


def job_environ(opt_ml: OptMl, **more: str) -> dict[str, str]:
    """Of a job whose one host is a process on this machine, on one core."""
    environ = os.environ | {"SAGEMAKER_BASE_DIR": str(opt_ml.base), "SLIPWAY_LOCAL": "true", "OMP_NUM_THREADS": "1"}
    return environ | {"TRAINING_JOB_NAME": "bench"} | more


def write_images(directory: Path, count: int, pixels: int, channels: int = 1) -> Path:
    """Noise in ten classes; what the network learns of it does not matter here."""
    import torch
    from torchvision.io import write_jpeg, write_png

    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        folder = directory / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        image = torch.randint(0, 256, (channels, pixels, pixels), generator=generator, dtype=torch.uint8)
        if channels == 3:
            write_jpeg(image, str(folder / f"{number:05d}.jpg"))
        else:
            write_png(image, str(folder / f"{number:05d}.png"))
    return directory


def rank_command(opt_ml: OptMl, runtime_dir: Path) -> tuple[list[str], dict[str, str]]:
    """The built-in program as the one rank of a job, without a launcher: argv and environment."""
    runtime_dir.mkdir(parents=True, exist_ok=True)
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | dict.fromkeys(
        ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"), "1"
    )
    environ = job_environ(opt_ml, SLIPWAY_RUNTIME_DIR=str(runtime_dir), SM_CURRENT_HOST="algo-1", **ranks)
    argv = [sys.executable, "-u", "-P", "-m", "container.train.rank", "builtin", "container.train.classify"]
    return argv, environ


def peak_megabytes(argv: list[str], environ: Mapping[str, str]) -> float:
    """The largest resident set of one process."""
    process = subprocess.Popen(argv, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0, errors.decode()
    return usage.ru_maxrss / 1024


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.005)


def rates(opt_ml: OptMl) -> list[float]:
    """Images per second of each epoch, as the program itself reports them."""
    lines = (opt_ml.output_data / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train:samples_per_second"] for line in lines if "train:samples_per_second" in line]


def on_hosts(base: Path, hosts: int, images: Path, hyperparameters: Mapping[str, object]) -> float:
    """Images per second of the built-in program on so many hosts, each a process with one core."""
    names, port, processes = [f"algo-{number + 1}" for number in range(hosts)], free_port(), []
    root = Path(tempfile.mkdtemp(dir=base))
    for host in names:
        opt_ml = job_tree(root, host, names, hyperparameters, {"train": images})
        environ = job_environ(opt_ml, SLIPWAY_MASTER_ADDR="127.0.0.1", SLIPWAY_MASTER_PORT=str(port))
        processes.append(subprocess.Popen(TRAIN, env=environ, stdout=subprocess.DEVNULL))
    assert not sum(process.wait() for process in processes)
    measured = rates(OptMl(root / "algo-1"))
    shutil.rmtree(root)
    return statistics.median(measured[1:])
