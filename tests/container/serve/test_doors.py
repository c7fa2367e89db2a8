"""The same requests through both doors: the Flask app and the ASGI application."""

import http.client
import io
import json
import re
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from torchvision.io import encode_jpeg, encode_png

from container.model import load_model, normalize
from container.serve.array_model import ArrayModel
from container.serve.plan import Machine
from container.serve.service import Service

JSON = {"Content-Type": "application/json"}


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8)).astype(np.uint8)


@pytest.fixture(scope="module")
def expected(artifact, pixels):
    """What the network itself says about `pixels`."""
    network, signature = load_model(artifact)
    with torch.inference_mode():
        return torch.softmax(network(normalize(torch.from_numpy(pixels), signature)), 1).numpy()


def probabilities(answer):
    assert answer.status == 200, answer.body
    value = json.loads(answer.body)
    return [record["probabilities"] for record in (value["predictions"] if isinstance(value, dict) else value)]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_c85_c89_ping_is_an_empty_200_on_get_and_post(door, method):
    answer = door.request(method, "/ping")
    assert (answer.status, answer.body) == (200, b"")


def test_c86_ping_is_503_with_state_and_time_until_the_model_is_there(open_door):
    answer = open_door(None).request("GET", "/ping")
    assert answer.status == 503
    body = json.loads(answer.body)
    assert body["state"] == "loading"
    assert body["elapsed_seconds"] >= 0
    assert answer.headers["retry-after"] == "1"


def test_c86_an_invocation_before_the_model_is_there_is_told_to_try_again(open_door):
    answer = open_door(None).request("POST", "/invocations", b"[]")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("encode", [encode_png, lambda image: encode_jpeg(image, quality=100)], ids=["png", "jpeg"])
@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "application/x-image"])
def test_an_image_is_answered_as_the_network_does(door, pixels, expected, encode, content_type):
    body = encode(torch.from_numpy(pixels[0])).numpy().tobytes()
    answer = door.request("POST", "/invocations", body, {"Content-Type": content_type})
    assert np.allclose(probabilities(answer), expected[:1], atol=0.02)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (lambda p: json.dumps({"instances": p.tolist()}).encode(), "application/json"),
        (lambda p: json.dumps({"instances": [{"features": row} for row in p.tolist()]}).encode(), "application/json"),
        (lambda p: json.dumps(p.tolist()).encode(), "application/json; charset=utf-8"),
        (npy, "application/x-npy"),
        (lambda p: "\n".join(",".join(map(str, row.ravel())) for row in p).encode(), "text/csv"),
        (lambda p: "\n".join(json.dumps(row.tolist()) for row in p).encode() + b"\n", "application/jsonlines"),
        (lambda p: b"\n".join(json.dumps({"instance": r.tolist()}).encode() for r in p), "application/jsonlines"),
    ],
)
def test_c93_c133_pixel_values_of_every_format_are_answered_as_the_network_does(
    door, pixels, expected, body, content_type
):
    answer = door.request("POST", "/invocations", body(pixels), {"Content-Type": content_type})
    assert np.allclose(probabilities(answer), expected, atol=1e-5)
    assert answer.headers["content-type"] == "application/json"


def test_a_bare_list_is_answered_by_a_bare_list_and_an_object_by_an_object(door, pixels):
    bare = door.request("POST", "/invocations", json.dumps(pixels[0].tolist()).encode(), JSON)
    assert isinstance(json.loads(bare.body), list)
    wrapped = door.request("POST", "/invocations", json.dumps({"instances": pixels[:1].tolist()}).encode(), JSON)
    assert list(json.loads(wrapped.body)) == ["predictions"]


@pytest.mark.parametrize("content_type", ["application/x-npy", "text/csv"])
def test_one_image_may_come_without_its_channel_or_batch_axis(door, pixels, expected, content_type):
    image = pixels[0, 0]
    body = npy(image) if content_type.endswith("npy") else ",".join(map(str, image.ravel())).encode()
    answer = door.request("POST", "/invocations", body, {"Content-Type": content_type})
    assert np.allclose(probabilities(answer), expected[:1], atol=1e-5)


