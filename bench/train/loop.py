"""The training loop against a hand-written one: steps, waiting, memory, several processes, several hosts."""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs import (
    ROOT,
    alternate,
    job_tree,
    on_hosts,
    peak_megabytes,
    rank_command,
    rates,
    write_images,
)

from container.contract import OptMl

IMAGE = "slipway-train:local"


def steady(base: Path) -> None:
    """Steps of the built-in program's loop against a hand-written one: same network, data, augmentation, optimizer."""
    import torch

    from container.train.environment import read_environment
    from container.train.prepare import join_process_group, load_data
    from container.train.settings import Settings

    torch.set_num_threads(1)
    opt_ml = job_tree(base, "steady", ["steady"], {}, {"train": write_images(base / "images", 1000, 16)})
    _, environ = rank_command(opt_ml, base / "runtime")
    os.environ.update(environ)
    environment, settings = read_environment(opt_ml, environ), Settings(epochs=4, batch_size=50, seed=1)
    process = join_process_group()
    inputs = load_data(environment, settings, process)
    ours, bare, waited = Spent(), Spent(), [0.0]
    with open(os.devnull, "w") as silence:
        out, sys.stdout = sys.stdout, silence
        alternate(
            lambda: ours.add(*program_loop(environment, settings, process, inputs, waited)),
            lambda: bare.add(*bare_loop(inputs)),
            rounds=5,
        )
        sys.stdout = out
    print(
        f"steady state, {1e3 * bare.cpu:.1f} ms of CPU per bare step: ours makes {bare.wall / ours.wall:.3f} of the "
        f"bare loop's steps per second, {bare.cpu / ours.cpu:.3f} per CPU second (bar: 0.98)"
    )
    print(f"  waiting for data: {waited[0] / ours.total:.2%} of the time (bar: 2 %)")


class Spent:
    """Seconds per step of a loop, measured several times."""

    def __init__(self) -> None:
        self.measured: list[tuple[float, float]] = []
        self.total = 0.0

    def add(self, began: float, cpu_began: float, steps: int) -> float:
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        self.total += wall
        self.measured.append((wall / steps, cpu / steps))
        return 0.0

    @property
    def wall(self) -> float:
        return statistics.median(wall for wall, _ in self.measured[1:])

    @property
    def cpu(self) -> float:
        return statistics.median(cpu for _, cpu in self.measured[1:])


def program_loop(environment, settings, process, inputs, waited: list[float]) -> tuple[float, float, int]:
    """When it began, in wall clock and CPU seconds, and how many steps it made."""
    from container.train import classify, health
    from container.train.job import Phases
    from container.train.prepare import prepare
    from container.train.stop import GracefulStop

    original = health.Health.step

    def step(self, waited_seconds: float = 0.0) -> None:
        waited[0] += waited_seconds
        original(self, waited_seconds)

    health.Health.step = step
    job = prepare(environment, settings, process, inputs, Phases())
    with GracefulStop() as stop:
        began, cpu_began = time.perf_counter(), time.process_time()
        classify.train(job, stop)
    health.Health.step = original
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    return began, cpu_began, job.step


def bare_loop(inputs) -> tuple[float, float, int]:
    import torch
    from torch.nn import functional

    from container.model import build_network, normalize
    from container.train import data

    signature = inputs.signature
    network = build_network(signature.architecture, 10, signature.image_shape)
    kernels, others = ([p for p in network.parameters() if (p.ndim > 1) == decays] for decays in (True, False))
    groups = [{"params": kernels, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, eps=1e-6, fused=True)
    images, labels = inputs.data["train"].images, inputs.data["train"].labels
    began, cpu_began, steps = time.perf_counter(), time.process_time(), 0
    for epoch in range(4):
        draws = torch.rand(len(images), 6)
        for chosen in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(50):
            given = data.augment(normalize(images[chosen], signature), draws[chosen])
            loss = functional.cross_entropy(network(given), labels[chosen], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            steps += 1
    return began, cpu_began, steps


def memory(base: Path) -> None:
    """Peak resident set of the rank's process against the bare loop's, over a whole job: load, train, save."""
    images = write_images(base / "images", 2000, 28)
    bare_argv = [
        sys.executable,
        str(Path(__file__).with_name("bare.py")),
        str(images),
        str(base / "bare.pt"),
        "3",
        "64",
    ]

    def ours() -> float:
        root = Path(tempfile.mkdtemp(dir=base))
        opt_ml = job_tree(root, "algo-1", ["algo-1"], {"epochs": 3, "batch_size": 64}, {"train": images})
        peak = peak_megabytes(*rank_command(opt_ml, root / "runtime"))
        shutil.rmtree(root)
        return peak

    bare, program = alternate(lambda: peak_megabytes(bare_argv, os.environ | {"OMP_NUM_THREADS": "1"}), ours, rounds=1)
    print(f"peak memory: bare loop {bare:.0f} MB, our rank {program:.0f} MB: {program / bare:.3f} (bar: 1.05)")


def scaling(base: Path) -> None:
    """Images per second of two processes on two cores against one on one core; the program's own measure."""
    images = write_images(base / "images", 600, 32)
    settings = {"epochs": 5, "batch_size": 100}
    one, two = alternate(
        lambda: on_hosts(base, 1, images, settings), lambda: on_hosts(base, 2, images, settings), rounds=2
    )
    print(f"scaling: 1 process {one:.0f} images/s, 2 processes {two:.0f}: {two / one / 2:.2f} of linear (bar: 0.9)")


def docker_hosts(base: Path) -> None:
    """The same as containers of one core each on a Docker network of their own."""
    found = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode
    if found != 0:
        print(f"two hosts on a Docker network: skipped, no Docker engine with the image {IMAGE} (make images)")
        return
    images, network = write_images(base / "images", 600, 32), f"slipway-bench-{os.getpid()}"
    subprocess.run(["docker", "network", "create", network], check=True, capture_output=True)
    try:
        one, two = (containers(base, network, hosts, images) for hosts in (1, 2))
    finally:
        subprocess.run(["docker", "network", "rm", network], check=False, capture_output=True)
    print(f"on a Docker network: 1 host {one:.0f} images/s, 2 hosts {two:.0f}: {two / one / 2:.2f} of linear")


def containers(base: Path, network: str, hosts: int, images: Path) -> float:
    names, started = [f"algo-{number + 1}" for number in range(hosts)], []
    root = base / f"docker-{hosts}"
    try:
        for host in names:
            opt_ml = job_tree(root, host, names, {"epochs": 5, "batch_size": 100}, {"train": None})
            path = opt_ml.resource_config
            path.write_text(path.read_text().replace('"lo"', '"eth0"'))
            volumes = [f"--volume={opt_ml.base}:/opt/ml", f"--volume={images}:/opt/ml/input/data/train:ro"]
            volumes.append(f"--volume={ROOT / 'container'}:/opt/slipway/container:ro")  # the code of this checkout
            options = ["--cpus=1", "--network", network, "--network-alias", host, "--env=OMP_NUM_THREADS=1"]
            argv = ["docker", "run", "--detach", *options, "--env=SLIPWAY_LOCAL=true", *volumes, IMAGE, "train"]
            started.append(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip())
        for name in started:
            status = subprocess.run(["docker", "wait", name], check=True, capture_output=True, text=True).stdout
            assert int(status) == 0, subprocess.run(["docker", "logs", name], capture_output=True, text=True).stdout
        return statistics.median(rates(OptMl(root / "algo-1"))[1:])
    finally:
        subprocess.run(["docker", "rm", "--force", *started], check=False, capture_output=True)
