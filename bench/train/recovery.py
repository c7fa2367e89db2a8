"""What a job loses when it is stopped or killed, and what being safe costs."""

import hashlib
import itertools
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jobs import TRAIN, alternate, job_environ, job_tree, rank_command, wait_for, with_checkpoints, write_images

from container.contract import OptMl

KILLS = 20
MEGABYTES = 200
IN_A_ROW = 5  # checkpoints, faster than a disk takes them
STATE_SCRIPT = f"""
import time
import torch
from container.train import Checkpoints, GracefulStop, training_environment

state = {{"model": {{f"layer.{{number}}": torch.rand(1_000_000) for number in range({MEGABYTES // 4})}}}}
checkpoints = Checkpoints(training_environment().checkpoint_dir)
with GracefulStop() as stop:
    print("training", flush=True)
    step = 0
    while not stop.agreed():
        step += 1
        time.sleep(0.05)
checkpoints.save(step, state)
checkpoints.wait()
"""
STUBBORN_SCRIPT = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("training", flush=True)
while True:
    time.sleep(1)
"""


def checkpoint(base: Path) -> None:
    """How long saves of 200 MB of weights keep the loop from going on, against a durable torch.save in place.

    Once with time enough between them, and once as fast as they can be asked for, when only the disk counts.
    """
    import torch

    from container.train.checkpoint import Checkpoints

    torch.set_num_threads(1)
    state = {"model": {f"layer.{number}": torch.rand(1_000_000) for number in range(MEGABYTES // 4)}}
    directory = base / "checkpoints"
    directory.mkdir()
    checkpoints, steps = Checkpoints(directory), itertools.count(1)
    spent: dict[str, list[float]] = {"ours": [], "plain": []}

    def timed(name: str, action: Callable[[], None]) -> float:
        began, cpu_began = time.monotonic(), time.thread_time()
        action()
        spent[name].append(time.thread_time() - cpu_began)
        return time.monotonic() - began

    def ours() -> float:
        stalled = timed("ours", lambda: checkpoints.save(next(steps), state))
        wait_for(lambda: not checkpoints.is_busy, 120, "the checkpoint")
        return stalled

    def synchronously() -> None:
        with (base / "plain.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    def plain() -> float:
        return timed("plain", synchronously)

    def in_a_row() -> list[float]:
        checkpoints.wait()
        stalled = [timed("ours", lambda: checkpoints.save(next(steps), state)) for _ in range(IN_A_ROW)]
        checkpoints.wait()
        return stalled

    stalled, saved = alternate(ours, plain, rounds=7)
    ours_cpu, plain_cpu = (statistics.median(spent[name][1:]) for name in ("ours", "plain"))
    print(f"checkpoint of {MEGABYTES} MB: torch.save {saved:.3f} s, ours stalls the loop {stalled:.3f} s:", end=" ")
    print(f"{stalled / saved:.2f} (bar: below 1); of the loop's CPU time {ours_cpu / plain_cpu:.2f}")
    rows = [(in_a_row(), plain()) for _ in range(3)]
    first_two = statistics.median(stall for row, _ in rows for stall in row[:2])
    later = statistics.median(stall for row, _ in rows for stall in row[2:])
    print(f"  {IN_A_ROW} without a pause: the first two stall it {first_two:.3f} s each, later ones", end=" ")
    print(f"{later:.3f} s (the disk sets the pace: none is left out), a torch.save each time {rows[0][1]:.3f} s")


def started(opt_ml: OptMl, script: str, log: Path) -> subprocess.Popen[bytes]:
    (opt_ml.channel("code") / "train.py").write_text(script)
    with log.open("wb") as output:
        process = subprocess.Popen(TRAIN, env=job_environ(opt_ml), stdout=output, stderr=subprocess.STDOUT)
    wait_for(lambda: b"training" in log.read_bytes(), 120, "the script's start")
    return process


def stop(base: Path) -> None:
    """From SIGTERM to a checkpoint of 200 MB that is durable, and to the container's end."""
    opt_ml = with_checkpoints(job_tree(base, "algo-1", ["algo-1"], {}, {"code": None}))
    process = started(opt_ml, STATE_SCRIPT, base / "log")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: any(opt_ml.checkpoints.glob("last-*.json")), 100, "the checkpoint")
    durable = time.monotonic() - began
    status = process.wait()
    print(f"SIGTERM to a durable checkpoint of {MEGABYTES} MB: {durable:.2f} s,", end=" ")
    print(f"to the container's end with {status}: {time.monotonic() - began:.2f} s of the 120 s that SageMaker gives")


def deadline(base: Path) -> None:
    """The real bound for a script that ignores SIGTERM: killed, told, and ended before SageMaker's own SIGKILL."""
    opt_ml = job_tree(base, "algo-1", ["algo-1"], {}, {"code": None})
    process = started(opt_ml, STUBBORN_SCRIPT, base / "log")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status = process.wait(120)
    print(f"a script that ignores SIGTERM: ended with {status} after {time.monotonic() - began:.1f} s (bar: 120 s)")
    print(f"  {opt_ml.failure.read_text()}")


def kills(base: Path) -> None:
    """A job killed at a random step and resumed, against one left alone: the weights, bit for bit."""
    images = write_images(base / "images", 400, 16)
    settings = {"epochs": 3, "batch_size": 20, "checkpoint_seconds": 0, "seed": 7}  # a checkpoint after every step
    steps, chance = 60, random.Random(11)
    context = multiprocessing.get_context("fork")  # children need not load torch again

    def run(opt_ml: OptMl, kill_at: int | None) -> None:
        _, environ = rank_command(opt_ml, opt_ml.base / "runtime")
        child = context.Process(target=train_as_rank, args=(environ, kill_at, base / "log"))
        child.start()
        child.join(300)
        expected = 0 if kill_at is None else -signal.SIGKILL
        assert child.exitcode == expected, f"ended with {child.exitcode}\n{(base / 'log').read_text()}"

    def weights(opt_ml: OptMl) -> str:
        return hashlib.sha256((opt_ml.model / "model.safetensors").read_bytes()).hexdigest()

    import torch  # once, for all of them

    from container.train import classify, plots  # noqa: F401

    torch.set_num_threads(1)

    def job(name: str) -> OptMl:
        return with_checkpoints(job_tree(base / name, "algo-1", ["algo-1"], settings, {"train": images}))

    whole = job("whole")
    run(whole, None)
    equal, killed_at = 0, []
    for number in range(KILLS):
        opt_ml = job(f"killed-{number}")
        killed_at.append(chance.randrange(2, steps))
        run(opt_ml, killed_at[-1])
        run(opt_ml, None)
        equal += weights(opt_ml) == weights(whole)
    print(f"killed by SIGKILL at steps {sorted(killed_at)} of {steps} and resumed:", end=" ")
    print(f"{equal} of {KILLS} models equal the uninterrupted one's bit for bit (bar: all)")
    assert equal == KILLS


def train_as_rank(environ: dict[str, str], kill_at: int | None, log: Path) -> None:
    """In a child: the built-in program; killed in the middle of a step, while a checkpoint may be under way."""
    os.environ.clear()
    os.environ.update(environ)
    sys.stdout = sys.stderr = log.open("w")
    from container.train import classify, health

    steps, original = 0, health.Health.step

    def step(self, waited_seconds=0.0):
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, waited_seconds)

    health.Health.step = step
    classify.main()
