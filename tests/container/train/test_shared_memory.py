"""DataLoader workers where /dev/shm is too small: on a /dev/shm of 2 MiB, in a mount namespace of its own."""

import pickle
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from container.train.shared_memory import Limits, _by_value, decide_handover, loader_options

PLENTY = Limits(shared_memory_bytes=1024**3, open_files=65536)
MEBIBYTE = torch.zeros(1024**2, dtype=torch.uint8)


def test_with_room_enough_nothing_changes():
    handover = decide_handover(8, [MEBIBYTE, MEBIBYTE], 1, PLENTY)
    assert (handover.by_value, handover.reason) == (False, "")


def test_too_little_shared_memory_is_decided_and_said_in_one_line():
    handover = decide_handover(8, {"image": MEBIBYTE, "more": (MEBIBYTE, 3)}, 2, Limits(64 * 1024**2, 65536))
    assert handover.by_value
    assert handover.reason == (
        "/dev/shm has 64 MiB free, and 8 DataLoader workers for each of 2 rank(s) want 80 MiB: "
        "batches go through pipes instead"
    )


def test_too_few_open_files_are_decided_and_said_in_one_line():
    handover = decide_handover(8, [MEBIBYTE] * 60, 1, Limits(2 * 1024**3, 1024))
    assert handover.by_value
    assert handover.reason.startswith("1024 open files are too few for the 960 tensors that 8 DataLoader workers share")


def test_without_workers_nothing_is_shared():
    assert not decide_handover(0, [MEBIBYTE], 8, Limits(0, 1024)).by_value
    options = loader_options([(MEBIBYTE,)], batch_size=2, num_workers=0)
    assert "prefetch_factor" not in options


def test_this_machine_has_limits():
    limits = Limits.of_this_process()
    assert limits.shared_memory_bytes >= 0
    assert limits.open_files > 0


def test_a_missing_dev_shm_has_no_room(monkeypatch, tmp_path):
    monkeypatch.setattr("container.train.shared_memory.SHARED_MEMORY", tmp_path / "none")
    assert Limits.of_this_process().shared_memory_bytes == 0


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).view(2, 3).t(),
        torch.tensor(3.5),
        torch.empty(0, 3),
        torch.tensor([1.5, -2], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.ones(2, requires_grad=True),
    ],
)
def test_a_tensor_by_value_arrives_as_it_was(tensor):
    batch = {"a": [tensor, "text"], "b": (tensor, 3), "c": Pair(tensor, None)}
    arrived = pickle.loads(pickle.dumps(_by_value(batch)))
    assert (arrived["a"][1], arrived["b"][1], arrived["c"].right) == ("text", 3, None)
    for copy in (arrived["a"][0], arrived["b"][0], arrived["c"].left):
        assert copy.dtype == tensor.dtype
        assert copy.shape == tensor.shape
        assert torch.equal(copy, tensor)


def test_batches_by_value_are_the_same_and_not_in_shared_memory(monkeypatch, caplog):
    monkeypatch.setattr(Limits, "of_this_process", lambda: Limits(1000, 65536))
    dataset = TensorDataset(torch.arange(600).view(6, 100), torch.arange(6))
    options = loader_options([dataset[0]], batch_size=2, num_workers=2)
    assert "/dev/shm has 0 MiB free" in caplog.text
    loader = DataLoader(dataset, batch_size=2, **options)
    batches = list(loader)
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(torch.cat([values for values, _ in batches]), torch.arange(600).view(6, 100))
    assert not any(values.is_shared() for values, _ in batches)
    shared = next(iter(DataLoader(dataset, batch_size=2, num_workers=1)))
    assert shared[0].is_shared()  # what by value avoids


SMALL = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"', "sh"]
LOADS = """
import sys, torch
from torch.utils.data import DataLoader, TensorDataset
from container.train.shared_memory import loader_options
dataset = TensorDataset(torch.ones(64, 3, 224, 224, dtype=torch.uint8))
options = {"num_workers": 2}
if sys.argv[1] == "adapted":
    options = loader_options([dataset[0]], batch_size=16, num_workers=2)
print(sum(int(images.sum()) for images, in DataLoader(dataset, batch_size=16, **options)))
"""


@pytest.fixture
def small_shared_memory():
    """Runs LOADS where /dev/shm has 2 MiB."""
    if subprocess.run([*SMALL, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a mount namespace")

    def run(mode: str) -> subprocess.CompletedProcess[str]:
        command = [*SMALL, sys.executable, "-c", LOADS, mode]
        return subprocess.run(command, capture_output=True, text=True, timeout=90)

    return run


def test_workers_outlive_a_dev_shm_of_2_mebibytes(small_shared_memory):
    done = small_shared_memory("adapted")
    assert done.stdout.strip() == str(64 * 3 * 224 * 224), done.stderr
    assert "/dev/shm has 2 MiB free, and 2 DataLoader workers" in done.stderr


def test_a_plain_loader_dies_there(small_shared_memory):
    done = small_shared_memory("plain")
    assert done.returncode != 0
    assert "unable to allocate shared memory" in done.stderr