@pytest.mark.parametrize("final_newline", [b"", b"\n"])
@pytest.mark.parametrize("accept", ["text/csv", "application/jsonlines"])
def test_c133_c134_k_lines_in_are_k_lines_out_without_a_newline_at_the_end(door, pixels, accept, final_newline):
    body = b"\n".join(",".join(map(str, row.ravel())).encode() for row in pixels) + final_newline
    answer = door.request("POST", "/invocations", body, {"Content-Type": "text/csv", "Accept": accept})
    lines = answer.body.split(b"\n")
    assert len(lines) == len(pixels)
    assert all(lines)


def test_the_answers_in_all_formats_hold_the_same_numbers(door, pixels, expected):
    def ask(accept):
        headers = {"Content-Type": "application/x-npy", "Accept": accept}
        answer = door.request("POST", "/invocations", npy(pixels), headers)
        assert answer.headers["content-type"] == accept
        return answer.body

    assert np.allclose(np.load(io.BytesIO(ask("application/x-npy"))), expected, atol=1e-6)
    rows = [line.split(",") for line in ask("text/csv").decode().splitlines()]
    assert [row[0] for row in rows] == ["abcdefghij"[best] for best in expected.argmax(1)]
    assert np.allclose([[float(value) for value in row[2:]] for row in rows], expected, atol=1e-6)
    record = json.loads(ask("application/jsonlines").splitlines()[0])
    assert set(record) == {"label", "score", "probabilities"}
    assert record["score"] == max(record["probabilities"])


def test_c92_without_content_type_and_accept_json_is_assumed(door, pixels, expected):
    answer = door.request("POST", "/invocations", json.dumps(pixels.tolist()).encode())
    assert np.allclose(probabilities(answer), expected, atol=1e-5)
    assert answer.headers["content-type"] == "application/json"


def test_c92_the_default_accept_comes_from_the_environment(open_door, artifact, pixels):
    door = open_door(artifact, {"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"})
    answer = door.request("POST", "/invocations", npy(pixels), {"Content-Type": "application/x-npy", "Accept": "*/*"})
    assert answer.headers["content-type"] == "text/csv"


def test_c90_c91_unknown_headers_and_any_host_are_served(door, pixels):
    headers = {
        "Content-Type": "application/x-npy",
        "Host": "model.aws.local:8080",
        "X-Amzn-SageMaker-Something-New": "1",
        "X-Amzn-SageMaker-Custom-Attributes": "tenant=1",
        "User-Agent": "AHC/2.0",
    }
    answer = door.request("POST", "/invocations", npy(pixels), headers)
    assert answer.status == 200
    assert "x-amzn-sagemaker-custom-attributes" not in answer.headers


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"x", {"Content-Type": "application/zip"}, 415, "'application/zip' is not served here"),
        (b"[]", {"Accept": "image/png"}, 400, "got"),
        (b"[[[0]*8]*8]", JSON, 400, "not JSON"),
        (b'{"inputs": []}', JSON, 400, "instances"),
        (b'{"instances": 3}', JSON, 400, "must be a list"),
        (b'{"instances": [{"x": 1}]}', JSON, 400, "instance"),
        (b'["a"]', JSON, 400, "no array of numbers"),
        (b"[]", JSON, 400, "expected pixel values of shape [1, 8, 8]"),
        (b"[[1, 2], [3, 4]]", JSON, 400, "got shape [2, 2]"),
        (npy(np.zeros((0, 1, 8, 8))), {"Content-Type": "application/x-npy"}, 400, "no image at all"),
        (npy(np.full((1, 8, 8), np.nan)), {"Content-Type": "application/x-npy"}, 400, "0 to 255"),
        (npy(np.full((1, 8, 8), 256)), {"Content-Type": "application/x-npy"}, 400, "0 to 255"),
        (b"junk", {"Content-Type": "application/x-npy"}, 400, "not npy"),
        (b"junk", {"Content-Type": "image/png"}, 400, "no image of the formats"),
        (b"", {"Content-Type": "image/png"}, 400, "no image of the formats"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, {"Content-Type": "image/png"}, 400, "PNG"),
        (b"1,2,3", {"Content-Type": "text/csv"}, 400, "64 values a CSV line"),
        (b"", {}, 400, "not JSON"),
    ],
)
def test_c94_a_bad_request_costs_only_itself_and_says_what_was_expected(door, pixels, body, headers, status, message):
    answer = door.request("POST", "/invocations", body, headers)
    assert answer.status == status
    assert message in json.loads(answer.body)["error"]
    assert len(answer.body) <= 2048
    assert door.request("POST", "/invocations", npy(pixels), {"Content-Type": "application/x-npy"}).status == 200


