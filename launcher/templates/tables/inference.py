"""Serves what train.py saved. Each function is optional; the container decodes CSV, JSON and npy, and encodes them."""

import json
from pathlib import Path

import torch
from network import build


def model_fn(model_dir):
    """Called once per process, before the first request."""
    shape = json.loads((Path(model_dir) / "model.json").read_text())
    network = build(shape["columns"], shape["classes"])
    network.load_state_dict(torch.load(Path(model_dir) / "weights.pt", weights_only=True))
    return network.eval()


def predict_fn(data, model):
    """Class probabilities of each row: [B, columns] to [B, classes]."""
    features = torch.as_tensor(data, dtype=torch.float32)
    with torch.inference_mode():
        return model(features).softmax(1).numpy()
