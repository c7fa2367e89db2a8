"""Free space on this machine's own file systems."""

import collections

import pytest
import torch

from container.train import disk
from container.train.disk import DiskFullError, export_weights, replace_file, require_free_space, state_bytes


def test_what_fits_is_let_through_even_where_nothing_exists_yet(tmp_path):
    require_free_space(tmp_path / "not" / "there" / "yet", 1, "a checkpoint")


def test_what_does_not_fit_is_refused_with_sizes_and_the_setting_that_helps(tmp_path):
    with pytest.raises(DiskFullError) as caught:
        require_free_space(tmp_path / "checkpoints", 2**60, "a checkpoint")
    assert "a checkpoint needs 1073741824.00 GiB, and" in str(caught.value)
    assert f"{tmp_path}/checkpoints has " in str(caught.value)
    assert "GiB free of " in str(caught.value)
    assert "VolumeSizeInGB" in str(caught.value)


def test_a_state_is_as_large_as_its_tensors_and_shared_ones_count_once():
    weight = torch.zeros(10, 10)
    state = {
        "model": {"a": weight, "tied": weight, "view": weight[0]},
        "steps": [torch.zeros(3, dtype=torch.int64)],
        "x": 1,
    }
    assert state_bytes(state) == 400 + 24


def test_an_export_is_refused_where_there_is_no_room_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    export_weights({"weight": torch.ones(3)}, path)
    usage = collections.namedtuple("usage", "total used free")(100 * 2**20, 36 * 2**20, 64 * 2**20)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match="the model needs .*VolumeSizeInGB"):
        export_weights({"weight": torch.zeros(3)}, path)
    assert torch.load(path)["weight"].tolist() == [1, 1, 1]


def test_a_file_whose_writing_breaks_off_leaves_the_earlier_one_and_nothing_else(tmp_path):
    replace_file(tmp_path / "a", lambda file: file.write(b"whole"))

    def break_off(file):
        file.write(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "a", break_off)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"whole"}
