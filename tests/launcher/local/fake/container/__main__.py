"""`train`, `serve`, or any command: the fake container's program."""

import http.server
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from container import contract
from container.contract import OptMl

paths = OptMl.from_env()


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def train():
    hyperparameters = json.loads(paths.hyperparameters.read_text())
    resources = json.loads(paths.resource_config.read_text())
    host = resources["current_host"]
    signal.signal(signal.SIGTERM, lambda *_: leave_on_sigterm(hyperparameters, host))
    say(f"hello from {host}")
    found = ["", *(path.name for path in paths.checkpoints.glob("*"))]
    describe_environment(host, resources)
    read_pipes(hyperparameters)
    for line in json.loads(hyperparameters.get("lines", "[]")):
        say(line)
    write_checkpoints(hyperparameters)
    if hyperparameters.get("grandchild"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    if hyperparameters.get("fail_host") == host:
        time.sleep(float(hyperparameters.get("fail_after", 0)))
        if "failure" in hyperparameters:
            paths.failure.write_text(hyperparameters["failure"])
        sys.exit(3)
    if "kill" in hyperparameters or hyperparameters.get("kill_once", "") not in found:
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.time() + float(hyperparameters.get("sleep", 0))
    while time.time() < deadline:
        time.sleep(0.02)
    (paths.model / f"weights-{host}.bin").write_text("weights")
    (paths.model / "shared.txt").write_text(host)
    (paths.output_data / f"report-{host}.json").write_text("{}")


def read_pipes(hyperparameters):
    """Read `pipe_epochs` epochs of channel `piped`; their bytes become the model's files."""
    for epoch in range(int(hyperparameters.get("pipe_epochs", 0))):
        path = paths.data / f"piped_{epoch}"
        while not path.exists():
            time.sleep(0.01)
        with path.open("rb") as pipe:
            (paths.model / f"epoch-{epoch}").write_text(pipe.read(int(hyperparameters.get("pipe_bytes", -1))).hex())


def leave_on_sigterm(hyperparameters, host):
    say(f"{host} got SIGTERM")
    if hyperparameters.get("ignore_sigterm"):
        return
    (paths.model / "stopped.txt").write_text(host)
    sys.exit(0)


def describe_environment(host, resources):
    """What the container sees, for the test to read from the artifact."""
    seen = {
        "argv": sys.argv[1:],
        "environ": dict(os.environ),
        "resources": resources,
        "inputs": json.loads(paths.input_data_config.read_text()),
        "data": {
            path.relative_to(paths.data).as_posix(): path.read_text()
            for folder, _, names in os.walk(paths.data, followlinks=True)
            for path in (Path(folder, name) for name in sorted(names))
            if path.is_file()
        },
        "checkpoints": sorted(path.name for path in paths.checkpoints.glob("*"))
        if paths.checkpoints.is_dir()
        else None,
    }
    (paths.output_data / f"seen-{host}.json").write_text(json.dumps(seen))


def write_checkpoints(hyperparameters):
    for name in json.loads(hyperparameters.get("checkpoints", "[]")):
        temporary = paths.checkpoints / f"{name}.tmp"
        temporary.write_text(name)
        temporary.replace(paths.checkpoints / name)
        time.sleep(float(hyperparameters.get("checkpoint_seconds", 0)))
        if hyperparameters.get("rotate"):
            for old in paths.checkpoints.glob("*"):
                if old.name != name:
                    old.unlink()


LOADED = {}  # the models of a multi-model container: text of the weights by name


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        pass

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in ({"Content-Type": "text/plain"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == contract.HEALTH_PATH:
            self.answer(503 if Path("sick").exists() else 200, b"")
        elif self.path == contract.EXECUTION_PARAMETERS_PATH and "PARAMETERS" in os.environ:
            self.answer(200, os.environ["PARAMETERS"].encode())
        else:
            self.answer(404, b"")

    def do_DELETE(self):
        LOADED.pop(self.path.split("/")[2], None)
        self.answer(200, b"")

    def do_stream(self, argument):
        """Three chunks with a pause between; `break` in the argument ends the connection in the middle."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            if argument == "break" and number == 2:
                self.close_connection = True
                return
            data = f"part {number};".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            time.sleep(0.2)
        self.wfile.write(b"0\r\n\r\n")

    def answer_models(self, body):
        """A multi-model container with room for two models; a model named `bad` does not load, `slow` takes a while."""
        parts = self.path.split("/")
        if len(parts) == 2:
            request = json.loads(body)
            text = (Path(request["url"]) / "weights.txt").read_text()
            say(f"load {text}")
            if text == "bad":
                return self.answer(500, b"cannot load bad")
            if len(LOADED) >= 2:
                return self.answer(507, b"full")
            LOADED[request["model_name"]] = text
            return self.answer(200, b"")
        text = LOADED.get(parts[2])
        if text is None:
            return self.answer(404, b"not loaded")
        if body == b"forget":
            del LOADED[parts[2]]
            return self.answer(404, b"not loaded")
        target = self.headers.get(contract.TARGET_MODEL_HEADER, "")
        return self.answer(200, f"{text} {target} {sorted(LOADED.values())} {body.decode()}".encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/models" or self.path.startswith("/models/"):
            return self.answer_models(body)
        word, _, argument = body.decode("utf-8", "replace").strip().partition(" ")
        action = getattr(self, f"do_{word}", None) if word.isalpha() and len(word) < 10 else None
        if action is not None:
            return action(argument)
        if "STATUS" in os.environ:
            return self.answer(int(os.environ["STATUS"]), b"a bad model")
        prefix = os.environ.get("PREFIX", "").encode()
        return self.answer(200, prefix + body.upper(), {contract.CUSTOM_ATTRIBUTES_HEADER: "from-container"})

    # What the first word of a body asks for.

    def do_status(self, argument):
        self.answer(int(argument), f"answered {argument}".encode())

    def do_flaky(self, path):
        first = not Path(path).exists()
        Path(path).touch()
        self.answer(500 if first else 200, b"try again" if first else b"done")

    def do_sleep(self, seconds):
        time.sleep(float(seconds))
        self.answer(200, b"slept")

    def do_exit(self, code):
        os._exit(int(code))

    def do_sick(self, _):
        Path("sick").touch()
        self.answer(200, b"")

    def do_log(self, argument):
        say(f"log {argument}")
        self.answer(200, f"LOG {argument.upper()}".encode())

    def do_see(self, _):
        seen = {"headers": dict(self.headers), "environ": dict(os.environ), "model": model_files()}
        self.answer(200, json.dumps(seen).encode(), {"Content-Type": "application/json"})


def model_files():
    if not paths.model.is_dir():
        return None
    return {
        path.relative_to(paths.model).as_posix(): path.read_text() for path in paths.model.rglob("*") if path.is_file()
    }


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve():
    say(f"serving {model_files()}")
    if "BREAK" in os.environ or Path(os.environ.get("BREAK_IF", "/nonexistent")).exists():
        say("loading")
        say(f"RuntimeError: {os.environ.get('BREAK')}")
        sys.exit(1)
    time.sleep(float(os.environ.get("LOAD_SECONDS", 0)))
    server = Server(("127.0.0.1", int(os.environ.get(contract.BIND_TO_PORT, contract.DEFAULT_PORT))), Handler)
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(float(os.environ.get("STOP_SECONDS", 0))), os._exit(0)))
    server.serve_forever()


if __name__ == "__main__":
    {"train": train, "serve": serve}[sys.argv[1]]()
