"""Code as it is written for AWS's inference toolkits runs unchanged: handlers as their own pages show them."""

import json

import numpy as np
import pytest
import torch

from container.serve.handlers import HandlerError
from container.serve.load import place_of
from container.serve.plan import Machine, plan_server
from container.serve.predictor import load_predictor

JSON = {"Content-Type": "application/json"}

# "Use PyTorch with the SageMaker Python SDK", Load a Model and Get Predictions from a PyTorch Model.
PYTORCH = """
    import os
    import torch

    class Your_Model(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 1, bias=False)

    def model_fn(model_dir):
        model = Your_Model()
        with open(os.path.join(model_dir, "model.pth"), "rb") as f:
            model.load_state_dict(torch.load(f))
        return model

    def predict_fn(input_data, model):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device)
        model.eval()
        with torch.no_grad():
            return model(input_data.to(device))
"""

# The README of sagemaker-huggingface-inference-toolkit; its decoder gives a dictionary.
HUGGING_FACE = """
    def model_fn(model_dir, context=None):
        return lambda inputs, **parameters: [{"label": inputs, "score": 0.5, **parameters}]

    def predict_fn(data, model, context=None):
        inputs = data.pop("inputs", data)
        parameters = data.pop("parameters", None)
        return model(inputs, **parameters) if parameters is not None else model(inputs)
"""

# "Using Scikit-learn with the SageMaker Python SDK", Load a Model: nothing but this is required.
SCIKIT_LEARN = """
    class LogisticRegression:
        def predict(self, data):
            return data.sum(axis=1)

    def model_fn(model_dir):
        clf = LogisticRegression()
        return clf
"""

XGBOOST = """
    class Booster:
        def predict(self, data):
            raise TypeError("Expecting data to be a DMatrix object, got: ", type(data))

        def inplace_predict(self, data):
            return data.max(axis=1)

    def model_fn(model_dir):
        return Booster()
"""

# "Custom service" of multi-model-server, and what DefaultHandlerService asks its context for.
CONTEXT = """
    import json

    def transform_fn(model, data, content_type, accept, context):
        properties = context.request_processor[0].get_request_properties()
        if "refused" in data:
            context.set_response_status(code=422, phrase="Unprocessable")
        context.set_response_header(0, "X-Amzn-SageMaker-Custom-Attributes", "one=1")
        context.set_response_header("X-Other", "two")
        context.set_response_content_type(0, "application/x-mine")
        answer = [
            properties.get("Content-Type"),
            context.get_all_request_header(0)["X-Amzn-SageMaker-Inference-Id"],
            context.request_processor[0].get_request_property("X-Amzn-SageMaker-Inference-Id"),
            context.system_properties["batch_size"],
        ]
        return json.dumps(answer), accept
"""


def ask(door, value, headers=JSON):
    return door.request(
        "POST", "/invocations", value if isinstance(value, bytes) else json.dumps(value).encode(), headers
    )


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"[[1, 2], [3, 4]]", JSON),
        (b"1,2\n3,4\n", {"Content-Type": "text/csv"}),
        (None, {"Content-Type": "application/x-npy"}),
    ],
)
def test_pytorch_a_predict_fn_gets_a_tensor_where_the_model_is_a_module(open_door, user_model, tmp_path, body, headers):
    model = user_model(PYTORCH)
    torch.save({"weight": torch.tensor([[1.0, 10.0]])}, model / "model.pth")
    if body is None:
        np.save(tmp_path / "body.npy", np.array([[1, 2], [3, 4]], dtype=np.float32))
        body = (tmp_path / "body.npy").read_bytes()
    answer = ask(open_door(model), body, headers)
    assert (answer.status, json.loads(answer.body)) == (200, [[21.0], [43.0]])


def test_hugging_face_a_predict_fn_gets_the_dictionary(open_door, user_model):
    door = open_door(user_model(HUGGING_FACE))
    assert json.loads(ask(door, {"inputs": "hi", "parameters": {"k": 1}}).body) == [
        {"label": "hi", "score": 0.5, "k": 1}
    ]
    assert json.loads(ask(door, {"inputs": ["a", "b"]}).body) == [{"label": ["a", "b"], "score": 0.5}]


@pytest.mark.parametrize(("code", "answer"), [(SCIKIT_LEARN, [3, 7]), (XGBOOST, [2, 4])])
def test_scikit_learn_and_xgboost_a_model_fn_is_enough(open_door, user_model, code, answer):
    assert json.loads(ask(open_door(user_model(code)), [[1, 2], [3, 4]]).body) == answer


def test_mms_the_context_answers_what_its_handlers_ask(open_door, user_model):
    door = open_door(user_model(CONTEXT))
    answer = ask(door, [1], JSON | {"X-Amzn-SageMaker-Inference-Id": "i7"})
    assert json.loads(answer.body) == ["application/json", "i7", "i7", 1]
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/x-mine"
    assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "one=1"
    assert answer.headers["x-other"] == "two"
    assert ask(door, ["refused"], JSON | {"X-Amzn-SageMaker-Inference-Id": "i"}).status == 422


@pytest.mark.parametrize("status", ["'x'", 99, 204, 600])
def test_a_status_that_is_none_is_the_handlers_fault(open_door, user_model, status):
    code = f"def predict_fn(data, model, context):\n    context.set_response_status({status})\n    return 1"
    answer = ask(open_door(user_model(code)), [1])
    assert answer.status == 500
    assert "a handler set the response status" in json.loads(answer.body)["error"]


@pytest.mark.parametrize(
    ("returned", "words"),
    [("None", "end it with `return model`"), ("object()", "returned object, which cannot be called")],
)
def test_a_model_that_answers_nothing_is_said(user_model, returned, words):

    plan = plan_server(Machine(1, 8 * 1024**3, 0, True), {}, 0)
    with pytest.raises(HandlerError, match=words):
        load_predictor(user_model(f"def model_fn(model_dir): return {returned}"), {}, place_of(plan, "cpu"))
