"""What the training container costs over doing it by hand, as ratios within one run.

    python bench/train/bench.py [startup] [steady] [scaling] [checkpoint]

Everything alternates, so that whatever else the machine does hits both sides; medians are printed.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from container.contract import OptMl
from launcher.local.opt_ml import write_training_input

ROUNDS = 5


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def alternate(*measures: Callable[[], float], rounds: int = ROUNDS) -> list[float]:
    """The median of each measure, taken in turns after one round that does not count."""
    for measure in measures:
        measure()
    results = [[measure() for measure in measures] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*results, strict=True)]


def job_tree(base: Path, host: str, hosts: list[str], hyperparameters: dict[str, str], channels: list[str]) -> OptMl:
    opt_ml = OptMl(base / host)
    request = {"HyperParameters": hyperparameters, "InputDataConfig": [{"ChannelName": name} for name in channels]}
    write_training_input(opt_ml, request, host, hosts, "lo")
    return opt_ml


def startup(base: Path) -> None:
    """Seconds from starting `train` to the first line of the user's script."""
    script = "import time, os, sys\nopen(os.environ['FIRST_LINE'], 'w').write(repr(time.time()))\n"
    host = "localhost"  # the toolkit waits until the name resolves
    opt_ml = job_tree(base, host, [host], {"sagemaker_program": "train.py"}, ["code"])
    code = opt_ml.channel("code")
    (code / "train.py").write_text(script)
    opt_ml.code.mkdir()
    (opt_ml.code / "train.py").write_text(script)
    first_line = base / "first-line"
    environ = os.environ | {"FIRST_LINE": str(first_line), "SAGEMAKER_BASE_DIR": str(opt_ml.base)}

    def measure(*argv: str, more: dict[str, str] | None = None) -> float:
        began = time.time()
        answer = subprocess.run(argv, env=environ | (more or {}), cwd=code, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return float(first_line.read_text()) - began

    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", f"--master-port={free_port()}")
    toolkit = "from sagemaker_training.cli.train import main; main()"
    bare, ours, stock = alternate(
        lambda: measure(*torchrun, "train.py"),
        lambda: measure(sys.executable, "-m", "container", "train"),
        lambda: measure(sys.executable, "-c", toolkit, more={"SAGEMAKER_PROGRAM": "train.py"}),
    )
    code_line = "import time; t = time.time(); import container.train.launch; print(time.time() - t)"
    (imports,) = alternate(lambda: float(subprocess.check_output([sys.executable, "-c", code_line])))
    print(f"start to the script's first line: torchrun {bare:.2f} s, ours {ours:.2f} s (+{ours - bare:.2f} s)")
    print(f"  sagemaker-training, which starts plain python without torchrun: {stock:.2f} s")
    print(f"  our modules' import before the ranks start: {imports:.3f} s")


def write_images(directory: Path, count: int, pixels: int) -> None:
    import torch
    from torchvision.io import write_png

    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        folder = directory / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        image = torch.randint(0, 256, (1, pixels, pixels), generator=generator, dtype=torch.uint8)
        write_png(image, str(folder / f"{number:05d}.png"))


def steady(base: Path) -> None:
    """Steps of the built-in program's loop against a hand-written one: same network, data, optimizer.

    Per second of CPU time: one thread computes, so that it is the loop's own cost, whatever else the machine does.
    """
    import torch
    from torch.nn import functional

    from container.model import build_network, normalize
    from container.train import classify, data
    from container.train.environment import read_environment
    from container.train.settings import Settings
    from container.train.stop import GracefulStop

    torch.set_num_threads(1)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    opt_ml = job_tree(base, "steady", ["steady"], {}, ["train"])
    write_images(opt_ml.channel("train"), 1000, 16)
    environment, settings = read_environment(opt_ml, {}), Settings(epochs=3, batch_size=50, seed=1)
    process = classify.join_process_group()
    inputs = classify.load_data(environment, settings, process)
    loaded, signature = inputs.data, inputs.signature

    def program() -> float:
        job = classify.prepare(environment, settings, process, inputs, classify.Phases())
        with GracefulStop() as stop:
            began = time.process_time()
            classify.train(job, stop)
            return job.step / (time.process_time() - began)

    def bare() -> float:
        network = build_network(signature.architecture, 10, signature.image_shape)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        images, labels = loaded["train"].images, loaded["train"].labels
        assert images is not None
        began, steps = time.process_time(), 0
        for epoch in range(3):
            draws = torch.rand(len(images), 6)
            for chosen in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(50):
                inputs = data.augment(normalize(images[chosen], signature), draws[chosen])
                loss = functional.cross_entropy(network(inputs), labels[chosen], label_smoothing=0.05)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                steps += 1
        return steps / (time.process_time() - began)

    with open(os.devnull, "w") as silence:
        out, sys.stdout = sys.stdout, silence
        ours, by_hand = alternate(program, bare)
        sys.stdout = out
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    print(f"steady state: bare loop {by_hand:.1f} steps per CPU second, ours {ours:.1f}: ratio {ours / by_hand:.3f}")


def scaling(base: Path) -> None:
    """Images per second of two processes on two cores against one on one core; the program's own measure."""
    images = base / "scaling-images"
    write_images(images, 600, 32)

    def measure(hosts: int) -> float:
        names, port, processes = [f"algo-{number + 1}" for number in range(hosts)], free_port(), []
        root = Path(tempfile.mkdtemp(dir=base))
        for host in names:
            opt_ml = job_tree(root, host, names, {"epochs": "4", "batch_size": "100"}, ["train"])
            opt_ml.channel("train").rmdir()
            opt_ml.channel("train").symlink_to(images)
            environ = os.environ | {"SAGEMAKER_BASE_DIR": str(opt_ml.base), "OMP_NUM_THREADS": "1"}
            environ |= {"SLIPWAY_MASTER_ADDR": "127.0.0.1", "SLIPWAY_MASTER_PORT": str(port)}
            argv = [sys.executable, "-m", "container", "train"]
            processes.append(subprocess.Popen(argv, env=environ, stdout=subprocess.DEVNULL))
        assert not sum([process.wait() for process in processes])
        lines = (root / "algo-1" / "output" / "data" / "metrics.jsonl").read_text().splitlines()
        rates = [json.loads(line)["train:samples_per_second"] for line in lines]
        shutil.rmtree(root)
        return statistics.median(rates[1:])

    one, two = alternate(lambda: measure(1), lambda: measure(2), rounds=3)
    print(f"scaling: 1 process {one:.0f} images/s, 2 processes {two:.0f} images/s: {two / one / 2:.2f} of linear")


def checkpoint(base: Path) -> None:
    """How long a save of 200 MB of weights keeps the loop from going on, against a durable torch.save in place."""
    import torch

    from container.train.checkpoint import Checkpoints

    torch.set_num_threads(1)
    state = {"model": {f"layer.{number}": torch.rand(1_000_000) for number in range(50)}}
    directory = base / "checkpoints"
    directory.mkdir()
    checkpoints, step = Checkpoints(directory), 0

    def ours() -> float:
        nonlocal step
        step += 1
        checkpoints.wait()
        began = time.monotonic()
        checkpoints.save(step, state)
        stalled = time.monotonic() - began
        checkpoints.wait()
        return stalled

    def synchronous() -> float:
        began = time.monotonic()
        with (base / "plain.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        return time.monotonic() - began

    stalled, plain = alternate(ours, synchronous)
    ratio = stalled / plain
    print(f"checkpoint of 200 MB: torch.save {plain:.2f} s, ours stalls the loop {stalled:.2f} s: {ratio:.2f}")


SECTIONS = {"startup": startup, "steady": steady, "scaling": scaling, "checkpoint": checkpoint}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="*", choices=[*SECTIONS, []], help="default: all of them")
    chosen = parser.parse_args().section
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name in chosen or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="bench-train-") as base:
            SECTIONS[name](Path(base))


if __name__ == "__main__":
    main()
