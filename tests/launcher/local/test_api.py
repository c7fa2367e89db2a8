"""The control plane's answers and errors, seen by boto3 and as bytes."""

import json
import urllib.error
import urllib.request

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"


def post(aws, operation, body):
    """A raw JSON 1.1 call: what boto3 would not send."""
    request = urllib.request.Request(
        aws.server.url,
        data=body if isinstance(body, bytes) else json.dumps(body).encode(),
        headers={"X-Amz-Target": f"SageMaker.{operation}", "Content-Type": "application/x-amz-json-1.1"},
    )
    try:
        return json.loads(urllib.request.urlopen(request).read())
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.loads(error.read())}


def test_broken_constraints_are_listed_in_the_services_words(aws):
    unchecked = aws.client("sagemaker", config=Config(parameter_validation=False))
    with pytest.raises(ClientError) as caught:
        unchecked.create_training_job(
            TrainingJobName="under_score",
            AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "Fil"},
            RoleArn=ROLE,
            OutputDataConfig={"S3OutputPath": "s3://b/o"},
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": -1, "VolumeSizeInGB": 1},
            StoppingCondition={"MaxRuntimeInSeconds": 0},
            HyperParameters={"k": "v" * 2501},
        )
    error = caught.value.response["Error"]
    assert error["Code"] == "ValidationException"
    assert error["Message"].startswith("5 validation errors detected: Value 'under_score' at 'trainingJobName' failed")
    assert (
        "Value 'Fil' at 'algorithmSpecification.trainingInputMode' failed to satisfy constraint: " in error["Message"]
    )
    assert "Member must satisfy enum value set: [Pipe, File, FastFile]" in error["Message"]
    assert (
        "at 'resourceConfig.instanceCount' failed to satisfy constraint: Member must have value greater"
        in error["Message"]
    )
    assert (
        "at 'hyperParameters.k.member' failed to satisfy constraint: Member must have length less" in error["Message"]
    )


def test_missing_members_and_wrong_types_are_named(aws):
    missing = post(aws, "CreateEndpoint", {"EndpointName": "e"})
    assert missing["message"] == (
        "1 validation error detected: Value null at 'endpointConfigName' failed to satisfy constraint: "
        "Member must not be null"
    )
    assert post(aws, "DescribeModel", {"ModelName": 7}) == {
        "status": 400,
        "__type": "SerializationException",
        "message": "int can not be converted to a string: 7",
        "Message": "int can not be converted to a string: 7",
    }
    assert post(aws, "DescribeModel", b"{")["__type"] == "SerializationException"


def test_an_operation_that_is_missing_is_named_with_those_there_are(aws):
    with pytest.raises(ClientError) as caught:
        aws.sagemaker.list_clusters()
    assert caught.value.response["Error"]["Code"] == "UnknownOperationException"
    assert "no operation ListClusters; it has AddTags, CreateEndpoint," in str(caught.value)


def test_a_runtime_path_that_is_missing_is_named(aws):
    runtime = aws.client("sagemaker-runtime", config=Config())  # its own: it is changed
    runtime.meta.events.register(
        "before-sign.sagemaker-runtime.InvokeEndpoint",
        lambda request, **_: setattr(request, "url", request.url.replace("invocations", "nothing")),
    )
    with pytest.raises(ClientError, match="UnknownOperationException.*has no POST /endpoints/e/nothing"):
        runtime.invoke_endpoint(EndpointName="e", Body=b"x")


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        ("describe_training_job", {"TrainingJobName": "none"}, "Requested resource not found"),
        ("describe_transform_job", {"TransformJobName": "none"}, "Requested resource not found"),
        (
            "describe_model",
            {"ModelName": "none"},
            'Could not find model "arn:aws:sagemaker:us-east-1:123456789012:model/none"',
        ),
        ("delete_endpoint_config", {"EndpointConfigName": "none"}, "Could not find endpoint configuration"),
        ("delete_endpoint", {"EndpointName": "none"}, "Could not find endpoint"),
        ("stop_training_job", {"TrainingJobName": "none"}, "Requested resource not found"),
        (
            "create_endpoint",
            {"EndpointName": "e", "EndpointConfigName": "none"},
            "Could not find endpoint configuration",
        ),
    ],
)
def test_what_is_not_there_is_a_validation_exception(aws, operation, arguments, message):
    with pytest.raises(ClientError, match=message) as caught:
        getattr(aws.sagemaker, operation)(**arguments)
    assert caught.value.response["Error"]["Code"] == "ValidationException"


