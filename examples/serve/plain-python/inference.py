"""Any callable is a model: it gets the array, and what it returns is the answer."""

import json
from pathlib import Path


def model_fn(model_dir):
    weights = json.loads((Path(model_dir) / "weights.json").read_text())
    return lambda rows: rows @ weights
