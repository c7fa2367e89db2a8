"""Ranks agree on the step after which they stop, without a collective per step."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from container.train.agreement import Agreement


def run_loops(store, steps, wishes, world_size=3, pause=0.0):
    """What each rank was answered after each step; `wishes[rank][step]` is made until it is fulfilled."""

    def loop(rank):
        agreement, wish, answers = Agreement(store, rank, world_size), 0, []
        for step in range(steps):
            time.sleep(random.Random(rank * 1000 + step).random() * pause)
            wish = wishes.get(rank, {}).get(step, 0) or wish
            answers.append(agreement.vote(wish))
            wish = 0 if answers[-1] == wish else wish
        agreement.close()
        return answers

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(loop, range(world_size)))


def test_every_rank_is_answered_alike_at_the_same_step_and_each_wish_comes_true():
    answers = run_loops(dist.HashStore(), 200, {0: {3: 1}, 1: {40: 7}, 2: {41: 9}}, pause=0.02)
    assert answers[0] == answers[1] == answers[2]
    assert sorted(answer for answer in answers[0] if answer) == [1, 7, 9]


def test_a_wish_at_the_last_step_keeps_nobody_waiting():
    for _ in range(5):
        answers = run_loops(dist.HashStore(), 5, {1: {3: 1}, 2: {4: 2}}, pause=0.01)
        assert answers[0] == answers[1] == answers[2]


def test_a_store_that_is_gone_is_an_error_and_not_a_wait():
    class Gone:
        def check(self, keys):
            raise dist.DistStoreError("connection lost")

        def compare_set(self, *arguments):
            raise dist.DistStoreError("connection lost")

    agreement = Agreement(Gone(), 0, 2)
    with pytest.raises(dist.DistStoreError):
        agreement.vote(1)
    agreement.close()


def test_a_step_without_a_wish_needs_nobody_else():
    agreement = Agreement(dist.HashStore(), 0, 512)  # the other 511 have not even begun
    assert [agreement.vote(0) for _ in range(1000)] == [0] * 1000
    agreement.close()


CUDA_ONLY = """
import os, sys, time
import torch, torch.distributed as dist
from container.train import GracefulStop

def create(store, rank, size, timeout):
    return dist.ProcessGroupGloo(store, rank, size, timeout)

dist.Backend.register_backend("nccl_alone", create, devices=["cuda"])
dist.init_process_group("nccl_alone")
try:
    dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    print("a tensor on the CPU:", type(error).__name__)
with GracefulStop() as stop:
    for step in range(10_000):
        time.sleep(0.01 if os.environ["RANK"] == "0" else 0.012)
        if step == 10:
            print("training", flush=True)
        if stop.agreed():
            print(f"stopped after step={step};", flush=True)
            open(os.path.join(os.environ["SM_MODEL_DIR"], "weights-" + os.environ["RANK"]), "w").close()
            break
"""


def test_c51_c52_ranks_whose_process_group_knows_no_cpu_stop_at_the_same_step(training_job):
    job = training_job(gpus=2, script=CUDA_ONLY)
    job.start()
    job.wait_for("rank 0] training")
    job.wait_for("rank 1] training")
    job.stop()
    assert job.wait(30) == {"algo-1": 0}, job.log()
    log = job.log()
    assert "rank 0] a tensor on the CPU:" in log
    steps = [line.rpartition("step=")[2] for line in log.splitlines() if "stopped after" in line]
    assert len(steps) == 2
    assert steps[0] == steps[1]
