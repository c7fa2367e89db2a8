"""Asynchronous, serverless, multi-model, multi-container, streaming and shadowed endpoints; data capture."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError, EventStreamError

BUCKET = "s3://test-bucket"
ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"


# --- asynchronous -----------------------------------------------------------------------------------------------------


@pytest.fixture
def async_endpoint(endpoint, model, unique):
    """Deploys an asynchronous endpoint; its name and output prefix."""

    def deploy(**client_config):
        prefix = f"async/{unique('out')}"
        output = {"S3OutputPath": f"{BUCKET}/{prefix}/good", "S3FailurePath": f"{BUCKET}/{prefix}/bad/"}
        config = {"AsyncInferenceConfig": {"OutputConfig": output, "ClientConfig": client_config}}
        return endpoint({"A": model()}, config), prefix

    return deploy


def invoke_async(aws, name, body, **options):
    uri = aws.put(f"async-inputs/{time.monotonic_ns()}", body)
    runtime = aws.client("sagemaker-runtime")
    return runtime.invoke_endpoint_async(EndpointName=name, InputLocation=uri, **options)


def wait_for_object(aws, uri):
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    aws.wait_for(lambda: aws.s3.list_objects_v2(Bucket=bucket, Prefix=key)["KeyCount"], bool)
    return aws.get(uri)


def test_an_async_request_leaves_its_answer_in_s3(aws, async_endpoint):
    name, prefix = async_endpoint()
    answer = invoke_async(aws, name, b"hello", ContentType="text/plain", InferenceId="id-1")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert answer["InferenceId"] == "id-1"
    assert answer["OutputLocation"] == f"{BUCKET}/{prefix}/good/id-1.out"
    assert answer["FailureLocation"] == f"{BUCKET}/{prefix}/bad/id-1-error.out"
    assert wait_for_object(aws, answer["OutputLocation"]) == b"HELLO"


def test_an_async_request_names_its_output_and_passes_its_headers(aws, async_endpoint):
    name, prefix = async_endpoint()
    options = {"ContentType": "a/b", "Accept": "c/d", "CustomAttributes": "k=v"}
    answer = invoke_async(aws, name, b"see", Filename="named", S3OutputPathExtension="deep", **options)
    assert answer["OutputLocation"] == f"{BUCKET}/{prefix}/good/deep/named.out"
    headers = json.loads(wait_for_object(aws, answer["OutputLocation"]))["headers"]
    assert (headers["Content-Type"], headers["Accept"]) == ("a/b", "c/d")
    assert headers["X-Amzn-SageMaker-Custom-Attributes"] == "k=v"


def test_an_async_failure_leaves_its_reason_in_s3(aws, async_endpoint):
    name, _ = async_endpoint()
    failed = invoke_async(aws, name, b"status 400")
    assert b"Received client error (400)" in wait_for_object(aws, failed["FailureLocation"])
    late = invoke_async(aws, name, b"sleep 5", InvocationTimeoutSeconds=1)
    assert b"timed out while waiting" in wait_for_object(aws, late["FailureLocation"])


def test_c147_an_async_answer_in_chunks_fails(aws, async_endpoint):
    name, _ = async_endpoint()
    answer = invoke_async(aws, name, b"stream")
    assert b"required Content-Length header" in wait_for_object(aws, answer["FailureLocation"])


def test_async_requests_wait_in_a_queue_of_limited_concurrency(aws, async_endpoint):
    name, _ = async_endpoint(MaxConcurrentInvocationsPerInstance=1)
    slow = invoke_async(aws, name, b"sleep 1")
    quick = invoke_async(aws, name, b"quick")
    wait_for_object(aws, quick["OutputLocation"])
    assert aws.get(slow["OutputLocation"]) == b"slept"  # the first was done before the second began


def test_an_inline_body_needs_no_input_object(aws, async_endpoint):
    name, _ = async_endpoint()
    answer = aws.client("sagemaker-runtime").invoke_endpoint_async(EndpointName=name, Body=b"inline")
    assert wait_for_object(aws, answer["OutputLocation"]) == b"INLINE"


def test_async_and_synchronous_calls_are_kept_apart(aws, async_endpoint, endpoint, model):
    name, _ = async_endpoint()
    runtime = aws.client("sagemaker-runtime")
    with pytest.raises(ClientError, match="is asynchronous: use InvokeEndpointAsync"):
        aws.invoke(name, b"x")
    with pytest.raises(ClientError, match="Invalid input location: s3://test-bucket/none does not exist"):
        runtime.invoke_endpoint_async(EndpointName=name, InputLocation=f"{BUCKET}/none")
    with pytest.raises(ClientError, match="Invalid input location: s3://no-such-bucket/none"):
        runtime.invoke_endpoint_async(EndpointName=name, InputLocation="s3://no-such-bucket/none")
    with pytest.raises(ClientError, match="needs InputLocation or Body"):
        runtime.invoke_endpoint_async(EndpointName=name)
    with pytest.raises(ClientError, match="less than or equal to 128000"):
        runtime.invoke_endpoint_async(EndpointName=name, Body=b"x" * 128_001)
    with pytest.raises(ClientError, match="is not asynchronous: use InvokeEndpoint"):
        runtime.invoke_endpoint_async(EndpointName=endpoint({"A": model()}), Body=b"x")


def test_an_update_keeps_what_is_queued(aws, async_endpoint):
    name, _ = async_endpoint(MaxConcurrentInvocationsPerInstance=1)
    invoke_async(aws, name, b"sleep 1")
    queued = invoke_async(aws, name, b"queued")
    config = aws.sagemaker.describe_endpoint(EndpointName=name)["EndpointConfigName"]
    aws.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config)
    assert wait_for_object(aws, queued["OutputLocation"]) == b"QUEUED"
    assert aws.wait_in_service(name)["EndpointStatus"] == "InService"


def test_deleting_an_async_endpoint_fails_what_is_queued(aws, model, unique):
    name = unique("endpoint")
    output = {"S3OutputPath": f"{BUCKET}/deleted/good", "S3FailurePath": f"{BUCKET}/deleted/bad"}
    client_config = {"MaxConcurrentInvocationsPerInstance": 1}
    aws.sagemaker.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[
            {"VariantName": "A", "ModelName": model(), "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        ],
        AsyncInferenceConfig={"OutputConfig": output, "ClientConfig": client_config},
    )
    aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    described = aws.wait_in_service(name)
    assert described["AsyncInferenceConfig"]["ClientConfig"] == client_config
    invoke_async(aws, name, b"sleep 1")
    queued = invoke_async(aws, name, b"never")
    aws.sagemaker.delete_endpoint(EndpointName=name)
    with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
        aws.sagemaker.delete_endpoint(EndpointName=name)
    assert b"before the request was run" in wait_for_object(aws, queued["FailureLocation"])


# --- serverless -------------------------------------------------------------------------------------------------------


def serverless(memory=2048, concurrency=1):
    return {"ServerlessConfig": {"MemorySizeInMB": memory, "MaxConcurrency": concurrency}}


@pytest.fixture
def serverless_endpoint(aws, model, unique):
    name = unique("serverless")
    variant = {"VariantName": "A", "ModelName": model(), **serverless()}
    aws.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    aws.wait_in_service(name)
    yield name
    aws.sagemaker.delete_endpoint(EndpointName=name)


def test_a_serverless_endpoint_takes_as_many_at_once_as_it_says(aws, serverless_endpoint):
    described = aws.sagemaker.describe_endpoint(EndpointName=serverless_endpoint)["ProductionVariants"][0]
    assert described["CurrentServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 1}
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(aws.invoke, serverless_endpoint, b"sleep 3")
        time.sleep(1)
        from botocore.config import Config

        runtime = aws.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}))
        with pytest.raises(ClientError, match="ThrottlingException.*takes 1 at a time"):
            runtime.invoke_endpoint(EndpointName=serverless_endpoint, Body=b"x")
        assert running.result()["Body"].read() == b"slept"


def test_a_serverless_endpoint_takes_and_gives_4_mb(aws, serverless_endpoint):
    with pytest.raises(ClientError, match="ValidationError.*Body exceeds 4 MB"):
        aws.invoke(serverless_endpoint, b"x" * (4 * 2**20 + 1))
    assert len(aws.invoke(serverless_endpoint, b"x" * (4 * 2**20))["Body"].read()) == 4 * 2**20


def test_an_answer_over_4_mb_of_a_serverless_endpoint_is_a_model_error(aws, model, unique):
    name = unique("serverless")
    variant = {"VariantName": "A", "ModelName": model({"PREFIX": "more"}), **serverless()}
    aws.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    aws.wait_in_service(name)
    with pytest.raises(ClientError, match="ModelError.*is over 4 MB"):
        aws.invoke(name, b"x" * (4 * 2**20))
    aws.sagemaker.delete_endpoint(EndpointName=name)


@pytest.mark.parametrize(
    ("variant", "config", "message"),
    [
        ({"InstanceType": "ml.m5.large"}, {}, "cannot have an InstanceType"),
        (serverless(memory=1500), {}, "cannot have 1500 MB of memory .1024 to 6144 in steps of 1024"),
        (
            {},
            {"DataCaptureConfig": {"InitialSamplingPercentage": 1, "DestinationS3Uri": BUCKET, "CaptureOptions": []}},
            "cannot have data capture",
        ),
    ],
)
def test_what_serverless_lacks_is_refused(aws, model, unique, variant, config, message):
    if "DataCaptureConfig" in config:
        config["DataCaptureConfig"]["CaptureOptions"] = [{"CaptureMode": "Input"}]
    variants = [{"VariantName": "A", "ModelName": model(), **serverless(), **variant}]
    with pytest.raises(ClientError, match=message):
        aws.sagemaker.create_endpoint_config(EndpointConfigName=unique("c"), ProductionVariants=variants, **config)


def test_a_variant_without_an_instance_type_is_refused(aws, model, unique):
    with pytest.raises(ClientError, match="Production variant A needs InstanceType"):
        aws.sagemaker.create_endpoint_config(
            EndpointConfigName=unique("c"), ProductionVariants=[{"VariantName": "A", "ModelName": model()}]
        )


# --- multi-model ------------------------------------------------------------------------------------------------------


@pytest.fixture
def multi_model_endpoint(aws, unique, tar_gz, endpoint):
    """Deploys a multi-model endpoint with archives of the given names."""

    def deploy(*names, cache="Enabled"):
        model_name = unique("multi")
        for archive in names:
            weights = archive.rpartition("/")[2]
            aws.put(f"multi/{model_name}/{archive}.tar.gz", tar_gz({"weights.txt": weights}))
        container = {
            "Image": "x",
            "Mode": "MultiModel",
            "ModelDataUrl": f"{BUCKET}/multi/{model_name}/",
            "MultiModelConfig": {"ModelCacheSetting": cache},
        }
        aws.sagemaker.create_model(ModelName=model_name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
        return endpoint({"A": model_name})

    return deploy


def loads(aws, name):
    lines = aws.log_lines(f"/aws/sagemaker/Endpoints/{name}", "A/")
    return [line for messages in lines.values() for line in messages if line.startswith("load ")]


def test_models_are_loaded_once_and_evicted_when_the_container_is_full(aws, multi_model_endpoint):
    name = multi_model_endpoint("one", "deep/two", "three")

    def ask(target):
        return aws.invoke(name, b"q", TargetModel=target)["Body"].read().decode()

    assert ask("one.tar.gz") == "one one.tar.gz ['one'] q"
    assert ask("one.tar.gz") == "one one.tar.gz ['one'] q"
    assert ask("deep/two.tar.gz") == "two deep/two.tar.gz ['one', 'two'] q"
    assert loads(aws, name) == ["load one", "load two"]
    assert ask("one.tar.gz") == "one one.tar.gz ['one', 'two'] q"  # so that `two` is the longest unused
    assert ask("three.tar.gz") == "three three.tar.gz ['one', 'three'] q"


def test_a_model_that_the_container_lost_is_loaded_again(aws, multi_model_endpoint):
    name = multi_model_endpoint("one")
    aws.invoke(name, b"q", TargetModel="one.tar.gz")
    with pytest.raises(ClientError, match="ModelError"):  # the fake forgets it on every try
        aws.invoke(name, b"forget", TargetModel="one.tar.gz")
    assert loads(aws, name) == ["load one"] * 3


def test_without_a_cache_a_model_is_unloaded_after_each_call(aws, multi_model_endpoint):
    name = multi_model_endpoint("one", cache="Disabled")
    for _ in range(2):
        aws.invoke(name, b"q", TargetModel="one.tar.gz")
    assert loads(aws, name) == ["load one"] * 2


def test_concurrent_calls_load_a_model_once(aws, multi_model_endpoint):
    name = multi_model_endpoint("one")
    runtime = aws.client("sagemaker-runtime")
    with ThreadPoolExecutor(8) as executor:
        list(
            executor.map(
                lambda _: runtime.invoke_endpoint(EndpointName=name, Body=b"q", TargetModel="one.tar.gz"), range(16)
            )
        )
    assert loads(aws, name) == ["load one"]


def test_models_that_are_missing_or_broken_are_named(aws, multi_model_endpoint, endpoint, model):
    name = multi_model_endpoint("bad")
    with pytest.raises(ClientError, match="ValidationError.*Failed to download model data from s3://.*none.tar.gz"):
        aws.invoke(name, b"q", TargetModel="none.tar.gz")
    with pytest.raises(ClientError, match="ModelError.*the container answered 500 cannot load bad"):
        aws.invoke(name, b"q", TargetModel="bad.tar.gz")
    with pytest.raises(ClientError, match="The endpoint needs a TargetModel header"):
        aws.invoke(name, b"q")
    with pytest.raises(ClientError, match="The endpoint does not take a TargetModel header"):
        aws.invoke(endpoint({"A": model()}), b"q", TargetModel="one.tar.gz")


# --- several containers -----------------------------------------------------------------------------------------------


@pytest.fixture
def two_containers(aws, unique, endpoint):
    """Deploys a model of two containers, `first` and `second`, each with a prefix of its own."""

    def deploy(mode):
        containers = [
            {"Image": "x", "ContainerHostname": hostname, "Environment": {"PREFIX": f"{hostname}:"}}
            for hostname in ("first", "second")
        ]
        name = unique("model")
        execution = {"InferenceExecutionConfig": {"Mode": mode}} if mode else {}
        aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, Containers=containers, **execution)
        return endpoint({"A": name})

    return deploy


def test_a_pipeline_hands_each_answer_to_the_next_container(aws, two_containers):
    name = two_containers(None)
    assert aws.invoke(name, b"x", ContentType="text/csv")["Body"].read() == b"second:FIRST:X"
    with pytest.raises(ClientError, match=r"Received client error \(400\) from first"):
        aws.invoke(name, b"status 400")
    with pytest.raises(ClientError, match="does not take a TargetContainerHostname"):
        aws.invoke(name, b"x", TargetContainerHostname="first")
    streams = aws.log_lines(f"/aws/sagemaker/Endpoints/{name}", "A/")
    assert sorted(stream.rpartition("/")[2] for stream in streams) == ["first", "second"]


def test_c128_containers_of_one_endpoint_get_ports_of_their_own(aws, two_containers):
    name = two_containers("Direct")
    ports = set()
    for hostname in ("first", "second"):
        seen = json.loads(aws.invoke(name, b"see", TargetContainerHostname=hostname)["Body"].read())
        ports.add(seen["environ"]["SAGEMAKER_BIND_TO_PORT"])
        assert "-" in seen["environ"]["SAGEMAKER_SAFE_PORT_RANGE"]
    assert len(ports) == 2


def test_direct_invocation_needs_its_target(aws, two_containers):
    name = two_containers("Direct")
    assert aws.invoke(name, b"x", TargetContainerHostname="second")["Body"].read() == b"second:X"
    with pytest.raises(ClientError, match="needs a TargetContainerHostname"):
        aws.invoke(name, b"x")
    with pytest.raises(ClientError, match="No container third; the endpoint has first, second"):
        aws.invoke(name, b"x", TargetContainerHostname="third")


# --- streaming --------------------------------------------------------------------------------------------------------


def test_c112_a_stream_arrives_part_by_part(aws, endpoint, model):
    name = endpoint({"A": model()})
    runtime = aws.client("sagemaker-runtime")
    answer = runtime.invoke_endpoint_with_response_stream(EndpointName=name, Body=b"stream", ContentType="text/plain")
    arrived = [(time.monotonic(), event["PayloadPart"]["Bytes"]) for event in answer["Body"]]
    assert b"".join(part for _, part in arrived) == b"part 0;part 1;part 2;"
    assert arrived[-1][0] - arrived[0][0] > 0.2  # the first was here before the last was made
    assert (answer["ContentType"], answer["InvokedProductionVariant"]) == ("text/event-stream", "A")


def test_a_stream_that_breaks_ends_in_a_stream_error(aws, endpoint, model):
    name = endpoint({"A": model()})
    runtime = aws.client("sagemaker-runtime")
    answer = runtime.invoke_endpoint_with_response_stream(EndpointName=name, Body=b"stream break")
    parts = []
    with pytest.raises(EventStreamError, match="ModelStreamError"):
        parts.extend(event["PayloadPart"]["Bytes"] for event in answer["Body"])


def test_an_error_before_the_stream_is_a_model_error(aws, endpoint, model, two_containers):
    name = endpoint({"A": model()})
    runtime = aws.client("sagemaker-runtime")
    with pytest.raises(ClientError, match="ModelError.*answered 503"):
        runtime.invoke_endpoint_with_response_stream(EndpointName=name, Body=b"status 503")
    with pytest.raises(ClientError, match="Response streaming is for single containers"):
        runtime.invoke_endpoint_with_response_stream(EndpointName=two_containers(None), Body=b"x")


# --- shadow and capture -----------------------------------------------------------------------------------------------


def test_a_shadow_variant_gets_copies_and_nobody_sees_its_answers(aws, endpoint, model):
    shadow = {"VariantName": "S", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1, "InitialVariantWeight": 1}
    shadow["ModelName"] = model({"PREFIX": "shadow:"})
    name = endpoint({"A": model()}, {"ShadowProductionVariants": [shadow]})
    described = aws.sagemaker.describe_endpoint(EndpointName=name)
    assert [variant["VariantName"] for variant in described["ShadowProductionVariants"]] == ["S"]
    for _ in range(3):
        assert aws.invoke(name, b"log me")["Body"].read() == b"LOG ME"
    streams = aws.wait_for(
        lambda: aws.log_lines(f"/aws/sagemaker/Endpoints/{name}", "S/"),
        lambda found: sum(messages.count("log me") for messages in found.values()) == 3,
    )
    assert streams


def test_captured_invocations_have_the_services_form(aws, endpoint, model, unique):
    prefix = unique("captured")
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"{BUCKET}/{prefix}",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
    }
    name = endpoint({"A": model()}, {"DataCaptureConfig": capture})
    described = aws.sagemaker.describe_endpoint(EndpointName=name)["DataCaptureConfig"]
    assert (described["CaptureStatus"], described["CurrentSamplingPercentage"]) == ("Started", 100)
    aws.invoke(name, b"1,2", ContentType="text/csv", InferenceId="id-7")
    aws.invoke(name, b"\x00\xff", ContentType="image/png")

    def lines():
        keys = aws.keys(f"{prefix}/")
        return [line for key in keys for line in aws.get(f"{BUCKET}/{prefix}/{key}").splitlines()]

    first, second = (json.loads(line) for line in aws.wait_for(lines, lambda found: len(found) == 2))
    assert first["captureData"]["endpointInput"] == {
        "observedContentType": "text/csv",
        "mode": "INPUT",
        "data": "1,2",
        "encoding": "CSV",
    }
    assert first["captureData"]["endpointOutput"]["mode"] == "OUTPUT"
    assert first["eventMetadata"]["inferenceId"] == "id-7"
    assert first["eventVersion"] == "0"
    assert second["captureData"]["endpointInput"]["encoding"] == "BASE64"
    assert second["captureData"]["endpointInput"]["data"] == "AP8="
    (key, *_) = aws.keys(f"{prefix}/")
    endpoint_name, variant, year, *_, file_name = key.split("/")
    assert (endpoint_name, variant) == (name, "A")
    assert int(year) >= 2026
    assert file_name.endswith(".jsonl")


def test_capture_that_is_off_or_samples_nothing_writes_nothing(aws, endpoint, model, unique):
    prefix = unique("uncaptured")
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 0,
        "DestinationS3Uri": f"{BUCKET}/{prefix}",
        "CaptureOptions": [{"CaptureMode": "InputAndOutput"}],
    }
    off = endpoint({"A": model()}, {"DataCaptureConfig": capture | {"EnableCapture": False}})
    none = endpoint({"A": model()}, {"DataCaptureConfig": capture})
    assert aws.sagemaker.describe_endpoint(EndpointName=off)["DataCaptureConfig"]["CaptureStatus"] == "Stopped"
    for name in (off, none):
        aws.invoke(name, b"x")
        aws.sagemaker.delete_endpoint(EndpointName=name)
        aws.wait_for(aws.sagemaker.list_endpoints, lambda answer, name=name: name not in str(answer["Endpoints"]))
        aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)  # for the fixture to delete
        aws.wait_in_service(name)
    assert aws.keys(f"{prefix}/") == []
