"""HTTP as it comes over a connection: the short way, the ASGI way beside it, and both mixed on one connection."""

import asyncio
import json
import socket
import threading
import time
from unittest.mock import Mock

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn import Config, Server
from uvicorn.server import ServerState

from container.serve.asgi import Door
from container.serve.health import Health, State
from container.serve.load import place_of
from container.serve.plan import Machine, plan_server
from container.serve.predictor import load_predictor
from container.serve.protocol import Protocol
from container.serve.service import Service
from container.serve.worker import Worker

ECHO = "def transform_fn(model, data, kind, accept): return data"
SLEEPER = """
    import time
    def transform_fn(model, data, kind, accept):
        time.sleep(float(data.strip("[]")))
        return data
"""


@pytest.fixture
def serve(user_model):
    """Serves a handler on a socket in this process; returns the port."""
    running = []

    def start(code, keep_alive=75, **environ):
        plan = plan_server(Machine(1, 8 * 1024**3, 0, True), environ, 0)
        health = Health(1)
        service = Service(plan, health)
        service.serve(load_predictor(user_model(code), {}, place_of(plan, "cpu")))
        health.mark(health.claim(), State.READY)
        listener = socket.create_server(("127.0.0.1", 0))
        config = Config(Door(service), log_config=None, timeout_keep_alive=keep_alive, **Worker.CONFIG_KWARGS)
        server = Server(config)
        thread = threading.Thread(target=uvloop.run, args=(server.serve([listener]),))
        thread.start()
        running.append((server, thread, service))
        start.door = config.app
        return listener.getsockname()[1]

    yield start
    for server, thread, service in running:
        server.should_exit = True
        thread.join(30)
        service.stop()


