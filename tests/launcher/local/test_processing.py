"""The life of a processing job, seen by boto3."""

import json
import sys

import pytest
from botocore.exceptions import ClientError

ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
BUCKET = "s3://test-bucket"
PROGRAM = """
import json, os, pathlib, sys, time
base = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
config = json.loads((base / "config/processingjobconfig.json").read_text())
resources = json.loads((base / "config/resourceconfig.json").read_text())
host = resources["current_host"]
print("processing on", host, sys.argv[1:], flush=True)
data = sorted(path.name for path in (base / "processing/input/raw").rglob("*") if path.is_file())
seen = {"config": config, "resources": resources, "data": data, "environ": dict(os.environ)}
output = base / "processing/output/clean"
(output / f"seen-{host}.json").write_text(json.dumps(seen))
(output / "link").symlink_to("seen")
word = sys.argv[1] if len(sys.argv) > 1 else ""
if word == "message":
    (base / "output/message").write_text(f"{host} " + "x" * 600)
if word == "binary":
    (base / "output/message").write_bytes(b"\\xff\\xfe")
if word == "fail":
    (base / "output/message").write_text("no rows left")
    sys.exit(4)
if word == "sleep":
    time.sleep(600)
"""


@pytest.fixture
def processing_request(aws, unique):
    """A CreateProcessingJob body that runs PROGRAM with arguments; its output lies below `processed/<job>/`."""
    aws.put("program/prep.py", PROGRAM.encode())
    for name in ("1.csv", "2.csv"):
        aws.put(f"raw/{name}", name.encode())

    def make(*arguments, hosts=1, upload_mode="EndOfJob", **members):
        name = unique("process")
        raw = {"LocalPath": "/opt/ml/processing/input/raw", "S3Uri": f"{BUCKET}/raw/", "S3InputMode": "File"}
        raw |= {"S3DataType": "S3Prefix", "S3DataDistributionType": "ShardedByS3Key"}
        code = {"LocalPath": "/opt/ml/processing/code", "S3Uri": f"{BUCKET}/program/", "S3InputMode": "File"}
        code |= {"S3DataType": "S3Prefix"}
        clean = {"LocalPath": "/opt/ml/processing/output/clean", "S3Uri": f"{BUCKET}/processed/{name}"}
        clean |= {"S3UploadMode": upload_mode}
        application = {"ImageUri": "x", "ContainerEntrypoint": [sys.executable, "/opt/ml/processing/code/prep.py"]}
        if arguments:
            application["ContainerArguments"] = list(arguments)
        cluster = {"InstanceCount": hosts, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
        return {
            "ProcessingJobName": name,
            "AppSpecification": application,
            "ProcessingInputs": [{"InputName": "raw", "S3Input": raw}, {"InputName": "code", "S3Input": code}],
            "ProcessingOutputConfig": {"Outputs": [{"OutputName": "clean", "S3Output": clean}]},
            "ProcessingResources": {"ClusterConfig": cluster},
            "RoleArn": ROLE,
            "Environment": {"STAGE": "dev"},
            **members,
        }

    return make


@pytest.fixture
def process(aws):
    """Creates a processing job; its description at the end."""

    def run(request):
        aws.sagemaker.create_processing_job(**request)
        return aws.finished("processing", request["ProcessingJobName"])

    return run


def seen_by(aws, job, host):
    return json.loads(aws.get(f"{BUCKET}/processed/{job['ProcessingJobName']}/seen-{host}.json"))


def test_c75_c76_every_host_finds_its_configuration_and_leaves_its_output(aws, processing_request, process):
    request = processing_request("--rows", "100", hosts=2)
    job = process(request)
    assert job["ProcessingJobStatus"] == "Completed", job
    first, second = seen_by(aws, job, "algo-1"), seen_by(aws, job, "algo-2")
    assert first["config"]["ProcessingJobArn"] == job["ProcessingJobArn"]
    assert first["config"]["NetworkConfig"] is None  # unset members are null
    assert second["resources"]["current_host"] == "algo-2"
    assert second["resources"]["hosts"] == ["algo-1", "algo-2"]
    assert (first["data"], second["data"]) == (["1.csv"], ["2.csv"])
    assert first["environ"]["STAGE"] == "dev"
    assert aws.keys(f"processed/{job['ProcessingJobName']}/") == ["seen-algo-1.json", "seen-algo-2.json"]  # no link
    lines = aws.log_lines("/aws/sagemaker/ProcessingJobs", request["ProcessingJobName"])
    assert ["processing on algo-1 ['--rows', '100']"] in lines.values()


def test_c77_exit_messages_of_all_hosts_are_joined_and_cut(processing_request, process):
    message = process(processing_request("message", hosts=2))["ExitMessage"]
    assert message.startswith("algo-1 xxx")
    assert "algo-2" in message
    assert len(message.encode()) == 1024


def test_an_exit_message_that_is_not_utf8_fails_the_job(processing_request, process):
    assert "the exit message is not UTF-8" in process(processing_request("binary"))["FailureReason"]


def test_c78_a_failing_host_fails_the_job_with_its_message(aws, processing_request, process):
    job = process(processing_request("fail"))
    assert (job["ProcessingJobStatus"], job["ExitMessage"]) == ("Failed", "no rows left")
    assert job["FailureReason"] == "AlgorithmError: no rows left"


def test_a_processing_job_can_be_stopped_and_its_continuous_output_is_there_before(aws, processing_request):
    request = processing_request("sleep", upload_mode="Continuous")
    name = request["ProcessingJobName"]
    aws.sagemaker.create_processing_job(**request)
    aws.wait_for(lambda: aws.keys(f"processed/{name}/"), lambda keys: "seen-algo-1.json" in keys)
    aws.sagemaker.stop_processing_job(ProcessingJobName=name)
    assert aws.finished("processing", name)["ProcessingJobStatus"] == "Stopped"


def test_a_processing_job_over_its_runtime_is_stopped(processing_request, process):
    job = process(processing_request("sleep", StoppingCondition={"MaxRuntimeInSeconds": 1}))
    assert job["ProcessingJobStatus"] == "Stopped"


def test_inputs_and_outputs_that_cannot_be_are_refused(aws, processing_request, process):
    for change, message in (
        (lambda request: request["ProcessingInputs"][0]["S3Input"].update(S3InputMode="Pipe"), "in File mode only"),
        (lambda request: request["ProcessingInputs"][0]["S3Input"].update(LocalPath="/opt/ml/x"), "must begin with"),
        (
            lambda request: request["ProcessingInputs"][0]["S3Input"].update(S3Uri=f"{BUCKET}/nothing-there/"),
            "No S3 objects found",
        ),
        (
            lambda request: request["ProcessingOutputConfig"]["Outputs"][0]["S3Output"].update(
                S3Uri="s3://none-such/x"
            ),
            "The S3 bucket of s3://none-such/x does not exist",
        ),
    ):
        request = processing_request()
        change(request)
        with pytest.raises(ClientError, match=message):
            process(request)


def test_an_input_that_the_application_manages_is_left_alone(processing_request, process):
    request = processing_request()
    request["ProcessingInputs"].append({"InputName": "own", "AppManaged": True})
    assert process(request)["ProcessingJobStatus"] == "Completed"
