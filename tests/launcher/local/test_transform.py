"""The life of a batch transform job, seen by boto3."""

import gzip
import json
import re
import struct

import pytest
from botocore.exceptions import ClientError

BUCKET = "test-bucket"


@pytest.fixture
def transform_request(aws, unique):
    """A CreateTransformJob body over `s3://test-bucket/<prefix>`; its outputs go to `transformed/<job>/`."""

    def make(model_name, prefix, source=None, output=None, **members):
        name = unique("transform")
        return {
            "TransformJobName": name,
            "ModelName": model_name,
            "TransformInput": {
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/{prefix}"}},
                **(source or {}),
            },
            "TransformOutput": {"S3OutputPath": f"s3://{BUCKET}/transformed/{name}", **(output or {})},
            "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
            **members,
        }

    return make


def outputs(aws, job):
    prefix = f"transformed/{job['TransformJobName']}/"
    return {key: aws.get(f"s3://{BUCKET}/{prefix}{key}") for key in aws.keys(prefix)}


def test_whole_objects_become_outputs_under_their_relative_keys(aws, model, transform_request):
    aws.put("whole/a.txt", b"one\ntwo\n")
    aws.put("whole/deep/b.txt", b"three")
    job = aws.transform(transform_request(model(), "whole/"))
    assert job["TransformJobStatus"] == "Completed"
    assert outputs(aws, job) == {"a.txt.out": b"ONE\nTWO\n", "deep/b.txt.out": b"THREE"}
    assert job["TransformStartTime"] <= job["TransformEndTime"]


@pytest.mark.parametrize(
    ("strategy", "expected"), [("SingleRecord", b"A,1\nB,2\nC,3\n"), ("MultiRecord", b"A,1\nB,2\nC,3\n\n")]
)
def test_c134_lines_are_split_and_assembled_in_order(aws, model, transform_request, strategy, expected):
    aws.put(f"lines-{strategy}/a.csv", b"a,1\nb,2\nc,3\n")
    job = aws.transform(
        transform_request(
            model(),
            f"lines-{strategy}/",
            {"SplitType": "Line", "ContentType": "text/csv"},
            {"AssembleWith": "Line"},
            BatchStrategy=strategy,
            MaxConcurrentTransforms=3,
        )
    )
    assert outputs(aws, job) == {"a.csv.out": expected}


def test_multi_record_requests_stay_within_the_payload_limit(aws, model, transform_request):
    line = b"x" * 2**18 + b"\n"
    aws.put("large/a.txt", line * 10)
    job = aws.transform(
        transform_request(
            model({"PREFIX": "|"}), "large/", {"SplitType": "Line"}, MaxPayloadInMB=1, BatchStrategy="MultiRecord"
        )
    )
    (body,) = outputs(aws, job).values()
    assert [part.count(b"\n") for part in body.split(b"|")[1:]] == [3, 3, 3, 1]


def test_a_record_over_the_limit_fails_its_object_and_says_what_to_do(aws, model, transform_request):
    aws.put("too-large/a.txt", b"x" * (2**20 + 1))
    job = aws.transform(transform_request(model(), "too-large/", MaxPayloadInMB=1))
    assert job["TransformJobStatus"] == "Failed"
    assert "a record of 1048577 bytes is larger than MaxPayloadInMB (1); raise MaxPayloadInMB" in job["FailureReason"]


def test_c132_the_container_sees_batch_variables_only_where_they_are_set(aws, model, transform_request):
    aws.put("environment/see", b"see")
    plain = aws.transform(transform_request(model({"A": "1", "B": "1"}), "environment/", Environment={"B": "2"}))
    environ = json.loads(outputs(aws, plain)["see.out"])["environ"]
    assert (environ["SAGEMAKER_BATCH"], environ["A"], environ["B"]) == ("true", "1", "2")
    assert not [name for name in environ if name.startswith("SAGEMAKER_MAX") or name == "SAGEMAKER_BATCH_STRATEGY"]

    settings = {"MaxPayloadInMB": 7, "MaxConcurrentTransforms": 2, "BatchStrategy": "SingleRecord"}
    full = aws.transform(
        transform_request(model(), "environment/", {"ContentType": "text/x"}, {"Accept": "text/y"}, **settings)
    )
    seen = json.loads(outputs(aws, full)["see.out"])
    assert seen["environ"]["SAGEMAKER_MAX_PAYLOAD_IN_MB"] == "7"
    assert seen["environ"]["SAGEMAKER_MAX_CONCURRENT_TRANSFORMS"] == "2"
    assert seen["environ"]["SAGEMAKER_BATCH_STRATEGY"] == "SINGLE_RECORD"
    assert (seen["headers"]["Content-Type"], seen["headers"]["Accept"]) == ("text/x", "text/y")


