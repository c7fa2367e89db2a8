"""The folders of examples/train: each script runs as a job, on the data that its folder makes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launcher.settings import load

EXAMPLES = Path(__file__).parents[3] / "examples" / "train"


@pytest.fixture
def example(tmp_path, training_job):
    """Build a job of a folder, with its data made beside it: `example("plain", hosts=2)`."""

    def build(name, channels=(), **options):
        source = EXAMPLES / name
        made = {}
        if channels:
            program = (source / "make_data.py").read_text()
            (tmp_path / "make_data.py").write_text(program)
            subprocess.run([sys.executable, "make_data.py"], cwd=tmp_path, check=True, timeout=100)
            made = {channel: tmp_path / "data" / channel for channel in channels}
        return training_job(script=(source / "src" / "train.py").read_text(), channels=made, **options)

    return build


def last(job, metric):
    return float(re.findall(rf"{metric}=([0-9.e-]+);", job.log())[-1])


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in EXAMPLES.glob("*/launcher.yaml")))
def test_the_folders_configuration_is_valid(folder):
    assert load(EXAMPLES / folder / "launcher.yaml").config.name == folder
    assert f"]({folder}/src/train.py)" in (EXAMPLES / "README.md").read_text()


def test_the_readme_links_every_folder():
    readme = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in EXAMPLES.iterdir() if path.is_dir() and f"]({path.name}/" not in readme] == []


@pytest.mark.slow
def test_a_plain_script_with_nothing_of_ours_trains_on_two_hosts(example):
    assert "container" not in re.findall(r"^(?:from|import) (\w+)", (EXAMPLES / "plain/src/train.py").read_text(), re.M)
    job = example("plain", ["train"], hosts=2, hyperparameters={"epochs": 3, "lr": 0.01})
    assert job.run() == {"algo-1": 0, "algo-2": 0}, job.log()
    assert last(job, "train:accuracy") > 0.9
    assert torch.load(job.opt_ml().model / "model.pt")["classes"] == [str(number) for number in range(10)]


@pytest.mark.slow
def test_a_table_is_learnt_and_its_configuration_is_nested(example):
    given = {"epochs": 30, "optimizer.learning_rate": 0.02}
    job = example("tabular", ["train", "validation"], hyperparameters=given)
    assert job.run() == {"algo-1": 0}, job.log()
    assert last(job, "validation:accuracy") > 0.9
    network = torch.jit.load(job.opt_ml().model / "model.pt")
    assert network(torch.zeros(1, 13)).shape == (1, 3)

    wrong = example("tabular", ["train", "validation"], hyperparameters={"optimizer.learning_rat": 0.02})
    assert wrong.run() == {"algo-1": 1}
    assert "unknown hyperparameter 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?" in wrong.failure()


@pytest.mark.slow
def test_two_ranks_share_seven_tar_shards(example):
    job = example("webdataset", ["train"], gpus=2, hyperparameters={"epochs": 3})
    assert job.run() == {"algo-1": 0}, job.log()
    assert last(job, "train:loss") < 1
    assert 1200 < last(job, "train:images") <= 1437  # what the rank with fewer shards can keep up with


@pytest.mark.slow
def test_c51_c55_c59_a_sharded_model_is_stopped_and_goes_on_with_another_number_of_ranks(example):
    settings = {"steps": 100_000, "save-every": 5}
    job = example("fsdp", gpus=2, hyperparameters=settings, checkpoints=True)
    job.start()
    job.wait_for("step=10 ")
    job.stop()
    assert job.wait(60) == {"algo-1": 0}, job.log()
    stopped = torch.load(job.opt_ml().model / "model.pt")
    assert stopped["layers.0.linear1.weight"].shape == (256, 64)  # whole, though each rank had half

    step = max(map(int, re.findall(r"step=(\d+) ", job.log())))
    job.opt_ml().hyperparameters.write_text(f'{{"steps": "{step + 60}"}}')
    job.environ["PATH"] = job.environ["PATH"].partition(":")[2]  # without the pretended GPUs: one rank
    assert job.run() == {"algo-1": 0}, job.log()
    assert f"resumed after step {step}" in job.log()
    assert last(job, "train:loss") < 1
