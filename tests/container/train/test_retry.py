"""RetryStrategy, cluster repair and spot start a job again: new hosts, the same checkpoints, nothing else."""

import shutil
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[3] / "examples" / "train" / "helpers" / "train.py"
SETTINGS = {"epochs": 12, "steps": 40}


def weights(job, host="algo-1"):
    return torch.load(job.opt_ml(host).model / "model.pt", weights_only=True)


def restore_checkpoints(earlier, job) -> None:
    """As the platform does: what was synced to S3 is copied to every host of the new attempt."""
    for host in job.hosts:
        shutil.copytree(earlier.opt_ml().checkpoints, job.opt_ml(host).checkpoints, dirs_exist_ok=True)


@pytest.mark.slow
def test_c55_c59_c60_a_job_whose_hosts_were_all_killed_goes_on_elsewhere_to_the_same_weights(training_job):
    script = EXAMPLE.read_text()
    options = {"hosts": 2, "script": script, "hyperparameters": SETTINGS, "checkpoints": True}
    whole = training_job(**options)
    assert set(whole.run().values()) == {0}, whole.log()

    first = training_job(**options)
    first.start()
    first.wait_for("epoch=5 ")
    for process in first.processes.values():
        process.kill()
    first.wait()

    second = training_job(**options)  # new containers: no model, no output, no /tmp of the first attempt
    restore_checkpoints(first, second)
    assert set(second.run().values()) == {0}, second.log()
    assert "resumed after epoch" in second.log()
    resumed, expected = weights(second), weights(whole)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_retry_on_fewer_hosts_goes_on_from_the_same_step(training_job):
    options = {"script": EXAMPLE.read_text(), "hyperparameters": SETTINGS, "checkpoints": True}
    first = training_job(hosts=2, **options)
    first.start()
    first.wait_for("epoch=5 ")
    first.processes["algo-2"].kill()  # one host is lost, and the platform has no other
    assert first.wait()["algo-1"] == 1
    assert first.failure().startswith("HostLost: algo-2")

    second = training_job(hosts=1, **options)
    restore_checkpoints(first, second)
    assert second.run() == {"algo-1": 0}, second.log()
    assert "resumed after epoch" in second.log()
    assert weights(second)