def test_c94_an_unknown_type_gets_the_list_of_known_ones(door):
    answer = door.request("POST", "/invocations", b"x", {"Content-Type": "application/zip"})
    assert "application/x-image" in json.loads(answer.body)["known"]


def test_c94_an_accept_that_cannot_be_met_is_406(door, pixels):
    headers = {"Content-Type": "application/x-npy", "Accept": "image/png"}
    answer = door.request("POST", "/invocations", npy(pixels), headers)
    assert answer.status == 406
    assert "text/csv" in json.loads(answer.body)["known"]


def test_a_body_over_the_limit_is_413(open_door, artifact):
    door = open_door(artifact, {"SLIPWAY_MAX_REQUEST_BYTES": "500"})
    announced = door.request("POST", "/invocations", b"x" * 501, {"Content-Length": "501"})
    assert announced.status == 413
    assert "this server takes 500" in json.loads(announced.body)["error"]
    assert door.request("POST", "/invocations", b"x" * 501).status == 413


@pytest.mark.parametrize("content_type", ["text/csv", "application/jsonlines"])
def test_c135_a_bad_line_gets_a_placeholder_where_that_is_configured_and_fails_the_request_otherwise(
    open_door, artifact, pixels, expected, content_type
):
    good = [row.ravel().tolist() for row in pixels]
    lines = [json.dumps(good[0]), '["x"]', json.dumps(good[1]), json.dumps(good), json.dumps(good[2])]
    if content_type == "text/csv":
        lines = [line.replace("[", "").replace("]", "") for line in lines]
    body, headers = "\n".join(lines).encode(), {"Content-Type": content_type, "Accept": "application/jsonlines"}
    assert open_door(artifact).request("POST", "/invocations", body, headers).status == 400
    door = open_door(artifact, {"SLIPWAY_RECORD_PLACEHOLDERS": "true"})
    records = [json.loads(line) for line in door.request("POST", "/invocations", body, headers).body.splitlines()]
    assert ["error" in record for record in records] == [False, True, False, True, False]
    assert records[1]["score"] is None
    assert np.allclose([records[number]["probabilities"] for number in (0, 2, 4)], expected, atol=1e-5)
    as_csv = door.request("POST", "/invocations", body, {**headers, "Accept": "text/csv"}).body.decode().splitlines()
    assert as_csv[1].startswith(",nan,nan")
    as_npy = door.request("POST", "/invocations", body, {**headers, "Accept": "application/x-npy"}).body
    assert np.isnan(np.load(io.BytesIO(as_npy))).all(1).tolist() == [False, True, False, True, False]
    assert door.request("POST", "/invocations", b"\n", headers).status == 400


@pytest.mark.parametrize(
    ("content_type", "bad", "messages"),
    [
        (
            "application/jsonlines",
            [b'["x"', b"[1]", b'{"a": 1}'],
            ["line 4 of the body is not JSON", "line 5: expected pixel values of shape", "line 6: a record that"],
        ),
        ("text/csv", [b"1,x", b"1"], ["row 4, field 2 of the CSV body is no number", "line 5: expected pixel values"]),
    ],
)
def test_c135_a_placeholder_says_which_line_was_bad(open_door, artifact, pixels, content_type, bad, messages):
    good = json.dumps(pixels[0].ravel().tolist()).encode()
    good = good if content_type != "text/csv" else good.strip(b"[]")
    door = open_door(artifact, {"SLIPWAY_RECORD_PLACEHOLDERS": "true"})
    headers = {"Content-Type": content_type, "Accept": "application/jsonlines"}
    answer = door.request("POST", "/invocations", b"\n".join([good, b"", good, *bad]), headers)
    records = [json.loads(line) for line in answer.body.splitlines()]
    assert ["error" in record for record in records] == [False, False, *[True] * len(bad)]
    for record, message in zip(records[2:], messages, strict=True):
        assert record["error"].startswith(message)


