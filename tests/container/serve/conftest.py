"""A tiny artifact, both doors over one core, and real server processes."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import uvicorn
import uvloop
from waitress.server import create_server

from container.model import ModelSignature, build_network, save_model
from container.serve.app import create_app
from container.serve.asgi import Door
from container.serve.health import Health, State
from container.serve.load import load_isolated, place_of, serve_model
from container.serve.metrics import Metrics
from container.serve.plan import Machine, plan_server
from container.serve.predictor import load_predictor
from container.serve.registry import Registry
from container.serve.service import Service
from container.serve.worker import Worker
from launcher.local.containers import free_port

CLASSES = tuple("abcdefghij")
MACHINE = Machine(cores=1, memory_bytes=8 * 1024**3, gpus=0, shm_writable=True)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    """Directory of a convnet for grey 8 x 8 images, ten classes, random weights."""
    directory = tmp_path_factory.mktemp("artifact")
    torch.manual_seed(0)
    signature = ModelSignature("convnet", CLASSES, 1, 8, 8, (0.5,), (0.25,))
    save_model(directory, build_network("convnet", 10, (1, 8, 8)), signature)
    return directory


@pytest.fixture
def user_model(tmp_path):
    """Writes code/inference.py (and other files) into a model directory and returns it."""

    def write(code, **files):
        directory = tmp_path / "model"
        (directory / "code").mkdir(parents=True, exist_ok=True)
        (directory / "code" / "inference.py").write_text(textwrap.dedent(code))
        for name, text in files.items():
            (directory / "code" / f"{name}.py").write_text(textwrap.dedent(text))
        return directory

    return write


@dataclass
class Answer:
    status: int
    headers: dict = field(default_factory=dict)
    body: bytes = b""


class FlaskDoor:
    def __init__(self, service):
        self.client = create_app(service).test_client()

    def request(self, method, path, body=b"", headers=None):
        answer = self.client.open(path, method=method, data=body, headers=headers or {})
        return Answer(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, answer.data)


class AsgiDoor:
    def __init__(self, service):
        self.app = Door(service)
        self.making = threading.Lock()  # Flask's routes are not made on several threads at once

    def request(self, method, path, body=b"", headers=None):
        return asyncio.run(self._request(method, path, body, headers or {}))

    async def _request(self, method, path, body, headers):
        with self.making:
            app = Door(self.app.service)  # one event loop per application
        middle = len(body) // 2
        messages = [
            {"type": "http.request", "body": body[:middle], "more_body": True},
            {"type": "http.request", "body": body[middle:], "more_body": False},
        ]
        sent = []

        async def receive():
            return messages.pop(0) if messages else await asyncio.Event().wait()  # the client stays

        async def send(message):
            sent.append(message)

        path, _, query = path.partition("?")
        encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": encoded}
        await app({**scope, "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
        names = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], names, b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.fixture(params=[FlaskDoor, AsgiDoor], ids=["flask", "asgi"])
def open_door(request):
    """Loads a model directory into a core and opens a door to it."""
    services = []

    def opened(model_dir, environ=None, machine=MACHINE):
        plan = plan_server(machine, environ or {}, 0)
        health = Health(1)
        service = Service(plan, health, metrics=Metrics(1) if plan.metrics else None)
        slot = health.claim()
        if model_dir is not None:
            service.serve(load_predictor(model_dir, environ or {}, place_of(plan, "cpu")))
            health.mark(slot, State.READY)
        services.append(service)
        return request.param(service)

    yield opened
    for service in services:
        service.stop()


@pytest.fixture
def open_models(request, tmp_path):
    """A door to a multi-model core whose models lie below tmp_path/models; `write(name, code)` puts one there."""

    class Models:
        base = tmp_path / "models"
        service = None

        def open(self, door, **environ):
            plan = plan_server(MACHINE, {"SAGEMAKER_MULTI_MODEL": "true", **environ}, 0)
            health = Health(1)
            registry = Registry(
                self.base, lambda directory: load_isolated(directory, "cpu", {}, plan), plan.model_memory_bytes
            )
            self.service = Service(plan, health, registry, Metrics(1))
            serve_model(self.service, self.base, "cpu", {})
            health.mark(health.claim(), State.READY)
            return door(self.service)

        def write(self, name, code, **files):
            code_dir = self.base / name / "model" / "code"
            code_dir.mkdir(parents=True)
            (code_dir / "inference.py").write_text(textwrap.dedent(code))
            for file, text in files.items():
                (code_dir / f"{file}.py").write_text(textwrap.dedent(text))
            return self.body(name)

        def body(self, name):
            return json.dumps({"model_name": name, "url": str(self.base / name / "model")}).encode()

    self = Models()
    self.base.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    yield self
    resource.setrlimit(resource.RLIMIT_DATA, limits)  # each load sets it to what is free then
    if self.service:
        self.service.stop()


@pytest.fixture
def door(open_door, artifact):
    """A door to the built-in classifier."""
    return open_door(artifact)


@pytest.fixture(scope="session")
def flask_server(artifact):
    """The Flask app of the built-in classifier behind another WSGI server than gunicorn; its URL."""
    plan = plan_server(MACHINE, {}, 0)
    health = Health(1)
    service = Service(plan, health, metrics=Metrics(1))
    service.serve(load_predictor(artifact, {}, place_of(plan, "cpu")))
    health.mark(health.claim(), State.READY)
    server = create_server(create_app(service), host="127.0.0.1", port=0, threads=4)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}"
    server.trigger.pull_trigger(server.close)  # on the server's own thread: its loop ends with its last socket
    thread.join(30)
    assert not thread.is_alive()
    service.stop()


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
        config = uvicorn.Config(Door(service), log_config=None, timeout_keep_alive=keep_alive, **Worker.CONFIG_KWARGS)
        server = uvicorn.Server(config)
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


class Connection:
    """A client's connection, with its answers in order."""

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
        clients.append(Connection(port))
        return clients[-1]

    yield connected
    for client in clients:
        client.close()


