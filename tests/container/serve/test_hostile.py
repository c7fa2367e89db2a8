"""Input that means harm, or is merely broken: never a 5xx, never a dead process, never a trace in an answer."""

import io
import json
import random
import socket

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.io import encode_jpeg, encode_png

from container.serve import codec
from container.serve.exchange import BodyTooLarge

CONTENT_TYPES = [
    "application/json",
    "text/csv",
    "application/x-npy",
    "application/jsonlines",
    "image/png",
    "image/jpeg",
]


def test_text_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(codec, "TEXT_LIMIT_BYTES", 10)
    for decode in (codec.decode_json, codec.decode_csv, codec.decode_json_lines):
        with pytest.raises(BodyTooLarge, match="11 bytes of text"):
            decode(b"1" * 11)


@pytest.fixture(scope="module")
def bodies():
    """A good body for each content type: what mutations start from."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8)).astype(np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    rows = "\n".join(",".join(map(str, row.ravel())) for row in pixels)
    picture = torch.from_numpy(pixels[0])
    return {
        "application/json": json.dumps({"instances": pixels.tolist()}).encode(),
        "text/csv": rows.encode(),
        "application/x-npy": buffer.getvalue(),
        "application/jsonlines": b"\n".join(json.dumps(row.tolist()).encode() for row in pixels),
        "image/png": encode_png(picture).numpy().tobytes(),
        "image/jpeg": encode_jpeg(picture).numpy().tobytes(),
    }


def mutate(body, random_source):
    mutated = bytearray(body)
    for _ in range(random_source.randint(1, 8)):
        position = random_source.randrange(len(mutated) or 1)
        action = random_source.randrange(4)
        if action == 0 and mutated:
            mutated[position] = random_source.randrange(256)
        elif action == 1:
            del mutated[position : position + random_source.randrange(1, 20)]
        elif action == 2:
            mutated[position:position] = random_source.randbytes(random_source.randrange(1, 20))
        else:
            mutated += mutated[:position]
    return bytes(mutated)


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_mutated_bodies_are_answered_with_200_or_a_client_error(door, bodies, content_type, seed):
    body = mutate(bodies[content_type], random.Random(seed))
    answer = door.request("POST", "/invocations", body, {"Content-Type": content_type})
    assert answer.status in (200, 400, 413), answer.body
    assert b"Traceback" not in answer.body
    assert len(answer.body) < 2048 or answer.status == 200


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=200), content_type=st.text(max_size=40), accept=st.text(max_size=60))
def test_any_body_and_any_headers_get_a_client_error_at_most(door, body, content_type, accept):
    headers = {"Content-Type": content_type, "Accept": accept}
    if not all(value.isprintable() and value.isascii() for value in headers.values()):
        return  # no HTTP server hands such a header on
    answer = door.request("POST", "/invocations", body, headers)
    assert answer.status in (200, 400, 406, 413, 415), answer.body


def test_records_that_are_wrapped_a_thousand_times_are_read_or_refused(door):
    """Each wrapper of an object is one level of JSON; the parser's own limit is 1,024."""
    body = b'{"instances":[' + b'{"data":' * 1000 + b"1" + b"}" * 1000 + b"]}"
    answer = door.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    assert (answer.status, b"expected pixel values" in answer.body) == (400, True)


def test_connections_that_never_finish_their_request_hurt_nobody_else(start_server, user_model):
    model = user_model("def predict_fn(data, model): return data")
    server = start_server(model, SAGEMAKER_MODEL_SERVER_WORKERS="1").wait_ready()
    workers = server.workers()
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    for client in idle:
        client.sendall(b"POST /invocations HTTP/1.1\r\nContent-")
    assert server.request("POST", "/invocations", b"[1]", {"Content-Type": "application/json"}).body == b"[1]"
    for client in idle:
        client.close()
    assert server.workers() == workers
