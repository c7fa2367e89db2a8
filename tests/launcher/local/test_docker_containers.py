"""The Docker runtime, against a real engine, with a small image on top of the training image."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from launcher.local import client
from launcher.local.docker_containers import by_digest

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[3]
BASE_IMAGE = "slipway-train:local"
IMAGE = f"slipway-fake:{uuid.uuid4().hex[:12]}"
DOCKERFILE = f"""
FROM {BASE_IMAGE}
COPY container /opt/fake/container
ENV PYTHONPATH=/opt/fake PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["/usr/bin/env", "python3", "-m", "container"]
"""
LOOK = """
import json, os, socket, time, urllib.request

host = json.load(open("/opt/ml/input/config/resourceconfig.json"))["current_host"]
peer = {"algo-1": "algo-2", "algo-2": "algo-1"}[host]
door = socket.create_server(("0.0.0.0", 7777))

def connect():
    while True:  # "name resolution may lag": a peer's name is there once the peer is
        try:
            return socket.create_connection((peer, 7777), timeout=5)
        except OSError:
            time.sleep(0.1)

found = {"uid": os.getuid(), "hostname": socket.gethostname(), "aws": None, "peer": connect().getpeername()[0]}
if "AWS_ENDPOINT_URL" in os.environ:
    try:
        found["aws"] = urllib.request.urlopen(os.environ["AWS_ENDPOINT_URL"] + "/_local/health", timeout=5).status
    except OSError as error:
        found["aws"] = str(error)
json.dump(found, open(f"/opt/ml/output/data/seen-{host}.json", "w"))
door.accept()  # the peer has found this host, too
"""


@pytest.fixture(scope="module")
def image(built_image, tmp_path_factory):
    """The fake program in an image of its own."""
    if docker("image", "inspect", BASE_IMAGE).returncode:
        built_image("train")
    context = tmp_path_factory.mktemp("image")
    shutil.copytree(Path(__file__).parent / "fake/container", context / "container")
    (context / "container/__init__.py").write_text("")
    shutil.copy(ROOT / "container/contract.py", context / "container")
    program = context / "container/__main__.py"
    program.write_text(program.read_text().replace('("127.0.0.1", int', '("0.0.0.0", int'))
    (context / "Dockerfile").write_text(DOCKERFILE)
    build = docker("build", "--quiet", "-t", IMAGE, str(context))
    assert build.returncode == 0, build.stderr
    yield IMAGE
    docker("image", "rm", IMAGE)


@pytest.fixture(scope="module")
def aws(image, connect, tmp_path_factory):
    """As everywhere, but with containers; afterwards nothing of them is left."""
    home = tmp_path_factory.mktemp("docker")
    server = client.up(home, {**os.environ, client.RUNTIME_VARIABLE: "docker"})
    assert server.runtime == "docker"
    yield connect(server)
    client.down(home)
    mine = f"label=slipway.home={home}"
    assert docker("ps", "--all", "--quiet", "--filter", mine).stdout == ""
    assert docker("network", "ls", "--quiet", "--filter", mine).stdout == ""


def docker(*argv):
    return subprocess.run(["docker", *argv], capture_output=True, text=True, cwd=ROOT, timeout=1500, check=False)


@pytest.fixture
def look(aws, training_request, channel):
    """Trains with a script from a channel that looks around; the job's description."""
    aws.put("look/look.py", LOOK.encode())

    def run(**members):
        algorithm = {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/look.py"],
        }
        channels = [channel("s3://test-bucket/look/", "code")]
        request = training_request(hosts=2, AlgorithmSpecification=algorithm, InputDataConfig=channels, **members)
        return aws.train(request)

    return run


FAKE_PROGRAM = {"TrainingImage": IMAGE, "TrainingInputMode": "File"}


def test_hosts_of_a_job_find_each_other_and_reach_the_local_aws(aws, look):
    job = look()
    assert job["TrainingJobStatus"] == "Completed", job
    for host in ("algo-1", "algo-2"):
        seen = aws.seen(job, host)
        assert seen["peer"].count(".") == 3, seen
        assert seen["aws"] == 200
        assert seen["uid"] == 0
        assert seen["hostname"] not in ("algo-1", "algo-2")


