"""The collective library: what the image has and the hosts can use."""

import os
import subprocess
import sys

import pytest

from container.train.backend import process_group_backend

FAKE = """
import torch.distributed as dist
dist.Backend.register_backend("smddp", lambda *arguments: None, devices=["cuda"])
"""


@pytest.fixture
def two_p4d(monkeypatch):
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", "ml.p4d.24xlarge")


def write_smddp(directory, code):
    package = directory / "smdistributed" / "dataparallel" / "torch"
    package.mkdir(parents=True)
    (package / "torch_smddp.py").write_text(code)


def test_gloo_without_and_nccl_with_gpus(two_p4d):
    assert process_group_backend(on_gpu=False) == "gloo"
    assert process_group_backend(on_gpu=True) == "cpu:gloo,cuda:nccl"


def test_smddp_is_taken_where_the_image_has_it(two_p4d, tmp_path):
    write_smddp(tmp_path, FAKE)
    code = (
        "from container.train.backend import process_group_backend as backend; print(backend(True))\n"
        "import torch.distributed as dist; print('smddp' in dist.Backend.backend_list)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["cpu:gloo,cuda:smddp", "True"]


def test_smddp_that_cannot_be_loaded_is_a_warning(two_p4d, tmp_path, monkeypatch, caplog):
    write_smddp(tmp_path, "raise ImportError('libsmddp.so: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert process_group_backend(on_gpu=True) == "cpu:gloo,cuda:nccl"
    assert "smddp is in the image and cannot be loaded" in caplog.text


def test_one_host_or_another_instance_type_needs_no_smddp(two_p4d, monkeypatch, tmp_path):
    write_smddp(tmp_path, "raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", "ml.g5.xlarge")
    assert process_group_backend(on_gpu=True) == "cpu:gloo,cuda:nccl"
