"""Starting, ending and losing the server."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from launcher.local import client, http_server
from launcher.local.process_containers import processes_below
from launcher.local.server import container_environment


def kill(server_process_id):
    os.kill(server_process_id, signal.SIGKILL)


def freeze(aws):
    """Stop the server's process and wait until every thread of it stands."""
    os.kill(aws.server.pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{aws.server.pid}/task")
    aws.wait_for(
        lambda: {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()},
        lambda states: states == {"T"},
    )


def test_two_ups_at_once_start_one_server(own_server):
    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(lambda _: own_server(), range(2))
    assert first.server == second.server
    assert client.status(first.server.home) == first.server


def test_status_and_down_without_a_server(tmp_path):
    assert client.status(tmp_path) is None
    assert client.down(tmp_path) is False


def test_state_survives_down_and_up(own_server, training_request, unique):
    aws = own_server()
    keys = ("plain.txt", "a", "a/b", "deep//x", "dots/../y", "folder/", "per%cent", "ümlaut", "l" * 900)
    for key in keys:
        aws.s3.put_object(Bucket="test-bucket", Key=key, Body=key.encode(), ContentType="text/x", Metadata={"k": "v"})
    request = training_request({"lines": '["kept"]'})
    job = aws.train(request)
    name = unique("endpoint")
    role = request["RoleArn"]
    aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer={"Image": "x"})
    variants = [
        {"VariantName": label, "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        for label in "AB"
    ]
    tags = [{"Key": "team", "Value": "vision"}]
    aws.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    arn = aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)["EndpointArn"]
    aws.wait_in_service(name)
    desired = [{"VariantName": "A", "DesiredWeight": 0.0}, {"VariantName": "B", "DesiredWeight": 3.0}]
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=desired)
    home = aws.server.home
    assert client.down(home) is True
    assert list(processes_below(home)) == []

    again = own_server()
    assert again.server.url == aws.server.url  # exported variables stay right
    for key in keys:
        stored = again.s3.get_object(Bucket="test-bucket", Key=key)
        assert (stored["Body"].read(), stored["ContentType"], stored["Metadata"]) == (
            key.encode(),
            "text/x",
            {"k": "v"},
        )
    described = again.sagemaker.describe_training_job(TrainingJobName=request["TrainingJobName"])
    assert described["TrainingJobStatus"] == "Completed"
    assert again.unpack(described["ModelArtifacts"]["S3ModelArtifacts"]) == aws_files(job, again)
    lines = again.log_lines("/aws/sagemaker/TrainingJobs", request["TrainingJobName"])
    assert ["hello from algo-1", "kept"] in lines.values()
    described = again.wait_in_service(name)
    assert {item["VariantName"]: item["CurrentWeight"] for item in described["ProductionVariants"]} == {"A": 0, "B": 3}
    assert again.sagemaker.list_tags(ResourceArn=arn)["Tags"] == tags
    answer = again.invoke(name, b"back")
    assert (answer["Body"].read(), answer["InvokedProductionVariant"]) == (b"BACK", "B")


def aws_files(job, aws):
    return aws.unpack(job["ModelArtifacts"]["S3ModelArtifacts"])


def test_after_kill_9_what_ran_failed_what_waited_runs_and_no_process_is_left(own_server, training_request, unique):
    aws = own_server(SLIPWAY_LOCAL_JOBS="1")
    running, queued = training_request({"sleep": "600"}), training_request()
    aws.train(running, wait=False)
    aws.train(queued, wait=False)
    home = aws.server.home
    aws.wait_for(lambda: list(processes_below(home / "jobs")), bool)
    kill(aws.server.pid)

    before = set(processes_below(home / "jobs"))
    again = own_server()
    assert again.server.pid != aws.server.pid
    assert before & set(processes_below(home / "jobs")) == set()
    job = again.sagemaker.describe_training_job(TrainingJobName=running["TrainingJobName"])
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Failed", "Failed")
    assert "the local SageMaker died while this job was running" in job["FailureReason"]
    assert job["TrainingEndTime"]
    assert again.finished("training", queued["TrainingJobName"])["TrainingJobStatus"] == "Completed"
    aws.wait_for(lambda: list((home / "jobs").rglob("*")), lambda left: left == [home / "jobs/training-job"])