def test_a_file_system_is_mounted_and_read_only_where_the_job_says_so(aws, training_request, tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    link = aws.server.home / "file-systems" / "fs-0123456789abcdef0"
    link.parent.mkdir()
    link.symlink_to(tmp_path)
    source = {
        "FileSystemId": link.name,
        "FileSystemType": "EFS",
        "FileSystemAccessMode": "ro",
        "DirectoryPath": "/",
    }
    writing = "sh -c 'cp /opt/ml/input/data/train/a.csv /opt/ml/model/ && ! touch /opt/ml/input/data/train/b'"
    algorithm = {**FAKE_PROGRAM, "ContainerEntrypoint": shlex.split(writing)}
    channels = [{"ChannelName": "train", "DataSource": {"FileSystemDataSource": source}}]
    job = aws.train(training_request(AlgorithmSpecification=algorithm, InputDataConfig=channels))
    assert job["TrainingJobStatus"] == "Completed", job
    assert aws.unpack(job["ModelArtifacts"]["S3ModelArtifacts"]) == {"a.csv": "1,2"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_c69_an_isolated_job_has_its_peers_and_nothing_else(aws, look):
    seen = aws.seen(look(EnableNetworkIsolation=True))
    assert seen["peer"].count(".") == 3, seen
    assert seen["aws"] is None


def test_the_image_runs_with_train_as_its_argument(aws, training_request):
    job = aws.train(training_request({"epochs": "1"}, AlgorithmSpecification=FAKE_PROGRAM))
    seen = aws.seen(job)
    assert seen["argv"] == ["train"]
    assert "SAGEMAKER_BASE_DIR" not in seen["environ"]
    assert seen["resources"]["network_interface_name"] == "eth0"
    assert aws.unpack(job["ModelArtifacts"]["S3ModelArtifacts"])["weights-algo-1.bin"] == "weights"


def test_stop_reaches_the_containers_first_process(aws, training_request):
    request = training_request({"sleep": "600"}, AlgorithmSpecification=FAKE_PROGRAM)
    name = request["TrainingJobName"]
    aws.train(request, wait=False)
    aws.wait_for(
        lambda: aws.log_lines("/aws/sagemaker/TrainingJobs", name),
        lambda streams: ["hello from algo-1"] in streams.values(),
    )
    aws.sagemaker.stop_training_job(TrainingJobName=name)
    job = aws.finished("training", name)
    assert job["TrainingJobStatus"] == "Stopped"
    assert "stopped.txt" in aws.unpack(job["ModelArtifacts"]["S3ModelArtifacts"])


def test_a_failing_container_and_an_unknown_image_fail_the_job(aws, training_request):
    hyperparameters = {"fail_host": "algo-1", "failure": "ValueError: x"}
    failing = training_request(hyperparameters, AlgorithmSpecification=FAKE_PROGRAM)
    assert aws.train(failing)["FailureReason"] == "AlgorithmError: ValueError: x, exit code: 3"
    unknown = {"TrainingImage": "no-such-image:1", "TrainingInputMode": "File"}
    job = aws.train(training_request(AlgorithmSpecification=unknown))
    assert job["FailureReason"].startswith("ClientError: Cannot find the requested image no-such-image:1")
    assert "`make images` in the checkout of Slipway" in job["FailureReason"]
    assert "SLIPWAY_LOCAL_RUNTIME=process" in job["FailureReason"]


def test_an_entrypoint_that_the_image_lacks_fails_the_job(aws, training_request):
    algorithm = FAKE_PROGRAM | {"ContainerEntrypoint": ["/no/such/program"]}
    job = aws.train(training_request(AlgorithmSpecification=algorithm))
    assert job["TrainingJobStatus"] == "Failed"
    assert "/no/such/program" in job["FailureReason"]


def test_c104_a_model_is_served_from_a_read_only_directory_and_replaced_when_it_dies(aws, unique, tar_gz):
    name = unique("docker-endpoint")
    uri = aws.put(f"models/{name}/model.tar.gz", tar_gz({"weights.txt": "w"}))
    role = "arn:aws:iam::123456789012:role/SageMakerRole"
    container = {"Image": IMAGE, "ModelDataUrl": uri}
    aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {"VariantName": "A", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    aws.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    (running,) = aws.wait_in_service(name)["ProductionVariants"]
    (deployed,) = running["DeployedImages"]
    identity = docker("image", "inspect", "--format", "{{.Id}}", IMAGE).stdout.strip()
    assert (deployed["SpecifiedImage"], deployed["ResolvedImage"]) == (IMAGE, f"slipway-fake@{identity}")
    seen = json.loads(aws.invoke(name, b"see")["Body"].read())
    assert seen["model"] == {"weights.txt": "w"}
    mounts = json.loads(docker("inspect", *container_ids(aws)).stdout)[0]["Mounts"]
    assert {mount["Destination"]: mount["RW"] for mount in mounts} == {"/opt/ml": True, "/opt/ml/model": False}

    docker("kill", *container_ids(aws))
    aws.wait_for(lambda: try_invoke(aws, name), lambda body: body == b"BACK")
    aws.sagemaker.delete_endpoint(EndpointName=name)
    aws.wait_for(lambda: container_ids(aws), lambda ids: not ids)


def container_ids(aws):
    return docker("ps", "--quiet", "--filter", f"label=slipway.home={aws.server.home}").stdout.split()


def try_invoke(aws, name):
    try:
        return aws.invoke(name, b"back")["Body"].read()
    except ClientError:
        return None


@pytest.mark.parametrize(
    ("reference", "resolved"),
    [
        ("cv-train:latest", "cv-train@sha256:1d"),
        ("127.0.0.1:5000/cv-train:2", "127.0.0.1:5000/cv-train@sha256:aa"),
        ("127.0.0.1:5000/cv-train@sha256:aa", "127.0.0.1:5000/cv-train@sha256:aa"),
        ("127.0.0.1:5000/cv-train", "127.0.0.1:5000/cv-train@sha256:aa"),
    ],
)
def test_what_runs_is_named_by_its_digest(reference, resolved):
    known = {"Id": "sha256:1d", "RepoDigests": ["other@sha256:bb", "127.0.0.1:5000/cv-train@sha256:aa"]}
    assert by_digest(reference, known) == resolved


def test_files_of_root_are_handed_to_the_calling_user(image, tmp_path, monkeypatch):
    from launcher.local.docker_containers import DockerRuntime

    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/file").write_text("x")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(os, "getgid", lambda: 12345)
    DockerRuntime(tmp_path).reclaim(tmp_path, image)
    assert (tmp_path / "deep/file").stat().st_uid == 12345


def test_a_name_that_is_taken_is_a_start_error(image, tmp_path):
    from container.contract import OptMl
    from launcher.local.containers import ContainerSpec, ContainerStartError
    from launcher.local.docker_containers import DockerRuntime

    runtime, name = DockerRuntime(tmp_path), f"slipway-taken-{tmp_path.parent.name}"
    spec = ContainerSpec(name, image, "train", OptMl(tmp_path), entrypoint=("sleep",), arguments=("60",))
    spec = replace(spec, network=name, alias="algo-1")
    try:
        container = runtime.start(spec, lambda line: None)
        with pytest.raises(ContainerStartError, match=name):
            runtime.start(spec, lambda line: None)
        assert container.stop(0) == 137
    finally:
        runtime.remove_leftovers()


def test_two_homes_have_jobs_of_one_name(image, tmp_path):
    from container.contract import OptMl
    from launcher.local.containers import ContainerSpec
    from launcher.local.docker_containers import DockerRuntime

    homes = [tmp_path / "a", tmp_path / "b"]
    runtimes = [DockerRuntime(home) for home in homes]
    spec = ContainerSpec("slipway-digits-1", image, "train", OptMl(tmp_path), {}, ("sleep",), ("60",), "slipway-digits")
    try:
        running = [runtime.start(spec, lambda line: None) for runtime in runtimes]
        runtimes[0].remove_leftovers()
        assert running[0].wait(30) == 137
        assert running[1].exit_code is None
    finally:
        for runtime in runtimes:
            runtime.remove_leftovers()


def test_a_serverless_container_has_no_gpu_and_an_image_of_ten_gigabytes_at_most(image, tmp_path, monkeypatch):
    from container.contract import OptMl
    from launcher.local import docker_containers
    from launcher.local.containers import ContainerSpec, ContainerStartError

    runtime = docker_containers.DockerRuntime(tmp_path)
    runtime._has_gpus = True  # this machine's engine refuses whoever asks for one
    spec = ContainerSpec("slipway-serverless", image, "serve", OptMl(tmp_path), {}, ("sleep",), ("60",), memory_mb=1024)
    try:
        with pytest.raises(ContainerStartError, match="gpu"):
            runtime.start(replace(spec, memory_mb=0), lambda line: None)
        assert runtime.start(spec, lambda line: None).stop(0) == 137
        monkeypatch.setattr(docker_containers, "SERVERLESS_IMAGE_BYTES", 1000)
        with pytest.raises(ContainerStartError, match="GB; a serverless endpoint's image at most 10 GB"):
            runtime.start(spec, lambda line: None)
    finally:
        runtime.remove_leftovers()


def test_an_engine_without_addresses_is_told_with_what_to_do(image, tmp_path, monkeypatch):
    from docker.errors import APIError
    from docker.models.networks import NetworkCollection

    from container.contract import OptMl
    from launcher.local.containers import ContainerSpec, ContainerStartError
    from launcher.local.docker_containers import DockerRuntime

    def refuse(*_, **__):
        raise APIError("500", explanation="all predefined address pools have been fully subnetted")

    monkeypatch.setattr(NetworkCollection, "create", refuse)  # to use them up would be felt by all others here
    with pytest.raises(ContainerStartError, match="fully subnetted: `docker network prune` removes"):
        DockerRuntime(tmp_path).start(ContainerSpec("slipway-x", image, "serve", OptMl(tmp_path)), lambda line: None)


def test_a_killed_server_leaves_no_container_behind(own, training_request):
    aws = own()
    request = training_request({"sleep": "600"}, AlgorithmSpecification=FAKE_PROGRAM)
    aws.train(request, wait=False)
    aws.wait_for(lambda: container_ids(aws), bool)
    os.kill(aws.server.pid, signal.SIGKILL)
    again = own()
    assert container_ids(again) == []
    job = again.sagemaker.describe_training_job(TrainingJobName=request["TrainingJobName"])
    assert job["TrainingJobStatus"] == "Failed"


@pytest.fixture
def own(image, connect, tmp_path):
    """Starts servers of containers in a home of the test's own, and ends them."""
    environ = {**os.environ, client.RUNTIME_VARIABLE: "docker", "SLIPWAY_LOCAL_JOBS": "4"}
    yield lambda: connect(client.up(tmp_path, environ))
    client.down(tmp_path)


def deploy(aws, name, count, **environment):
    role = "arn:aws:iam::123456789012:role/SageMakerRole"
    container = {"Image": IMAGE, "Environment": environment}
    aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {"VariantName": "A", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": count}
    aws.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)


def test_a_variant_of_several_containers_shares_the_requests_scales_and_ends_with_the_server(own):
    aws = own()
    deploy(aws, "three", 3)
    assert aws.wait_in_service("three")["ProductionVariants"][0]["CurrentInstanceCount"] == 3
    with ThreadPoolExecutor(6) as executor:
        seen = list(executor.map(lambda _: json.loads(aws.invoke("three", b"see")["Body"].read()), range(60)))
    assert len({answer["environ"]["HOSTNAME"] for answer in seen}) == 3
    first, second, _ = container_ids(aws)
    assert (
        len(docker("network", "ls", "--quiet", "--filter", f"label=slipway.home={aws.server.home}").stdout.split()) == 1
    )
    (network,) = json.loads(docker("inspect", second).stdout)[0]["NetworkSettings"]["Networks"].values()
    connect = f"import socket; socket.create_connection(({network['IPAddress']!r}, 8080), timeout=1)"
    assert "timed out" in docker("exec", first, "python3", "-c", connect).stderr
    change = {"EndpointName": "three", "DesiredWeightsAndCapacities": [{"VariantName": "A", "DesiredInstanceCount": 1}]}
    aws.sagemaker.update_endpoint_weights_and_capacities(**change)
    aws.wait_for(lambda: container_ids(aws), lambda ids: len(ids) == 1)
    deploy(aws, "created", 2, LOAD_SECONDS="60")
    deploy(aws, "deleted", 1, STOP_SECONDS="3")
    aws.wait_in_service("deleted")
    change["DesiredWeightsAndCapacities"][0]["DesiredInstanceCount"] = 3
    aws.sagemaker.update_endpoint_weights_and_capacities(**change)
    aws.sagemaker.delete_endpoint(EndpointName="deleted")
    client.down(aws.server.home)
    assert all_containers(aws) == []


def all_containers(aws):
    return docker("ps", "--all", "--quiet", "--filter", f"label=slipway.home={aws.server.home}").stdout.split()


@pytest.mark.slow
def test_of_fifty_jobs_in_containers_none_is_lost_when_the_server_is_killed(own, training_request):
    aws = own()
    requests = [training_request({"sleep": "0.5"}, AlgorithmSpecification=FAKE_PROGRAM) for _ in range(50)]
    for request in requests:
        aws.train(request, wait=False)
    aws.finished("training", requests[2]["TrainingJobName"])
    os.kill(aws.server.pid, signal.SIGKILL)
    again = own()
    ended = [again.finished("training", request["TrainingJobName"], 180) for request in requests]
    failed = [job for job in ended if job["TrainingJobStatus"] != "Completed"]
    assert 1 <= len(failed) <= 4  # those that ran
    assert all("the local SageMaker died while this job was running" in job["FailureReason"] for job in failed)
    again.wait_for(lambda: all_containers(again), lambda ids: not ids)