def test_a_taken_name_is_refused_in_the_kinds_own_way(aws, training_request, model, endpoint):
    request = training_request()
    aws.train(request)
    with pytest.raises(ClientError, match="ResourceInUse.*a training job with this name already exists"):
        aws.train(request)
    name = model()
    with pytest.raises(ClientError, match="ValidationException.*Cannot create already existing model"):
        aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"})


def test_lists_are_paged_filtered_and_sorted(aws, model, unique):
    prefix = unique("listed")
    names = [f"{prefix}-{letter}" for letter in "cab"]
    for name in names:
        aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "x"})
    found = aws.sagemaker.list_models(NameContains=prefix, SortBy="Name", SortOrder="Ascending", MaxResults=2)
    assert [item["ModelName"] for item in found["Models"]] == sorted(names)[:2]
    rest = aws.sagemaker.list_models(
        NameContains=prefix, SortBy="Name", SortOrder="Ascending", MaxResults=2, NextToken=found["NextToken"]
    )
    assert [item["ModelName"] for item in rest["Models"]] == sorted(names)[2:]
    assert "NextToken" not in rest
    newest_first = aws.sagemaker.list_models(NameContains=prefix.upper())["Models"]
    assert [item["ModelName"] for item in newest_first] == names[::-1]
    created = newest_first[1]["CreationTime"]
    later = aws.sagemaker.list_models(NameContains=prefix, CreationTimeAfter=created)["Models"]
    earlier = aws.sagemaker.list_models(NameContains=prefix, CreationTimeBefore=created)["Models"]
    assert (len(later), len(earlier)) == (2, 2)
    assert set(newest_first[0]) == {"ModelName", "ModelArn", "CreationTime"}  # a summary, not the whole document
    with pytest.raises(ClientError, match="Invalid pagination token"):
        aws.sagemaker.list_models(NextToken="?")
    with pytest.raises(ClientError, match="Invalid pagination token"):
        aws.sagemaker.list_models(NextToken="YWJj")


def test_jobs_are_listed_by_status(aws, training_request):
    good, bad = training_request(), training_request({"fail_host": "algo-1"})
    for request in (good, bad):
        aws.train(request)
    names = {good["TrainingJobName"], bad["TrainingJobName"]}
    for status, expected in (("Completed", good), ("Failed", bad)):
        answer = aws.sagemaker.list_training_jobs(StatusEquals=status, MaxResults=100)["TrainingJobSummaries"]
        assert names & {item["TrainingJobName"] for item in answer} == {expected["TrainingJobName"]}
    by_status = aws.sagemaker.list_training_jobs(SortBy="Status", SortOrder="Ascending", MaxResults=100)
    statuses = [item["TrainingJobStatus"] for item in by_status["TrainingJobSummaries"]]
    assert statuses == sorted(statuses)


def test_tags_are_added_listed_and_deleted(aws, training_request):
    request = training_request(Tags=[{"Key": "project", "Value": "x"}])
    arn = aws.train(request)["TrainingJobArn"]
    sagemaker = aws.sagemaker
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "project", "Value": "y"}, {"Key": "über", "Value": "z"}])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [
        {"Key": "project", "Value": "y"},
        {"Key": "über", "Value": "z"},
    ]
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["project"])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "über", "Value": "z"}]
    many = [{"Key": f"k{index}", "Value": ""} for index in range(50)]
    with pytest.raises(ClientError, match="at most 50 tags; .* would have 51"):
        sagemaker.add_tags(ResourceArn=arn, Tags=many)
    with pytest.raises(ClientError, match="ValidationException.*Could not find resource"):
        sagemaker.list_tags(ResourceArn=arn + "x")


def test_a_running_job_cannot_be_deleted_and_a_finished_one_can(aws, training_request):
    request = training_request({"sleep": "600"})
    name = request["TrainingJobName"]
    aws.train(request, wait=False)
    with pytest.raises(ClientError, match=f"ResourceInUse.*The training job {name} is InProgress; stop it first"):
        aws.sagemaker.delete_training_job(TrainingJobName=name)
    aws.sagemaker.stop_training_job(TrainingJobName=name)
    aws.finished("training", name)
    aws.sagemaker.delete_training_job(TrainingJobName=name)
    with pytest.raises(ClientError, match="Requested resource not found"):
        aws.sagemaker.describe_training_job(TrainingJobName=name)


