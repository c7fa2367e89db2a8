"""A local SageMaker with a fake container program, and clients of it."""

import json
import os
import tarfile
import time
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path

import boto3
import pytest

from launcher.local import client
from launcher.local.client import LocalServer
from launcher.local.service_model import constraint_problems, service_model

ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/slipway-train:1"
BUCKET = "test-bucket"
FAKE = Path(__file__).parent / "fake"


@dataclass(frozen=True)
class Aws:
    """Clients of one local SageMaker, and what tests do over and over."""

    server: LocalServer
    session: boto3.Session
    clients: dict = field(default_factory=dict)

    def client(self, service, config=None):
        """A client; making one takes longer than most tests, so that it is kept."""
        if config is not None:
            return self.session.client(service, endpoint_url=self.server.url, config=config)
        if service not in self.clients:
            self.clients[service] = self.session.client(service, endpoint_url=self.server.url)
        return self.clients[service]

    @property
    def sagemaker(self):
        return self.client("sagemaker")

    @property
    def s3(self):
        return self.client("s3")

    def put(self, key, body=b"x"):
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def get(self, uri):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def keys(self, prefix):
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [item["Key"].removeprefix(prefix) for item in found]

    def unpack(self, uri):
        """The files of a tar.gz in S3 by name."""
        with tarfile.open(fileobj=BytesIO(self.get(uri)), mode="r:gz") as archive:
            return {member.name: archive.extractfile(member).read().decode() for member in archive.getmembers()}

    def train(self, request, wait=True):
        """Create a training job from `training_request`; its description at the end."""
        self.sagemaker.create_training_job(**request)
        return self.finished("training", request["TrainingJobName"]) if wait else None

    def transform(self, request):
        self.sagemaker.create_transform_job(**request)
        return self.finished("transform", request["TransformJobName"])

    def finished(self, kind, name, seconds=60):
        describe = getattr(self.sagemaker, f"describe_{kind}_job")
        member = f"{kind.capitalize()}Job"
        return self.wait_for(
            lambda: describe(**{f"{member}Name": name}),
            lambda job: job[f"{member}Status"] in ("Completed", "Failed", "Stopped"),
            seconds,
        )

    def wait_for_training(self, name, secondary_status):
        return self.wait_for(
            lambda: self.sagemaker.describe_training_job(TrainingJobName=name),
            lambda job: job["SecondaryStatus"] == secondary_status,
        )

    def wait_for(self, read, accept, seconds=60):
        deadline = time.monotonic() + seconds
        while not accept(value := read()):
            assert time.monotonic() < deadline, f"not reached in {seconds} s: {value}"
            time.sleep(0.03)
        return value

    def seen(self, job, host="algo-1"):
        """What the fake program saw on one host."""
        output = job["ModelArtifacts"]["S3ModelArtifacts"].replace("model.tar.gz", "output.tar.gz")
        return json.loads(self.unpack(output)[f"seen-{host}.json"])

    def log_lines(self, group, prefix):
        logs = self.client("logs")
        streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=prefix)["logStreams"]
        return {
            stream["logStreamName"]: [
                event["message"]
                for event in logs.get_log_events(
                    logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
                )["events"]
            ]
            for stream in streams
        }

    def wait_in_service(self, name):
        return self.wait_for(
            lambda: self.sagemaker.describe_endpoint(EndpointName=name),
            lambda endpoint: endpoint["EndpointStatus"] in ("InService", "Failed"),
        )

    def invoke(self, endpoint, body, **options):
        return self.client("sagemaker-runtime").invoke_endpoint(EndpointName=endpoint, Body=body, **options)


def server_environ(**changes):
    """The environment of a server that runs processes of the fake program."""
    return {**os.environ, client.RUNTIME_VARIABLE: "process", "PYTHONPATH": str(FAKE), **changes}


COMMON_ERRORS = {"ValidationException", "ValidationError", "ServiceUnavailable", "ThrottlingException"}
COMMON_ERRORS |= {"UnknownOperationException", "SerializationException", "InternalFailure"}


MODEL_ARTIFACTS = "Value null at 'modelArtifacts'"  # "required", and yet the service leaves it out until there is one


def check_answer(response_dict, parsed_response, event_name, **_):
    """Hold every answer of SageMaker's API that any test gets against botocore's model of it, enums and lengths too."""
    operation = service_model("sagemaker").operation_model(event_name.rpartition(".")[2])
    if response_dict["status_code"] < 300:
        answer = json.loads(response_dict["body"])
        found = constraint_problems(operation.output_shape, answer, "") if operation.output_shape else []
        problems = [problem for problem in found if not problem.startswith(MODEL_ARTIFACTS)]
        unknown = set(answer) - set(operation.output_shape.members if operation.output_shape else ())
        assert not problems, f"{operation.name} answered what its model forbids: {problems}"
        assert not unknown, f"{operation.name} answered {unknown}, which its model lacks"
        return
    code, modeled = parsed_response["Error"]["Code"], {shape.name for shape in operation.error_shapes}
    injected = "from a test" in parsed_response["Error"]["Message"]
    assert code in modeled | COMMON_ERRORS or injected, f"{operation.name} has no error {code}"


