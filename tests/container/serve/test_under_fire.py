"""Clients that are slow, silent, gone or too many: each costs its own connection, and nobody else anything."""

import contextlib
import http.client
import json
import resource
import socket
import threading
import time

import pytest

JSON = {"Content-Type": "application/json"}
GATED = """
    import os, time
    def predict_fn(data, model):
        deadline = time.monotonic() + 60
        while isinstance(data, str) and not os.path.exists(data) and time.monotonic() < deadline:
            time.sleep(0.01)
        return data
"""


@pytest.fixture(scope="module")
def server(shared_server):
    return shared_server(GATED, SAGEMAKER_MODEL_SERVER_WORKERS="1", SLIPWAY_COMPUTE_THREADS="1", SLIPWAY_MAX_QUEUE="4")


@pytest.fixture
def connections(server):
    """Opens connections to the server; all closed in the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def invoke(server, value):
    return server.request("POST", "/invocations", json.dumps(value).encode(), JSON)


def assert_serves(server):
    for number in range(20):
        assert json.loads(invoke(server, [number]).body) == [number]
        assert server.ping() == 200


def test_a_thousand_idle_connections_cost_nobody_anything(server, connections):
    idle = [connections() for _ in range(1000)]
    assert_serves(server)
    for connection in (idle[0], idle[500], idle[999]):
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_slow_senders_hold_up_nobody_and_are_answered_once_they_are_done(server, connections):
    whole = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n[17]"
    slow = [connections() for _ in range(50)]
    for start in range(0, len(whole), 20):  # heads, then bodies, in drops
        for connection in slow:
            connection.sendall(whole[start : start + 20])
        if start + 20 < len(whole):
            assert json.loads(invoke(server, start).body) == start
    for connection in slow:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        # More at once than may wait: some are told to come again.
        assert (answer.status, answer.read()) == (200, b"[17]") or answer.status == 503


def test_half_open_and_half_sent_requests_cost_nobody_anything(server, connections):
    for number in range(60):
        connection = connections()
        connection.sendall(
            [
                b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Le",
                b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n[1, 2",
                b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1, ",
            ][number % 3]
        )
        if number % 2:
            connection.shutdown(socket.SHUT_WR)
    assert_serves(server)


def test_a_full_queue_is_503_with_retry_after_and_what_was_taken_is_answered(server, tmp_path):
    gate, answers = tmp_path / "gate", []
    threads = [threading.Thread(target=lambda: answers.append(invoke(server, str(gate)))) for _ in range(10)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(answers) < 5:  # one computes, four wait, nobody else is kept waiting
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.ping() == 200
    gate.touch()
    for thread in threads:
        thread.join(60)
    refused = [answer for answer in answers if answer.status == 503]
    assert [answer.status for answer in answers if answer.status != 503] in ([200] * 5, [200] * 4)
    assert len(answers) == 10
    for answer in refused:
        assert answer.headers["retry-after"] == "1"
        assert json.loads(answer.body) == {"error": "4 requests wait already; try again"}
    assert_serves(server)


def test_clients_that_leave_while_their_requests_wait_or_compute_make_room(server, connections, tmp_path):
    gate = tmp_path / "gate"
    body = json.dumps(str(gate)).encode()
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    leaving = [connections() for _ in range(5)]
    for connection in leaving:
        connection.sendall(head % len(body) + body)
    for connection in leaving:
        connection.close()
    gate.touch()
    deadline = time.monotonic() + 30
    while invoke(server, [1]).status == 503:
        assert time.monotonic() < deadline
    assert_serves(server)


def test_many_clients_at_once_get_an_answer_or_a_503_and_the_server_lives(server):
    statuses = []

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for number in range(10):
            connection.request("POST", "/invocations", json.dumps([number]).encode(), JSON)
            answer = connection.getresponse()
            body = answer.read()
            statuses.append(answer.status)
            assert answer.status == 503 or json.loads(body) == [number]
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(statuses) == 400
    assert set(statuses) <= {200, 503}
    assert_serves(server)


def test_the_server_may_open_as_many_connections_as_the_system_lets_it(server):
    for pid in (server.process.pid, *server.workers()):
        with open(f"/proc/{pid}/limits") as limits:
            soft, hard = next(line for line in limits if line.startswith("Max open files")).split()[3:5]
        assert soft == hard


def test_at_the_limit_of_open_files_silent_connections_make_room_and_no_request_is_lost(server, connections, tmp_path):
    gate, (pid,) = tmp_path / "gate", server.workers()
    body = json.dumps(str(gate)).encode()
    waiting = connections()
    waiting.sendall(
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
        + body
    )
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (120, hard))
    try:
        silent = [connections() for _ in range(200)]
        for connection in silent[::2]:
            connection.sendall(b"GET /ping HT")
        for _ in range(20):
            assert server.ping() == 200
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert "silent connections are closed, for 120 files may be open" in server.log.read_text()
    gate.touch()
    answer = http.client.HTTPResponse(waiting)
    answer.begin()
    assert (answer.status, answer.read().decode()) == (200, str(gate))
    assert server.workers() == [pid]
    assert_serves(server)
