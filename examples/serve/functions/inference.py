"""The four functions. Each may be left out; then the server does its part."""

import json
from pathlib import Path


def model_fn(model_dir):
    return json.loads((Path(model_dir) / "prices.json").read_text())


def input_fn(data, content_type):
    if content_type == "text/plain":
        return data.decode().split()  # JSON and CSV come as text, everything else as bytes
    return json.loads(data)["basket"]


def predict_fn(data, model):
    return sum(model[name] for name in data)


def output_fn(prediction, accept):
    if accept == "text/plain":
        return f"{prediction} coins"  # text, bytes or a JSON value: sent as the type that was asked for
    return json.dumps({"total": prediction}), "application/json"  # or with the type that it is
