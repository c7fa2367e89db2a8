"""With SLIPWAY_LOG_FORMAT=json every line of the server is one JSON object, whoever wrote it."""

import json

import pytest

CODE = r"""
import logging
import sys
import threading
import warnings

warnings.warn("while it is imported")
handler = logging.StreamHandler()  # as libraries have them
logging.getLogger("library").addHandler(handler)


class Odd:
    def __repr__(self):
        raise ValueError("no repr")

    def __del__(self):
        raise RuntimeError("in del")


def model_fn(model_dir):
    print("printed")
    print("to stderr", file=sys.stderr)
    for step in range(50):
        print(f"\r{step} %", end="", flush=True)
    print()
    return None


def predict_fn(data, model):
    log = logging.getLogger("library")
    print("two\nlines of", data)
    warnings.warn("two\nlines of a warning")
    log.warning("twice")
    log.warning("odd \ud800 %s", "\udcff")
    log.warning("%d items", "no number")
    log.warning("%r", Odd())
    log.warning("stack", stack_info=True)
    log.warning({"a": 1})
    log.propagate = False
    log.warning("from its own handler")
    log.propagate = True
    thread = threading.Thread(target=lambda: 1 / 0, name="mine")
    thread.start()
    thread.join()
    raise ValueError("two\nlines of an error")
"""
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("level", ["20", "40"])
def test_every_line_whoever_wrote_it_is_one_object(start_server, user_model, level):
    server = start_server(
        user_model(CODE),
        SLIPWAY_LOG_FORMAT="json",
        SAGEMAKER_CONTAINER_LOG_LEVEL=level,
        SAGEMAKER_MODEL_SERVER_WORKERS="1",
        SLIPWAY_EMF_SECONDS="3600",
    ).wait_ready()
    headers = {"Content-Type": "application/json", "traceparent": PARENT}
    assert server.request("POST", "/invocations", b"1", headers).status == 500
    server.stop()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "process", "message"} <= line.keys() for line in lines)
    said = {(line["logger"], line["level"], line["message"]) for line in lines}
    assert {
        ("stdout", "INFO", "printed"),
        ("stderr", "WARNING", "to stderr"),
        ("stdout", "INFO", "49 %"),
        ("stdout", "INFO", "two"),
        ("stdout", "INFO", "lines of 1"),
    } <= said
    assert ("stdout", "INFO", "48 %") not in said
    printed = next(line for line in lines if line["message"] == "lines of 1")
    assert printed["traceparent"] == PARENT
    errors = {line["message"]: line.get("error", "") for line in lines}
    assert errors["an exception ended the thread mine"].endswith("ZeroDivisionError: division by zero")
    ignored = next(text for message, text in errors.items() if message.startswith("Exception ignored in"))
    assert "RuntimeError: in del" in ignored
    assert next(text for message, text in errors.items() if "request failed" in message).endswith("lines of an error")
    if level == "20":
        messages = list(errors)
        assert ("stderr", "WARNING", "from its own handler") in said
        assert any("UserWarning: while it is imported" in message for message in messages)
        assert any("UserWarning: two\nlines of a warning" in message for message in messages)
        assert "odd \ud800 \udcff" in messages
        assert any(message.startswith("%d items (cannot be formatted: TypeError") for message in messages)
        assert "%r (cannot be formatted: ValueError: no repr)" in messages
        assert "in predict_fn" in next(line["stack"] for line in lines if "stack" in line)


def test_a_server_that_cannot_start_says_so_in_objects(start_server, user_model):
    server = start_server(user_model("print('before')\nraise SystemExit('no'"), SLIPWAY_LOG_FORMAT="json")
    assert server.process.wait(60) == 3
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [line["message"][:34] for line in lines if line["level"] == "ERROR"] == [
        "serve cannot start [syntax-error] "
    ]


def test_as_text_what_is_printed_is_left_alone(start_server, user_model):
    server = start_server(user_model(CODE), SAGEMAKER_MODEL_SERVER_WORKERS="1").wait_ready()
    assert server.request("POST", "/invocations", b"1", {"Content-Type": "application/json"}).status == 500
    server.stop()
    lines = server.log.read_text().splitlines()
    assert {"printed", "to stderr", "two", "lines of 1"} <= set(lines)
