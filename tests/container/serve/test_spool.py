"""Large bodies: on disk while they come and wait, in memory when they are computed, gone with their client."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import resource
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from container.serve.asgi import read_body
from container.serve.exchange import BodyTooLarge, Unavailable
from container.serve.health import Health
from container.serve.plan import Machine, plan_server
from container.serve.service import Service
from container.serve.spool import SPOOL_BYTES, WRITE_BYTES, Spool
from container.serve.waiting import Share, Waiting

SIZE = SPOOL_BYTES + 3_000_000
LIMIT = SPOOL_BYTES + 5_000_000
GIB = 1024**3
HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
GATED = """
    import hashlib, os, time
    def transform_fn(model, data, kind, accept):
        deadline = time.monotonic() + 60
        while len(data) < 1000 and not os.path.exists(data) and time.monotonic() < deadline:
            time.sleep(0.01)
        return f"{type(data).__name__} {hashlib.md5(data).hexdigest()}"
"""


@pytest.fixture(scope="module")
def server(shared_server):
    return shared_server(GATED, SAGEMAKER_MODEL_SERVER_WORKERS="1", SLIPWAY_COMPUTE_THREADS="1")


@pytest.fixture(scope="module")
def body():
    return os.urandom(SIZE)


@pytest.fixture
def connect(server):
    sockets = []

    def connected():
        sockets.append(socket.create_connection(("127.0.0.1", server.port), timeout=60))
        return sockets[-1]

    yield connected
    for each in sockets:
        each.close()


def answer(connection):
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def expected(body):
    return 200, b"bytes " + hashlib.md5(body).hexdigest().encode()


def spooled(server):
    """How many files without a name the serving process has open."""
    (pid,) = server.workers()
    count = 0
    for file in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += "(deleted)" in os.readlink(file)
    return count


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def chunked(body):
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def test_c140_a_body_that_lay_on_disk_reaches_the_handler_as_it_was_sent(server, connect, body):
    files = spooled(server)
    connection = connect()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer(connection) == expected(body)
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body))
    assert answer(connection) == expected(body)
    assert spooled(server) == files


def test_c140_a_large_body_keeps_its_place_among_pipelined_requests(server, connect, body, tmp_path):
    gate = str(tmp_path / "gate").encode()
    connection = connect()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(gate) + gate)
    sender = threading.Thread(
        target=connection.sendall,
        args=(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body) + HEAD + b"Content-Length: 1000\r\n\r\n",),
    )
    sender.start()
    Path(gate.decode()).touch()
    assert answer(connection) == expected(gate)
    assert answer(connection) == expected(body)
    sender.join(30)
    connection.sendall(body[:1000])
    assert answer(connection) == expected(body[:1000])


@pytest.mark.parametrize("length", [b"Content-Length: %d" % SIZE, b"Transfer-Encoding: chunked"])
def test_c140_a_large_body_is_asked_for_once_where_the_client_waits_to_be_asked(server, connect, body, length):
    connection = connect()
    connection.sendall(HEAD + length + b"\r\nExpect: 100-continue\r\n\r\n")
    assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(chunked(body) if b"chunked" in length else body)
    assert answer(connection) == expected(body)


def test_a_client_that_leaves_while_it_sends_or_waits_frees_its_file_at_once(server, connect, body, tmp_path):
    gate, files = str(tmp_path / "gate").encode(), spooled(server)
    computing, waiting, sending = connect(), connect(), connect()
    computing.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(gate) + gate)
    waiting.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    sending.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (2 * len(body)) + body)
    wait_until(lambda: spooled(server) == files + 2)
    sending.close()
    wait_until(lambda: spooled(server) == files + 1)
    waiting.close()
    wait_until(lambda: spooled(server) == files)
    Path(gate.decode()).touch()
    assert answer(computing) == expected(gate)


def test_a_full_disk_refuses_the_large_body_alone(server, connect, body):
    files, (pid,) = spooled(server), server.workers()
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (SPOOL_BYTES + WRITE_BYTES, hard))
    try:
        connection = connect()
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, response.getheader("Retry-After")) == (503, "1")
        reason = "a body of more than 32 MB cannot be kept on disk now: File too large"
        assert json.loads(response.read()) == {"error": reason}
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + body[:1000])
        assert answer(connection) == expected(body[:1000])
        assert (server.workers(), spooled(server)) == ([pid], files)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert "a body is refused after" in server.log.read_text()


def test_where_no_file_can_be_made_the_body_is_refused(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with pytest.raises(Unavailable, match="No such file or directory"):
        Spool()


def test_a_body_that_was_let_go_of_cannot_be_read():
    spool = Spool()
    spool.write(b"abc")
    spool.close()
    with pytest.raises(Unavailable, match="gone with its client"):
        spool.read()


def test_c140_behind_either_door_a_large_body_reaches_the_handler_and_one_past_the_limit_does_not(
    open_door, user_model, body
):
    door = open_door(user_model(GATED), {"SLIPWAY_MAX_REQUEST_BYTES": str(LIMIT)})
    answer = door.request("POST", "/invocations", body, {"Content-Type": "application/octet-stream"})
    assert (answer.status, answer.body) == expected(body)
    assert door.request("POST", "/invocations", body + body).status == 413


@pytest.fixture
def core():
    environ = {"SLIPWAY_MAX_REQUEST_BYTES": str(LIMIT)}
    service = Service(plan_server(Machine(1, 8 * 1024**3, 0, True), environ, 0), Health(1))
    yield service
    service.stop()


class Sender:
    """Sends pieces of 256 KB as ASGI messages; counts what was taken."""

    def __init__(self, size):
        self.left, self.taken = size, 0

    async def receive(self):
        await asyncio.sleep(0)
        piece = bytes(min(self.left, 256 * 1024))
        self.left -= len(piece)
        self.taken += len(piece)
        return {"type": "http.request", "body": piece, "more_body": self.left > 0}


def test_a_disk_that_stalls_holds_up_its_body_and_not_the_loop(core, monkeypatch):
    written, go_on = threading.Event(), threading.Event()

    def write(spool, piece, write=Spool.write):
        written.set()
        assert go_on.wait(30)
        write(spool, piece)

    async def send_to_a_stalled_disk(disk):
        sender = Sender(SIZE)
        reading = asyncio.create_task(read_body(sender.receive, core, Share(Waiting(GIB)), disk))
        while not written.is_set():
            await asyncio.sleep(0)
        taken = sender.taken
        for _ in range(100):  # the loop turns, and takes no more than it can get rid of
            await asyncio.sleep(0)
        assert sender.taken == taken < SPOOL_BYTES + WRITE_BYTES
        go_on.set()
        return await reading

    monkeypatch.setattr(Spool, "write", write)
    with ThreadPoolExecutor(1) as disk:
        spool = asyncio.run(send_to_a_stalled_disk(disk))
    assert spool.read() == bytes(SIZE)


def test_c97_a_body_without_a_length_that_passes_the_limit_on_disk_is_read_no_further(core):
    sender = Sender(2 * LIMIT)
    with ThreadPoolExecutor(1) as disk, pytest.raises(BodyTooLarge, match=f"this server takes {LIMIT}"):
        asyncio.run(read_body(sender.receive, core, Share(Waiting(GIB)), disk))
    assert sender.taken < LIMIT + 2 * WRITE_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "size", "chunked"), [(1, 1024**3, False), (1, 1024**3, True), (4, 256 * 1024**2, True)]
)
def test_c140_of_asynchronous_bodies_the_one_that_is_computed_lies_in_memory_once_and_the_others_on_disk(
    start_server, user_model, tmp_path, count, size, chunked
):
    model = user_model("def transform_fn(model, data, kind, accept): return f'{type(data).__name__} {len(data)}'")
    server = start_server(model, SAGEMAKER_MODEL_SERVER_WORKERS="1", SLIPWAY_COMPUTE_THREADS="1").wait_ready()
    worker, answers = server.workers()[0], []
    sparse = tmp_path / "sparse"
    sparse.touch()
    os.truncate(sparse, size)
    before = peak_memory(worker)

    def send():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        length = {} if chunked else {"Content-Length": str(size)}
        headers = {"Content-Type": "application/octet-stream", **length}
        with sparse.open("rb") as body:
            connection.request("POST", "/invocations", body, headers, encode_chunked=chunked)
        answers.append(connection.getresponse().read())
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    assert answers == [b"bytes %d" % size] * count
    assert peak_memory(worker) - before < 1.5 * size + count * 2.5 * SPOOL_BYTES


def peak_memory(pid):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
