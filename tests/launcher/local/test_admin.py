"""The routes below `/_local/`, errors on demand, and the web page in a real browser where there is one."""

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError


@pytest.fixture
def call(aws):
    """Calls a route; its answer as JSON, or the error's status and message."""

    def send(method, path, body=None, **headers):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{aws.server.url}{path}", data=data, headers=headers, method=method)
        try:
            return json.loads(urllib.request.urlopen(request).read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["message"]

    return send


def test_faults_fail_the_next_calls_of_their_operation(aws, call, training_request):
    fault = {
        "operation": "CreateTrainingJob",
        "code": "ResourceLimitExceeded",
        "message": "The account-level limit is 0",
    }
    call("POST", "/_local/faults", fault)
    request = training_request()
    with pytest.raises(ClientError, match="ResourceLimitExceeded.*The account-level limit is 0"):
        aws.train(request)
    assert aws.train(request)["TrainingJobStatus"] == "Completed"

    throttled = {"operation": "InvokeEndpoint", "code": "ThrottlingException", "message": "slow down", "status": 429}
    call("POST", "/_local/faults", throttled | {"times": 2})
    runtime = aws.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 2}))
    with pytest.raises(ClientError, match="ThrottlingException.*reached max retries: 1"):
        runtime.invoke_endpoint(EndpointName="none", Body=b"x")
    with pytest.raises(ClientError, match="ValidationError"):
        runtime.invoke_endpoint(EndpointName="none", Body=b"x")


def test_a_fault_that_is_none_is_refused(call):
    assert call("POST", "/_local/faults", {"operation": "x", "code": "y"}) == (
        400,
        "A fault needs operation, code and message; 'message' is missing",
    )
    assert "A fault is a JSON object" in call("POST", "/_local/faults", b"{")[1]


def test_overview_logs_and_metrics_are_what_the_page_shows(aws, call, training_request, model, endpoint):
    algorithm = {"TrainingImage": "x", "TrainingInputMode": "File"}
    algorithm["MetricDefinitions"] = [{"Name": "loss", "Regex": "loss=(.*?);"}]
    request = training_request({"lines": '["loss=2;", "loss=1;"]'}, AlgorithmSpecification=algorithm)
    aws.train(request)
    name = endpoint({"A": model()})
    overview = call("GET", "/_local/overview")
    job = next(job for job in overview["jobs"] if job["name"] == request["TrainingJobName"])
    assert (job["kind"], job["status"], job["detail"]) == ("training-job", "Completed", "Completed")
    assert {item["name"]: item["variants"] for item in overview["endpoints"]}[name] == ["A"]
    lines = call("GET", f"/_local/logs/training-job/{request['TrainingJobName']}")["lines"]
    assert [line.split(" ", 2)[2] for line in lines] == ["hello from algo-1", "loss=2;", "loss=1;"]
    assert "serving" in call("GET", f"/_local/logs/endpoint/{name}")["lines"][0]
    points = call("GET", f"/_local/metrics/{request['TrainingJobName']}")["metrics"]["loss"]
    assert [value for _, value in points] == [2, 1]
    answer = call("POST", f"/_local/invoke/{name}", b"hello", **{"Content-Type": "text/plain"})
    assert answer == {"variant": "A", "contentType": "text/plain", "body": "HELLO", "encoding": "text"}
    assert call("POST", f"/_local/invoke/{name}", b"\xff")["encoding"] == "base64"


def test_routes_and_names_that_are_not_there_are_named(call):
    status, message = call("GET", "/_local/nothing")
    assert status == 400
    assert "there is GET health, GET overview" in message
    assert "lacks a name" in call("GET", "/_local/logs")[1]
    assert "cat is none of training-job" in call("GET", "/_local/logs/cat/x")[1]
    assert "No endpoint 'none'" in call("POST", "/_local/invoke/none", b"x")[1]


def test_a_foreign_page_is_turned_away(aws, call):
    assert call("GET", "/_local/overview", Origin="http://evil.example")[0] == 403
    assert "jobs" in call("GET", "/_local/overview", Origin=aws.server.url)


def test_the_page_is_there_for_a_browser_and_buckets_for_everyone_else(aws):
    request = urllib.request.Request(aws.server.url, headers={"Accept": "text/html"})
    page = urllib.request.urlopen(request).read().decode()
    assert "<title>Local SageMaker</title>" in page
    assert b"ListAllMyBucketsResult" in urllib.request.urlopen(aws.server.url).read()


@pytest.mark.skipif(
    not shutil.which("chromium") and not os.environ.get("CI"), reason="no chromium: apt-get install chromium"
)
def test_the_page_shows_jobs_in_a_real_browser(aws, training_request, tmp_path):
    request = training_request({"lines": '["in the browser"]'})
    aws.train(request)
    address = f"{aws.server.url}/#training-job/{request['TrainingJobName']}"
    argv = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    argv += ["--virtual-time-budget=5000", "--dump-dom", address]
    dom = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f'<h1 id="title">{request["TrainingJobName"]}: Completed</h1>' in dom
    assert "in the browser" in dom
    assert '<span class="Completed">Completed</span>' in dom
