"""One `log` call reaches the log, the file, TensorBoard and the trackers; a tracker that is broken reaches nobody."""

import json
import re
import socket
import time

import pytest

from container.train.metrics import Metrics
from container.train.tensorboard import EventFile
from container.train.tracking import Trackers


@pytest.fixture
def opt_ml(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    monkeypatch.setenv("TRAINING_JOB_NAME", "a-job")
    monkeypatch.setenv("SM_HPS", '{"lr":0.1}')
    return tmp_path


def scalars(directory):
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_c67_each_metric_reaches_the_log_the_file_and_tensorboard(opt_ml, capsys):
    metrics = Metrics(opt_ml / "metrics.jsonl")
    metrics.log(1, 300, {"train:loss": 0.5, "validation:auc": -1.5e-7})
    metrics.log(2, 70_000, {"train:loss": 0.25})
    log = capsys.readouterr().out
    assert log.splitlines()[0] == "epoch=1 step=300 train:loss=0.5;"
    found = {each["Name"]: re.findall(each["Regex"], log) for each in metrics.definitions}
    assert found == {"train:loss": ["0.5", "0.25"], "validation:auc": ["-1.5e-07"]}
    lines = [json.loads(line) for line in (opt_ml / "metrics.jsonl").read_text().splitlines()]
    assert lines == metrics.history
    assert scalars(opt_ml / "tensorboard") == {
        "train/loss": [(300, 0.5), (70_000, 0.25)],
        "validation/auc": [(300, pytest.approx(-1.5e-7))],
    }


def test_a_resumed_job_has_the_whole_curve_in_the_directory_that_the_platform_copies(opt_ml):
    directory = opt_ml / "output" / "tensorboard"
    directory.mkdir(parents=True)
    metrics = Metrics(opt_ml / "metrics.jsonl", history=[{"epoch": 1, "step": 3, "loss": 0.5}])
    metrics.log(2, 6, {"loss": 0.25})
    assert scalars(directory) == {"loss": [(3, 0.5), (6, 0.25)]}
    assert not (opt_ml / "tensorboard").exists()


def test_other_ranks_write_nothing(opt_ml, capsys):
    Metrics(opt_ml / "metrics.jsonl", rank=1).log(1, 1, {"loss": 1.0})
    assert (list(opt_ml.iterdir()), capsys.readouterr().out) == ([], "")


def test_names_and_numbers_of_any_length_are_read_back(tmp_path):
    events = EventFile(tmp_path)
    events.add(2**40, {"ж" * 100: float("inf")})
    assert scalars(tmp_path) == {"ж" * 100: [(2**40, float("inf"))]}


FAKE = """
import os, socket, urllib.request
def start_run(run_name): tell("run " + run_name)
def log_params(values): tell("params " + str(values))
def log_metrics(values, step): tell(f"metrics {step} {values}")
def end_run(): tell("end")
def tell(text):
    print("noise of a package")
    request = urllib.request.Request(os.environ["MLFLOW_TRACKING_URI"], data=text.encode())
    urllib.request.urlopen(request, timeout=60).read()
"""


@pytest.fixture
def fake_mlflow(opt_ml, monkeypatch):
    """A package `mlflow` that talks to the tracking server over HTTP, and that Python finds here and in children."""
    packages = opt_ml / "packages"
    packages.mkdir()
    (packages / "mlflow.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("SLIPWAY_TRACKERS", "mlflow")

    def at(port):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}/")

    return at


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def answer_all(server, bodies):
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    httpd = http.server.HTTPServer(server.getsockname(), Handler, bind_and_activate=False)
    httpd.socket.close()
    httpd.socket = server
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    return httpd


def test_a_tracker_gets_hyperparameters_and_metrics(fake_mlflow, listener, caplog, capfd):
    bodies = []
    httpd = answer_all(listener, bodies)
    fake_mlflow(listener.getsockname()[1])
    trackers = Trackers.from_env()
    trackers.log(3, {"train:loss": 0.5})
    trackers.close()
    httpd.shutdown()
    assert bodies == ["run a-job", "params {'lr': 0.1}", "metrics 3 {'train/loss': 0.5}", "end"]
    assert caplog.text == ""
    assert "noise" not in capfd.readouterr().out


def test_a_server_that_never_answers_keeps_nobody_waiting(fake_mlflow, listener, caplog):
    fake_mlflow(listener.getsockname()[1])
    trackers = Trackers(["mlflow"], close_seconds=0.5)
    for step in range(5000):  # far more than a pipe holds
        trackers.log(step, {"train:loss": 0.5})
    trackers.close()
    assert [record.getMessage() for record in caplog.records] == [
        "tracker mlflow is given up: it does not take metrics any more"
    ]


def test_a_server_that_never_answers_is_left_at_the_end(fake_mlflow, listener, caplog):
    fake_mlflow(listener.getsockname()[1])
    trackers = Trackers(["mlflow"], close_seconds=0.5)
    trackers.log(1, {"train:loss": 0.5})
    trackers.close()
    assert [record.getMessage() for record in caplog.records] == [
        "tracker mlflow is given up: it did not finish within 0.5 s"
    ]


def test_a_server_that_refuses_is_one_warning(fake_mlflow, listener, caplog):
    port = listener.getsockname()[1]
    listener.close()
    fake_mlflow(port)
    trackers = Trackers.from_env()
    deadline = time.monotonic() + 30
    while trackers._processes and time.monotonic() < deadline:
        trackers.log(1, {"train:loss": 0.5})
        time.sleep(0.05)
    trackers.close()
    assert len(caplog.records) == 1
    assert "tracker mlflow is given up: URLError:" in caplog.text
    assert "refused" in caplog.text


def test_a_tracker_that_fails_at_its_very_end_is_one_warning(fake_mlflow, listener, caplog):
    port = listener.getsockname()[1]
    listener.close()
    fake_mlflow(port)
    Trackers.from_env().close()
    assert len(caplog.records) == 1


def test_trackers_that_are_not_installed_or_unknown_are_warnings(caplog, monkeypatch):
    monkeypatch.setattr("container.train.tracking.find_spec", lambda name: None)
    Trackers(["wandb", "sacred"]).log(1, {"loss": 1.0})
    assert "tracker wandb is not installed: put it into requirements.txt" in caplog.text
    assert "tracker 'sacred' is none of mlflow, wandb" in caplog.text


@pytest.mark.slow
def test_the_real_mlflow_takes_our_metrics(opt_ml, monkeypatch, caplog):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{opt_ml}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("SLIPWAY_TRACKERS", "mlflow")
    trackers = Trackers(["mlflow"], close_seconds=120)
    trackers.log(3, {"validation:accuracy": 0.5})
    trackers.log(6, {"validation:accuracy": 0.75})
    trackers.close()
    assert caplog.text == ""
    mlflow.set_tracking_uri(uri)
    (run,) = mlflow.search_runs(experiment_names=["Default"], output_format="list")
    assert (run.info.run_name, run.data.params, run.data.metrics) == (
        "a-job",
        {"lr": "0.1"},
        {"validation/accuracy": 0.75},
    )
