"""Sharded checkpoints: whole or not counted; the processes that write them together are in test_fsdp.py."""

import collections
import shutil

import pytest
import torch
from torch import nn

from container.train import disk
from container.train.disk import DiskFullError
from container.train.sharded import CheckpointMismatchError, ShardedCheckpoints


def trained(steps, width=4):
    torch.manual_seed(0)
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        model(torch.ones(1, width)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1, 2 and 3, of which two are kept."""
    checkpoints = ShardedCheckpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, *trained(step), {"step": step, "history": [{"loss": 0.5}]})
    checkpoints.wait()
    return tmp_path


def test_model_optimizer_and_the_rest_come_back(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["sharded-000000002", "sharded-000000003"]
    model, optimizer = trained(0)
    state = ShardedCheckpoints(saved).load(model, optimizer)
    assert state == {"step": 3, "history": [{"loss": 0.5}]}
    expected, other = trained(3)
    for network in (model, expected):
        network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    other.step()
    assert torch.equal(model.weight, expected.weight)


@pytest.mark.parametrize("damage", ["a part is short", "a part is missing", "no manifest", "not JSON"])
def test_c56_a_checkpoint_that_is_not_whole_is_skipped(saved, damage, caplog):
    newest = saved / "sharded-000000003"
    part = next(newest.glob("__0_*"))
    if damage == "a part is short":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "a part is missing":
        part.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("{")
    checkpoints = ShardedCheckpoints(saved)
    assert checkpoints.load(*trained(0))["step"] == 2
    assert "checkpoint sharded-000000003 is skipped: " in caplog.text

    checkpoints.save(3, *trained(3), {"step": 3})  # done again, in the place of the damaged one
    assert checkpoints.load(*trained(0))["step"] == 3


def test_c57_one_that_was_not_whole_does_not_push_out_the_one_before(saved):
    shutil.copytree(saved / "sharded-000000003", saved / "sharded-000000009")
    (saved / "sharded-000000009" / "manifest.json").unlink()
    checkpoints = ShardedCheckpoints(saved, keep=1)
    checkpoints.save(4, *trained(4), {"step": 4})
    checkpoints.wait()
    assert [path.name for path in saved.iterdir()] == ["sharded-000000004"]


def test_a_checkpoint_of_another_model_is_an_error(saved):
    with pytest.raises(CheckpointMismatchError, match=r"sharded-000000003 does not fit .*use an empty checkpoint"):
        ShardedCheckpoints(saved).load(*trained(0, width=5))
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(CheckpointMismatchError, match=r"Missing key"):
        ShardedCheckpoints(saved).load(model, torch.optim.AdamW(model.parameters()))


def test_without_a_directory_nothing_is_written_and_nothing_is_there(tmp_path):
    checkpoints = ShardedCheckpoints(None)
    checkpoints.save(1, *trained(1), {})
    assert checkpoints.load(*trained(0)) is None
    assert ShardedCheckpoints(tmp_path / "new").load(*trained(0)) is None


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")(100 * 2**20, 40 * 2**20, 60 * 2**20)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    checkpoints = ShardedCheckpoints(tmp_path)
    checkpoints.save(1, *trained(1), {})
    with pytest.raises(DiskFullError, match="a checkpoint needs"):
        checkpoints.wait()
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_is_of_the_step_at_which_it_was_taken_though_training_went_on(tmp_path):
    checkpoints, (model, optimizer) = ShardedCheckpoints(tmp_path), trained(1)
    for step in (1, 2, 3):  # the third copy takes the memory of an earlier one
        checkpoints.save(step, model, optimizer, {"step": step})
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    loaded, other = trained(0)
    assert checkpoints.load(loaded, other)["step"] == 3
    assert torch.equal(loaded.weight, trained(3)[0].weight)
