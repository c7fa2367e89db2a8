"""Endpoints and invocations, seen by boto3."""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError


@pytest.fixture
def update(aws, unique):
    """Points an endpoint at a new configuration with one variant."""

    def change(name, label, model_name):
        config = unique("config")
        variant = {
            "VariantName": label,
            "ModelName": model_name,
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": 1,
        }
        aws.sagemaker.create_endpoint_config(EndpointConfigName=config, ProductionVariants=[variant])
        aws.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config)
        return config

    return change


def test_an_endpoint_answers_with_the_containers_body_and_headers(aws, model, endpoint):
    name = endpoint({"A": model(files={"weights.txt": "w", "code/inference.py": "x"})})
    answer = aws.invoke(name, b"hello", ContentType="text/plain")
    assert answer["Body"].read() == b"HELLO"
    assert answer["ContentType"] == "text/plain"
    assert answer["InvokedProductionVariant"] == "A"
    assert answer["CustomAttributes"] == "from-container"


def test_curl_needs_no_signature(aws, model, endpoint):
    url = f"{aws.server.url}/endpoints/{endpoint({'A': model()})}/invocations"
    request = urllib.request.Request(url, b"hello", {"Content-Type": "text/plain"})
    with urllib.request.urlopen(request) as answer:
        assert answer.read() == b"HELLO"


def test_the_container_sees_the_callers_headers_and_the_unpacked_model(aws, model, endpoint):
    name = endpoint({"A": model({"STAGE": "dev"}, files={"weights.txt": "w", "code/inference.py": "x"})})
    answer = aws.invoke(
        name, b"see", ContentType="a/b", Accept="c/d", CustomAttributes="k=v", InferenceId="id-1", TargetVariant="A"
    )
    seen = json.loads(answer["Body"].read())
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    assert (headers["content-type"], headers["accept"]) == ("a/b", "c/d")
    assert headers["x-amzn-sagemaker-custom-attributes"] == "k=v"
    assert headers["x-amzn-sagemaker-inference-id"] == "id-1"
    assert "authorization" not in headers
    assert seen["model"] == {"weights.txt": "w", "code/inference.py": "x"}
    assert seen["environ"]["STAGE"] == "dev"


@pytest.mark.parametrize(("status", "word"), [(400, "client"), (500, "server")])
def test_a_containers_error_is_a_model_error_with_its_status_and_message(aws, model, endpoint, status, word):
    name = endpoint({"A": model()})
    with pytest.raises(ClientError) as caught:
        aws.invoke(name, f"status {status}".encode())
    answer = caught.value.response
    assert answer["Error"]["Code"] == "ModelError"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert (answer["OriginalStatusCode"], answer["OriginalMessage"]) == (status, f"answered {status}")
    assert f"log-group:/aws/sagemaker/Endpoints/{name}:log-stream:A/i-" in answer["LogStreamArn"]
    assert f"Received {word} error ({status})" in answer["Error"]["Message"]


def test_variants_share_the_traffic_by_weight_and_can_be_targeted(aws, model, endpoint, unique):
    name = endpoint({"A": model({"PREFIX": "a:"}), "B": model({"PREFIX": "b:"})})
    seen = {aws.invoke(name, b"x")["InvokedProductionVariant"] for _ in range(40)}
    assert seen == {"A", "B"}
    assert aws.invoke(name, b"x", TargetVariant="B")["Body"].read() == b"b:X"
    with pytest.raises(ClientError, match="ValidationError.*Variant C not found"):
        aws.invoke(name, b"x", TargetVariant="C")

    desired = [{"VariantName": "A", "DesiredWeight": 0}, {"VariantName": "B", "DesiredWeight": 1}]
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=desired)
    assert {aws.invoke(name, b"x")["InvokedProductionVariant"] for _ in range(20)} == {"B"}
    described = aws.sagemaker.describe_endpoint(EndpointName=name)["ProductionVariants"]
    assert {variant["VariantName"]: variant["CurrentWeight"] for variant in described} == {"A": 0, "B": 1}
    with pytest.raises(ClientError, match='The variant name "C" does not exist'):
        aws.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=name, DesiredWeightsAndCapacities=[{"VariantName": "C", "DesiredWeight": 1}]
        )


