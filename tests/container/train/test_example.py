"""The example runs as it stands, is stopped well, and resumes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "train" / "helpers"


@pytest.mark.slow
def test_the_example_trains_on_two_hosts():
    answer = subprocess.run(
        [sys.executable, EXAMPLE / "run.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    losses = [float(loss) for loss in re.findall(r"train:loss=([0-9.e-]+);", answer.stdout)]
    assert len(losses) == 10
    assert losses[-1] < 0.1


@pytest.mark.slow
def test_the_example_stops_when_told_and_resumes_from_its_checkpoint(training_job):
    script = (EXAMPLE / "train.py").read_text()
    job = training_job(gpus=2, script=script, hyperparameters={"epochs": "100000"}, checkpoints=True)
    job.start()
    job.wait_for("epoch=3 ")
    job.stop()
    assert job.wait(60) == {"algo-1": 0}, job.log()
    assert (job.opt_ml().model / "model.pt").is_file()

    epoch = max(map(int, re.findall(r"epoch=(\d+) ", job.log())))
    job.opt_ml().hyperparameters.write_text(f'{{"epochs": "{epoch + 2}"}}')
    assert job.run() == {"algo-1": 0}, job.log()
    assert re.search(rf"resumed after epoch {epoch - 1}|resumed after epoch {epoch}", job.log())
    assert f"epoch={epoch + 2} " in job.log()
