import json

import jsonschema
import numpy as np
import pytest
import torch
from openapi_spec_validator import validate

from container.model import ModelSignature, build_network, save_model
from container.serve import codec
from container.serve.app import create_app

JSON = {"Content-Type": "application/json"}
SIGNATURE = ModelSignature("convnet", ("a", "b"), 3, 64, 64, (0.5,) * 3, (0.25,) * 3)


def document(door):
    answer = door.request("GET", "/openapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    found = json.loads(answer.body)
    validate(found)
    return found


def send_examples(door, content):
    """The answer to each example of a document's request, by content type; each must be 200."""
    sent = {}
    for kind, media in content.items():
        if "example" in media:
            body = media["example"] if isinstance(media["example"], str) else json.dumps(media["example"])
            sent[kind] = door.request("POST", "/invocations", body.encode(), {"Content-Type": kind})
            assert sent[kind].status == 200, sent[kind].body
    return sent


def test_the_document_of_a_classifier_has_its_shape_and_classes_and_its_examples_are_served(door):
    invoke = document(door)["paths"]["/invocations"]["post"]
    content = invoke["requestBody"]["content"]
    assert {"image/*", "application/json", "text/csv", "application/jsonlines", "application/x-npy"} <= content.keys()
    answers = invoke["responses"]["200"]["content"]
    label = answers["application/json"]["schema"]["anyOf"][1]["items"]["properties"]["label"]
    assert label["enum"] == list("abcdefghij")
    sent = send_examples(door, content)
    assert sent.keys() == {"application/json", "text/csv", "application/jsonlines"}
    for answer in sent.values():
        jsonschema.validate(json.loads(answer.body), answers["application/json"]["schema"])
    schema = content["application/json"]["schema"]
    jsonschema.validate(content["application/json"]["example"], schema)
    jsonschema.validate(answers["application/json"]["example"], answers["application/json"]["schema"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([[0] * 7] * 8, schema)


@pytest.mark.parametrize("example", [torch.rand(2, 3), torch.ones(2, 3, dtype=torch.int64), torch.rand(1, 2, 3)])
def test_the_document_of_a_program_has_its_shapes_and_its_examples_are_served(open_door, tmp_path, example):
    free = ({0: torch.export.Dim("batch")},) if len(example) > 1 else None
    torch.export.save(torch.export.export(torch.nn.Flatten(), (example,), dynamic_shapes=free), tmp_path / "model.pt2")
    door = open_door(tmp_path)
    content = document(door)["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert content["application/json"]["example"] == example.tolist()
    assert ("text/csv" in content) == (example.ndim == 2)
    schema = content["application/json"]["schema"]
    jsonschema.validate(example.tolist(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(example[..., 1:].tolist(), schema)
    sent = send_examples(door, content)
    assert sent.keys() == content.keys() - {"application/x-npy", *codec.RECORD_TYPES}
    for answer in sent.values():
        np.testing.assert_allclose(json.loads(answer.body), torch.nn.Flatten()(example), rtol=1e-6)


def test_every_status_of_a_bad_request_is_in_the_document(door):
    responses = document(door)["paths"]["/invocations"]["post"]["responses"]
    for body, headers, status in [
        (b"[1", {}, "400"),
        (b"[1]", {"Accept": "text/html"}, "400"),
        (b"x", {"Content-Type": "text/html"}, "415"),
    ]:
        assert str(door.request("POST", "/invocations", body, {**JSON, **headers}).status) == status
        assert status in responses


def test_the_document_of_a_large_image_has_no_example_that_nobody_reads(open_door, large_artifact):
    content = document(open_door(large_artifact))["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert not any("example" in media for media in content.values())


@pytest.mark.parametrize(
    ("code", "reads", "writes"),
    [
        ("def predict_fn(data, model): return data", "application/json", "*/*"),
        ("def transform_fn(model, data, content_type, accept): return data", "*/*", "*/*"),
        ("import torch\ndef model_fn(model_dir): return torch.nn.Linear(7, 2)", "text/csv", "application/x-npy"),
    ],
)
def test_the_document_of_user_code_says_no_more_than_is_known(open_door, user_model, code, reads, writes):
    door = open_door(user_model(code))
    invoke = document(door)["paths"]["/invocations"]["post"]
    assert reads in invoke["requestBody"]["content"]
    assert send_examples(door, invoke["requestBody"]["content"]) == {}
    assert writes in invoke["responses"]["200"]["content"]


def test_while_the_model_loads_there_is_nothing_to_describe(open_door):
    answer = open_door(None).request("GET", "/openapi.json")
    assert (answer.status, json.loads(answer.body)) == (503, {"error": "the model is still loading"})


def test_the_document_of_many_models_has_their_routes(open_models):
    client = open_models.open(lambda service: create_app(service).test_client())
    found = client.get("/openapi.json").json
    validate(found)
    assert {"/models", "/models/{name}", "/models/{name}/invoke"} <= found["paths"].keys()
    assert "/invocations" not in found["paths"]


@pytest.fixture(scope="module")
def large_artifact(tmp_path_factory):
    directory = tmp_path_factory.mktemp("large")
    save_model(directory, build_network("convnet", 2, (3, 64, 64)), SIGNATURE)
    return directory
