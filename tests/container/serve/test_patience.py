"""How long a client may keep silent: between its requests, within a head, between two pieces of a body."""

import asyncio
import time
from unittest.mock import Mock

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from container.serve.asgi import Door
from container.serve.health import Health
from container.serve.load import place_of
from container.serve.plan import Machine, plan_server
from container.serve.predictor import load_predictor
from container.serve.protocol import Protocol
from container.serve.service import Service
from container.serve.worker import Worker

ECHO = "def transform_fn(model, data, kind, accept): return data"
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"


def post(body, path="/invocations", kind="application/json"):
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


@pytest.mark.parametrize(
    ("begun", "answers"),
    [
        (b"", []),
        (b"POST /invocations HTTP/1.1\r\nHost:", [408]),
        (b"GET /absent HTTP/1.1\r\nHost:", [408]),
        (b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n[1,", [408]),
        (b"POST /invocations?way=asgi HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n[1,", [408]),
        (b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n3\r\n", [408]),
        (b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ", [408]),
        (b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n[1,", [413]),  # is over the limit
        (post(b"[1]") + b"POST /invocations HTTP/1.1\r\n", [200, 408]),
    ],
)
def test_a_client_that_sends_no_more_is_given_up(serve, connect, monkeypatch, begun, answers):
    monkeypatch.setattr("container.serve.protocol.RECEIVE_SECONDS", 0.5)
    client = connect(serve(ECHO, keep_alive=1, SLIPWAY_MAX_REQUEST_BYTES="1000"))
    client.send(begun)
    for status in answers:
        assert client.answer()[0] == status
    assert client.answer() is None


class Clock:
    """An event loop whose time goes on when it is told to."""

    def __init__(self, loop):
        self._loop = loop
        self._now = 0.0
        self._timers = []

    def __getattr__(self, name):
        return getattr(self._loop, name)

    def time(self):
        return self._now

    def call_later(self, seconds, callback):
        self._timers.append((self._now + seconds, callback))
        return Mock()

    def advance(self, seconds):
        for _ in range(seconds):
            self._now += 1
            due = [callback for when, callback in self._timers if when <= self._now]
            self._timers = [timer for timer in self._timers if timer[0] > self._now]
            for callback in due:
                callback()


@pytest.fixture
def connection(user_model):
    """Runs what a client does with a connection whose clock it sets."""

    def run(client, **environ):
        plan = plan_server(Machine(1, 8 * 1024**3, 0, True), environ, 0)
        service = Service(plan, Health(1))
        service.serve(load_predictor(user_model(GATED), {}, place_of(plan, "cpu")))

        async def main():
            config = Config(Door(service), log_config=None, timeout_keep_alive=75, **Worker.CONFIG_KWARGS)
            clock = Clock(asyncio.get_running_loop())
            transport = Mock()
            transport.is_closing.side_effect = lambda: transport.close.called
            protocol = Protocol(config, ServerState(), {}, _loop=clock)
            protocol.connection_made(transport)
            await client(protocol, clock, transport)

        asyncio.run(main())
        service.stop()

    return run


GATED = """
    import os, time
    def transform_fn(model, data, kind, accept):
        while data and not os.path.exists(data):
            time.sleep(0.01)
        return data
"""


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def written(transport):
    return b"".join(call.args[0] for call in transport.write.call_args_list)


def test_a_body_may_take_as_long_as_it_likes_but_not_pause(connection):
    async def client(protocol, clock, transport):
        protocol.data_received(b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(20):
            clock.advance(59)
            protocol.data_received(b"1\r\n7" if number % 2 else b"\r\n" * bool(number))
            assert not transport.close.called
        clock.advance(136)  # the timer may have been set for an idle connection
        assert transport.close.called
        assert written(transport).startswith(b"HTTP/1.1 408")

    connection(client)


def test_a_head_may_not_take_long_in_however_many_pieces(connection):
    async def client(protocol, clock, transport):
        clock.advance(70)
        for byte in PING[:14]:
            protocol.data_received(bytes([byte]))
            clock.advance(9)
        assert transport.close.called
        assert written(transport).startswith(b"HTTP/1.1 408")

    connection(client)


@pytest.mark.parametrize("head", [b"POST /invocations HTTP/1.1", b"POST /ping HTTP/1.1"])
def test_a_client_that_was_answered_before_its_body_had_come_is_idle_once_it_has(connection, head):
    async def client(protocol, clock, transport):
        protocol.data_received(head + b"\r\nHost: x\r\nContent-Length: 2000\r\n\r\n")
        await until(lambda: b"\r\n\r\n" in written(transport))
        protocol.data_received(bytes(1000))
        protocol.data_received(bytes(1000))
        clock.advance(74)
        assert not transport.close.called
        clock.advance(76)
        assert transport.close.called
        assert b"408" not in written(transport)

    connection(client, SLIPWAY_MAX_REQUEST_BYTES="1000")


@pytest.mark.parametrize("path", ["/invocations", "/invocations?way=asgi"])
@pytest.mark.parametrize("half", [PING[:-10], post(b"[1]")[:-1]])
def test_a_client_that_waits_for_an_answer_need_not_send_on(connection, tmp_path, path, half):
    gate = tmp_path / "gate"

    async def client(protocol, clock, transport):
        protocol.data_received(post(str(gate).encode(), path, "text/plain"))
        protocol.data_received(half)
        clock.advance(3600)
        assert not transport.close.called
        gate.touch()
        await until(lambda: b"gate" in written(transport))
        clock.advance(59)
        assert not transport.close.called
        clock.advance(80)
        assert transport.close.called
        assert b"HTTP/1.1 408" in written(transport)

    connection(client)


def test_a_conversation_is_not_closed_where_an_idle_connection_would_be(serve, connect):
    client = connect(serve("def bidirectional_stream_fn(messages, model): yield from messages", keep_alive=1))
    client.send(PING)
    client.answer()
    client.send(
        b"GET /invocations-bidirectional-stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert client.answer()[0] == 101
    time.sleep(2.5)
    client.send(b"\x81\x85\0\0\0\0hello")  # a text frame, masked with zeros
    assert client.file.read(7) == b"\x81\x05hello"
