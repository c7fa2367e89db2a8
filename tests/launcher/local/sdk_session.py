"""The SageMaker SDK's own classes against the server that the environment names; prints what it saw as JSON."""

import importlib
import json
import sys
import time

import boto3
from sagemaker.core import resources
from sagemaker.core.helper.session_helper import Session
from sagemaker.train.configs import Compute, InputData, OutputDataConfig
from sagemaker.train.model_trainer import ModelTrainer

shapes = importlib.import_module("sagemaker.core.shapes.shapes")
NO_TELEMETRY = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
BUCKET = "sdk-bucket"


def main():
    boto_session = boto3.Session()
    boto_session.client("s3").create_bucket(Bucket=BUCKET)
    session = Session(boto_session=boto_session, default_bucket=BUCKET, sagemaker_config=NO_TELEMETRY)
    session.upload_string_as_file_body("text", BUCKET, "data/a.txt")
    seen = train(boto_session) | serve(boto_session) | fail(boto_session) | model_trainer(session)
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


def training_job(session, name, hyperparameters):
    return resources.TrainingJob.create(
        session=session,
        training_job_name=name,
        role_arn=ROLE,
        algorithm_specification=shapes.AlgorithmSpecification(
            training_image="x:1",
            training_input_mode="File",
            metric_definitions=[shapes.MetricDefinition(name="loss", regex="loss=(.*?);")],
        ),
        input_data_config=[
            shapes.Channel(
                channel_name="train",
                data_source=shapes.DataSource(
                    s3_data_source=shapes.S3DataSource(s3_data_type="S3Prefix", s3_uri=f"s3://{BUCKET}/data/")
                ),
            )
        ],
        output_data_config=shapes.OutputDataConfig(s3_output_path=f"s3://{BUCKET}/out"),
        resource_config=shapes.ResourceConfig(instance_type="ml.g5.xlarge", instance_count=2, volume_size_in_gb=1),
        stopping_condition=shapes.StoppingCondition(max_runtime_in_seconds=60),
        hyper_parameters=hyperparameters,
        tags=[{"key": "project", "value": "x"}],
    )


def train(session):
    job = training_job(session, "sdk-train", {"lines": '["loss=0.25;"]'})
    job.wait(poll=1, logs=True)
    job.refresh()
    metrics = {metric.metric_name: metric.value for metric in job.final_metric_data_list}
    return {"training": job.training_job_status, "metrics": metrics}


def fail(session):
    job = training_job(session, "sdk-fail", {"fail_host": "algo-1", "failure": "ValueError: as asked"})
    while job.training_job_status == "InProgress":
        time.sleep(0.2)
        job.refresh()
    return {"failed": job.failure_reason}


def serve(session):
    job = resources.TrainingJob.get("sdk-train", session=session)
    definition = shapes.ContainerDefinition(image="x", model_data_url=job.model_artifacts.s3_model_artifacts)
    resources.Model.create(session=session, model_name="sdk", primary_container=definition, execution_role_arn=ROLE)
    transform = resources.TransformJob.create(
        session=session,
        transform_job_name="sdk",
        model_name="sdk",
        transform_input=shapes.TransformInput(
            data_source=shapes.TransformDataSource(
                s3_data_source=shapes.TransformS3DataSource(s3_data_type="S3Prefix", s3_uri=f"s3://{BUCKET}/data/")
            )
        ),
        transform_output=shapes.TransformOutput(s3_output_path=f"s3://{BUCKET}/transformed"),
        transform_resources=shapes.TransformResources(instance_type="ml.m5.large", instance_count=1),
    )
    transform.wait(poll=1)
    resources.EndpointConfig.create(
        session=session,
        endpoint_config_name="sdk",
        production_variants=[
            shapes.ProductionVariant(
                variant_name="A", model_name="sdk", instance_type="ml.m5.large", initial_instance_count=1
            )
        ],
    )
    endpoint = resources.Endpoint.create(session=session, endpoint_name="sdk", endpoint_config_name="sdk")
    endpoint.wait_for_status("InService", poll=1, timeout=60)
    seen = {
        "transform": transform.transform_job_status,
        "endpoint": endpoint.endpoint_status,
        "invoked": endpoint.invoke(body=b"hello", content_type="text/plain").body.read().decode(),
    }
    endpoint.delete()
    endpoint.wait_for_delete(poll=1, timeout=60)
    return seen


def model_trainer(session):
    trainer = ModelTrainer(
        sagemaker_session=session,
        training_image="x:1",
        role=ROLE,
        base_job_name="sdk-trainer",
        compute=Compute(instance_type="ml.m5.large", instance_count=1),
        hyperparameters={"epochs": 3, "lr": 0.1, "name": "abc"},
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{BUCKET}/out"),
    )
    data = [InputData(channel_name="train", data_source=f"s3://{BUCKET}/data/")]
    trainer.train(input_data_config=data, wait=True, logs=False)
    job = trainer._latest_training_job
    job.refresh()
    return {"model_trainer": job.training_job_status, "hyperparameters": job.hyper_parameters}


main()