class Server:
    """`python -m container serve` as a process of its own."""

    def __init__(self, base_dir, port, environ):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = base_dir / "log"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/tmp",
            "SAGEMAKER_BASE_DIR": str(base_dir),
            "SAGEMAKER_BIND_TO_PORT": str(port),
            **environ,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "container", "serve"], stdout=log, stderr=log, env=environment
            )

    def request(self, method, path, body=None, headers=None, timeout=30):
        request = urllib.request.Request(self.url + path, data=body, headers=headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def ping(self):
        try:
            return self.request("GET", "/ping", timeout=5).status
        except OSError:
            return 0

    def wait_ready(self, seconds=120):
        deadline = time.monotonic() + seconds
        while self.ping() != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return self

    def workers(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def leave(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self):
        self.leave()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def leaving():
    """Tells servers to end. They take a second for it, which no test need wait for."""
    left = []

    def leave(servers):
        for server in servers:
            server.leave()
        left[:] = [server for server in (*left, *servers) if server.process.poll() is None]

    yield leave
    for server in left:
        server.stop()


@pytest.fixture(scope="session")
def production_server(artifact, tmp_path_factory):
    """The URL of a server of the built-in classifier that many tests ask; none of its processes may die of it."""
    base = tmp_path_factory.mktemp("production")
    (base / "model").symlink_to(artifact)
    server = Server(base, free_port(), {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}).wait_ready()
    workers = server.workers()
    yield server.url
    assert server.workers() == workers
    server.stop()


@pytest.fixture
def start_server(tmp_path, leaving):
    """Starts a server on a model directory; told to end when the test ends."""
    servers = []

    def start(model_dir=None, **environ):
        base = tmp_path / f"ml{len(servers)}"
        base.mkdir()
        if model_dir is not None:
            (base / "model").symlink_to(model_dir)
        servers.append(Server(base, free_port(), environ))
        return servers[-1]

    yield start
    leaving(servers)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory, leaving):
    """Starts a server on the code of an inference.py, for all tests of a module."""
    servers = []

    def start(code, **environ):
        base = tmp_path_factory.mktemp("shared")
        (base / "model" / "code").mkdir(parents=True)
        (base / "model" / "code" / "inference.py").write_text(textwrap.dedent(code))
        servers.append(Server(base, free_port(), environ))
        return servers[-1].wait_ready()

    yield start
    leaving(servers)


@pytest.fixture
def in_background():
    """Runs a function in a thread and hands its result out."""

    def run(function, *arguments, **keywords):
        results = []
        thread = threading.Thread(target=lambda: results.append(function(*arguments, **keywords)), daemon=True)
        thread.start()

        def result(timeout=60):
            thread.join(timeout)
            assert results, "the background call has no result"
            return results[0]

        return result

    return run