def test_c131_the_containers_execution_parameters_hold_where_the_request_says_nothing(aws, model, transform_request):
    aws.put("parameters/a.txt", b"a\nb\n")
    answer = json.dumps({"BatchStrategy": "SINGLE_RECORD", "MaxConcurrentTransforms": 2, "MaxPayloadInMB": 1})
    request = transform_request(model({"PARAMETERS": answer, "PREFIX": "|"}), "parameters/", {"SplitType": "Line"})
    assert outputs(aws, aws.transform(request)) == {"a.txt.out": b"|A|B"}


def test_unusable_execution_parameters_fail_the_job(aws, model, transform_request):
    aws.put("bad-parameters/a.txt", b"a")
    job = aws.transform(transform_request(model({"PARAMETERS": '{"BatchStrategy": "MultiRecord"}'}), "bad-parameters/"))
    assert "BatchStrategy MULTI_RECORD or SINGLE_RECORD" in job["FailureReason"]


def test_a_failing_object_fails_the_job_and_the_others_have_outputs(aws, model, transform_request):
    aws.put("mixed/1-good", b"good")
    aws.put("mixed/2-bad", b"status 400")
    aws.put("mixed/3-good", b"better")
    request = transform_request(model(), "mixed/")
    job = aws.transform(request)
    assert job["TransformJobStatus"] == "Failed"
    assert job["FailureReason"].startswith(
        "AlgorithmError: 1 of 3 input objects failed: test-bucket/mixed/2-bad: "
        "Bad HTTP status received from algorithm: 400 answered 400."
    )
    assert outputs(aws, job) == {"1-good.out": b"GOOD", "3-good.out": b"BETTER"}
    lines = aws.log_lines("/aws/sagemaker/TransformJobs", f"{request['TransformJobName']}/data-log")
    assert "test-bucket/mixed/2-bad" in "".join(*lines.values())


def test_a_server_error_is_retried(aws, model, transform_request, tmp_path):
    aws.put("flaky/a", f"flaky {tmp_path}/tried".encode())
    assert aws.transform(transform_request(model(), "flaky/"))["TransformJobStatus"] == "Completed"


def test_without_retries_the_first_error_fails_the_object(aws, model, transform_request, tmp_path):
    aws.put("strict/a", f"flaky {tmp_path}/tried".encode())
    job = aws.transform(transform_request(model(), "strict/", ModelClientConfig={"InvocationsMaxRetries": 0}))
    assert job["TransformJobStatus"] == "Failed"


def test_a_container_that_dies_fails_its_objects(aws, model, transform_request):
    aws.put("deadly/a", b"exit 9")
    job = aws.transform(transform_request(model(), "deadly/", ModelClientConfig={"InvocationsMaxRetries": 1}))
    assert re.search("nothing listens on port|the connection broke", job["FailureReason"])


def test_a_request_over_its_timeout_fails_its_object(aws, model, transform_request):
    aws.put("slow/a", b"sleep 5")
    client = {"InvocationsMaxRetries": 0, "InvocationsTimeoutInSeconds": 1}
    job = aws.transform(transform_request(model(), "slow/", ModelClientConfig=client))
    assert "no answer within 1 s" in job["FailureReason"]


def test_gzip_input_is_unpacked_and_a_broken_one_named(aws, model, transform_request):
    aws.put("zipped/a.gz", gzip.compress(b"text"))
    aws.put("zipped/b.gz", b"no gzip")
    job = aws.transform(transform_request(model(), "zipped/", {"CompressionType": "Gzip"}))
    assert outputs(aws, job) == {"a.gz.out": b"TEXT"}
    assert "test-bucket/zipped/b.gz: Not a gzipped file" in job["FailureReason"]


def test_recordio_loses_its_framing_as_a_single_record_and_keeps_it_in_several(aws, model, transform_request):
    frames = b"".join(
        struct.pack("<II", 0xCED7230A, len(body)) + body + b"\0" * (-len(body) % 4) for body in (b"ab", b"cdef")
    )
    aws.put("recordio/a", frames)
    source = {"SplitType": "RecordIO"}
    single = aws.transform(
        transform_request(model(), "recordio/", source, {"AssembleWith": "Line"}, BatchStrategy="SingleRecord")
    )
    assert outputs(aws, single) == {"a.out": b"AB\nCDEF\n"}
    multi = aws.transform(transform_request(model(), "recordio/", source, BatchStrategy="MultiRecord"))
    assert outputs(aws, multi) == {"a.out": frames.upper()}