def test_a_model_that_does_not_start_fails_the_endpoint_with_its_own_last_error(aws, model, endpoint):
    name = endpoint({"A": model({"BREAK": "weights are missing"})})
    described = aws.sagemaker.describe_endpoint(EndpointName=name)
    assert described["EndpointStatus"] == "Failed"
    assert described["FailureReason"] == (
        "The primary container for production variant A did not pass the ping health check. Please check CloudWatch "
        "logs for this endpoint. The container: it exited with code 1: RuntimeError: weights are missing"
    )
    with pytest.raises(ClientError, match="ValidationError.*is not in service"):
        aws.invoke(name, b"x")
    with pytest.raises(ClientError, match="DeleteEndpoint is the only operation for one that is Failed"):
        aws.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=name)


def test_an_endpoint_is_not_in_service_before_its_ping_is(aws, model, unique):
    name = unique("endpoint")
    slow = model({"LOAD_SECONDS": "2"})
    variant = {"VariantName": "A", "ModelName": slow, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    aws.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    assert aws.sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Creating"
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        aws.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=name)
    assert aws.wait_in_service(name)["EndpointStatus"] == "InService"
    aws.sagemaker.delete_endpoint(EndpointName=name)


def test_deleting_ends_the_process_and_forgets_the_endpoint(aws, model, unique):
    from launcher.local.process_containers import processes_below

    name = unique("endpoint")
    variant = {"VariantName": "A", "ModelName": model(), "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    aws.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    aws.wait_in_service(name)
    (directory,) = (aws.server.home / "jobs/serving").glob(f"{name}-A-*")
    assert list(processes_below(directory))
    aws.sagemaker.delete_endpoint(EndpointName=name)
    aws.wait_for(aws.sagemaker.list_endpoints, lambda answer: name not in str(answer["Endpoints"]))
    assert not list(processes_below(directory))
    assert not directory.exists()


def test_a_container_that_dies_is_replaced(aws, model, endpoint):
    name = endpoint({"A": model()})
    with pytest.raises(ClientError, match="ModelError"):
        aws.invoke(name, b"exit 9")
    aws.wait_for(lambda: try_invoke(aws, name), lambda body: body == b"BACK")


def test_while_an_instance_is_replaced_the_service_is_unavailable(aws, model, endpoint):
    name = endpoint({"A": model({"LOAD_SECONDS": "1.5"})})
    runtime = aws.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(ClientError, match="ModelError"):
        runtime.invoke_endpoint(EndpointName=name, Body=b"exit 9")
    for target in ({}, {"TargetVariant": "A"}):
        code = aws.wait_for(
            lambda target=target: error_code(runtime, name, target), lambda code: code in ("ServiceUnavailable", None)
        )
        assert code == "ServiceUnavailable"
    aws.wait_for(lambda: error_code(runtime, name, {}), lambda code: code is None)


def error_code(runtime, name, target):
    try:
        runtime.invoke_endpoint(EndpointName=name, Body=b"x", **target)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return None


def test_a_model_whose_data_vanished_fails_the_endpoint(aws, unique, endpoint):
    name = unique("model")
    uri = aws.put(f"vanishing/{name}/weights.txt")
    source = {"S3Uri": f"s3://test-bucket/vanishing/{name}/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    role = "arn:aws:iam::123456789012:role/SageMakerRole"
    container = {"Image": "x", "ModelDataSource": {"S3DataSource": source}}
    aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    aws.s3.delete_object(Bucket="test-bucket", Key=uri.removeprefix("s3://test-bucket/"))
    described = aws.sagemaker.describe_endpoint(EndpointName=endpoint({"A": name}))
    assert described["FailureReason"].startswith(f"Could not find model data at s3://test-bucket/vanishing/{name}/")


def test_a_container_that_stays_unhealthy_is_replaced(aws, model, endpoint):
    name = endpoint({"A": model()})
    before = json.loads(aws.invoke(name, b"see")["Body"].read())["environ"]["SAGEMAKER_BASE_DIR"]
    aws.invoke(name, b"sick")
    aws.wait_for(lambda: try_invoke(aws, name, b"see"), lambda body: body and before.encode() not in body)


def try_invoke(aws, name, body=b"back"):
    try:
        return aws.invoke(name, body)["Body"].read()
    except ClientError:
        return None


def test_an_update_switches_without_losing_a_request(aws, model, endpoint, update):
    name = endpoint({"A": model({"PREFIX": "old "})})
    with ThreadPoolExecutor(8) as executor:
        callers = [executor.submit(invoke_until, aws, name, b"new X") for _ in range(8)]
        config = update(name, "A", model({"PREFIX": "new "}))
        assert aws.sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Updating"
        answers = {answer for caller in callers for answer in caller.result()}
    assert answers == {b"old X", b"new X"}
    described = aws.wait_in_service(name)
    assert described["EndpointConfigName"] == config


def invoke_until(aws, name, wanted):
    answers = []
    deadline = time.monotonic() + 60
    while not answers or answers[-1] != wanted:
        assert time.monotonic() < deadline
        answers.append(aws.invoke(name, b"x")["Body"].read())
    return answers


def test_an_update_that_does_not_start_rolls_back(aws, model, endpoint, update):
    name = endpoint({"A": model({"PREFIX": "old "})})
    before = aws.sagemaker.describe_endpoint(EndpointName=name)["EndpointConfigName"]
    update(name, "A", model({"BREAK": "bad model"}))
    described = aws.wait_in_service(name)
    assert described["EndpointStatus"] == "InService"
    assert "RuntimeError: bad model" in described["FailureReason"]
    assert described["EndpointConfigName"] == before
    assert aws.invoke(name, b"x")["Body"].read() == b"old X"


def test_an_unknown_endpoint_and_a_body_that_is_too_large_are_validation_errors(aws, model, endpoint):
    with pytest.raises(ClientError, match="ValidationError.*Endpoint nothing of account 123456789012 not found"):
        aws.invoke("nothing", b"x")
    name = endpoint({"A": model()})
    with pytest.raises(ClientError, match="Member must have length less than or equal to 26214400"):
        aws.invoke(name, b"x" * (25 * 2**20 + 1))


def test_a_model_archive_with_a_link_or_of_a_wrong_format_fails_the_endpoint(aws, unique, endpoint):
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    for body, reason in (
        (buffer.getvalue(), "holds the link 'link'"),
        (b"zip", "Failed to extract model data archive"),
    ):
        name = unique("model")
        uri = aws.put(f"models/{name}.tar.gz", body)
        role = "arn:aws:iam::123456789012:role/SageMakerRole"
        aws.sagemaker.create_model(
            ModelName=name, ExecutionRoleArn=role, PrimaryContainer={"Image": "x", "ModelDataUrl": uri}
        )
        described = aws.sagemaker.describe_endpoint(EndpointName=endpoint({"A": name}))
        assert reason in described["FailureReason"]


def test_an_uncompressed_model_lies_as_files(aws, unique, endpoint):
    name = unique("model")
    aws.put(f"plain/{name}/weights.txt", b"w")
    aws.put(f"plain/{name}/code/inference.py", b"x")
    source = {"S3Uri": f"s3://test-bucket/plain/{name}/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {"Image": "x", "ModelDataSource": {"S3DataSource": source}}
    aws.sagemaker.create_model(
        ModelName=name, ExecutionRoleArn="arn:aws:iam::123456789012:role/SageMakerRole", PrimaryContainer=container
    )
    seen = json.loads(aws.invoke(endpoint({"A": name}), b"see")["Body"].read())
    assert seen["model"] == {"weights.txt": "w", "code/inference.py": "x"}


def test_many_callers_at_once_are_all_answered(aws, model, endpoint):
    name = endpoint({"A": model()})
    runtime = aws.client("sagemaker-runtime")
    with ThreadPoolExecutor(16) as executor:
        bodies = list(
            executor.map(
                lambda number: runtime.invoke_endpoint(EndpointName=name, Body=f"n{number}".encode())["Body"].read(),
                range(200),
            )
        )
    assert bodies == [f"N{number}".encode() for number in range(200)]
