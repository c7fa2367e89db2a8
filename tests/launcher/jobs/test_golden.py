"""Every golden request is one that the service takes, and each bound of the API's model in it is really looked at."""

import copy
import json
import re
from pathlib import Path

import botocore.session
import pytest
from botocore.validate import ParamValidator

from launcher.jobs.api import ApiCall
from launcher.validate import in_python, problems, service_model

FILES = sorted((Path(__file__).parent / "golden").glob("*.json"))
OPERATIONS = {
    "AlarmName": ("cloudwatch", "PutMetricAlarm"),
    "TrainingJobName": ("sagemaker", "CreateTrainingJob"),
    "TransformJobName": ("sagemaker", "CreateTransformJob"),
    "ModelName": ("sagemaker", "CreateModel"),
    "EndpointConfigName": ("sagemaker", "CreateEndpointConfig"),
    "EndpointName": ("sagemaker", "CreateEndpoint"),
    "InferenceComponentName": ("sagemaker", "CreateInferenceComponent"),
}
WRONG_TEXTS = ("", "wrong value!", "\x00", "é" * 3)


def calls_of(file):
    """The requests of a golden file; its first member says which operation each is for."""
    content = json.loads(file.read_text())
    for item in content if isinstance(content, list) else [content]:
        if item.keys() == {"operation", "request"}:
            service = "cloudwatch" if item["operation"] == "PutMetricAlarm" else "application-autoscaling"
            yield ApiCall(service, item["operation"], item["request"])
            continue
        service, operation = OPERATIONS[next(iter(item))]
        yield ApiCall(service, "UpdateEndpoint" if file.stem.startswith("update_") else operation, item)


def bounded(shapes, name, value, path=()):
    """(path, wrong value) for every bound that the model sets to a value of the request."""
    shape = shapes[name]
    yield from ((path, wrong) for wrong in wrong_values(shape, value))
    if shape["type"] == "structure":
        for key, item in value.items():
            yield from bounded(shapes, shape["members"][key]["shape"], item, (*path, key))
    elif shape["type"] == "list":
        for index, item in enumerate(value):
            yield from bounded(shapes, shape["member"]["shape"], item, (*path, index))
    elif shape["type"] == "map":
        for key, item in value.items():
            yield from bounded(shapes, shape["value"]["shape"], item, (*path, key))


def wrong_values(shape, value):
    if shape["type"] == "string":
        yield from wrong_texts(shape)
    elif shape["type"] in {"integer", "long", "float", "double"}:
        if "max" in shape:
            yield shape["max"] + 1
        if "min" in shape:
            yield shape["min"] - 1
    elif shape["type"] == "list" and "max" in shape and value and shape["max"] < 1000:
        yield [value[0]] * (shape["max"] + 1)


def wrong_texts(shape):
    if "enum" in shape:
        yield "none of the known ones"
    if "max" in shape:
        yield "x" * (shape["max"] + 1)
    if "pattern" in shape:
        pattern = re.compile(in_python(shape["pattern"]), re.DOTALL)
        yield from [text for text in WRONG_TEXTS if not pattern.fullmatch(text)][:1]


def changed(request, path, wrong):
    request = copy.deepcopy(request)
    inner = request
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = wrong
    return request


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_golden_request_is_one_that_the_service_takes(file):
    session = botocore.session.get_session()
    for call in calls_of(file):
        assert problems(call) == []
        model = session.get_service_model(call.service).operation_model(call.operation)
        assert not ParamValidator().validate(call.request, model.input_shape).has_errors()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_bound_in_a_golden_request_refuses_a_wrong_value(file):
    for call in calls_of(file):
        model = service_model(call.service)
        shape = model["operations"][call.operation]["input"]["shape"]
        wrongs = list(bounded(model["shapes"], shape, call.request))
        assert wrongs
        for path, wrong in wrongs:
            found = problems(ApiCall(call.service, call.operation, changed(call.request, path, wrong)))
            assert found, f"{call.operation} {path} takes {wrong!r}"


def test_there_are_golden_requests_of_every_operation():
    made = {call.operation for file in FILES for call in calls_of(file)}
    assert {operation for _, operation in OPERATIONS.values()} < made
    assert {"UpdateEndpoint", "RegisterScalableTarget", "PutScalingPolicy", "PutScheduledAction"} < made
