"""Checkpoints: whole or not there."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch

from container.train.checkpoint import Checkpoints


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

    for name in ("open", "replace", "write_text", "unlink"):
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


def test_a_failed_write_is_told_at_the_next_save_and_the_one_before_stays(checkpoints, monkeypatch):
    save(checkpoints, 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    checkpoints.save(2, {"step": 2})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(3, {"step": 3})
    monkeypatch.undo()
    assert checkpoints.load()["step"] == 1


def test_a_nearly_full_volume_refuses_a_checkpoint_before_it_is_begun(checkpoints, monkeypatch):
    save(checkpoints, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match="a checkpoint needs .* free of"):
        checkpoints.save(2, {"step": 2})
