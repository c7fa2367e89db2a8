"""What waits in memory is bounded by its bytes, too."""

import gc
import json
import time

import pytest

from container.serve.call import Call
from container.serve.exchange import Request
from container.serve.plan import Machine, plan_server

GATED = """
    import os, time
    def transform_fn(model, data, kind, accept):
        deadline = time.monotonic() + 60
        while len(data) < 1000 and not os.path.exists(data) and time.monotonic() < deadline:
            time.sleep(0.01)
        return str(len(data))
"""
BOUND = 3_000_000
BODY = bytes(1_400_000)  # two fit, three do not


def post(body, path="/invocations"):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def gated(serve, connect, tmp_path):
    """A server whose only thread is busy until there is a gate; the port, the gate, and how many bytes wait."""
    port, gate = serve(GATED, SLIPWAY_MAX_WAITING_BYTES=str(BOUND)), tmp_path / "gate"
    first = connect(port)
    first.send(post(str(gate).encode()))
    yield port, gate, lambda: serve.door.waiting.bytes
    gate.touch()
    assert first.answer()[0] == 200


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("path", ["/invocations", "/invocations?way=asgi"])
def test_a_body_that_is_too_much_beside_those_that_wait_is_503_and_they_are_answered(gated, connect, path):
    port, gate, held = gated
    waiting = [connect(port), connect(port)]
    for client in waiting:
        client.send(post(BODY, path))
    wait_until(lambda: held() == 2 * len(BODY))
    refused, small = connect(port), connect(port)
    refused.send(post(BODY, path))
    status, headers, body = refused.answer()
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(body) == {"error": f"{2 * len(BODY)} bytes of other requests wait already; try again"}
    small.send(post(b"/"))
    refused.send(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")  # the rest of its body was read and dropped
    assert refused.answer()[0] == 200
    gate.touch()
    assert [client.answer()[::2] for client in (*waiting, small)] == [(200, b"1400000")] * 2 + [(200, b"1")]
    assert held() == 0
    refused.send(post(BODY, path))
    assert refused.answer()[0] == 200


@pytest.mark.parametrize("path", ["/invocations", "/invocations?way=asgi"])
def test_a_client_that_leaves_makes_room_before_its_turn_comes(gated, connect, path):
    port, gate, held = gated
    leaving = [connect(port) for _ in range(3)]
    for client in leaving[:2]:
        client.send(post(BODY, path))
    leaving[2].send(post(BODY, path)[:100_000])
    wait_until(lambda: held() >= 2 * len(BODY))
    for client in leaving:
        client.close()
    wait_until(lambda: held() == 0)
    gate.touch()


def test_one_body_alone_is_never_too_much(gated, connect):
    port, gate, _ = gated
    client = connect(port)
    client.send(post(bytes(2 * BOUND)))
    gate.touch()
    assert client.answer()[::2] == (200, b"6000000")


@pytest.fixture
def no_bodies():
    """Waits until no call holds a body any more; the garbage collector does not help."""
    gc.collect()
    gc.disable()
    yield lambda: wait_until(lambda: not any(type(each) is Call and each.request.body for each in gc.get_objects()))
    gc.enable()


@pytest.mark.parametrize("path", ["/invocations", "/invocations?way=asgi"])
def test_an_idle_connection_holds_nothing_of_its_last_request(serve, connect, no_bodies, path):
    client = connect(serve("def transform_fn(model, data, kind, accept): return str(len(data))"))
    client.send(post(BODY, path))
    assert client.answer()[2] == b"1400000"
    no_bodies()


@pytest.mark.parametrize("path", ["/invocations", "/invocations?way=asgi"])
def test_nothing_is_held_of_a_request_whose_client_left_while_it_was_computed(
    serve, connect, no_bodies, tmp_path, path
):
    began, gate = tmp_path / "began", tmp_path / "gate"
    code = f"""
        import pathlib, time
        def transform_fn(model, data, kind, accept):
            pathlib.Path({str(began)!r}).touch()
            while not pathlib.Path({str(gate)!r}).exists():
                time.sleep(0.01)
            return ""
    """
    client = connect(serve(code))
    client.send(post(BODY, path))
    wait_until(began.exists)
    client.close()
    wait_until(lambda: serve.door.waiting.bytes == 0)
    gate.touch()
    no_bodies()


def test_a_call_that_nobody_waits_for_lets_go_of_its_body_unless_it_has_begun():
    waiting, begun = (Call(Request("POST", "/invocations", body=b"abc"), print) for _ in range(2))
    begun.started = 1.0
    for call in (waiting, begun):
        call.cancel()
        assert call.cancelled
    assert (waiting.request.body, begun.request.body) == (b"", b"abc")


def test_the_bound_is_an_eighth_of_the_memory_and_can_be_set():
    machine = Machine(cores=2, memory_bytes=8 * 1024**3, gpus=0, shm_writable=True)
    assert plan_server(machine, {}, 0).max_waiting_bytes == 512 * 1024**2
    assert plan_server(machine, {"SLIPWAY_MAX_WAITING_BYTES": "1000"}, 0).max_waiting_bytes == 1000