def test_down_ends_running_jobs_with_a_true_reason(own_server, training_request):
    aws = own_server()
    request = training_request({"sleep": "600", "ignore_sigterm": "1"})
    aws.train(request, wait=False)
    aws.wait_for(lambda: list(processes_below(aws.server.home / "jobs")), bool)
    client.down(aws.server.home)
    assert list(processes_below(aws.server.home / "jobs")) == []
    again = own_server()
    job = again.sagemaker.describe_training_job(TrainingJobName=request["TrainingJobName"])
    assert job["TrainingJobStatus"] == "Failed"
    assert "the local SageMaker was stopped while this job was running" in job["FailureReason"]


def test_a_server_whose_home_is_removed_ends(own_server):
    import shutil

    aws = own_server()
    shutil.rmtree(aws.server.home)
    deadline = time.monotonic() + 30
    while alive(aws.server.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    aws.server.home.mkdir()


def alive(process_id):
    try:
        os.waitpid(process_id, os.WNOHANG)  # a child of this process: reap it
        os.kill(process_id, 0)
    except (ProcessLookupError, ChildProcessError):
        return False
    return True


def test_a_server_that_does_not_come_up_shows_the_end_of_its_log(tmp_path):
    environ = {**os.environ, client.RUNTIME_VARIABLE: "podman"}
    with pytest.raises(client.LocalServerError, match="ended with code 1") as caught:
        client.up(tmp_path, environ)
    assert "SLIPWAY_LOCAL_RUNTIME='podman' is neither 'docker' nor 'process'" in str(caught.value)


def test_a_server_that_hangs_is_ended_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "UP_SECONDS", 0.01)
    with pytest.raises(client.LocalServerError, match="did not answer within 0.01 s"):
        client.up(tmp_path, {**os.environ, client.RUNTIME_VARIABLE: "process"})
    assert client.status(tmp_path) is None


def test_a_server_that_ignores_down_is_killed(own_server, monkeypatch):
    aws = own_server()
    freeze(aws)
    monkeypatch.setattr(client, "DOWN_SECONDS", 0.1)
    with pytest.raises(client.LocalServerError, match="did not end in 0.1 s and was killed"):
        client.down(aws.server.home)
    aws.wait_for(lambda: client.is_alive(aws.server.home), lambda lives: not lives)


def test_a_server_of_an_older_version_is_found_and_ended(own_server):
    """It wrote no process id into `server.alive`, and no region into `server.json`."""
    server = own_server().server
    home = server.home
    (home / client.ALIVE).write_text("")
    state = json.loads((home / "server.json").read_text())
    del state["region"]
    (home / "server.json").write_text(json.dumps(state))
    assert client.status(home).pid == server.pid
    assert client.down(home) is True
    assert client.status(home) is None


