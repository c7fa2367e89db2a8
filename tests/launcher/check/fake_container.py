"""A container in one file of the standard library, with every fault that `launcher check` looks for, on demand.

`fake_container.py [--fault NAME]... [train | serve | COMMAND ...]`. Without a fault it keeps the contract.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

BASE = Path(os.environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml")
FAULTS = {sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == "--fault"}
ARGUMENTS = [word for at, word in enumerate(sys.argv[1:]) if word != "--fault" and sys.argv[at] != "--fault"]
RESERVED = ("sagemaker_", "_tuning")
STEP_SECONDS = 0.05


def main() -> int:
    if not ARGUMENTS:
        return no_argument()
    if ARGUMENTS[0] == "train":
        return train()
    if ARGUMENTS[0] == "worker":
        return worker(int(ARGUMENTS[1]))
    if ARGUMENTS[0] == "serve":
        return serve()
    return command()


def no_argument() -> int:
    if "serves-without-argument" in FAULTS:
        time.sleep(60)
    sys.stderr.write("usage: train | serve | COMMAND\n")
    return 0 if "content-without-argument" in FAULTS else 64


def command() -> int:
    if "hangs-on-unknown-argument" in FAULTS:
        time.sleep(60)
    if "silent-on-unknown-argument" in FAULTS:
        return 1
    if "content-with-unknown-argument" in FAULTS:
        return 0
    try:
        os.execvp(ARGUMENTS[0], ARGUMENTS)
    except OSError as error:
        sys.stderr.write(f"{ARGUMENTS[0]}: {error.strerror}\n")
        return 127


# --- training ---------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """SIGTERM before the loop."""


def train() -> int:
    if "nothing-to-run" in FAULTS:
        sys.stderr.write("train: command not found\n")
        return 127
    if "deaf-at-start" in FAULTS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(20)
    signal.signal(signal.SIGTERM, stop_early)
    try:
        return run_job()
    except Stopped:
        return 0
    except Exception as error:
        return fail(f"{type(error).__name__}: {error}")


def stop_early(number: int, frame: object) -> None:
    raise Stopped


def fail(reason: str) -> int:
    if "no-failure-file" not in FAULTS:
        failure = BASE / "output" / "failure"
        failure.parent.mkdir(parents=True, exist_ok=True)
        failure.write_text("it did not work" if "vague-failure" in FAULTS else reason)
    sys.stderr.write(f"{reason}\n")
    if "hangs-after-failure" in FAULTS:
        time.sleep(60)
    return 0 if "success-after-failure" in FAULTS else 1


def run_job() -> int:
    hyperparameters = read_configuration()
    script = BASE / "code" / "train.py"
    if script.is_file():
        exec(compile(script.read_text(), str(script), "exec"), {})
        return 0
    channels = read_json("inputdataconfig.json", {})
    if "train" not in channels and os.environ.get("FAKE_NEEDS_DATA", "1") == "1":
        raise ValueError("channel 'train' is missing")
    if "crashes" in FAULTS:
        raise RuntimeError("no reason at all")
    return supervise(int(hyperparameters.get("steps", os.environ.get("FAKE_STEPS", 2))))


def read_json(name: str, default: object) -> dict:
    path = BASE / "input" / "config" / name
    return json.loads(path.read_text()) if path.exists() else default


def read_configuration() -> dict:
    config = BASE / "input" / "config"
    hyperparameters = read_json("hyperparameters.json", {})
    resources = json.loads((config / "resourceconfig.json").read_text())
    channels = read_json("inputdataconfig.json", {})
    reasons = {
        "needs-hyperparameters": not (config / "hyperparameters.json").exists(),
        "strict-hyperparameters": any(name.startswith(RESERVED) for name in hyperparameters),
        "needs-distribution": any("S3DistributionType" not in channel for channel in channels.values()),
        "lists-the-data-directory": any(path.name not in channels for path in (BASE / "input" / "data").iterdir()),
        "needs-channel-configuration": not (config / "inputdataconfig.json").exists(),
        "needs-instance-groups": "instance_groups" not in resources,
        "strict-resources": "topology" in resources,
        "reads-every-file": len(list(config.iterdir())) > 3,
        "needs-job-name": not os.environ.get("TRAINING_JOB_NAME"),
        "needs-output-directories": not (BASE / "model").is_dir(),
        "needs-checkpoints": not (BASE / "checkpoints").is_dir(),
        "needs-network": not has_network(),
    }
    broken = [fault for fault, holds in reasons.items() if holds and fault in FAULTS]
    if broken:
        raise KeyError(broken[0])
    return hyperparameters


def has_network() -> bool:
    return len(Path("/proc/net/route").read_text().splitlines()) > 1


def supervise(steps: int) -> int:
    """Start the worker, pass SIGTERM on, say how it ended."""
    if "single-process" in FAULTS:
        return worker(steps)
    argv = [sys.executable, *sys.argv[: -len(ARGUMENTS)], "worker", str(steps)]
    child = subprocess.Popen(argv)
    handlers = {"ignores-sigterm": lambda *_: None, "default-sigterm": signal.SIG_DFL}
    chosen = [handler for fault, handler in handlers.items() if fault in FAULTS]
    signal.signal(signal.SIGTERM, chosen[0] if chosen else lambda *_: child.terminate())
    code = child.wait()
    if code and "ignores-killed-worker" in FAULTS:
        return 0
    if code and "waits-for-killed-worker" in FAULTS:
        time.sleep(60)
    if code:
        return fail(
            "RuntimeError: a worker ended" if "vague-kill" in FAULTS else f"worker ended by signal {-code} SIGKILL"
        )
    return 143 if "exit-143" in FAULTS and (BASE / "checkpoints" / "stopped").exists() else 0


def worker(steps: int) -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ballast = bytearray(30_000_000)  # the process that trains holds the most memory
    for step in range(steps):
        sys.stdout.write(f"step={step} loss={1 / (step + 1)} {len(ballast)}\n")
        sys.stdout.flush()
        if stop.wait(STEP_SECONDS):
            return save_and_stop()
    write_model()
    return 0


def save_and_stop() -> int:
    if "saves-nothing" not in FAULTS:
        checkpoints = BASE / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        (checkpoints / "last.json").write_text("{}")
        (checkpoints / "stopped").touch()
    return 0


def write_model() -> None:
    model = BASE / "model"
    model.mkdir(parents=True, exist_ok=True)
    if "no-model" not in FAULTS:
        (model / "model.json").write_text("{}")
    if "symlink" in FAULTS:
        (model / "latest").symlink_to("model.json")
    if "failure-after-success" in FAULTS:
        (BASE / "output").mkdir(exist_ok=True)
        (BASE / "output" / "failure").write_text("none")


# --- serving ----------------------------------------------------------------------------------------------------------


class State:
    """What the handlers share."""

    pings = 0
    ready_at = 0.0
    in_flight = 0
    models: dict[str, str] = {}


def serve() -> int:
    if "serve-fails" in FAULTS:
        sys.stderr.write("OSError: no weights\n")
        return 1
    if "needs-shared-memory" in FAULTS:
        Path("/dev/shm/fake").touch()
    if "empty-program-is-set" in FAULTS and "SAGEMAKER_PROGRAM" in os.environ:
        sys.stderr.write("no such program: ''\n")
        return 1
    multi_model = os.environ.get("SAGEMAKER_MULTI_MODEL") == "true"
    if not multi_model:
        load_model()
    if "early-ping" in FAULTS:
        State.ready_at = time.monotonic() + 1
    serve_forever()
    return 0


def load_model() -> None:
    """Ends the process where the model is broken."""
    model = BASE / "model"
    if "writes-into-the-model" in FAULTS and model.is_dir():
        (model / "cache.bin").write_text("x")
    if "loads-nothing" in FAULTS or not (model / "model.json").is_file():
        return
    try:
        json.loads((model / "model.json").read_bytes())
    except ValueError as error:
        if "silent-about-the-model" not in FAULTS:
            sys.stderr.write(f"ModelError: {error}\n")
        sys.exit(0 if "content-with-a-broken-model" in FAULTS else 3)


def serve_forever() -> None:
    port = int(os.environ.get("SAGEMAKER_BIND_TO_PORT") or 8080)
    if "ignores-the-port" in FAULTS:
        port = free_port()
    host = "127.0.0.1" if "loopback" in FAULTS else "0.0.0.0"
    alone = FAULTS & {"no-backlog", "one-at-a-time"}
    server = (OneAtATime if alone else Server)((host, port), Handler)
    keep = [socket.create_server(("0.0.0.0", 0))] if "extra-port" in FAULTS else []
    if "second-default-port" in FAULTS:
        keep.append(socket.create_server(("0.0.0.0", 8080)))
    if "default-sigterm" not in FAULTS:
        signal.signal(signal.SIGTERM, lambda *_: on_sigterm(server))
    if "reaps" in FAULTS:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server.serve_forever(poll_interval=0.05)
    server.socket.close()
    while State.in_flight:
        time.sleep(0.02)
    del keep


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def on_sigterm(server: HTTPServer) -> None:
    if "drops-requests" in FAULTS:
        os._exit(0)
    if "ignores-sigterm" not in FAULTS:
        threading.Thread(target=server.shutdown).start()


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if "dies-on-disconnect" in FAULTS:
            os._exit(1)


class OneAtATime(HTTPServer):
    request_queue_size = 1 if "no-backlog" in FAULTS else 16


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if "no-length" in FAULTS and self.command == "POST":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked" and "ignores-chunks" not in FAULTS:
            return b"".join(iter(self.read_chunk, b""))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionResetError("the client went away")
        return body

    def read_chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def ping(self) -> None:
        State.pings += 1
        if "ping-fails-later" in FAULTS and State.pings > 1:
            return self.answer(500)
        return self.answer(200)

    def do_GET(self) -> None:
        if "strict-host" in FAULTS and not (self.headers.get("Host") or "").startswith("127."):
            return self.answer(400)
        if self.path == "/ping":
            return self.ping()
        if self.path == "/execution-parameters":
            return self.execution_parameters()
        if self.path.startswith("/models"):
            return self.models("GET", b"")
        return self.answer(404)

    def do_DELETE(self) -> None:
        self.models("DELETE", b"")

    def do_POST(self) -> None:
        State.in_flight += 1
        try:
            self.post()
        finally:
            State.in_flight -= 1

    def post(self) -> None:
        if "resets-large-bodies" in FAULTS and int(self.headers.get("Content-Length") or 0) > 1_000_000:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            return self.connection.close()
        body = self.read_body()
        if self.path == "/ping":
            return self.answer(405) if "get-ping-only" in FAULTS else self.ping()
        if self.path.startswith("/models"):
            return self.models("POST", body)
        return self.invoke(body)

    def invoke(self, body: bytes) -> None:
        if self.headers.get("Content-Type") == "text/csv" and "no-csv" not in FAULTS:
            return self.answer(200, self.label_lines(body), "text/csv")
        status = self.refusal(body)
        if status:
            long = b"Traceback " * 500 if "long-errors" in FAULTS else b"no"
            return self.answer(400 if "always-400" in FAULTS else status, long, "text/plain")
        value = json.loads(body or b"{}")
        if "no-backlog" in FAULTS:
            time.sleep(0.3)
        time.sleep(value.get("sleep", 0) if isinstance(value, dict) else 0)
        return self.answer(200, json.dumps({"keys": sorted(value)}).encode())

    def label_lines(self, body: bytes) -> bytes:
        records = body.split(b"\n") if "counts-the-last-newline" in FAULTS else body.rstrip(b"\n").split(b"\n")
        labels = [b"7" for _ in records[1 if "loses-records" in FAULTS else 0 :]]
        return b"\n".join(labels) + (b"\n" if "ends-with-a-newline" in FAULTS else b"")

    def refusal(self, body: bytes) -> int:
        """The error status of a request, or 0."""
        content_type = self.headers.get("Content-Type")
        if time.monotonic() < State.ready_at:
            return 503
        return self.wrong_type(content_type) or self.wrong_body(body)

    def wrong_type(self, content_type: str | None) -> int:
        if "needs-content-type" in FAULTS and not content_type:
            return 500
        exact = content_type or "application/json"
        media_type = exact if "exact-content-type" in FAULTS else exact.partition(";")[0]
        if media_type != "application/json":
            return 415
        if (self.headers.get("Accept") or "*/*") not in ("*/*", "application/json"):
            return 406
        return 0

    def wrong_body(self, body: bytes) -> int:
        if "strict-headers" in FAULTS and "X-Amzn-SageMaker-Not-Yet-Known" in self.headers:
            return 400
        if "limit-of-1-mb" in FAULTS and len(body) > 1_000_000:
            return 413
        try:
            json.loads(body or b"{}")
        except ValueError:
            return 400
        return 0

    def execution_parameters(self) -> None:
        good = {"MaxConcurrentTransforms": 2, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 6}
        answers = {
            "no-execution-parameters": (404, b""),
            "broken-execution-parameters": (500, b""),
            "parameters-without-json": (200, b"four"),
            "parameters-as-text": (200, json.dumps({**good, "MaxPayloadInMB": "6"}).encode()),
            "parameters-in-camel-case": (200, json.dumps({**good, "BatchStrategy": "MultiRecord"}).encode()),
            "parameters-over-100": (200, json.dumps({**good, "MaxPayloadInMB": 60}).encode()),
        }
        chosen = [answer for fault, answer in answers.items() if fault in FAULTS]
        self.answer(*(chosen[0] if chosen else (200, json.dumps(good).encode())))

    def models(self, method: str, body: bytes) -> None:
        name = self.path.removeprefix("/models").strip("/").partition("/")[0]
        if not name:
            return self.load(json.loads(body)) if method == "POST" else self.list_models()
        if name not in State.models:
            return self.answer(500 if "unknown-model-is-500" in FAULTS else 404)
        if method == "DELETE":
            del State.models[name]
        if self.path.endswith("/invoke"):
            return self.answer(503 if "loaded-but-not-ready" in FAULTS else 200, b"{}")
        return self.answer(200, json.dumps({"modelName": name, "modelUrl": State.models[name]}).encode())

    def list_models(self) -> None:
        if "models-as-a-list" in FAULTS:
            return self.answer(200, b"[]")
        if "models-without-json" in FAULTS:
            return self.answer(200, b"none")
        found = [{"modelName": name, "modelUrl": url} for name, url in State.models.items()]
        if "model-from-the-start" in FAULTS:
            found.append({"modelName": "default", "modelUrl": "/"})
        if "lists-nothing" in FAULTS:
            found = []
        return self.answer(200, json.dumps({"models": found}).encode())

    def load(self, request: dict) -> None:
        name, url = request["model_name"], request["url"]
        if "cannot-load" in FAULTS:
            return self.answer(500)
        if (Path(url) / "too-large").exists():
            if "stays-registered" in FAULTS:
                State.models[name] = url
            return self.answer(500 if "no-507" in FAULTS else 507)
        if name in State.models and "loads-twice" not in FAULTS:
            return self.answer(409)
        if "forgets-models" not in FAULTS:
            State.models[name] = url
        return self.answer(200)


if __name__ == "__main__":
    sys.exit(main())
