"""The routes below `/_local/`, errors on demand, and the web page in a real browser where there is one."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from launcher.local import client
from launcher.local.logs import Logs


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


def test_overview_details_logs_and_metrics_are_what_the_page_shows(aws, call, training_request, model, endpoint):
    algorithm = {"TrainingImage": "x", "TrainingInputMode": "File"}
    algorithm["MetricDefinitions"] = [{"Name": "loss", "Regex": "loss=(.*?);"}]
    request = training_request({"lines": '["loss=2;", "loss=1;"]'}, AlgorithmSpecification=algorithm)
    aws.train(request)
    name = endpoint({"A": model()})
    aws.invoke(name, b"hello")
    overview = call("GET", "/_local/overview")
    path = f"training-job/{request['TrainingJobName']}"
    job = next(job for job in overview["jobs"] if job["name"] == request["TrainingJobName"])
    assert (job["kind"], job["status"]) == ("training-job", "Completed")
    assert {item["name"]: item["note"] for item in overview["endpoints"]}[name] == "variant A"
    facts = dict(call("GET", f"/_local/details/{path}")["facts"])
    assert facts["Artifact"] == f"s3://test-bucket/out/{request['TrainingJobName']}/output/model.tar.gz"
    assert "lines=" in facts["Hyperparameters"]
    assert ["Variants", "A: 1 of 1 instances, weight 1"] in call("GET", f"/_local/details/endpoint/{name}")["facts"]
    log = call("GET", f"/_local/logs/{path}")
    assert [line.split(" ", 2)[2] for line in log["lines"]] == ["hello from algo-1", "loss=2;", "loss=1;"]
    assert (log["isCut"], Path(log["folder"]).is_dir()) == (False, True)
    assert "serving" in call("GET", f"/_local/logs/endpoint/{name}")["lines"][0]
    points = call("GET", f"/_local/metrics/{path}")["loss"]
    assert [value for _, value in points] == [2, 1]
    measured = call("GET", f"/_local/metrics/endpoint/{name}")
    assert measured.keys() == {"A: invocations", "A: model latency in ms"}
    assert [value for _, value in measured["A: invocations"]] == [1]


def test_a_log_that_is_long_is_read_from_its_end(tmp_path):
    logs = Logs(tmp_path, "us-east-1")
    stream = logs.stream("/aws/sagemaker/TrainingJobs", "long/algo-1-1")
    for number in range(2000):
        stream.write(f"line {number} " + "x" * 500)
    stream.close()
    lines, is_cut = logs.tail("/aws/sagemaker/TrainingJobs", "long/", 300)
    assert [int(line.split()[3]) for line in lines] == list(range(1700, 2000))
    assert is_cut
    lines, is_cut = logs.tail("/aws/sagemaker/TrainingJobs", "long/", 5000)
    assert is_cut  # the file's beginning is not read
    assert 0 < len(lines) < 2000
    assert lines[-1].startswith("20")


def test_routes_and_names_that_are_not_there_are_named(call):
    status, message = call("GET", "/_local/nothing")
    assert status == 400
    assert "there is GET health, GET overview" in message
    assert "lacks a name" in call("GET", "/_local/logs")[1]
    assert "cat is none of training-job" in call("GET", "/_local/logs/cat/x")[1]
    assert "There is no endpoint 'none' any more" in call("GET", "/_local/details/endpoint/none")[1]


def test_a_foreign_page_is_turned_away(aws, call):
    assert call("GET", "/_local/overview", Origin="http://evil.example")[0] == 403
    assert "jobs" in call("GET", "/_local/overview", Origin=aws.server.url)


def test_the_page_is_there_for_a_browser_and_buckets_for_everyone_else(aws):
    request = urllib.request.Request(aws.server.url, headers={"Accept": "text/html"})
    page = urllib.request.urlopen(request).read().decode()
    assert "<title>Local SageMaker</title>" in page
    assert b"ListAllMyBucketsResult" in urllib.request.urlopen(aws.server.url).read()


def test_a_person_sees_jobs_live_and_invokes_an_endpoint_in_a_real_browser(own_server, browser, training_request):
    aws = own_server()
    browser.open(aws.server.url)
    browser.wait("document.getElementById('jobs').textContent.includes('train --local starts one')")
    request = training_request({"lines": '["loss=3;"]', "sleep": "600"})
    metric = {"Name": "loss", "Regex": "loss=(.*?);"}
    request["AlgorithmSpecification"]["MetricDefinitions"] = [metric]
    aws.train(request, wait=False)
    name = request["TrainingJobName"]
    browser.wait("document.querySelectorAll('#jobs .item .InProgress').length === 1")
    browser.run("document.querySelector('#jobs .item').click()")
    browser.wait(f"document.getElementById('title').textContent === '{name}: InProgress, Training'")
    browser.wait("document.getElementById('logs').textContent.includes('loss=3;')")
    browser.wait("document.querySelectorAll('#metrics svg').length === 1")
    aws.sagemaker.stop_training_job(TrainingJobName=name)
    browser.wait(f"document.getElementById('title').textContent === '{name}: Stopped'")
    browser.wait("document.getElementById('logs').textContent.includes('algo-1 got SIGTERM')")
    deploy(aws, "served", request["RoleArn"])
    browser.wait("document.querySelectorAll('#endpoints .InService').length === 1")
    browser.run("document.querySelector('#endpoints .item').click()")
    browser.wait("!document.getElementById('invoke').hidden")
    for body, took, answer in [("hello", "200 in ", "HELLO"), ("status 400", "424 in ", "answered 400")]:
        browser.run(f"document.getElementById('body').value = '{body}'; document.getElementById('send').click()")
        browser.wait(f"document.getElementById('took').textContent.startsWith('{took}')")
        browser.wait(f"document.getElementById('answer').textContent.includes('{answer}')")
    browser.run("document.getElementById('filter').value = 'nothing'; document.getElementById('filter').oninput()")
    browser.wait("document.getElementById('jobs').textContent === 'None of that name.'")
    client.down(aws.server.home)
    browser.wait("!document.getElementById('lost').hidden")


def deploy(aws, name, role):
    aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer={"Image": "x"})
    variant = {"VariantName": "A", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    aws.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