def test_probabilities_have_the_same_digits_in_json_and_csv(door, pixels):
    as_json, as_csv = (
        door.request("POST", "/invocations", npy(pixels), {"Content-Type": "application/x-npy", "Accept": accept}).body
        for accept in ("application/json", "text/csv")
    )
    records = json.loads(as_json)["predictions"] if as_json.startswith(b"{") else json.loads(as_json)
    for record, line in zip(records, as_csv.decode().splitlines(), strict=True):
        assert [float(field) for field in line.split(",")[1:]] == [record["score"], *record["probabilities"]]
        assert max(len(field) for field in line.split(",")) <= 15


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/absent", 404), ("GET", "/invocations", 405)])
def test_other_routes_and_methods_are_refused_as_json(door, method, path, status):
    answer = door.request(method, path)
    assert answer.status == status
    assert path in json.loads(answer.body)["error"]


@pytest.mark.parametrize("cores", [1, 8, 64])
def test_c131_execution_parameters_are_whole_numbers_whose_product_stays_under_100(open_door, artifact, cores):
    door = open_door(artifact, machine=Machine(cores, 64 * 1024**3, 0, True))
    answer = door.request("GET", "/execution-parameters")
    body = json.loads(answer.body)
    assert answer.status == 200
    assert body == {
        "MaxConcurrentTransforms": min(cores, 16),
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 6,  # SageMaker's own default: less would refuse a photograph of 2 MB
    }
    assert body["MaxConcurrentTransforms"] * body["MaxPayloadInMB"] <= 100


@pytest.mark.parametrize(
    ("columns", "seconds", "strategy"), [(30_000, 0.0, "MULTI_RECORD"), (3, 0.05, "SINGLE_RECORD")]
)
def test_c131_a_model_that_a_full_payload_would_keep_too_long_is_sent_single_records(
    open_door, tmp_path, monkeypatch, columns, seconds, strategy
):
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2, columns),)), tmp_path / "model.pt2")
    door = open_door(tmp_path)
    predict = ArrayModel.predict
    monkeypatch.setattr(ArrayModel, "predict", lambda self, batch: (time.sleep(seconds), predict(self, batch))[1])
    assert json.loads(door.request("GET", "/execution-parameters").body)["BatchStrategy"] == strategy


def test_c130_the_answer_in_each_format_is_what_a_next_stage_reads(open_door, artifact, user_model, pixels):
    stage = open_door(user_model("def predict_fn(data, model): return data"))
    for accept in ("application/json", "application/x-npy"):
        headers = {"Content-Type": "application/x-npy", "Accept": accept}
        first = open_door(artifact).request("POST", "/invocations", npy(pixels), headers)
        second = stage.request("POST", "/invocations", first.body, {"Content-Type": first.headers["content-type"]})
        assert second.status == 200


# -- the user's functions


def test_c107_the_four_functions_are_used_in_their_order(open_door, user_model):
    model = user_model("""
        def model_fn(model_dir): return model_dir
        def input_fn(data, content_type): return [data, content_type]
        def predict_fn(data, model): return [*data, model.endswith("model")]
        def output_fn(prediction, accept): return repr([*prediction, accept]), "text/plain"
    """)
    answer = open_door(model).request("POST", "/invocations", b"a,b", {"Content-Type": "text/csv", "Accept": "text/x"})
    assert answer.headers["content-type"] == "text/plain"
    assert answer.body == b"['a,b', 'text/csv', True, 'text/x']"


@pytest.mark.parametrize(
    ("sent", "given"),
    [
        ("application/json; charset=utf-8", "str application/json"),
        ("Text/CSV", "str text/csv"),
        ("application/x-jsonlines", "bytes application/x-jsonlines"),
        ("text/plain", "bytes text/plain"),
        ("", "str application/json"),
    ],
)
def test_c93_c107_json_and_csv_are_handed_over_as_text_and_the_type_as_it_was_sent(open_door, user_model, sent, given):
    code = "def transform_fn(model, data, kind, accept): return type(data).__name__ + ' ' + kind"
    door = open_door(user_model(code))
    assert door.request("POST", "/invocations", b"{}", {"Content-Type": sent}).body.decode() == given
    if given.startswith("str"):
        assert door.request("POST", "/invocations", b"\xff", {"Content-Type": sent}).status == 400