def test_objects_are_shared_among_instances(aws, model, transform_request):
    for index in range(4):
        aws.put(f"shared/{index}", b"see")
    request = transform_request(model(), "shared/")
    request["TransformResources"]["InstanceCount"] = 2
    seen = [json.loads(body) for body in outputs(aws, aws.transform(request)).values()]
    assert len({item["environ"]["SAGEMAKER_BASE_DIR"] for item in seen}) == 2


def test_a_stopped_job_stores_no_output(aws, model, transform_request):
    aws.put("stopping/1", b"quick")
    aws.put("stopping/2", b"sleep 60")
    request = transform_request(model(), "stopping/", MaxConcurrentTransforms=1)
    name = request["TransformJobName"]
    aws.sagemaker.create_transform_job(**request)
    aws.wait_for(lambda: aws.log_lines("/aws/sagemaker/TransformJobs", name), lambda streams: len(streams) == 2)
    aws.sagemaker.stop_transform_job(TransformJobName=name)
    job = aws.finished("transform", name)
    assert job["TransformJobStatus"] == "Stopped"
    assert outputs(aws, job) == {}


def test_a_broken_model_fails_the_job_with_its_own_last_error(aws, model, transform_request):
    aws.put("broken-model/a", b"a")
    job = aws.transform(transform_request(model({"BREAK": "no weights"}), "broken-model/"))
    assert job["FailureReason"] == (
        "AlgorithmError: The model container did not pass the ping health check: "
        "it exited with code 1: RuntimeError: no weights"
    )


def test_a_job_without_input_objects_is_refused(aws, model, transform_request):
    with pytest.raises(ClientError, match='No S3 objects found under S3 URL "s3://test-bucket/nothing-here/"'):
        aws.transform(transform_request(model(), "nothing-here/"))


def test_more_than_100_mb_in_flight_is_refused(aws, model, transform_request):
    aws.put("product/a", b"a")
    with pytest.raises(ClientError, match="must not exceed 100; 4 . 26 = 104"):
        aws.transform(transform_request(model(), "product/", MaxPayloadInMB=26, MaxConcurrentTransforms=4))


def test_an_augmented_manifest_is_refused(aws, model, transform_request):
    aws.put("augmented/a", b"a")
    request = transform_request(model(), "augmented/")
    request["TransformInput"]["DataSource"]["S3DataSource"]["S3DataType"] = "AugmentedManifestFile"
    with pytest.raises(ClientError, match="S3DataType AugmentedManifestFile is not for batch transform"):
        aws.transform(request)


def test_a_model_that_does_not_exist_is_named(aws, model, transform_request):
    with pytest.raises(ClientError, match="Could not find model"):
        aws.transform(transform_request("no-such-model", "product/"))


LINES = {"SplitType": "Line", "ContentType": "text/csv"}
BY_LINE = {"AssembleWith": "Line"}


def test_csv_columns_are_filtered_joined_and_filtered_again(aws, model, transform_request):
    aws.put("joined-csv/a.csv", b"id-1,a,b\nid-2,c,d\n")
    processing = {"InputFilter": "$[1:]", "JoinSource": "Input", "OutputFilter": "$[0,-1]"}
    for strategy in ("SingleRecord", "MultiRecord"):
        job = aws.transform(
            transform_request(model(), "joined-csv/", LINES, BY_LINE, DataProcessing=processing, BatchStrategy=strategy)
        )
        assert outputs(aws, job) == {"a.csv.out": b"id-1,B\nid-2,D\n"}, job


def test_json_objects_are_joined_under_sagemaker_output(aws, model, transform_request):
    aws.put("joined-json/a.jsonl", b'{"id": 1, "features": ["x"]}\n{"id": 2, "features": ["y"]}\n')
    processing = {"InputFilter": "$.features", "JoinSource": "Input", "OutputFilter": "$['id','SageMakerOutput']"}
    source = {"SplitType": "Line", "ContentType": "application/jsonlines"}
    job = aws.transform(transform_request(model(), "joined-json/", source, BY_LINE, DataProcessing=processing))
    (body,) = outputs(aws, job).values()
    assert [json.loads(line) for line in body.splitlines()] == [
        {"id": 1, "SageMakerOutput": ["X"]},
        {"id": 2, "SageMakerOutput": ["Y"]},
    ]


