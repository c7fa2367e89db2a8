"""Free space on this machine's own file systems."""

import pytest
import torch

from container.train.disk import DiskFullError, require_free_space, state_bytes


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