def check_runtime_answer(response_dict, parsed_response, event_name, **_):
    """The same for the runtime API, whose answers are headers and bytes."""
    operation = service_model("sagemaker-runtime").operation_model(event_name.rpartition(".")[2])
    if response_dict["status_code"] < 300:
        lacking = set(operation.output_shape.required_members) - set(parsed_response)
        assert not lacking, f"{operation.name} answered without {lacking}"
        return
    error, shapes = parsed_response["Error"], {shape.name: shape for shape in operation.error_shapes}
    assert error["Code"] in {*shapes, *COMMON_ERRORS}, f"{operation.name} has no error {error['Code']}"
    if error["Code"] in shapes:
        lacking = set(shapes[error["Code"]].required_members) - {*parsed_response, *error}
        assert not lacking, f"{error['Code']} came without {lacking}"


def connect_to(server):
    session = boto3.Session(aws_access_key_id="local", aws_secret_access_key="local", region_name="us-east-1")
    session.events.register("response-received.sagemaker", check_answer)
    session.events.register("response-received.sagemaker-runtime", check_runtime_answer)
    aws = Aws(server, session)
    if not aws.s3.list_buckets()["Buckets"]:
        aws.s3.create_bucket(Bucket=BUCKET)
    return aws


@pytest.fixture(scope="session")
def connect():
    """Clients of a server, with the bucket that all tests use."""
    return connect_to


@pytest.fixture(scope="session")
def server_environment():
    """The environment of a server that runs processes of the fake program, with changes."""
    return server_environ


@pytest.fixture(scope="session")
def aws(tmp_path_factory):
    """Clients of a server that the whole session shares; names must be unique (see `unique`)."""
    home = tmp_path_factory.mktemp("local")
    yield connect_to(client.up(home, server_environ(SLIPWAY_LOCAL_JOBS="4")))
    client.down(home)


@pytest.fixture
def own_server(tmp_path):
    """Starts servers in a home of the test's own, and ends them."""

    def start(**changes):
        return connect_to(client.up(tmp_path, server_environ(**changes)))

    yield start
    client.down(tmp_path)


NUMBERS = count(1)


@pytest.fixture
def unique():
    """Names that no other test uses."""
    return lambda prefix="job": f"{prefix}-{next(NUMBERS)}"


@pytest.fixture
def training_request(aws, unique):
    """A CreateTrainingJob body; keyword arguments replace its members, hyperparameters are strings."""

    def make(hyperparameters=None, hosts=1, **members):
        return {
            "TrainingJobName": unique("train"),
            "RoleArn": ROLE,
            "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": hosts, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
            "HyperParameters": hyperparameters or {},
            **members,
        }

    return make


@pytest.fixture
def channel():
    """One channel of InputDataConfig."""

    def make(uri, name="train", kind="S3Prefix", distribution="FullyReplicated", **members):
        source = {"S3DataType": kind, "S3Uri": uri, "S3DataDistributionType": distribution}
        return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **members}

    return make


@pytest.fixture
def model(aws, unique):
    """Creates a model of the fake program; its name."""

    def create(environment=None, files=None, **members):
        name = unique("model")
        container = {"Image": IMAGE, "Environment": environment or {}}
        if files is not None:
            container["ModelDataUrl"] = aws.put(f"models/{name}/model.tar.gz", make_tar_gz(files))
        request = {"PrimaryContainer": container, **members}
        aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, **request)
        return name

    return create


@pytest.fixture
def endpoint(aws, unique):
    """Deploys variants, given as models by variant name, and deletes the endpoint at the end; its name."""
    created = []

    def deploy(variants, config=None, **variant_members):
        name = unique("endpoint")
        aws.sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ProductionVariants=[variant(label, model, **variant_members) for label, model in variants.items()],
            **(config or {}),
        )
        aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        created.append(name)
        aws.wait_in_service(name)
        return name

    yield deploy
    for name in created:
        aws.sagemaker.delete_endpoint(EndpointName=name)


def variant(name, model, **members):
    return {
        "VariantName": name,
        "ModelName": model,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
        **members,
    }


def make_tar_gz(files):
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def tar_gz():
    """A model archive of text files by name, as bytes."""
    return make_tar_gz
