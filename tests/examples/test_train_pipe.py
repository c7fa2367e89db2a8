"""examples/train/pipe runs as it stands."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "train" / "pipe"


def test_the_pipe_example_trains_on_every_streamed_image_and_leaves_a_model():
    command = [sys.executable, str(EXAMPLE / "run.py"), "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("epoch=")] == [
        ["epoch=1", "images=1437"],
        ["epoch=2", "images=1437"],
    ]
    assert "exit status 0; model directory: model.json, model.safetensors" in done.stdout
