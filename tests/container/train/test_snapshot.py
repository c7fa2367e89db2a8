"""Checkpoints that another build of the image, or a job with other settings, has left."""

from types import SimpleNamespace

import pytest
import torch

from container.train.checkpoint import Checkpoints
from container.train.classify import CHECKPOINT, checkpoint_is_due
from container.train.data import DataError
from container.train.job import Process
from container.train.snapshot import load_whole, networks, resume

WHAT_TO_DO = "use an empty checkpoint location (CheckpointConfig.S3Uri), or the image that wrote it"


def write(directory, state, kind="last"):
    checkpoints = Checkpoints(directory)
    checkpoints.save(7, state, kind)
    checkpoints.wait()


@pytest.fixture
def job(tmp_path):
    """What `load_whole` reads of a job."""
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    for group in optimizer.param_groups:
        group["peak_lr"] = 0.1
    return SimpleNamespace(
        process=Process(0, 1, torch.device("cpu")),
        checkpoints=Checkpoints(tmp_path),
        sharded=None,
        signature=SimpleNamespace(architecture="convnet", classes=("a", "b")),
        network=network,
        average=None,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )


def state_of(job):
    found = {"architecture": "convnet", "classes": ["a", "b"], "averaged": None, "step": 7, "steps_per_epoch": 2}
    found |= {"scaler": {}, "generators": [], "history": []}
    return found | {"model": networks(job).state_dict(), "optimizer": job.optimizer.state_dict()}


def test_a_job_on_a_checkpoint_of_another_build_fails_with_its_name_and_what_to_do(training_job, shapes):
    settings = {"epochs": 1, "batch_size": 32}
    job = training_job(channels={"train": shapes / "train"}, hyperparameters=settings, checkpoints=True)
    job.opt_ml().checkpoints.mkdir(exist_ok=True)
    write(job.opt_ml().checkpoints, {"step": 7, "model": {}, "optimizer": {}})
    assert job.run() == {"algo-1": 1}, job.log()
    told = job.opt_ml().failure.read_text()
    assert "last-000000007.pt is of another build of the image: it has no architecture, averaged" in told
    assert WHAT_TO_DO in told


def test_a_checkpoint_that_fits_is_loaded(job, tmp_path):
    write(tmp_path, state_of(job))
    assert load_whole(job)["step"] == 7


def with_other_names(state):
    state["model"] = {name.removeprefix("network."): value for name, value in state["model"].items()}


def with_more_groups(state):
    state["optimizer"]["param_groups"].append(state["optimizer"]["param_groups"][0])


def without_peak(state):
    del state["optimizer"]["param_groups"][0]["peak_lr"]


def without_groups(state):
    del state["optimizer"]["param_groups"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (with_other_names, "Missing key"),
        (with_more_groups, "different number of parameter groups"),
        (without_peak, "group 0 has no peak_lr"),
        (without_groups, "param_groups"),
    ],
)
def test_weights_or_an_optimizer_that_do_not_fit_are_an_error_that_names_the_checkpoint(job, tmp_path, change, problem):
    state = state_of(job)
    change(state)
    write(tmp_path, state)
    with pytest.raises(DataError) as raised:
        load_whole(job)
    assert str(tmp_path / "last-000000007.pt does not fit this job: ") in str(raised.value)
    assert problem in str(raised.value)
    assert WHAT_TO_DO in str(raised.value)


def test_a_checkpoint_is_not_due_while_the_disk_writes_one(job):
    job.settings, job.saved_at = SimpleNamespace(checkpoint_seconds=0.0), 0.0
    job.checkpoints = SimpleNamespace(is_busy=True)
    assert checkpoint_is_due(job) == 0
    job.checkpoints.is_busy = False
    assert checkpoint_is_due(job) == CHECKPOINT
    job.process = Process(1, 2, torch.device("cpu"))
    assert checkpoint_is_due(job) == 0


def test_a_best_checkpoint_of_another_build_is_named_too(job, tmp_path):
    write(tmp_path, state_of(job))
    write(tmp_path, {"step": 7, "model": {}}, "best")
    job.steps_per_epoch, job.step = 2, 0
    job.environment = SimpleNamespace(opt_ml=SimpleNamespace(output_data=tmp_path / "output"))
    with pytest.raises(DataError, match=r"best-000000007\.pt is of another build of the image: it has no accuracy"):
        resume(job)