def test_a_server_that_nothing_names_is_an_error_with_a_remedy(tmp_path):
    with (tmp_path / client.ALIVE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(client.LocalServerError, match="find it with `fuser .*server.alive`"):
            client.down(tmp_path)


def test_up_reports_a_server_that_is_there_and_does_not_answer(own_server, monkeypatch):
    aws = own_server()
    freeze(aws)
    monkeypatch.setattr(client, "UP_SECONDS", 0.1)
    try:
        with pytest.raises(client.LocalServerError, match="end it with: python -m launcher local down"):
            client.up(aws.server.home)
    finally:
        os.kill(aws.server.pid, signal.SIGCONT)
    monkeypatch.undo()
    assert client.up(aws.server.home) == aws.server


def test_a_second_server_in_one_home_refuses_to_start(own_server):
    aws = own_server()
    argv = [sys.executable, "-m", "launcher.local.server", str(aws.server.home)]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 1
    assert "Another local SageMaker runs in" in answer.stderr


def test_docker_is_refused_where_no_engine_answers(tmp_path):
    environ = {**os.environ, client.RUNTIME_VARIABLE: "docker", "DOCKER_HOST": "tcp://127.0.0.1:1"}
    with pytest.raises(client.LocalServerError, match="no Docker engine answers"):
        client.up(tmp_path, environ)


def test_without_an_engine_the_runtime_is_processes(tmp_path):
    environ = {**os.environ, client.RUNTIME_VARIABLE: "", "DOCKER_HOST": "tcp://127.0.0.1:1"}
    found = client.up(tmp_path, environ)
    client.down(tmp_path)
    assert found.runtime == "process"


def test_a_taken_port_is_replaced():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (listener,) = http_server.bind(["127.0.0.1"], port)
        assert listener.getsockname()[1] != port
        listener.close()


def test_an_address_that_is_not_ours_cannot_be_bound():
    with pytest.raises(OSError, match=r"no free port on 192\.0\.2\.1"):
        http_server.bind(["192.0.2.1"], 0)


def test_the_environment_keeps_clients_from_looking_elsewhere(aws):
    environment = aws.server.environment()
    assert environment["AWS_ENDPOINT_URL"] == aws.server.url
    assert environment["AWS_PROFILE"] == "default"
    assert environment["SAGEMAKER_VALIDATE_ROLE"] == "false"
    script = "import boto3; print(boto3.client('sts').get_caller_identity()['Account'])"
    shell = {**os.environ, "AWS_PROFILE": "mine", **environment}
    answer = subprocess.run([sys.executable, "-c", script], env=shell, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "123456789012"


def test_containers_do_not_get_what_only_this_machines_clients_need(aws):
    inside = container_environment(aws.server)
    assert inside["AWS_REGION"] == aws.server.region
    assert not {"AWS_CONFIG_FILE", "AWS_PROFILE", "SAGEMAKER_VALIDATE_ROLE"} & inside.keys()


def test_client_imports_the_standard_library_only():
    script = (
        "import sys, launcher.local.client; print([n for n in sys.modules if n.split('.')[0] in ('boto3', 'moto')])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_unknown_local_routes_name_the_known_ones(aws):
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{aws.server.url}/_local/nothing")
    assert "POST interrupt" in json.loads(caught.value.read())["message"]


def test_interrupt_without_a_server_says_how_to_start_one(tmp_path):
    with pytest.raises(client.LocalServerError, match="python -m launcher local up"):
        client.interrupt(tmp_path, "job")


def test_a_deleted_log_stream_comes_back_with_the_next_line(aws, training_request):
    request = training_request({"sleep": "600"})
    aws.train(request, wait=False)
    name = request["TrainingJobName"]
    group = "/aws/sagemaker/TrainingJobs"
    (stream,) = aws.wait_for(
        lambda: aws.log_lines(group, name), lambda streams: ["hello from algo-1"] in streams.values()
    )
    aws.client("logs").delete_log_stream(logGroupName=group, logStreamName=stream)
    aws.sagemaker.stop_training_job(TrainingJobName=name)
    aws.finished("training", name)
    assert aws.log_lines(group, name)[stream] == ["algo-1 got SIGTERM"]


def test_an_unknown_region_is_only_a_name(own_server):
    aws = own_server(AWS_DEFAULT_REGION="eu-central-1")
    assert aws.server.region == "eu-central-1"
    with pytest.raises(ClientError, match="arn:aws:sagemaker:eu-central-1:123456789012:endpoint/none"):
        aws.sagemaker.describe_endpoint(EndpointName="none")


def test_jobs_of_every_kind_that_waited_when_the_server_ended_run_on_the_next_one(own_server, training_request, unique):
    aws = own_server(SLIPWAY_LOCAL_JOBS="1")
    running = training_request({"sleep": "600"})
    aws.train(running, wait=False)
    queued = training_request()
    aws.train(queued, wait=False)
    role, name = running["RoleArn"], unique("queued")
    aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer={"Image": "x"})
    aws.put("in/a")
    source = {"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://test-bucket/in/"}}}
    aws.sagemaker.create_transform_job(
        TransformJobName=name,
        ModelName=name,
        TransformInput=source,
        TransformOutput={"S3OutputPath": "s3://test-bucket/out"},
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 1},
    )
    cluster = {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
    aws.sagemaker.create_processing_job(
        ProcessingJobName=name,
        AppSpecification={"ImageUri": "x"},
        ProcessingResources={"ClusterConfig": cluster},
        RoleArn=role,
    )
    stopped = training_request()
    aws.train(stopped, wait=False)
    aws.sagemaker.stop_training_job(TrainingJobName=stopped["TrainingJobName"])
    client.down(aws.server.home)
    again = own_server()
    broken = again.sagemaker.describe_training_job(TrainingJobName=running["TrainingJobName"])
    assert "the local SageMaker was stopped while this job was running" in broken["FailureReason"]
    assert again.finished("training", queued["TrainingJobName"])["TrainingJobStatus"] == "Completed"
    assert again.finished("training", stopped["TrainingJobName"])["TrainingJobStatus"] == "Stopped"
    assert again.finished("transform", name)["TransformJobStatus"] == "Completed"
    job = again.finished("processing", name)
    assert (job["ProcessingJobStatus"], "stopped" in job["FailureReason"]) == ("Failed", False)  # `x` is no program
