"""The training loop against a hand-written one: steps, waiting, memory, several processes, several hosts."""

import dataclasses
import itertools
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
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


ROUNDS, STEPS = 20, 20  # of one epoch each


def steady(base: Path) -> None:
    """Steps of the built-in program's loop against a hand-written one: same network, data, augmentation, optimizer.

    Each is a process of one thread; they take turns of one epoch, and neighbouring turns are compared.
    """
    opt_ml = job_tree(base, "steady", ["steady"], {}, {"train": write_images(base / "images", 50 * STEPS, 16)})
    _, environ = rank_command(opt_ml, base / "runtime")
    loops = (program_epochs(opt_ml, environ), bare_epochs(opt_ml, environ), bare_epochs(opt_ml, environ, keeps=True))
    ours, bare, kept = zip(*take_turns(loops, ROUNDS), strict=True)

    def faster(others: Sequence[Spent], member: str) -> float:
        return statistics.median(getattr(b, member) / getattr(a, member) for a, b in zip(ours, others, strict=True))

    cpu = statistics.median(spent.cpu for spent in bare) / STEPS
    print(
        f"steady state, {1e3 * cpu:.1f} ms of CPU per bare step: ours makes {faster(bare, 'wall'):.3f} of the bare "
        f"loop's steps per second, {faster(bare, 'cpu'):.3f} per CPU second (bar: 0.98)"
    )
    print(f"  against a bare loop that keeps freed memory, as ours does: {faster(kept, 'cpu'):.3f} per CPU second")
    waited, wall = sum(spent.waited for spent in ours), sum(spent.wall for spent in ours)
    print(f"  waiting for data: {waited / wall:.2%} of the time (bar: 2 %)")


@dataclass(frozen=True)
class Spent:
    """Seconds of one epoch."""

    wall: float
    cpu: float
    waited: float = 0.0
    """For data."""


def take_turns(loops: Sequence[Iterator[Spent]], rounds: int) -> list[list[Spent]]:
    """What each spent in each round, after one that does not count; each loop runs in a process of its own."""
    context = multiprocessing.get_context("fork")
    children, pipes = [], []
    for loop in loops:
        ours, theirs = context.Pipe()
        children.append(context.Process(target=play, args=(loop, theirs), daemon=True))
        children[-1].start()
        theirs.close()  # else a child that dies would leave us waiting
        pipes.append(ours)
    results = []
    for _ in range(rounds + 1):
        results.append([])
        for pipe in pipes:
            pipe.send("go")
            results[-1].append(pipe.recv())
    for child in children:
        child.kill()  # the program's loop would take SIGTERM for a wish to stop
        child.join()
    return results[1:]


def play(loop: Iterator[Spent], pipe: Connection) -> None:
    """In a child: an epoch whenever it is this loop's turn."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    while pipe.recv():
        pipe.send(next(loop))


def program_epochs(opt_ml: OptMl, environ: Mapping[str, str]) -> Iterator[Spent]:
    """The built-in program's own loop, one epoch at a time, set up as its `main` does it."""
    import torch

    from container.train import classify, health
    from container.train.environment import read_environment
    from container.train.job import Phases
    from container.train.memory import keep_free_memory
    from container.train.prepare import join_process_group, load_data, prepare
    from container.train.settings import Settings
    from container.train.stop import GracefulStop

    os.environ.update(environ)
    torch.set_num_threads(1)
    environment, settings = read_environment(opt_ml, environ), Settings(epochs=100, batch_size=50, seed=1)
    process = join_process_group()
    job = prepare(environment, settings, process, load_data(environment, settings, process), Phases())
    keep_free_memory()
    waited, original = 0.0, health.Health.step

    def step(self, waited_seconds: float = 0.0) -> None:
        nonlocal waited
        waited += waited_seconds
        original(self, waited_seconds)

    health.Health.step = step
    epoch = 0
    with GracefulStop() as stop:
        while True:
            epoch, waited = epoch + 1, 0.0
            job.settings = dataclasses.replace(settings, epochs=epoch)
            wall, cpu = time.perf_counter(), time.process_time()
            classify.train(job, stop)
            yield Spent(time.perf_counter() - wall, time.process_time() - cpu, waited)


def bare_epochs(opt_ml: OptMl, environ: Mapping[str, str], keeps: bool = False) -> Iterator[Spent]:
    """The same by hand; `keeps` freed memory, as the program does, or leaves that to the C library's defaults."""
    import torch
    from torch.nn import functional

    from container.model import build_network, normalize
    from container.train import data
    from container.train.environment import read_environment
    from container.train.memory import keep_free_memory
    from container.train.prepare import join_process_group, load_data
    from container.train.settings import Settings

    os.environ.update(environ)
    torch.set_num_threads(1)
    if keeps:
        keep_free_memory()
    inputs = load_data(read_environment(opt_ml, environ), Settings(), join_process_group())
    signature = inputs.signature
    network = build_network(signature.architecture, 10, signature.image_shape)
    kernels, others = ([p for p in network.parameters() if (p.ndim > 1) == decays] for decays in (True, False))
    groups = [{"params": kernels, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, eps=1e-6, fused=True)
    images, labels = inputs.data["train"].images, inputs.data["train"].labels
    for epoch in itertools.count():
        wall, cpu = time.perf_counter(), time.process_time()
        draws = torch.rand(len(images), 6)
        for chosen in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(50):
            given = data.augment(normalize(images[chosen], signature), draws[chosen])
            loss = functional.cross_entropy(network(given), labels[chosen], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield Spent(time.perf_counter() - wall, time.process_time() - cpu)


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
