"""The SageMaker SDK's own local mode runs our images: a judge of the contract that nobody here wrote.

It lays out `/opt/ml` in AWS's idea of it, starts Docker Compose and talks to the containers. Its way to end them leaves
some behind; the fixture removes those.
"""

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher.local.containers import free_port

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    # The SDK's log thread raises when compose is stopped, which is how it stops a server.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

QUIET = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the SDK lays out its trees; what Compose started below it is removed in the end."""
    root = tmp_path_factory.mktemp("sdk")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        yield root
    listing = ["docker", "ps", "--all", "--format", '{{.ID}} {{.Label "com.docker.compose.project.working_dir"}}']
    rows = [line.partition(" ") for line in subprocess.check_output(listing, text=True).splitlines()]
    ours = [container for container, _, directory in rows if directory.startswith(str(root))]
    if ours:
        subprocess.run(["docker", "rm", "--force", *ours], capture_output=True, check=True)
    shutil.rmtree(root, ignore_errors=True)


def new_session(root: Path):
    """A session with a port of its own: the SDK asks whoever answers there, also a stranger."""
    import boto3
    from sagemaker.core.local.local_session import LocalSession

    session = LocalSession(
        boto_session=boto3.Session(region_name="us-east-1"), default_bucket="none", sagemaker_config=QUIET
    )
    session.config = {"local": {"container_root": str(root), "region_name": "us-east-1", "serving_port": free_port()}}
    return session


@pytest.fixture
def session(root):
    return new_session(root)


def train(session, image: str, digits: Path, output: Path, hosts: int) -> dict:
    output.mkdir(parents=True)
    name = f"digits-{hosts}-hosts"
    channels = [
        {
            "ChannelName": channel,
            "DataSource": {
                "FileDataSource": {
                    "FileUri": f"file://{digits / channel}",
                    "FileDataDistributionType": "FullyReplicated",
                }
            },
        }
        for channel in ("train", "test")
    ]
    session.sagemaker_client.create_training_job(
        TrainingJobName=name,
        AlgorithmSpecification={"TrainingImage": image, "TrainingInputMode": "File"},
        InputDataConfig=channels,
        OutputDataConfig={"S3OutputPath": f"file://{output}"},
        ResourceConfig={"InstanceType": "local", "InstanceCount": hosts, "VolumeSizeInGB": 1},
        HyperParameters={"epochs": "4", "batch_size": "64"},
        Environment={},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
        RoleArn="arn:aws:iam::123456789012:role/local",
    )
    return session.sagemaker_client.describe_training_job(TrainingJobName=name)


@pytest.fixture(scope="module")
def artifact(root, train_image, digits, tmp_path_factory) -> Path:
    """`model.tar.gz` of a two-host job."""
    described = train(new_session(root), train_image, digits, tmp_path_factory.mktemp("out") / "two", hosts=2)
    assert described["TrainingJobStatus"] == "Completed"
    return Path(described["ModelArtifacts"]["S3ModelArtifacts"].removeprefix("file://"))


def test_c2_the_sdk_trains_on_one_host(session, train_image, digits, tmp_path):
    described = train(session, train_image, digits, tmp_path / "one", hosts=1)
    assert described["TrainingJobStatus"] == "Completed"
    with tarfile.open(described["ModelArtifacts"]["S3ModelArtifacts"].removeprefix("file://")) as archive:
        names = {member.name.removeprefix("./") for member in archive.getmembers() if member.isfile()}
    assert names == {"model.safetensors", "model.json"}
    with tarfile.open(tmp_path / "one" / "output.tar.gz") as archive:
        report = json.load(archive.extractfile(_member(archive, "report.json")))
    assert report["test:accuracy"] > 0.9


def test_c41_the_sdk_trains_on_two_hosts(artifact):
    with tarfile.open(artifact) as archive:
        signature = json.load(archive.extractfile(_member(archive, "model.json")))
    assert signature["classes"] == [str(digit) for digit in range(10)]
    with tarfile.open(artifact.with_name("output.tar.gz")) as archive:
        report = json.load(archive.extractfile(_member(archive, "report.json")))
    assert report["world_size"] == 2
    assert report["test:accuracy"] > 0.9


def _member(archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    return next(member for member in archive.getmembers() if Path(member.name).name == name)


def test_the_sdk_reports_our_failure_reason(session, train_image, tmp_path):
    empty = tmp_path / "data"
    for channel in ("train", "test"):
        (empty / channel).mkdir(parents=True)
    with pytest.raises(RuntimeError):
        train(session, train_image, empty, tmp_path / "out", hosts=1)
    with tarfile.open(tmp_path / "out" / "output.tar.gz") as archive:
        reason = archive.extractfile(_member(archive, "failure")).read().decode()
    assert "train" in reason
    assert len(reason.encode()) <= 1024


@pytest.fixture
def model(session, serve_image, artifact) -> str:
    session.sagemaker_client.create_model(
        ModelName="digits",
        PrimaryContainer={"Image": serve_image, "ModelDataUrl": f"file://{artifact}", "Environment": {}},
    )
    return "digits"


def test_c3_the_sdk_deploys_and_invokes_an_endpoint(session, model, digits):
    client = session.sagemaker_client
    variant = {"VariantName": "AllTraffic", "ModelName": model, "InstanceType": "local", "InitialInstanceCount": 1}
    client.create_endpoint_config(EndpointConfigName="digits", ProductionVariants=[variant])
    client.create_endpoint(EndpointName="digits", EndpointConfigName="digits")
    try:
        assert client.describe_endpoint(EndpointName="digits")["EndpointStatus"] == "InService"
        image = next((digits / "test" / "7").glob("*.png"))
        invoke = session.sagemaker_runtime_client.invoke_endpoint
        from_png = json.loads(
            invoke(EndpointName="digits", Body=image.read_bytes(), ContentType="image/png", Accept="application/json")[
                "Body"
            ].read()
        )
        pixels = np.asarray(Image.open(io.BytesIO(image.read_bytes()))).tolist()
        from_json = json.loads(
            invoke(
                EndpointName="digits",
                Body=json.dumps({"instances": [pixels]}),
                ContentType="application/json",
                Accept="application/json",
            )["Body"].read()
        )
        assert from_png["predictions"][0]["label"] == "7"
        assert from_json["predictions"][0]["probabilities"] == pytest.approx(
            from_png["predictions"][0]["probabilities"], abs=1e-5
        )
    finally:
        client.delete_endpoint(EndpointName="digits")


def test_c133_the_sdk_runs_a_batch_transform(session, model, digits, tmp_path):
    files = sorted((digits / "test").glob("*/*.png"))[:20]
    rows = [np.asarray(Image.open(path)).reshape(-1).tolist() for path in files]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    session.sagemaker_client.create_transform_job(
        TransformJobName="digits",
        ModelName=model,
        BatchStrategy="MultiRecord",
        MaxPayloadInMB=1,
        TransformInput={
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"file://{tmp_path / 'in'}"}},
            "ContentType": "text/csv",
            "SplitType": "Line",
        },
        TransformOutput={"S3OutputPath": f"file://{tmp_path / 'out'}", "Accept": "text/csv", "AssembleWith": "Line"},
        TransformResources={"InstanceType": "local", "InstanceCount": 1},
    )
    output = (tmp_path / "out" / "rows.csv.out").read_text()
    lines = output.splitlines()
    assert len(lines) == len(files)
    assert all(len(line.split(",")) == 12 for line in lines)  # label, score, ten probabilities


def test_c70_the_sdks_own_entry_point_and_drivers_run_a_script_in_the_image(root, train_image, tmp_path, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "false")  # asks IAM otherwise
    import boto3
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training.configs import Compute, InputData, SourceCode
    from sagemaker.train.distributed import Torchrun
    from sagemaker.train.model_trainer import Mode, ModelTrainer

    for name in ("source", "data", "container"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "rows.csv").write_text("1,2\n")
    (tmp_path / "source" / "train.py").write_text(
        "import argparse, json, os, pathlib\n"
        "import torch.distributed as dist\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--epochs', type=int)\n"
        "arguments, _ = parser.parse_known_args()\n"
        "dist.init_process_group('gloo')\n"
        "rows = (pathlib.Path(os.environ['SM_CHANNEL_TRAINING']) / 'rows.csv').read_text()\n"
        "seen = {'epochs': arguments.epochs, 'rows': rows, 'world': dist.get_world_size()}\n"
        "if dist.get_rank() == 0:\n"
        "    (pathlib.Path(os.environ['SM_MODEL_DIR']) / 'seen.json').write_text(json.dumps(seen))\n"
        "dist.destroy_process_group()\n"
    )
    session = Session(
        boto_session=boto3.Session(region_name="us-east-1"), default_bucket="none", sagemaker_config=QUIET
    )
    trainer = ModelTrainer(
        sagemaker_session=session,
        training_mode=Mode.LOCAL_CONTAINER,
        training_image=train_image,
        role="arn:aws:iam::123456789012:role/local",
        base_job_name="script",
        source_code=SourceCode(source_dir=str(tmp_path / "source"), entry_script="train.py"),
        distributed=Torchrun(process_count_per_node=2),
        compute=Compute(instance_type="local_cpu", instance_count=1),
        hyperparameters={"epochs": 3},
        local_container_root=str(root / "modeltrainer"),
    )
    (root / "modeltrainer").mkdir()
    trainer.train(input_data_config=[InputData(channel_name="training", data_source=str(tmp_path / "data"))])
    (archive_path,) = (root / "modeltrainer").rglob("model.tar.gz")
    with tarfile.open(archive_path) as archive:
        seen = json.load(archive.extractfile(_member(archive, "seen.json")))
    assert seen == {"epochs": 3, "rows": "1,2\n", "world": 2}
