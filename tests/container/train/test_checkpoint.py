"""Checkpoints: whole or not there."""

import contextlib
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from container.train import writer
from container.train.checkpoint import Checkpoints
from container.train.disk import DiskFullError
from container.train.writer import copy_to_host


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path, keep=2)


def save(checkpoints, *steps, kind="last"):
    for step in steps:
        checkpoints.save(step, {"step": step, "weight": torch.full((100,), float(step))}, kind)
        checkpoints.wait()


def test_c55_the_newest_checkpoint_is_loaded(checkpoints):
    save(checkpoints, 9, 10, 100)
    assert checkpoints.load()["step"] == 100


def test_c56_a_truncated_newest_checkpoint_is_skipped_with_a_warning(checkpoints, caplog):
    save(checkpoints, 1, 2)
    newest = checkpoints.directory / "last-000000002.pt"
    newest.write_bytes(newest.read_bytes()[:-10])
    assert checkpoints.load()["step"] == 1
    assert "last-000000002.pt is skipped: it has" in caplog.text


def test_c56_a_damaged_or_missing_file_is_skipped_too(checkpoints, caplog):
    save(checkpoints, 1, 2)
    newest = checkpoints.directory / "last-000000002.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert checkpoints.load()["step"] == 1
    assert "its checksum differs" in caplog.text
    newest.unlink()
    assert checkpoints.load()["step"] == 1
    (checkpoints.directory / "last-000000001.json").write_text("{")
    assert checkpoints.load() is None


def test_a_file_without_its_manifest_does_not_count(checkpoints):
    save(checkpoints, 1, 2)
    (checkpoints.directory / "last-000000002.json").unlink()
    assert checkpoints.load()["step"] == 1


@pytest.mark.parametrize("operation", range(1, 8))
def test_c57_cut_off_at_any_file_operation_a_save_leaves_a_whole_checkpoint(checkpoints, monkeypatch, operation):
    save(checkpoints, 1, 2)
    seen = []

    def cut_off(original):
        def wrapped(*args, **kwargs):
            seen.append(original)
            if len(seen) == operation:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return wrapped

    for name in ("open", "replace", "unlink"):
        monkeypatch.setattr(Path, name, cut_off(getattr(Path, name)))
    with contextlib.suppress(KeyboardInterrupt):
        save(checkpoints, 3)
    monkeypatch.undo()
    assert checkpoints.load()["step"] in (2, 3)


def test_only_the_newest_and_the_best_are_kept(checkpoints):
    save(checkpoints, 1, 2, 3)
    save(checkpoints, 1, 2, kind="best")
    names = sorted(path.name for path in checkpoints.directory.iterdir() if path.suffix == ".pt")
    assert names == ["best-000000002.pt", "last-000000002.pt", "last-000000003.pt"]
    assert checkpoints.load("best")["step"] == 2


def test_c58_without_a_directory_nothing_is_written_and_nothing_found():
    checkpoints = Checkpoints(None)
    save(checkpoints, 1)
    assert checkpoints.load() is None


def test_training_may_change_the_weights_as_soon_as_save_returns(checkpoints):
    weight = torch.zeros(1_000_000)
    checkpoints.save(1, {"nested": [{"weight": weight}], "step": 1})
    weight.add_(1)
    assert checkpoints.load()["nested"][0]["weight"].abs().max() == 0


@pytest.fixture
def slow_disk(monkeypatch):
    """`torch.save` that waits until it is let go; the steps that it was asked to write, in order."""
    go, asked, original = threading.Event(), [], torch.save

    def save_when_let(state, file):
        asked.append(state["step"])
        assert go.wait(60)
        original(state, file)

    monkeypatch.setattr(torch, "save", save_when_let)
    yield SimpleNamespace(go=go, asked=asked)
    go.set()


def state_of(step):
    return {"step": step, "weight": torch.full((100_000,), float(step))}


def test_the_loop_goes_on_while_one_checkpoint_is_written_and_another_waits(checkpoints, slow_disk):
    state = state_of(1)
    checkpoints.save(1, state)
    assert checkpoints.is_busy
    state["weight"].fill_(2.0)
    checkpoints.save(2, state | {"step": 2})  # returns though nothing is written yet
    state["weight"].fill_(3.0)
    assert [path.name for path in checkpoints.directory.iterdir() if path.suffix == ".json"] == []
    slow_disk.go.set()
    checkpoints.wait()
    assert not checkpoints.is_busy
    for step in (1, 2):
        loaded = torch.load(checkpoints.directory / f"last-{step:09d}.pt")
        assert (loaded["step"], loaded["weight"].min().item(), loaded["weight"].max().item()) == (step, step, step)


