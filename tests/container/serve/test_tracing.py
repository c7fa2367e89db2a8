import json
import re

import pytest

from container.serve.tracing import Trace, log_fields, trace_of, working_on

JSON = {"Content-Type": "application/json"}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
AMZN = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
SHOUTING = """
    import logging

    def predict_fn(data, model, context):
        logging.getLogger("user").warning("handler line")
        if data == "fail":
            raise ValueError("on purpose")
        return [context.trace.traceparent, context.trace.amzn_trace_id, context.trace.trace_id]
"""


@pytest.mark.parametrize(
    ("traceparent", "accepted"),
    [
        (PARENT, True),
        (PARENT.replace("00-", "cc-", 1) + "-what-the-future-brings", True),
        (PARENT.replace("00-", "cc-", 1), True),
        (PARENT + "-more", False),
        (PARENT.replace("00-", "ff-", 1), False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE_ID}-{'0' * 16}-01", False),
        (PARENT.upper(), False),
        (PARENT[:-1], False),
        (PARENT + "\n", False),
        (f"00-{TRACE_ID[:-1]}g-00f067aa0ba902b7-01", False),
        ("", False),
    ],
)
def test_a_traceparent_is_taken_as_the_standard_says_or_ignored(traceparent, accepted):
    trace = trace_of({"traceparent": traceparent})
    assert trace == (Trace(traceparent) if accepted else Trace())
    assert trace.trace_id == (TRACE_ID if accepted else "")


@pytest.mark.parametrize("value", ["", "Root=1", "Root=1-5759e988-bd862e3fe1be46a99427279", f"{AMZN} x", f"{AMZN}\n"])
def test_an_amazon_trace_id_that_is_malformed_is_ignored(value):
    assert trace_of({"x-amzn-trace-id": value}) == Trace()


def test_an_amazon_trace_id_gives_the_trace_id_where_no_traceparent_does():
    assert trace_of({"x-amzn-trace-id": AMZN}).trace_id == "5759e988bd862e3fe1be46a994272793"
    assert trace_of({"x-amzn-trace-id": AMZN, "traceparent": PARENT}).trace_id == TRACE_ID


def test_a_thread_that_works_on_no_request_logs_no_trace():
    with working_on({"traceparent": PARENT}):
        assert log_fields() == {"trace_id": TRACE_ID, "traceparent": PARENT}
    assert log_fields() == {}


def test_what_sagemaker_sends_about_a_request_is_in_its_log_lines():
    sent = {
        "x-amzn-sagemaker-inference-id": "7",
        "x-amzn-sagemaker-custom-attributes": "a=1; b=2",
        "x-amzn-sagemaker-target-model": "cats.tar.gz",
        "x-amzn-sagemaker-target-variant": "blue",
        "x-amzn-sagemaker-target-container-hostname": "second",
        "authorization": "secret",
    }
    with working_on(sent):
        assert log_fields() == {
            "inference_id": "7",
            "custom_attributes": "a=1; b=2",
            "target_model": "cats.tar.gz",
            "target_variant": "blue",
            "target_container": "second",
        }
    with working_on({"x-amzn-sagemaker-inference-id": "7\x1b[2J"}):  # nobody else's terminal is written to
        assert log_fields() == {}


def test_a_handler_reads_the_trace_from_its_context(open_door, user_model):
    door = open_door(user_model(SHOUTING))
    answer = door.request("POST", "/invocations", b"1", {**JSON, "traceparent": PARENT, "X-Amzn-Trace-Id": AMZN})
    assert json.loads(answer.body) == [PARENT, AMZN, TRACE_ID]
    assert json.loads(door.request("POST", "/invocations", b"1", {**JSON, "traceparent": "00-1-2-3"}).body) == [""] * 3


def test_every_line_about_a_request_has_its_trace_in_json_and_every_line_is_an_object(start_server, user_model):
    server = start_server(user_model(SHOUTING), SLIPWAY_LOG_FORMAT="json", SAGEMAKER_MODEL_SERVER_WORKERS="1")
    server.wait_ready()
    headers = {**JSON, "traceparent": PARENT, "X-Amzn-Trace-Id": AMZN, "X-Amzn-SageMaker-Inference-Id": "7"}
    assert server.request("POST", "/invocations", b'"fail"', headers).status == 500
    assert server.request("POST", "/invocations", b"1", JSON).status == 200
    server.stop()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "process", "message"} <= line.keys() for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    traced, bare = (line for line in lines if line["message"] == "handler line")
    assert (traced["trace_id"], traced["traceparent"], traced["amzn_trace_id"]) == (TRACE_ID, PARENT, AMZN)
    assert (traced["logger"], traced["level"]) == ("user", "WARNING")
    assert "trace_id" not in bare, "the next request on the same thread has none"
    failed = next(line for line in lines if line["message"].startswith("request failed"))
    assert (failed["traceparent"], failed["inference_id"]) == (PARENT, "7")
    assert "ValueError: on purpose" in failed["error"]


def test_lines_of_a_stream_have_its_trace_in_text(start_server, user_model):
    model = user_model("""
        import logging

        def predict_fn(data, model, context):
            context.stream = True
            return pieces()

        def pieces():
            logging.getLogger("user").warning("streaming")
            yield b"a"
    """)
    server = start_server(model, SAGEMAKER_MODEL_SERVER_WORKERS="1").wait_ready()
    assert server.request("POST", "/invocations", b"1", {**JSON, "traceparent": PARENT}).body == b"a"
    server.stop()
    line = next(line for line in server.log.read_text().splitlines() if "streaming" in line)
    assert line.endswith(f"streaming trace_id={TRACE_ID} traceparent={PARENT}")
