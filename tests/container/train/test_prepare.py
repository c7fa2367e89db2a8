"""What a job of the built-in program finds on its machine before it trains."""

import pytest
import torch

from container.model import build_network
from container.train import prepare
from container.train.job import Process


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
            prepare.compile_network(network, Process(0, 1, torch.device("cpu")))
        network.zero_grad()
        network(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.allclose(eager, compiled, atol=1e-4) for eager, compiled in zip(*gradients, strict=True))
    build_network("convnet", 2, (1, 8, 8)).load_state_dict(network.state_dict())
