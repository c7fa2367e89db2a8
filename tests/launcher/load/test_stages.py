"""Load, stage by stage, against a server of this machine that answers as an endpoint does."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launcher.aws import Aws
from launcher.errors import ConfigError, JobFailed, TimedOut
from launcher.invoke import Request
from launcher.load.measure import error_kind
from launcher.load.stages import Load, Plan, Stage, run, stage_of, why_end


class Endpoint(ThreadingHTTPServer):
    """Answers [7]; a body `bad` is the container's error, and so is everything once `broken`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen = Counter()
        self.broken = False
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.seen[body] += 1
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        if body == b"throttle":
            self.answer(400, {"message": "slow down"}, "ThrottlingException")
        elif body == b"bad" or self.server.broken:
            self.answer(424, {"OriginalStatusCode": 500, "OriginalMessage": "boom", "Message": "boom"}, "ModelError")
        else:
            self.answer(200, [7], None)
        with self.server.lock:
            self.server.at_once -= 1

    def answer(self, status, value, error):
        body = json.dumps(value).encode()
        self.send_response(status)
        if error:
            self.send_header("x-amzn-ErrorType", error)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch, no_credentials):
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def request(body=b"good"):
    return Request("digits", body, "text/plain")


def stage(concurrency, rate, mean=10.0, failed=0, p99=20.0):
    errors = {"container 500": failed} if failed else {}
    return Stage(concurrency, 100, errors, rate, mean, mean, mean, p99, p99, 0.1)


def test_each_stage_is_told_with_its_figures(endpoint):
    told = []
    load = run(Aws("us-east-1"), [request(b"one"), request(b"two")], Plan((1, 4), 0.2, 0), told.append)
    assert tuple(told) == load.stages
    assert [item.concurrency for item in load.stages] == [1, 4]
    assert sum(item.requests for item in load.stages) == endpoint.seen.total()
    assert set(endpoint.seen) == {b"one", b"two"}
    assert endpoint.most_at_once <= 4
    for item in load.stages:
        assert item.errors == {}
        assert 0 < item.p50_ms <= item.p90_ms <= item.p99_ms <= item.max_ms


def test_the_warm_up_is_not_counted(endpoint):
    load = run(Aws("us-east-1"), [request()], Plan((1,), 0.2, 0.2))
    assert 0 < load.stages[0].requests < endpoint.seen.total()


def test_errors_are_counted_by_kind_and_none_is_tried_again_unseen(endpoint):
    load = run(Aws("us-east-1"), [request(), request(b"bad"), request(b"throttle")], Plan((3,), 0.3, 0))
    (measured,) = load.stages
    assert measured.errors == {
        "container 500": endpoint.seen[b"bad"],
        "ThrottlingException": endpoint.seen[b"throttle"],
    }
    assert measured.error_share == pytest.approx(1 - endpoint.seen[b"good"] / measured.requests)


def test_an_endpoint_that_answers_nothing_is_not_loaded_further(endpoint):
    with pytest.raises(
        JobFailed, match=r"none of \d+ requests at concurrency 2 was answered: the container answered 500"
    ):
        run(Aws("us-east-1"), [request(b"bad")], Plan((2, 4), 0.1, 0))


def test_an_endpoint_that_breaks_down_ends_the_run_with_what_was_measured(endpoint):
    def break_down(_):
        endpoint.broken = True

    load = run(Aws("us-east-1"), [request()], Plan((1, 2, 4), 0.1, 0), break_down)
    assert [item.concurrency for item in load.stages] == [1]
    assert load.notes[-1].startswith("ended early: none of")


def test_other_troubles_are_counted_by_their_name(endpoint):
    assert error_kind(TimedOut("no")) == "TimedOut"


def test_the_knee_is_where_more_at_once_only_waits_longer():
    load = Load((stage(1, 50, 20), stage(2, 98, 20.4), stage(4, 130, 31), stage(8, 131, 61)))
    assert load.knee.concurrency == 2


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([stage(1, 50), stage(2, 90)], ""),
        ([stage(1, 50), stage(2, 51), stage(4, 52)], "two stages in a row brought no more than 50.0/s"),
        ([stage(1, 50), stage(2, 51), stage(4, 90)], ""),
        ([stage(1, 50), stage(2, 90, failed=60)], "60% of the requests at concurrency 2 failed"),
    ],
)
def test_a_run_ends_where_more_load_shows_nothing_new(stages, reason):
    assert why_end(stages) == reason


