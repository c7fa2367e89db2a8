"""Bidirectional streaming, over real WebSockets to a real server."""

import contextlib
import json
import os
import signal
import socket
import time

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

ONE_PROCESS = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
PATH = "/invocations-bidirectional-stream"
HANDLER = """
    import time
    from container.serve.exchange import BadRequest

    def bidirectional_stream_fn(messages, model, context):
        yield "hello " + context.headers.get("x-amzn-sagemaker-custom-attributes", "")
        try:
            for message in messages:
                if message == "twice":
                    yield "one"
                    yield "two"
                elif message == "raise":
                    raise ValueError("secret")
                elif message == "refuse":
                    raise BadRequest("no such language: é")
                elif message == "exit":
                    raise SystemExit(3)
                elif message == "list":
                    yield ["a list"]
                elif message == "end":
                    return
                elif message == "busy":
                    time.sleep(1.5)
                    yield "done"
                elif message == "count":
                    for number in range(1_000_000):
                        yield str(number)
                else:
                    yield message
            yield "bye"
        finally:
            print("CLEANED UP", flush=True)

    def predict_fn(data, model):
        return data
"""


@pytest.fixture(scope="module")
def server(shared_server):
    return shared_server(HANDLER, **ONE_PROCESS)


def open_socket(server, path=PATH, **keywords):
    return connect(f"ws://127.0.0.1:{server.port}{path}", open_timeout=20, max_size=None, **keywords)


def talk(server, *said):
    """What one conversation hears, up to the close: the messages, then code and reason."""
    with open_socket(server) as client:
        assert client.recv(20).startswith("hello")
        heard = []
        try:
            for message in said:
                client.send(message)
            while True:
                heard.append(client.recv(20))
        except ConnectionClosed as closed:
            return heard, closed.rcvd.code, closed.rcvd.reason


def test_text_and_binary_go_both_ways_at_the_handler_s_own_pace(server):
    with open_socket(server, additional_headers={"X-Amzn-SageMaker-Custom-Attributes": "you"}) as client:
        assert client.recv(20) == "hello you"
        for message in ("a text, é", b"\x00\xff bytes", "", b"", "x" * 1_000_000, bytes(2_000_000)):
            client.send(message)
            assert client.recv(20) == message
        client.send("twice")
        assert [client.recv(20), client.recv(20)] == ["one", "two"]


def test_a_message_in_several_frames_is_one_message(server):
    with open_socket(server) as client:
        client.recv(20)
        client.send(["ab", "cd", "ef"])
        assert client.recv(20) == "abcdef"
        client.send([b"12", b"34"])
        assert client.recv(20) == b"1234"


def test_pings_are_answered_also_while_the_handler_is_busy(server):
    with open_socket(server) as client:
        client.recv(20)
        client.send("busy")
        assert client.ping().wait(20)
        assert client.recv(20) == "done"


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        ("end", 1000, ""),
        ("raise", 1011, "the handler failed; the log says how"),
        ("exit", 1011, "the handler failed; the log says how"),
        ("refuse", 1008, "no such language: é"),
        ("list", 1011, "bidirectional_stream_fn yielded list; yield str or bytes"),
    ],
)
def test_how_a_conversation_ended_is_in_its_close_code_and_ends_no_other(server, said, code, reason):
    with open_socket(server) as other:
        other.recv(20)
        assert talk(server, "first", said) == (["first"], code, reason)
        other.send("still here")
        assert other.recv(20) == "still here"
    assert "secret" in server.log.read_text() or said != "raise"


def test_a_client_that_says_goodbye_is_the_end_of_the_handler_s_messages(server):
    before = server.log.read_text().count("CLEANED UP")
    with open_socket(server) as client:
        client.recv(20)
        client.close()
    wait_for(lambda: server.log.read_text().count("CLEANED UP") > before)


def test_a_client_that_leaves_without_a_word_ends_a_handler_that_still_sends(server):
    before = server.log.read_text().count("CLEANED UP")
    with open_socket(server) as client:
        client.recv(20)
        client.send("count")
        client.recv(20)
        client.socket.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: server.log.read_text().count("CLEANED UP") > before)