FILE_MODE = {"TrainingImage": "x", "TrainingInputMode": "File"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"AlgorithmSpecification": {"AlgorithmName": "x", "TrainingInputMode": "File"}},
            "set AlgorithmSpecification.TrainingImage",
        ),
        ({"ResourceConfig": {"VolumeSizeInGB": 1}}, "ResourceConfig needs InstanceType and InstanceCount"),
        ({"EnableManagedSpotTraining": True}, "MaxWaitTimeInSeconds must be present"),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}},
            "only for EnableManagedSpotTraining",
        ),
        (
            {
                "EnableManagedSpotTraining": True,
                "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59},
            },
            "Invalid MaxWaitTimeInSeconds 59",
        ),
        (
            {"OutputDataConfig": {"S3OutputPath": "s3://no-such-bucket/out"}},
            "The S3 bucket of s3://no-such-bucket/out does not exist",
        ),
        ({"OutputDataConfig": {"S3OutputPath": "https://x/out"}}, "is not an S3 URI like"),
        (
            {"CheckpointConfig": {"S3Uri": "s3://test-bucket/c", "LocalPath": "/tmp/checkpoints"}},
            "lies outside /opt/ml, which is all that the local SageMaker shares",
        ),
        (
            {"AlgorithmSpecification": FILE_MODE | {"MetricDefinitions": [{"Name": "loss", "Regex": "("}]}},
            "MetricDefinition 'loss': invalid regular expression",
        ),
    ],
)
def test_a_training_job_that_cannot_run_is_refused(aws, training_request, members, message):
    with pytest.raises(ClientError, match=message):
        aws.train(training_request(**members))


def test_channels_that_the_local_sagemaker_lacks_are_refused(aws, training_request, channel):
    aws.put("lacking/a")
    uri = "s3://test-bucket/lacking/"
    with pytest.raises(ClientError, match="Channel train: Gzip is for Pipe mode only"):
        aws.train(training_request(InputDataConfig=[channel(uri, CompressionType="Gzip")]))
    with pytest.raises(ClientError, match="No S3 objects found under S3 URL"):
        aws.train(training_request(InputDataConfig=[channel("s3://test-bucket/none/")]))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "You must provide either PrimaryContainer or Containers"),
        ({"PrimaryContainer": {"ModelPackageName": "p"}}, "needs ContainerDefinition.Image"),
        (
            {"PrimaryContainer": {"Image": "x", "ModelDataUrl": "s3://test-bucket/none.tar.gz"}},
            "Could not find model data at",
        ),
        (
            {"Containers": [{"Image": "x", "ContainerHostname": "a"}, {"Image": "x"}]},
            "ContainerHostname must be given for all containers or for none",
        ),
    ],
)
def test_a_model_that_cannot_serve_is_refused(aws, unique, members, message):
    with pytest.raises(ClientError, match=message):
        aws.sagemaker.create_model(ModelName=unique("model"), ExecutionRoleArn=ROLE, **members)


def test_an_endpoint_configuration_needs_distinct_variants_with_models(aws, model, unique):
    variant = {"VariantName": "A", "ModelName": model(), "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    for variants, message in (
        ([variant, variant], "Production variant names must be unique: A, A"),
        ([{**variant, "ModelName": "none"}], "Could not find model"),
        (
            [{"VariantName": "A", "InstanceType": "ml.m5.large"}],
            "Production variant A has no ModelName: it hosts inference components",
        ),
    ):
        with pytest.raises(ClientError, match=message):
            aws.sagemaker.create_endpoint_config(EndpointConfigName=unique("config"), ProductionVariants=variants)


def test_a_job_that_is_not_done_yet_has_no_members_of_its_end(aws, training_request):
    request = training_request({"sleep": "600"})
    aws.train(request, wait=False)
    job = aws.sagemaker.describe_training_job(TrainingJobName=request["TrainingJobName"])
    assert not {"TrainingEndTime", "ModelArtifacts", "FinalMetricDataList", "FailureReason"} & set(job)
    aws.sagemaker.stop_training_job(TrainingJobName=request["TrainingJobName"])


def test_other_services_answer_beside_sagemaker(aws):
    assert aws.client("sts").get_caller_identity()["Account"] == "123456789012"
    repository = aws.client("ecr").create_repository(repositoryName="slipway/train")["repository"]
    assert repository["repositoryUri"].endswith("/slipway/train")
    role = aws.client("iam").create_role(RoleName="R", AssumeRolePolicyDocument="{}")["Role"]
    assert role["Arn"] == "arn:aws:iam::123456789012:role/R"
    scaling = aws.client("application-autoscaling")
    scaling.register_scalable_target(
        ServiceNamespace="sagemaker",
        ResourceId="endpoint/e/variant/A",
        ScalableDimension="sagemaker:variant:DesiredInstanceCount",
        MinCapacity=1,
        MaxCapacity=2,
    )
    assert scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