def test_a_sender_that_is_busy_itself_says_so(endpoint, monkeypatch):
    monkeypatch.setattr("launcher.load.stages.BUSY_CLIENT", 0.0)
    load = run(Aws("us-east-1"), [request()], Plan((1,), 0.1, 0))
    assert "from concurrency 1 on the sender itself was busy" in load.notes[0]


def test_a_stage_has_the_percentiles_of_the_answered():
    made = stage_of(4, [0.001 * number for number in range(1, 101)], Counter({"container 500": 1}), 10.0, 0.2)
    assert (made.requests, made.errors, made.requests_per_second) == (101, {"container 500": 1}, 10)
    assert (made.mean_ms, made.p50_ms) == (pytest.approx(50.5), pytest.approx(50.5))


# --- the verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def verb(endpoint, monkeypatch, tmp_path, canned_endpoint):
    from launcher import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "row.json").write_text("[1]")
    (tmp_path / "launcher.yaml").write_text("name: digits\nrole: arn:aws:iam::123456789012:role/jobs\n")
    return lambda *arguments: cli.main(["load", "row.json", "--duration", "1", "--warm-up", "0", *arguments])


@pytest.fixture
def canned_endpoint(endpoint, monkeypatch):
    """What the control plane says of the endpoint; only invocations reach the server."""
    variant = {"VariantName": "main", "InstanceType": "ml.c5.2xlarge", "CurrentInstanceCount": 2}
    replies = {
        "DescribeEndpoint": {"ProductionVariants": [variant], "EndpointConfigName": "c"},
        "DescribeEndpointConfig": {"ProductionVariants": [variant]},
    }
    real = Aws.call
    monkeypatch.setattr(
        Aws, "call", lambda self, service, name, **given: replies.get(name) or real(self, service, name, **given)
    )
    return variant


def test_the_verb_prints_a_table_and_what_to_set_and_draws_it(verb, capsys, tmp_path):
    assert verb("--stages", "1,2", "--target-rps", "10") == 0
    printed = capsys.readouterr().out
    assert "AT ONCE" in printed
    assert "-> knee at" in printed
    assert "endpoint.instance_count" in printed
    assert "ml.c5.2xlarge has 8 CPUs" in printed
    assert (tmp_path / ".launcher" / "load-digits.png").read_bytes().startswith(b"\x89PNG")


def test_the_verbs_result_as_json(verb, capsys, tmp_path):
    assert verb("--stages", "1", "--chart", "charts/a.png", "--target-p99-ms", "60000", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert [item["concurrency"] for item in result["stages"]] == [1]
    assert (result["knee"], result["chart"]) == (1, "charts/a.png")
    assert (tmp_path / "charts" / "a.png").exists()


def test_a_serverless_endpoint_is_advised_otherwise(verb, canned_endpoint, capsys):
    del canned_endpoint["InstanceType"], canned_endpoint["CurrentInstanceCount"]
    assert verb("--stages", "1") == 0
    assert "endpoint.serverless.max_concurrency" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--stages", "1;2"], "is no list of numbers such as 1,2,4,8"),
        (["--stages", "0,2"], "each must be between 1 and 256"),
        (["--stages", "300"], "each must be between 1 and 256"),
        (["--duration", "2h"], "between a second and an hour"),
        (["--duration", "soon"], "is no duration"),
    ],
)
def test_a_run_without_bounds_is_refused(verb, arguments, problem, capsys):
    assert verb(*arguments) == ConfigError.exit_code
    assert problem in capsys.readouterr().err


def test_one_of_several_components_is_loaded_when_it_is_named(verb, endpoint, capsys, monkeypatch):
    asked = []
    real = Aws.call
    monkeypatch.setattr(Aws, "call", lambda self, *names, **given: asked.append(given) or real(self, *names, **given))
    several = "endpoint.components=[{name: a, model: s3://b/1}, {name: b, model: s3://b/1}]"
    assert verb("--set", several) == ConfigError.exit_code
    assert "say which: --component a or b" in capsys.readouterr().err
    assert verb("--set", several, "--component", "b", "--stages", "1") == 0
    assert {"digits-b"} == {given["InferenceComponentName"] for given in asked if "Body" in given}


def test_an_asynchronous_endpoint_is_not_loaded(verb, canned_endpoint, monkeypatch, capsys):
    monkeypatch.setattr("launcher.invoke.mode_of", lambda *_: "asynchronous")
    assert verb() == ConfigError.exit_code
    assert "digits is asynchronous and answers into S3" in capsys.readouterr().err


def test_a_dry_run_sends_nothing(verb, endpoint, capsys):
    assert verb("--dry-run") == 0
    assert "InvokeEndpoint" in capsys.readouterr().out
    assert not endpoint.seen