def test_a_message_over_the_limit_closes_the_connection_with_1009(server):
    with open_socket(server, compression=None) as client:
        client.recv(20)
        with contextlib.suppress(ConnectionClosed, OSError):  # the server hangs up before all is sent
            client.send(bytes(26 * 1024 * 1024))
        with pytest.raises((ConnectionClosed, OSError)):
            client.recv(20)
        closed = client.protocol.close_rcvd
        assert closed is None or closed.code == 1009  # a reset may have swallowed the frame
    assert talk(server, "end") == ([], 1000, "")


def test_requests_and_ping_are_answered_beside_conversations(server):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_socket(server)) for _ in range(8)]
        for client in clients:
            client.recv(20)
            client.send("busy")
        assert server.request("GET", "/ping").status == 200
        assert server.request("POST", "/invocations", b"[1]", {"Content-Type": "application/json"}).body == b"[1]"
        assert [client.recv(30) for client in clients] == ["done"] * 8


def test_more_conversations_than_there_may_be_are_503(server):
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(open_socket(server)).recv(20)
        with pytest.raises(InvalidStatus) as raised:
            stack.enter_context(open_socket(server))
        assert raised.value.response.status_code == 503
        assert raised.value.response.headers["Retry-After"] == "1"
        assert "64 conversations are held already" in raised.value.response.body.decode()


@pytest.mark.parametrize("path", ["/invocations", "/else", "/ping"])
def test_a_websocket_anywhere_else_is_404(server, path):
    with pytest.raises(InvalidStatus) as raised, open_socket(server, path):
        pass
    assert raised.value.response.status_code == 404
    assert json.loads(raised.value.response.body) == {"error": f"nothing is streamed at '{path}'"}


def test_the_path_without_a_websocket_is_404(server):
    assert server.request("GET", PATH).status == 404


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


ASYNC_HANDLER = """
    import asyncio

    async def bidirectional_stream_fn(messages, model):
        heard = []
        async def listen():
            async for message in messages:
                heard.append(message)
        listening = asyncio.create_task(listen())
        for tick in range(3):       # on its own, whatever the client says
            await asyncio.sleep(0.05)
            yield f"tick {tick}"
        await listening
        yield "bye, " + " ".join(heard)
"""


def test_an_async_handler_hears_and_speaks_at_the_same_time_and_a_stop_lets_it_finish(start_server, user_model):
    server = start_server(user_model(ASYNC_HANDLER), **ONE_PROCESS).wait_ready()
    with open_socket(server) as client:
        assert [client.recv(20) for _ in range(3)] == ["tick 0", "tick 1", "tick 2"]
        client.send("a")
        client.send("b")
        assert client.ping().wait(20)  # both have been read
        os.kill(server.process.pid, signal.SIGTERM)
        assert client.recv(20) == "bye, a b"
        with pytest.raises(ConnectionClosed) as raised:
            client.recv(20)
        assert (raised.value.rcvd.code, raised.value.rcvd.reason) == (1012, "the server restarts")
    assert server.process.wait(30) == 0


def test_a_model_without_the_function_takes_no_websocket(start_server, user_model):
    server = start_server(user_model("def predict_fn(data, model): return data"), **ONE_PROCESS).wait_ready()
    with pytest.raises(InvalidStatus) as raised, open_socket(server):
        pass
    assert raised.value.response.status_code == 404
    assert json.loads(raised.value.response.body) == {"error": "this model has no bidirectional_stream_fn"}
    assert server.ping() == 200


def test_while_the_model_loads_a_websocket_is_503_and_a_function_that_yields_nothing_is_1011(start_server, user_model):
    code = "import time; time.sleep(3)\ndef bidirectional_stream_fn(messages, model): return 'no iterator'"
    server = start_server(user_model(code), **ONE_PROCESS)
    wait_for(lambda: server.ping() == 503)
    with pytest.raises(InvalidStatus) as raised, open_socket(server):
        pass
    assert raised.value.response.status_code == 503
    server.wait_ready()
    answer = server.request("POST", "/invocations", b"[1]", {"Content-Type": "application/json"})
    assert (answer.status, b"bidirectional streams alone" in answer.body) == (404, True)
    with open_socket(server) as client, pytest.raises(ConnectionClosed) as raised:
        client.recv(20)
    assert raised.value.rcvd.reason == "bidirectional_stream_fn returned str; it must yield its answers"
