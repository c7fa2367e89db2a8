"""What a job of the built-in program finds on its machine before it trains."""

import pytest
import torch

from container.model import build_network
from container.train import prepare
from container.train.data import DataError, scan_folder
from container.train.environment import read_environment
from container.train.job import Process

ALONE = Process(0, 1, torch.device("cpu"))


def folder_of(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return scan_folder(root)


@pytest.fixture
def environment(write_opt_ml, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    return read_environment(write_opt_ml(), {})


def test_a_channel_without_images_says_what_is_there_instead(environment, tmp_path, caplog):
    train = folder_of(tmp_path / "train", "cat/1.png", "cat/2.tif", "cat/notes.txt")
    validation = folder_of(tmp_path / "validation", "1.png", "dog/1.tif", "dog/2.tif")
    prepare.check_folders(environment, ALONE, {"train": train})
    assert "channel 'train': by their names no images, and left out: 1 x .tif, 1 x .txt" in caplog.text
    # Without an error the accuracy of nothing would make the first epoch's weights the best.
    with pytest.raises(
        DataError, match=r"channel 'validation' has no <class>/<image> on algo-1 .*; there are 2 x \.tif"
    ):
        prepare.check_folders(environment, ALONE, {"train": train, "validation": validation})


def test_one_class_is_an_error_that_sees_a_folder_too_many(tmp_path):
    flat, deep = (
        folder_of(tmp_path / "a", "images/1.png"),
        folder_of(tmp_path / "b", "pets/cat/1.png", "pets/dog/1.png"),
    )
    assert prepare.one_class(flat) == "channel 'train' has one class, 'images', and a classifier needs two"
    assert prepare.one_class(deep).endswith("it holds the folders cat, dog; give the channel the S3Uri of pets/")


def test_classes_of_very_different_size_are_worth_one_line(caplog):
    prepare.say_imbalance(("cat", "dog", "owl"), torch.tensor([50, 500, 80]))
    assert not caplog.records
    prepare.say_imbalance(("cat", "dog", "owl"), torch.tensor([49, 500, 80]))
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [
        "class 'cat' has 49 images, 'dog' 500"
    ]


@pytest.mark.parametrize(("device_type", "package"), [("cpu", "g++"), ("cuda", "gcc")])
def test_without_a_compiler_or_pythons_headers_there_is_no_torch_compile(device_type, package, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prepare.missing_for_compile(device_type) == f"a compiler ({package} and libc6-dev)"
    compiler = tmp_path / package
    compiler.touch(0o755)
    monkeypatch.setattr(prepare.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert prepare.missing_for_compile(device_type) == "Python's headers (python3-dev)"
    (tmp_path / "Python.h").touch()
    assert prepare.missing_for_compile(device_type) is None


@pytest.mark.slow
def test_a_job_that_cannot_compile_says_so_in_one_line_and_trains(training_job, shapes):
    given = {"epochs": 1, "batch_size": 32, "compile": True, "batch_size_per_rank": 0}
    job = training_job(channels={"train": shapes / "train"}, hyperparameters=given)
    job.environ["PATH"] = str(job.base)
    assert job.run() == {"algo-1": 0}, job.log()
    lines = [line for line in job.log().splitlines() if "compile=true needs" in line]
    assert len(lines) == 1
    assert lines[0].endswith("needs a compiler (g++ and libc6-dev), which this image lacks: the network runs as it is")


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_gradients_and_keeps_the_names_of_its_weights():
    network = build_network("convnet", 2, (1, 8, 8))
    images = torch.rand(4, 1, 8, 8)
    gradients = []
    for compiled in (False, True):
        if compiled:
            prepare.compile_network(network, ALONE)
        network.zero_grad()
        network(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.allclose(eager, compiled, atol=1e-4) for eager, compiled in zip(*gradients, strict=True))
    build_network("convnet", 2, (1, 8, 8)).load_state_dict(network.state_dict())
