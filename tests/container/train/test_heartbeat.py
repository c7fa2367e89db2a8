"""Hosts that die without a word are named, with their last step; the others end soon."""

import re
import time

import pytest
import torch.distributed as dist

from container.train import heartbeat
from container.train.heartbeat import Heartbeat, Place
from container.train.position import Position, ProgressBoard
from container.train.runtime import Runtime

WAIT = """
import time
print("training", flush=True)
time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "survivor", "rank"), [("algo-2", "algo-1", 1), ("algo-1", "algo-2", 0)])
def test_c64_a_host_killed_as_a_whole_is_named_by_the_one_that_is_left(
    training_job, stepping_script, victim, survivor, rank
):
    job = training_job(hosts=2, script=stepping_script)
    job.start()
    job.wait_for("training", survivor)
    job.wait_for("training", victim)
    job.processes[victim].kill()  # its agent and ranks die with it, as with their container
    assert job.processes[survivor].wait(60) == 1, job.log(survivor)
    reason = job.failure(survivor)
    assert reason.startswith(f"HostLost: {victim} fell silent at "), reason
    assert f"said no goodbye (rank {rank} on {victim})\n(hint: its instance or container was killed" in reason


@pytest.mark.slow
def test_a_host_that_falls_silent_is_given_up_though_nothing_of_ours_waits_for_it(training_job):
    job = training_job(hosts=2, script=WAIT)
    job.environ["SLIPWAY_HOST_LOST_SECONDS"] = "3"
    job.start()
    job.wait_for("training", "algo-1")
    job.wait_for("training", "algo-2")
    job.processes["algo-2"].kill()
    assert job.processes["algo-1"].wait(60) == 1, job.log()
    assert job.failure().startswith("HostLost: algo-2 fell silent")
    assert "ending this host's ranks, because of algo-2" in job.log()
    assert "time.sleep(300)" not in job.failure()


@pytest.mark.slow
def test_a_host_that_alone_is_told_to_stop_is_named(training_job, stepping_script):
    job = training_job(hosts=2, script=stepping_script)
    job.start()
    job.wait_for("training", "algo-1")
    job.wait_for("training", "algo-2")
    job.processes["algo-2"].terminate()
    assert job.processes["algo-1"].wait(60) == 1, job.log()
    assert job.failure().startswith("HostStopped: algo-2 was told to stop, by SIGTERM, and this host was not")
    assert job.processes["algo-2"].wait(60) == 143


@pytest.fixture
def runtimes(tmp_path):
    """Of three hosts."""
    made = [Runtime(tmp_path / str(number)) for number in range(3)]
    for runtime in made:
        runtime.directory.mkdir()
    return made


HOSTS = ["algo-1", "algo-2", "algo-3"]


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_late_host_is_told_before_it_is_given_up(runtimes, monkeypatch, capsys):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(heartbeat, "LATE_SECONDS", 0.5)
    store = dist.HashStore()
    first, second = (Heartbeat(Place(HOSTS, n, 1), runtimes[n], lambda _: store, 2.0) for n in (0, 1))
    ProgressBoard(runtimes[1], 0).show(Position(41, time.monotonic()))
    wait_until(lambda: first._heard.get(1) is not None and first._heard[1].step)
    second._over.set()
    second._last_words = ""
    wait_until(lambda: first.cause is not None)
    assert first.cause.message.startswith("algo-2 fell silent at ")
    assert first.cause.message.endswith(" after step 41 and said no goodbye")
    assert "algo-2 is late: nothing heard from it for 1 s, after step 41" in capsys.readouterr().out
    first.goodbye("ended with 1")


def test_a_host_that_says_goodbye_is_not_missed(runtimes, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(heartbeat, "DOUBT_SECONDS", 0.2)
    monkeypatch.setattr(heartbeat, "CAUSE_SECONDS", 1.0)
    store = dist.HashStore()
    first, second = (Heartbeat(Place(HOSTS, n, 1), runtimes[n], lambda _: store, 2.0) for n in (0, 1))
    runtimes[1].mark_done(0)
    wait_until(lambda: 1 in first._heard and first._heard[1].is_over)
    second.goodbye(heartbeat.DONE)
    assert first.await_cause() is None
    first.goodbye("ended with 1")


def test_a_planned_stop_of_one_host_is_one_of_all(runtimes, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    store = dist.HashStore()
    beats = [Heartbeat(Place(HOSTS, n, 1), runtimes[n], lambda _: store, 60.0) for n in range(3)]
    runtimes[1].request_stop(planned=True)
    wait_until(lambda: runtimes[0].planned_elsewhere.exists())
    assert beats[0].await_cause() is None  # at once: there is none to be found
    assert not runtimes[2].planned_elsewhere.exists()
    runtimes[0].request_stop(planned=True)  # as its launcher does now
    wait_until(lambda: runtimes[2].planned_elsewhere.exists())
    for beat in beats:
        beat.goodbye(heartbeat.DONE)
        assert beat.cause is None


@pytest.mark.slow
def test_hosts_that_started_at_other_times_stop_together_before_the_time_limit(training_job, stepping_script):
    job = training_job(hosts=2, script=stepping_script)  # does nothing about SIGTERM
    job.host_environ["algo-2"] = {"SLIPWAY_MAX_RUNTIME_SECONDS": "30"}
    assert job.run() == {"algo-1": 0, "algo-2": 0}, job.log("algo-1") + job.log("algo-2")
    assert "the time limit is near: stopping while the model can still be saved" in job.log("algo-2")
    assert "another host stops, because the time limit is near: so does this one" in job.log("algo-1")
    assert job.failure("algo-1") == job.failure("algo-2") == ""


@pytest.mark.slow
def test_c51_c52_a_stop_that_one_host_alone_is_told_stops_all_where_the_script_agrees_on_it(
    training_job, stepping_script
):
    script = stepping_script.replace("import Health", "import GracefulStop, Health").replace(
        "with Health() as health:", "with Health() as health, GracefulStop() as stop:"
    )
    script += "        if stop.agreed():\n            print(f'stopped after {step};', flush=True)\n            break\n"
    job = training_job(hosts=2, script=script)
    job.start()
    job.wait_for("training", "algo-1")
    job.wait_for("training", "algo-2")
    job.processes["algo-2"].terminate()
    assert job.wait(60) == {"algo-1": 0, "algo-2": 0}, job.log()
    steps = [re.findall(r"stopped after (\d+);", job.log(host)) for host in job.hosts]
    assert steps[0] == steps[1] != []


def test_a_stall_names_the_rank_that_is_behind(runtimes, monkeypatch, capsys):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    store = dist.HashStore()
    beats = [Heartbeat(Place(HOSTS, n, 2), runtimes[n], lambda _: store, 60.0) for n in range(3)]
    for n, runtime in enumerate(runtimes):
        for local_rank in range(2):
            behind = (n, local_rank) == (1, 1)
            ProgressBoard(runtime, local_rank).show(Position(119 if behind else 120, time.monotonic(), True))
    told = []
    wait_until(lambda: told.append(capsys.readouterr().out) or "at step 119, others at step 120" in "".join(told))
    assert "stalled: rank 3 on algo-2 at step 119, others at step 120" in "".join(told)
    for beat in beats:
        beat.goodbye(heartbeat.DONE)


@pytest.mark.slow
def test_ranks_that_stall_together_are_said_to(training_job):
    script = """
import os, time
import torch, torch.distributed as dist
from container.train import Health
dist.init_process_group("gloo")
with Health(stall_seconds=0.5) as health:
    for step in range(3):
        dist.all_reduce(torch.ones(1))
        health.step()
    while not os.path.exists(os.environ["SM_OUTPUT_DATA_DIR"] + "/go-on"):
        time.sleep(0.05)
"""
    job = training_job(gpus=2, script=script)
    job.start()
    job.wait_for("stalled: all 2 ranks stand at step 3")
    (job.opt_ml().output_data / "go-on").touch()
    assert job.wait(60) == {"algo-1": 0}
    assert job.log().count("no step for") == 2  # each rank with its stacks