def test_functions_that_are_missing_have_the_toolkits_defaults(open_door, user_model):
    door = open_door(user_model("def predict_fn(data, model): return data * 2"))
    answer = door.request("POST", "/invocations", b"1,2\n3,4", {"Content-Type": "text/csv"})
    assert json.loads(answer.body) == [[2, 4], [6, 8]]
    answer = door.request("POST", "/invocations", b"[1, 2]", {**JSON, "Accept": "text/csv"})
    assert answer.body == b"2\n4"


def test_a_torch_module_from_model_fn_needs_no_other_function(open_door, user_model):
    door = open_door(user_model("import torch\ndef model_fn(model_dir): return torch.nn.Flatten()"))
    assert json.loads(door.request("POST", "/invocations", b"[[[1.5], [2]]]", JSON).body) == [[1.5, 2.0]]
    refused = door.request("POST", "/invocations", b'{"a": 1}', JSON)
    assert (refused.status, json.loads(refused.body)["error"]) == (400, "the model takes an array of numbers, got dict")


def test_functions_can_stand_before_or_behind_the_built_in_model(open_door, artifact, user_model, pixels, expected):
    directory = user_model("""
        import numpy, json
        def input_fn(data, content_type): return numpy.array(json.loads(data)["net_input"], dtype="float32")
        def output_fn(prediction, accept): return {"best": prediction.argmax(1).tolist()}
    """)
    for name in ("model.json", "model.safetensors"):
        (directory / name).write_bytes((artifact / name).read_bytes())
    body = json.dumps({"net_input": ((pixels / 255 - 0.5) / 0.25).tolist()}).encode()
    answer = open_door(directory).request("POST", "/invocations", body, JSON)
    assert json.loads(answer.body) == {"best": expected.argmax(1).tolist()}


def test_c105_a_handler_without_any_model_works(open_door, user_model):
    door = open_door(user_model("def predict_fn(data, model): return {'model': model, 'got': data}"))
    assert json.loads(door.request("POST", "/invocations", b'"hi"', JSON).body) == {"model": None, "got": "hi"}


@pytest.mark.parametrize(
    "function",
    [
        "raise ValueError('secret detail')",
        "import sys; sys.exit(0)",
        "1 / 0",
        "raise __import__('asyncio').CancelledError",
    ],
)
def test_c95_an_exception_in_user_code_is_500_with_an_id_and_its_trace_only_in_the_log(
    open_door, user_model, caplog, function
):
    door = open_door(user_model(f"def predict_fn(data, model):\n    {function}"))
    answer = door.request("POST", "/invocations", b"[]", JSON)
    body = json.loads(answer.body)
    assert answer.status == 500
    assert "secret" not in answer.body.decode()
    assert "Traceback" not in answer.body.decode()
    assert len(answer.body) <= 2048
    assert f"id={body['id']}" in caplog.text
    assert "Traceback" in caplog.text
    assert door.request("GET", "/ping").status == 200


def test_c96_custom_attributes_reach_the_handler_and_return_only_when_it_sets_them(open_door, user_model):
    door = open_door(
        user_model("""
        def predict_fn(data, model, context):
            if data:
                context.set_response_header("X-Amzn-SageMaker-Custom-Attributes", context.custom_attributes + ";seen")
            return context.inference_id
        """)
    )
    headers = {**JSON, "X-Amzn-SageMaker-Custom-Attributes": "a=1", "X-Amzn-SageMaker-Inference-Id": "i-7"}
    answer = door.request("POST", "/invocations", b"[1]", headers)
    assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "a=1;seen"
    assert answer.body == b"i-7"
    assert "x-amzn-sagemaker-custom-attributes" not in door.request("POST", "/invocations", b"0", headers).headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "a\r\nSet-Cookie: b"),
        ("X-A", "x" * 1025),
        ("X-A", "é"),
        ("X-A", 3),
        ("X A", "b"),
        ("Content-Length", "3"),
        ("Content-Type", "text/plain\n"),
    ],
)
def test_c96_a_header_that_would_break_the_answer_is_refused(open_door, user_model, name, value):
    door = open_door(
        user_model(
            f"def predict_fn(data, model, context):\n  context.set_response_header({name!r}, {value!r})\n  return 1"
        )
    )
    answer = door.request("POST", "/invocations", b"[]", JSON)
    assert answer.status == 500
    assert "header" in json.loads(answer.body)["error"]


