"""Trains on the sample for a moment and asks the saved model, as the containers do."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))


def test_what_is_trained_can_be_served(tmp_path):
    variables = {
        "SM_CHANNEL_TRAIN": str(ROOT / "data" / "train"),
        "SM_CHANNEL_VALIDATION": str(ROOT / "data" / "validation"),
        "SM_MODEL_DIR": str(tmp_path),
    }
    command = [sys.executable, str(ROOT / "src" / "train.py"), "--epochs", "30"]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    assert "validation:accuracy=" in done.stdout

    import inference

    model = inference.model_fn(str(tmp_path))
    wine = [13.0, 2.0, 2.4, 19.0, 100.0, 2.3, 2.0, 0.4, 1.6, 5.0, 1.0, 2.6, 750.0]
    (probabilities,) = inference.predict_fn([wine], model)
    assert abs(probabilities.sum() - 1) < 1e-5
