import json
import time
from types import SimpleNamespace

import jsonschema
import pytest

from container.serve.emf import Settings, line
from container.serve.metrics import Metrics
from container.serve.plan import PlanError

NAMES = {"SLIPWAY_ENDPOINT_NAME": "digits", "SLIPWAY_VARIANT_NAME": "AllTraffic"}
UNITS = ["Milliseconds", "Bytes", "Percent", "Count"]
TEXT = {"type": "string", "minLength": 1, "maxLength": 1024}
# The schema of "Specification: Embedded metric format", with the units that we use.
METRIC = {"type": "object", "required": ["Name"], "properties": {"Name": TEXT, "Unit": {"enum": UNITS}}}
DIRECTIVE = {
    "type": "object",
    "required": ["Namespace", "Dimensions", "Metrics"],
    "properties": {
        "Namespace": TEXT,
        "Dimensions": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": 30,
                "items": {"type": "string", "minLength": 1, "maxLength": 250},
            },
        },
        "Metrics": {"type": "array", "minItems": 1, "maxItems": 100, "items": METRIC},
    },
}
SCHEMA = {
    "type": "object",
    "required": ["_aws"],
    "properties": {
        "_aws": {
            "type": "object",
            "required": ["Timestamp", "CloudWatchMetrics"],
            "properties": {
                "Timestamp": {"type": "integer"},
                "CloudWatchMetrics": {"type": "array", "items": DIRECTIVE},
            },
        }
    },
}


def check(document):
    """Valid, every name of the directive is a member of the root, and every metric a number."""
    jsonschema.validate(document, SCHEMA)
    for directive in document["_aws"]["CloudWatchMetrics"]:
        assert all(isinstance(document[name], str) for names in directive["Dimensions"] for name in names)
        assert all(isinstance(document[metric["Name"]], int | float) for metric in directive["Metrics"])


def test_a_line_has_what_was_counted_since_the_last_one():
    metrics = Metrics(1)
    before = metrics.figures(0)
    now = time.monotonic()
    call = SimpleNamespace(arrived=now - 4, started=now - 3, decoded=now - 2, predicted=now - 1)
    metrics.answered(call, 200)
    metrics.answered(SimpleNamespace(arrived=now, started=0, decoded=0, predicted=0), 400)
    metrics.count("/invocations", 503)
    metrics.count("/ping", 503)
    metrics.batch(3)
    settings = Settings.from_env({"SLIPWAY_EMF_SECONDS": "60", **NAMES})
    usage = [("ResidentMemory", 1e9, "Bytes"), ("DeviceUtilization", 37.0, "Percent")]
    document = json.loads(line(settings, (before, metrics.figures(0)), usage, 7))
    check(document)
    assert document["_aws"]["Timestamp"] == 7
    assert document["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["EndpointName", "VariantName"]]
    assert (document["EndpointName"], document["VariantName"]) == ("digits", "AllTraffic")
    counts = ("Invocations", "Invocation4XXErrors", "Invocation5XXErrors", "BatchSize", "DeviceUtilization")
    assert [document[name] for name in counts] == [3, 1, 1, 3, 37]
    times = ("QueueTime", "DecodeTime", "PredictTime", "EncodeTime", "Latency", "LatencyP99")
    assert [document[name] for name in times] == pytest.approx([1000, 1000, 1000, 1000, 2000, 5000], abs=100)


def test_a_line_of_an_idle_interval_has_counts_and_no_means():
    metrics = Metrics(1)
    metrics.batch(1)
    figures = metrics.figures(0)
    document = json.loads(line(Settings.from_env({"SLIPWAY_EMF_SECONDS": "5"}), (figures, figures), [], 7))
    check(document)
    assert document["Service"] == "slipway"
    assert document["Invocations"] == 0
    assert "Latency" not in document
    assert "BatchSize" not in document


@pytest.mark.parametrize("text", ["0", "x", "-1", "1.5"])
def test_an_interval_must_be_a_whole_number(text):
    with pytest.raises(PlanError, match="SLIPWAY_EMF_SECONDS='?.* must be a whole number above 0"):
        Settings.from_env({"SLIPWAY_EMF_SECONDS": text})
    assert Settings.from_env({"SLIPWAY_EMF_SECONDS": ""}) is None


def test_each_process_of_a_server_writes_a_line_an_interval_and_together_they_count_everything(
    start_server, user_model
):
    model = user_model("def predict_fn(data, model): return data")
    server = start_server(model, SLIPWAY_EMF_SECONDS="1", SAGEMAKER_MODEL_SERVER_WORKERS="2", **NAMES).wait_ready()
    for _ in range(20):
        server.request("POST", "/invocations", b"[1]", {"Content-Type": "application/json"})

    def documents():
        return [json.loads(text) for text in server.log.read_text().splitlines() if text.startswith('{"_aws"')]

    deadline = time.monotonic() + 30
    while sum(document["Invocations"] for document in documents()) < 20 or len(documents()) < 4:
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.1)
    server.stop()
    for document in documents():
        check(document)
    assert sum(document["Invocations"] for document in documents()) == 20
    assert len({document["Process"] for document in documents()}) == 2
    assert all(document["ResidentMemory"] > 1e7 for document in documents())