@pytest.mark.parametrize("result", ["iter([b'a', 'b'])", "(piece for piece in ['a', 'b'])"])
def test_c147_a_generator_is_collected_unless_a_stream_was_asked_for(open_door, user_model, result):
    door = open_door(user_model(f"def predict_fn(data, model): return {result}"))
    answer = door.request("POST", "/invocations", b"{}", JSON)
    assert (answer.body, answer.headers["content-length"]) == (b"ab", "2")


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b'{"stream": true}', JSON), (b"{}", {**JSON, "Accept": "text/event-stream"}), (b'{"context": 1}', JSON)],
)
def test_c112_a_stream_that_was_asked_for_has_no_content_length(open_door, user_model, body, headers):
    door = open_door(
        user_model("""
        def predict_fn(data, model, context):
            context.stream = "context" in data
            return (str(n) for n in range(3))
        """)
    )
    answer = door.request("POST", "/invocations", body, headers)
    assert answer.body == b"012"
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("body", [b'{"stream": false}', b'{"not json "stream"', b'["stream"]'])
def test_c147_a_body_that_only_mentions_stream_asks_for_none(open_door, user_model, body):
    door = open_door(user_model("def transform_fn(model, data, kind, accept): return iter([data])"))
    answer = door.request("POST", "/invocations", body, JSON)
    assert (answer.body, answer.headers["content-length"]) == (body, str(len(body)))


ANYWHERE = [
    ("GET", "/ping", b"", {}),
    ("POST", "/ping", b"", {}),
    ("HEAD", "/ping", b"", {}),
    ("PUT", "/ping", b"", {}),
    ("GET", "/ping?x=1", b"", {}),
    ("GET", "/ping/", b"", {}),
    ("GET", "/invocations", b"", {}),
    ("OPTIONS", "/invocations", b"", {}),
    ("POST", "/invocations", b"[1", JSON),
    ("POST", "/invocations", b"", JSON),
    ("POST", "/invocations", b"[1]", {}),
    ("POST", "/invocations?x=1", b"[1]", JSON),
    ("POST", "/invocations/", b"[1]", JSON),
    ("POST", "/invocations", b"[1]", {"Content-Type": "application/zip"}),
    ("POST", "/invocations", b"junk", {"Content-Type": "image/png"}),
    ("POST", "/invocations", b"0," * 63 + b"0", {"Content-Type": "text/csv", "Accept": "image/png"}),
    ("POST", "/invocations", b"0," * 63 + b"0", {"Content-Type": "text/csv", "Accept": "text/csv"}),
    ("POST", "/invocations", b"0," * 63 + b"0", {"Content-Type": "text/csv", "Accept": "application/jsonlines"}),
    ("POST", "/models/x/invoke", b"[1]", JSON),
    ("GET", "/models", b"", {}),
    ("GET", "/openapi.json", b"", {}),
    ("GET", "/", b"", {}),
    ("DELETE", "/nothing%20here", b"", {}),
]


@pytest.mark.parametrize(("method", "path", "body", "headers"), ANYWHERE)
def test_the_production_server_and_flask_under_another_server_give_one_answer(
    flask_server, production_server, method, path, body, headers
):
    """Over sockets: gunicorn's short way here, waitress there. Probabilities may differ in their last digits."""
    answers = []
    for url in (flask_server, production_server):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        text = re.sub(rb"\d\.\d{3,}(e-\d+)?", b"0.0", answer.read())
        for server_s_own in ("date", "server", "connection", "content-length" if b"0.0" in text else "date"):
            found.pop(server_s_own, None)
        if "allow" in found:
            found["allow"] = sorted(found["allow"].split(", "))  # werkzeug writes a set
        answers.append((answer.status, found, text))
        connection.close()
    assert answers[0] == answers[1]


def test_an_error_of_the_server_s_own_is_a_500_and_its_trace_is_in_the_log(door, monkeypatch, caplog):
    monkeypatch.setattr(Service, "execution_parameters", lambda self: 1 / 0)
    answer = door.request("GET", "/execution-parameters")
    assert (answer.status, json.loads(answer.body)) == (500, {"error": "the server failed; the log has the reason"})
    assert "GET /execution-parameters failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
