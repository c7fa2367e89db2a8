"""Training, batch and serving with the containers' own code, as processes: the rooms meet here."""

import json
import os
import random

import pytest

from launcher.local import client

pytestmark = pytest.mark.slow
SECONDS = 280  # torch's import alone takes half a minute on a busy machine
IMAGES_PER_CLASS = 12


@pytest.fixture(scope="module")
def real(connect, digits, tmp_path_factory):
    """A server that runs `python -m container` itself, with some digits in its S3."""
    home = tmp_path_factory.mktemp("real")
    environ = {**os.environ, client.RUNTIME_VARIABLE: "process"}
    environ.pop("PYTHONPATH", None)
    aws = connect(client.up(home, environ))
    for folder in sorted((digits / "train").iterdir()):
        for path in random.Random(0).sample(sorted(folder.iterdir()), IMAGES_PER_CLASS):
            aws.put(f"digits/{folder.name}/{path.name}", path.read_bytes())
    yield aws
    client.down(home)


@pytest.mark.timeout(900)
def test_c63_two_hosts_train_and_their_model_scores_a_batch_and_serves(real, training_request, channel, unique):
    request = training_request(
        {"epochs": "1", "batch_size": "40", "model": "convnet"},
        hosts=2,
        InputDataConfig=[channel("s3://test-bucket/digits/")],
        StoppingCondition={"MaxRuntimeInSeconds": SECONDS},
    )
    real.train(request, wait=False)
    job = real.finished("training", request["TrainingJobName"], SECONDS)
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")

    name, role = unique("real"), request["RoleArn"]
    container = {"Image": "slipway-serve", "ModelDataUrl": job["ModelArtifacts"]["S3ModelArtifacts"]}
    real.sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    source = {"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://test-bucket/digits/3/"}}}
    real.sagemaker.create_transform_job(
        TransformJobName=name,
        ModelName=name,
        TransformInput=source | {"ContentType": "image/png"},
        TransformOutput={"S3OutputPath": f"s3://test-bucket/{name}", "Accept": "application/json"},
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 1},
    )
    scored = real.finished("transform", name, SECONDS)
    assert scored["TransformJobStatus"] == "Completed", scored.get("FailureReason")
    outputs = real.keys(f"{name}/")
    assert len(outputs) == IMAGES_PER_CLASS

    variant = {"VariantName": "A", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    real.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    real.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    described = real.wait_for(
        lambda: real.sagemaker.describe_endpoint(EndpointName=name),
        lambda endpoint: endpoint["EndpointStatus"] != "Creating",
        SECONDS,
    )
    assert described["EndpointStatus"] == "InService", described.get("FailureReason")
    image = real.get(f"s3://test-bucket/digits/3/{outputs[0].removesuffix('.out')}")
    answer = real.invoke(name, image, ContentType="image/png", Accept="application/json")
    online = json.loads(answer["Body"].read())["predictions"]
    batch = json.loads(real.get(f"s3://test-bucket/{name}/{outputs[0]}"))["predictions"]
    assert online[0]["label"] == batch[0]["label"]
    assert online[0]["probabilities"] == pytest.approx(batch[0]["probabilities"], abs=1e-5)