class Client:
    """A connection with its answers in order."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.file = self.socket.makefile("rb")

    def send(self, *requests):
        self.socket.sendall(b"".join(requests))

    def answer(self):
        """Status, headers and body of the next answer; None at the end of the connection."""
        line = self.file.readline()
        if not line:
            return None
        headers = {}
        while (header := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode().partition(":")
            headers[name] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.file.readline(), 16):
                body += self.file.read(size)
                self.file.readline()
            self.file.readline()
        else:
            body = self.file.read(int(headers.get("content-length", 0)))
        return int(line.split()[1]), headers, body

    def close(self):
        self.file.close()
        self.socket.close()


@pytest.fixture
def connect():
    clients = []

    def connected(port):
        clients.append(Client(port))
        return clients[-1]

    yield connected
    for client in clients:
        client.close()


def post(body, path="/invocations", kind="application/json", extra=""):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
ABSENT = b"GET /absent HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_connection_is_kept_for_one_request_after_the_other(serve, connect):
    client = connect(serve(ECHO))
    for number in range(20):
        client.send(PING if number % 3 == 0 else ABSENT if number % 3 == 1 else post(b"[%d]" % number))
        status, headers, body = client.answer()
        assert (status, body) == [(200, b""), (404, body), (200, b"[%d]" % number)][number % 3]
        assert headers["content-length"] == str(len(body))
        assert "date" in headers
        assert "connection" not in headers


def test_pipelined_requests_are_answered_in_their_order(serve, connect):
    client = connect(serve(SLEEPER))
    client.send(post(b"[0.3]"), PING, post(b"[0.1]"), ABSENT, post(b"[0.0]"), post(b"[0.2]"), PING)
    answers = [client.answer() for _ in range(7)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 404, 200, 200, 200]
    assert [body for _, _, body in answers if body.startswith(b"[")] == [b"[0.3]", b"[0.1]", b"[0.0]", b"[0.2]"]
    client.send(post(b"[0]"))
    assert client.answer()[2] == b"[0]"


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_requests_may_arrive_in_any_pieces(data, pieces_port):
    kinds = data.draw(st.lists(st.sampled_from("pdcq"), min_size=1, max_size=6))
    requests, expected = [], []
    for number, kind in enumerate(kinds):
        body = b"[%d]" % number
        chunks = b"1\r\n[\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 1, body[1:])
        chunked = b"POST /invocations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
        query = post(body, "/invocations?a=b")
        requests.append({"p": PING, "d": post(body), "c": chunked, "q": query}[kind])
        expected.append(b"" if kind == "p" else body)
    stream = b"".join(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    client = Client(pieces_port)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            client.send(stream[start:end])
        assert [client.answer()[2] for _ in kinds] == expected
    finally:
        client.close()


@pytest.fixture
def pieces_port(serve):
    return serve(ECHO)


@pytest.mark.parametrize(
    "head", ["POST /invocations HTTP/1.1\r\nConnection: close\r\n", "POST /invocations HTTP/1.0\r\n"]
)
def test_a_client_that_wants_no_more_gets_its_answer_and_the_end(serve, connect, head):
    client = connect(serve(ECHO))
    client.send(head.encode() + b"Content-Length: 2\r\n\r\n[]")
    status, headers, body = client.answer()
    assert (status, headers["connection"], body) == (200, "close", b"[]")
    assert client.answer() is None


def test_a_body_is_asked_for_where_the_client_waits_to_be_asked(serve, connect):
    client = connect(serve(ECHO, SLIPWAY_MAX_REQUEST_BYTES="1000"))
    client.send(b"POST /invocations HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.answer() == (100, {}, b"")
    client.send(b"[]")
    assert client.answer()[2] == b"[]"
    client.send(b"POST /invocations HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2000\r\n\r\n")
    status, headers, _ = client.answer()
    assert (status, headers["connection"]) == (413, "close")  # the body that it did not send will not come
    assert client.answer() is None


@pytest.mark.parametrize("announced", [True, False])
def test_c97_a_body_over_the_limit_is_refused_and_the_connection_goes_on(serve, connect, announced):
    client = connect(serve(ECHO, SLIPWAY_MAX_REQUEST_BYTES="1000"))
    if announced:
        client.send(b"POST /invocations HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
    else:
        client.send(b"POST /invocations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"3e9\r\n" + b"x" * 1001)
    status, _, body = client.answer()  # before the whole of it was sent
    assert status == 413
    assert "this server takes 1000" in json.loads(body)["error"]
    client.send(b"x" * 100_000 if announced else b"\r\n5\r\nabcde\r\n0\r\n\r\n")
    client.send(post(b"[1]"))
    assert client.answer()[2] == b"[1]"


def test_a_head_request_has_no_body_and_a_post_is_a_ping_too(serve, connect):
    client = connect(serve(ECHO))
    client.send(b"HEAD /ping HTTP/1.1\r\n\r\n", b"POST /ping HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", PING)
    assert [client.answer()[0] for _ in range(3)] == [200, 200, 200]


def test_headers_reach_the_handler_in_lower_case_whatever_the_way(serve, connect):
    client = connect(serve("def predict_fn(data, model, context): return context.headers.get('x-thing')"))
    for path in ("/invocations", "/invocations?q"):
        client.send(post(b"[]", path, extra="X-Thing: aé\r\n"))
        assert client.answer()[2] == "aé".encode("latin-1").decode("latin-1").encode()
    client.send(post(b"[]", extra="X-THING: b\r\n"), post(b"[]", extra="x-thing: c\r\n"))
    assert [client.answer()[2] for _ in range(2)] == [b"b", b"c"]


def test_c112_a_stream_keeps_its_place_among_pipelined_requests(serve, connect):
    client = connect(serve("def predict_fn(data, model): return (str(n) for n in range(data['n']))"))
    client.send(post(b'{"stream": true, "n": 3}'), post(b'{"n": 2}'), PING)
    status, headers, body = client.answer()
    assert (status, headers["transfer-encoding"], body) == (200, "chunked", b"012")
    assert client.answer()[2] == b"01"
    assert client.answer()[0] == 200
    client.send(post(b'{"n": 1}'))
    assert client.answer()[2] == b"0"


def test_an_answer_larger_than_the_sockets_buffers_arrives_whole_at_a_slow_reader(serve, connect):
    client = connect(serve("def transform_fn(model, data, kind, accept): return bytes(20_000_000)"))
    client.send(post(b"{}"), post(b"{}"))
    for _ in range(2):
        assert client.answer()[2] == bytes(20_000_000)
    client.send(PING)
    assert client.answer()[0] == 200


def test_a_client_that_asks_on_without_reading_is_read_no_further(serve, connect):
    door_port = serve("def transform_fn(model, data, kind, accept): return bytes(5_000_000)")
    client = connect(door_port)
    client.socket.settimeout(2)
    sent = 0
    try:
        while sent < 10_000_000:  # a hundred thousand requests, half a terabyte of answers
            client.send(post(b"{}") * 100)
            sent += 100 * len(post(b"{}"))
    except TimeoutError:
        pass
    assert sent < 10_000_000
    other = connect(door_port)
    other.send(PING)
    assert other.answer()[0] == 200


@pytest.mark.parametrize(
    "response",
    [
        "Response(200, b'x', 'text/plain', (('a b', 'c'),))",
        "Response(200, b'x', 'text/plain', (('a', 'c\\r\\nd: e'),))",
        "Response(200, b'x', 'a\\nb')",
        "Response(200, b'x', 'text/\u20ac')",
        "Response(999, b'x')",
    ],
)
def test_c96_a_response_of_the_handler_that_would_break_the_framing_is_500(serve, connect, response):
    client = connect(
        serve(f"from container.serve.exchange import Response\ndef transform_fn(m, d, c, a): return {response}")
    )
    client.send(post(b"[]"))
    status, _, body = client.answer()
    assert status == 500
    assert "cannot be sent" in json.loads(body)["error"]
    client.send(PING)
    assert client.answer()[0] == 200


def test_a_handlers_own_status_and_headers_are_sent(serve, connect):
    code = "from container.serve.exchange import Response\ndef transform_fn(m, d, c, a):\n"
    client = connect(serve(code + "    return Response(202, b'', headers=(('X-A', 'b'),))"))
    client.send(post(b"[]"))
    status, headers, body = client.answer()
    assert (status, headers["x-a"], body) == (202, "b", b"")
    assert "content-type" not in headers


def test_an_idle_connection_is_closed_after_its_time_and_no_sooner(serve, connect):
    client = connect(serve(SLEEPER, keep_alive=1))
    for _ in range(3):
        client.send(post(b"[0.7]"))  # busy longer than idle connections may be
        assert client.answer()[0] == 200
    assert client.answer() is None


@pytest.mark.parametrize(
    ("begun", "answers"),
    [
        (b"", []),
        (b"POST /invocations HTTP/1.1\r\nHost:", [408]),
        (b"GET /absent HTTP/1.1\r\nHost:", [408]),
        (b"POST /invocations HTTP/1.1\r\nContent-Length: 10\r\n\r\n[1,", [408]),
        (b"POST /invocations?way=asgi HTTP/1.1\r\nContent-Length: 10\r\n\r\n[1,", [408]),
        (b"POST /invocations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n3\r\n", [408]),
        (b"POST /invocations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ", [408]),
        (b"POST /invocations HTTP/1.1\r\nContent-Length: 2000\r\n\r\n[1,", [413]),  # is over the limit
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

    def run(client):
        plan = plan_server(Machine(1, 8 * 1024**3, 0, True), {}, 0)
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
        protocol.data_received(b"POST /invocations HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
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


def test_a_draining_server_says_so_and_closes(serve, connect):
    client = connect(serve(ECHO))
    client.send(PING)
    assert "connection" not in client.answer()[1]
    serve.door.draining = True
    client.send(post(b"[]"))
    assert client.answer()[1]["connection"] == "close"
    assert client.answer() is None


def test_the_deadline_is_kept_for_every_request_of_a_slow_model(serve, connect):
    port = serve(SLEEPER, SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="1")
    clients = [connect(port) for _ in range(3)]
    for client in clients:
        client.send(post(b"[2]"))
    for client in clients:
        status, _, body = client.answer()
        assert (status, json.loads(body)["error"]) == (504, "no answer within 1 s")
    clients[0].send(PING)
    assert clients[0].answer()[0] == 200


@pytest.mark.parametrize("threads", ["1", "2"])
def test_c84_one_slow_request_among_quick_ones_holds_nobody_up_but_its_own_connection(serve, connect, threads):
    port = serve(SLEEPER, SLIPWAY_COMPUTE_THREADS=threads)
    slow, quick = connect(port), connect(port)
    for _ in range(50):  # the loop has learned by now that answers come at once
        quick.send(post(b"[0]"))
        quick.answer()
    slow.send(post(b"[3]"))
    began = time.monotonic()
    for _ in range(20):
        quick.send(PING)
        assert quick.answer()[0] == 200
        if threads == "2":
            quick.send(post(b"[0]"))
            assert quick.answer()[2] == b"[0]"
    assert time.monotonic() - began < 2.5  # while the slow one sleeps
    assert slow.answer()[2] == b"[3]"


def test_a_request_before_its_client_left_is_not_begun(serve, connect):
    port = serve(
        """
        import time
        seen = []
        def predict_fn(data, model):
            seen.append(data["seconds"])
            time.sleep(data["seconds"])
            return seen
        """
    )
    first, gone, last = connect(port), Client(port), connect(port)
    first.send(post(b'{"seconds": 0.5}'))
    time.sleep(0.1)
    gone.send(post(b'{"seconds": 0.25}'))
    time.sleep(0.1)
    gone.close()
    last.send(post(b'{"seconds": 0}'))
    assert first.answer()[0] == 200
    assert json.loads(last.answer()[2]) == [0.5, 0]


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
