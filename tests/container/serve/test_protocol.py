"""HTTP as it comes over a connection: the short way, the ASGI way beside it, and both mixed on one connection."""

import json
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ECHO = "def transform_fn(model, data, kind, accept): return data"
SLEEPER = """
    import time
    def transform_fn(model, data, kind, accept):
        time.sleep(float(data.strip("[]")))
        return data
"""


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
def test_requests_may_arrive_in_any_pieces(data, pieces_port, connect):
    kinds = data.draw(st.lists(st.sampled_from("pdcq"), min_size=1, max_size=6))
    requests, expected = [], []
    for number, kind in enumerate(kinds):
        body = b"[%d]" % number
        chunks = b"1\r\n[\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 1, body[1:])
        chunked = b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
        query = post(body, "/invocations?a=b")
        requests.append({"p": PING, "d": post(body), "c": chunked, "q": query}[kind])
        expected.append(b"" if kind == "p" else body)
    stream = b"".join(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    client = connect(pieces_port)
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
    "head", ["POST /invocations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", "POST /invocations HTTP/1.0\r\n"]
)
def test_a_client_that_wants_no_more_gets_its_answer_and_the_end(serve, connect, head):
    client = connect(serve(ECHO))
    client.send(head.encode() + b"Content-Length: 2\r\n\r\n[]")
    status, headers, body = client.answer()
    assert (status, headers["connection"], body) == (200, "close", b"[]")
    assert client.answer() is None


def test_a_body_is_asked_for_where_the_client_waits_to_be_asked(serve, connect):
    client = connect(serve(ECHO, SLIPWAY_MAX_REQUEST_BYTES="1000"))
    client.send(b"POST /invocations HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.answer() == (100, {}, b"")
    client.send(b"[]")
    assert client.answer()[2] == b"[]"
    client.send(b"POST /invocations HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2000\r\n\r\n")
    status, headers, _ = client.answer()
    assert (status, headers["connection"]) == (413, "close")  # the body that it did not send will not come
    assert client.answer() is None


@pytest.mark.parametrize("announced", [True, False])
def test_c97_a_body_over_the_limit_is_refused_and_the_connection_goes_on(serve, connect, announced):
    client = connect(serve(ECHO, SLIPWAY_MAX_REQUEST_BYTES="1000"))
    if announced:
        client.send(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    else:
        client.send(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"3e9\r\n" + b"x" * 1001
        )
    status, _, body = client.answer()  # before the whole of it was sent
    assert status == 413
    assert "this server takes 1000" in json.loads(body)["error"]
    client.send(b"x" * 100_000 if announced else b"\r\n5\r\nabcde\r\n0\r\n\r\n")
    client.send(post(b"[1]"))
    assert client.answer()[2] == b"[1]"


def test_a_head_request_has_no_body_and_a_post_is_a_ping_too(serve, connect):
    client = connect(serve(ECHO))
    client.send(
        b"HEAD /ping HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", PING
    )
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
    first, gone, last = connect(port), connect(port), connect(port)
    first.send(post(b'{"seconds": 0.5}'))
    time.sleep(0.1)
    gone.send(post(b'{"seconds": 0.25}'))
    time.sleep(0.1)
    gone.close()
    last.send(post(b'{"seconds": 0}'))
    assert first.answer()[0] == 200
    assert json.loads(last.answer()[2]) == [0.5, 0]
