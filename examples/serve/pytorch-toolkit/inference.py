"""Code as it is written for AWS's PyTorch inference container, unchanged: its names, its context, its tuple answers."""

import json
import os

import torch


def model_fn(model_dir, context):
    properties = context.system_properties
    gpu = properties.get("gpu_id")
    device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
    model = torch.nn.Linear(3, 2)
    model.load_state_dict(torch.load(os.path.join(model_dir, "model.pth"), map_location=device, weights_only=True))
    return model.to(device).eval()


def input_fn(request_body, request_content_type):
    if request_content_type == "text/csv":  # JSON and CSV come as text, everything else as bytes
        return torch.tensor([[float(field) for field in line.split(",")] for line in request_body.splitlines()])
    assert request_content_type == "application/x-jsonlines"
    rows = [json.loads(line) for line in request_body.decode("utf-8").splitlines()]
    return torch.tensor(rows, dtype=torch.float32)


def predict_fn(input_object, model):
    with torch.no_grad():
        return model(input_object)


def output_fn(predictions, response_content_type, context):
    name = context.get_request_header(0, "X-Amzn-SageMaker-Inference-Id")
    body = {"answer_to": name, "scores": predictions.tolist()}
    return json.dumps(body), "application/json"
