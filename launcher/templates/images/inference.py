"""Serves what train.py saved. Each function is optional; the container does what is not here."""

import io
import json
from pathlib import Path

import numpy
import torch
from network import build, to_tensor
from PIL import Image


def model_fn(model_dir):
    """Called once per process, before the first request."""
    classes = json.loads((Path(model_dir) / "model.json").read_text())["classes"]
    network = build(len(classes))
    network.load_state_dict(torch.load(Path(model_dir) / "weights.pt", weights_only=True, map_location="cpu"))
    return network.eval(), classes


def input_fn(data, content_type):
    """One image as a batch of one: a file's bytes, or its pixels as JSON, 0..255, as sample.json has them."""
    if content_type == "application/json":
        return to_tensor(Image.fromarray(numpy.array(json.loads(data), dtype=numpy.uint8)))[None]
    return to_tensor(Image.open(io.BytesIO(data)))[None]


def predict_fn(data, model):
    network, classes = model
    with torch.inference_mode():
        probabilities = network(data).softmax(1)[0]
    best = int(probabilities.argmax())
    return {"label": classes[best], "score": round(float(probabilities[best]), 6)}
