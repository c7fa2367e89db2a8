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
    command = [sys.executable, str(ROOT / "src" / "train.py"), "--epochs", "5"]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    assert "validation:accuracy=" in done.stdout

    import inference

    model = inference.model_fn(str(tmp_path))
    image = next((ROOT / "data" / "validation").glob("*/*.png"))
    answer = inference.predict_fn(inference.input_fn(image.read_bytes(), "image/png"), model)
    assert answer["label"] in model[1]
    assert 0 < answer["score"] <= 1

    pixels = inference.input_fn((ROOT / "sample.json").read_bytes(), "application/json")
    assert inference.predict_fn(pixels, model)["label"] in model[1]