def test_json_that_is_no_object_is_joined_with_its_input(aws, model, transform_request):
    aws.put("joined-list/a.json", b'["x"]')
    processing = {"JoinSource": "Input"}
    job = aws.transform(
        transform_request(model(), "joined-list/", {"ContentType": "application/json"}, DataProcessing=processing)
    )
    (body,) = outputs(aws, job).values()
    assert json.loads(body) == {"SageMakerInput": ["x"], "SageMakerOutput": ["X"]}


@pytest.mark.parametrize(
    ("content", "environment", "reason"),
    [
        (b"1\n", {}, 'the record ["1"] has nothing at $[1]'),
        (b"1,2\n", {"PREFIX": "\n"}, "the container answered 2 records for 1"),
    ],
)
def test_records_that_do_not_fit_fail_the_object(aws, model, transform_request, content, environment, reason):
    prefix = f"unfit-{len(content)}"
    aws.put(f"{prefix}/a.csv", content)
    processing = {"InputFilter": "$[1]", "JoinSource": "Input"}
    job = aws.transform(transform_request(model(environment), f"{prefix}/", LINES, BY_LINE, DataProcessing=processing))
    assert reason in job["FailureReason"]


@pytest.mark.parametrize(
    ("source", "processing", "message"),
    [
        ({"ContentType": "image/png"}, {"JoinSource": "Input"}, "needs a ContentType of text/csv, application/json"),
        ({"ContentType": "text/csv"}, {"JoinSource": "Input"}, "needs SplitType and AssembleWith to be Line"),
        ({"ContentType": "application/json"}, {"InputFilter": "features"}, "'features' is no JSONPath like"),
        (
            {"ContentType": "application/json"},
            {"InputFilter": "$[a]"},
            "is neither an index, a slice, nor quoted names",
        ),
    ],
)
def test_data_processing_that_cannot_work_is_refused(aws, model, transform_request, source, processing, message):
    aws.put("refused/a", b"a")
    with pytest.raises(ClientError, match=message):
        aws.transform(transform_request(model(), "refused/", source, DataProcessing=processing))


def test_inference_ids_in_a_batch_are_refused(aws, model, transform_request):
    aws.put("refused/a", b"a")
    ids = {"DestinationS3Uri": "s3://test-bucket/x", "GenerateInferenceId": True}
    with pytest.raises(ClientError, match="appends no inference ids"):
        aws.transform(transform_request(model(), "refused/", DataCaptureConfig=ids))


def test_a_path_that_a_client_types_wrong_in_json_is_shown(aws, model, transform_request):
    aws.put("no-json/a.jsonl", b"not json\n")
    source = {"SplitType": "Line", "ContentType": "application/jsonlines"}
    job = aws.transform(transform_request(model(), "no-json/", source, BY_LINE, DataProcessing={"InputFilter": "$.a"}))
    assert "the record 'not json\\n' is no JSON" in job["FailureReason"]


def test_data_capture_leaves_manifests_of_what_was_transformed(aws, model, transform_request, unique):
    folder = unique("capture")
    aws.put(f"{folder}-in/a.txt", b"one")
    aws.put(f"{folder}-in/deep/b.txt", b"status 400")
    aws.put(f"{folder}-in/deep/c.txt", b"three")
    capture = {"DestinationS3Uri": f"s3://{BUCKET}/{folder}"}
    job = aws.transform(transform_request(model(), f"{folder}-in/", DataCaptureConfig=capture))
    assert job["TransformJobStatus"] == "Failed"  # one of three
    (inputs,), (made,) = aws.keys(f"{folder}/input/"), aws.keys(f"{folder}/output/")
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\d\d/[0-9a-f-]{36}\.json", inputs)
    assert json.loads(aws.get(f"s3://{BUCKET}/{folder}/input/{inputs}")) == [
        {"prefix": f"s3://{BUCKET}/{folder}-in/"},
        "a.txt",
        "deep/c.txt",
    ]
    prefix, *names = json.loads(aws.get(f"s3://{BUCKET}/{folder}/output/{made}"))
    for name in names:
        assert aws.get(prefix["prefix"] + name) in (b"ONE", b"THREE")
    assert len(names) == 2
    described = aws.sagemaker.describe_transform_job(TransformJobName=job["TransformJobName"])
    assert described["DataCaptureConfig"] == capture