def test_a_third_checkpoint_waits_for_the_disk_and_none_is_left_out(checkpoints, slow_disk):
    checkpoints.keep = 10
    third = threading.Thread(target=lambda: [checkpoints.save(step, state_of(step)) for step in (1, 2, 3)])
    third.start()
    third.join(0.2)
    assert third.is_alive()
    slow_disk.go.set()
    third.join(60)
    checkpoints.wait()
    assert slow_disk.asked == [1, 2, 3]
    assert sorted(path.name for path in checkpoints.directory.glob("*.pt")) == [f"last-{n:09d}.pt" for n in (1, 2, 3)]


def test_the_memory_of_a_written_copy_is_used_again_and_given_back_at_the_end(checkpoints):
    weight = torch.zeros(1000)
    addresses = set()
    original = torch.save

    def remember(state, file):
        addresses.add(state["weight"].data_ptr())
        original(state, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", remember)
        for step in range(3):
            checkpoints.save(step, {"weight": weight.fill_(step), "step": step})
            wait_until(lambda: not checkpoints.is_busy)
    assert len(addresses) == 1
    assert checkpoints._writer._spare is not None
    assert checkpoints.load()["weight"].tolist() == [2.0] * 1000
    assert checkpoints._writer._spare is None


def test_a_checkpoint_that_takes_too_long_for_a_stop_is_said_once(checkpoints, monkeypatch, caplog):
    save(checkpoints, 1)
    assert caplog.text == ""
    monkeypatch.setattr(writer, "LONG_SECONDS", 0.0)
    save(checkpoints, 2, 3)
    assert caplog.text.count("SageMaker ends a job 120 s after it told it to stop") == 1


def test_a_copy_takes_an_earlier_ones_place_only_where_it_fits():
    value = {"a": torch.ones(2, 3), "b": [torch.ones(4), 7], "new": torch.ones(1)}
    earlier = {"a": torch.zeros(2, 3), "b": [torch.zeros(5), torch.zeros(2)], "gone": torch.zeros(9)}
    copied = copy_to_host(value, earlier)
    assert copied["a"] is earlier["a"]
    assert copied["b"][0] is not value["b"][0]
    assert str(copied) == str(value)
    assert str(copy_to_host(value, {"a": torch.zeros(2, 3, dtype=torch.float64), "b": "other"})) == str(value)


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_one_that_was_not_whole_does_not_push_out_the_one_that_follows(checkpoints, caplog):
    save(checkpoints, 1, 9)
    (checkpoints.directory / "last-000000009.pt").write_bytes(b"half")
    assert checkpoints.load()["step"] == 1
    again = Checkpoints(checkpoints.directory, keep=1)
    save(again, 2)
    assert again.load()["step"] == 2
    assert sorted(path.name for path in again.directory.iterdir()) == ["last-000000002.json", "last-000000002.pt"]


def test_what_a_killed_job_left_half_written_goes_with_the_next_checkpoint(checkpoints):
    save(checkpoints, 1)
    (checkpoints.directory / ".last-000000002.pt.4711").write_bytes(b"half")
    (checkpoints.directory / "last-000000002.pt").write_bytes(b"no manifest yet")
    save(checkpoints, 3)
    names = sorted(path.name for path in checkpoints.directory.iterdir())
    assert names == [f"last-{step:09d}.{suffix}" for step in (1, 3) for suffix in ("json", "pt")]


def test_steps_of_ten_digits_are_newer_than_those_of_nine(checkpoints):
    save(checkpoints, 999_999_999, 1_000_000_000)
    assert checkpoints.load()["step"] == 1_000_000_000


def test_a_failed_write_is_told_at_the_end_and_the_one_before_stays(checkpoints, monkeypatch):
    save(checkpoints, 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    checkpoints.save(2, {"step": 2})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    monkeypatch.undo()
    assert [path.name for path in checkpoints.directory.glob(".*")] == []
    assert checkpoints.load()["step"] == 1


def test_a_failed_write_is_told_by_a_later_save(checkpoints, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    checkpoints.save(1, {"step": 1})
    wait_until(lambda: not checkpoints.is_busy)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, {"step": 2})


def test_a_nearly_full_volume_refuses_a_checkpoint_before_it_is_begun(checkpoints, monkeypatch):
    save(checkpoints, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    checkpoints.save(2, {"step": 2})
    with pytest.raises(DiskFullError, match="a checkpoint needs .* free of"):
        checkpoints.wait()
    assert checkpoints.load()["step"] == 1
