import json
import os
import re
import signal
import threading
import time

from prometheus_client.parser import text_string_to_metric_families

from container.serve.app import create_app
from container.serve.metrics import PHASES, Metrics

JSON = {"Content-Type": "application/json"}
ECHO = "def predict_fn(data, model): return data"


def samples(text):
    """`name{label="value"}` in the parser's own terms -> value."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(server):
    answer = server.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.body.decode())


def requests(figures, route, status):
    return figures.get(("slipway_requests_total", ("route", route), ("status", str(status))), 0)


def phase(figures, name, suffix):
    return figures[(f"slipway_request_duration_seconds_{suffix}", ("phase", name))]


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.05)
    return found


def test_the_figures_of_two_processes_under_load_are_what_was_sent(start_server, user_model, in_background):
    """Good and bad requests over many connections, so that both processes answer, while somebody scrapes."""
    model = user_model("""
        import os

        def predict_fn(data, model):
            return {"process": os.getpid()}
    """)
    server = start_server(model, SAGEMAKER_MODEL_SERVER_WORKERS="2").wait_ready()
    processes = set()

    def send(bad):
        for number in range(20):
            body, headers = (b"[1", JSON) if bad else (b"[1]", JSON)
            answer = server.request("POST", "/invocations", body, headers)
            assert answer.status == (400 if bad else 200), number
            processes.add(answer.body if not bad else b"")

        return True

    clients = [in_background(send, bad) for bad in (False,) * 6 + (True,) * 2]
    during = [requests(scrape(server), "/invocations", 200) for _ in range(5)]
    assert all(client() for client in clients)
    figures = scrape(server)
    assert during == sorted(during)
    assert requests(figures, "/invocations", 200) == 120
    assert requests(figures, "/invocations", 400) == 40
    assert phase(figures, "total", "count") == 160
    assert phase(figures, "predict", "count") == 120, "a body that cannot be read has no prediction"
    parts = sum(phase(figures, name, "sum") for name in PHASES if name != "total")
    assert 0 < parts <= phase(figures, "total", "sum")
    assert figures[("slipway_batch_size_sum",)] >= 120
    assert figures[("slipway_processes_ready",)] == 2
    assert len(processes - {b""}) == 2, "both processes answered"
    for number in "01":
        assert figures["slipway_process_resident_memory_bytes", ("process", number)] > 1e7
        assert figures["slipway_process_cpu_seconds_total", ("process", number)] > 0.1
        assert figures["slipway_process_open_fds", ("process", number)] > 5


def test_a_dead_process_is_counted_and_what_it_had_counted_stays(start_server, user_model):
    server = start_server(user_model(ECHO), SAGEMAKER_MODEL_SERVER_WORKERS="2").wait_ready()
    for _ in range(10):
        server.request("POST", "/invocations", b"[1]", JSON)
    before = server.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: pid not in server.workers() and server.ping() == 200)
    server.wait_ready()
    figures = scrape(server)
    assert requests(figures, "/invocations", 200) == 10
    assert figures[("slipway_process_restarts_total",)] == 2


def test_the_queue_of_a_process_that_computes_is_seen_from_outside(start_server, user_model, tmp_path):
    gate = tmp_path / "gate"
    model = user_model(f"""
        import os, time

        def predict_fn(data, model):
            while not os.path.exists({str(gate)!r}):
                time.sleep(0.01)
            return data
    """)
    server = start_server(model, SAGEMAKER_MODEL_SERVER_WORKERS="1", SLIPWAY_COMPUTE_THREADS="1").wait_ready()
    clients = [threading.Thread(target=server.request, args=("POST", "/invocations", b"[1]", JSON)) for _ in range(4)]
    for client in clients:
        client.start()
    wait_for(lambda: scrape(server)[("slipway_queue_length", ("process", "0"))] == 3)
    gate.touch()
    for client in clients:
        client.join()
    assert scrape(server)[("slipway_queue_length", ("process", "0"))] == 0


def test_without_metrics_there_is_no_route(start_server, user_model):
    server = start_server(user_model(ECHO), SLIPWAY_METRICS="false", SAGEMAKER_MODEL_SERVER_WORKERS="1").wait_ready()
    assert server.request("POST", "/invocations", b"[1]", JSON).status == 200
    assert server.request("GET", "/metrics").status == 404


def test_every_route_and_status_is_counted_at_both_doors(open_door, artifact):
    door = open_door(artifact, {"SLIPWAY_MAX_REQUEST_BYTES": "1000"})
    for method, path, body in [
        ("POST", "/invocations", b"[1"),
        ("POST", "/invocations", b"1" * 1001),
        ("GET", "/invocations", b""),
        ("GET", "/ping", b""),
        ("GET", "/ping", b""),
        ("GET", "/execution-parameters", b""),
        ("GET", "/nothing", b""),
        ("POST", "/models/x/invoke", b""),
    ]:
        door.request(method, path, body, JSON | {"Content-Length": str(len(body))})
    figures = samples(door.request("GET", "/metrics").body.decode())
    assert {key[1:]: value for key, value in figures.items() if key[0] == "slipway_requests_total"} == {
        (("route", "/invocations"), ("status", "400")): 1,
        (("route", "/invocations"), ("status", "413")): 1,
        (("route", "other"), ("status", "405")): 1,
        (("route", "/ping"), ("status", "200")): 2,
        (("route", "/execution-parameters"), ("status", "200")): 1,
        (("route", "other"), ("status", "404")): 2,
    }


def test_a_status_that_no_protocol_knows_is_counted_as_other():
    metrics = Metrics(1)
    metrics.count("/ping", 999)
    assert metrics.total().requests == {("/ping", 0): 1}


LINEAR = "import torch\ndef model_fn(model_dir): return torch.nn.Linear(9, 10)"


def test_models_that_come_and_go_are_counted_with_their_memory(open_models):
    door = open_models.open(lambda service: create_app(service).test_client())
    for name in ("a", "b"):
        assert door.post("/models", data=open_models.write(name, LINEAR), headers=JSON).status_code == 200
    assert door.post("/models/a/invoke", data=json.dumps([[0] * 9]), headers=JSON).status_code == 200
    figures = samples(door.get("/metrics").text)
    assert requests(figures, "/models", 200) == 2
    assert requests(figures, "/models/{name}/invoke", 200) == 1
    assert figures[("slipway_models_loaded", ("process", "0"))] == 2
    assert figures[("slipway_model_memory_bytes", ("process", "0"))] == 2 * 400
    door.delete("/models/a")
    figures = samples(door.get("/metrics").text)
    assert figures[("slipway_models_loaded", ("process", "0"))] == 1
    assert requests(figures, "/models/{name}", 200) == 1


def test_a_quantile_is_the_bound_of_its_bucket():
    metrics = Metrics(1)
    for size in (1, 1, 1, 5):
        metrics.batch(size)
    batches = metrics.total().batches
    assert (batches.count, batches.sum, batches.quantile(0.5), batches.quantile(0.99)) == (4, 8, 1, 8)
    metrics.batch(1000)
    assert metrics.total().batches.minus(batches).quantile(0.5) == 256
    assert batches.minus(batches).quantile(0.5) == 0.0


def test_the_exposition_keeps_the_rules_that_promtool_checks(door):
    """Help and type for every family, base units in the names, counters end in _total, buckets rise to the count."""
    door.request("POST", "/invocations", b"0," * 63 + b"0", {"Content-Type": "text/csv"})
    door.request("POST", "/invocations", b"x", JSON)
    text = door.request("GET", "/metrics").body.decode()
    families = list(text_string_to_metric_families(text))
    seen = [(sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples]
    assert len(seen) == len(set(seen)), "a series stands there twice"
    assert {family.type for family in families} == {"counter", "gauge", "histogram"}
    for family in families:
        assert re.fullmatch(r"slipway_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"milli|_ms$|_kb|_mb|_count$", family.name), "base units: seconds and bytes"
        if family.type == "counter":
            assert all(sample.name == f"{family.name}_total" for sample in family.samples)
        if family.type == "histogram":
            check_histogram(family)


def check_histogram(family):
    series = {}
    for sample in family.samples:
        labels = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
        series.setdefault(labels, {})[sample.name.removeprefix(family.name), sample.labels.get("le")] = sample.value
    for values in series.values():
        buckets = sorted((float(bound), value) for (name, bound), value in values.items() if name == "_bucket")
        assert buckets[-1] == (float("inf"), values["_count", None])
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        assert values["_sum", None] >= 0
