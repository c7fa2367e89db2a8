"""Inference components: several models on one endpoint, each with copies of its own."""

import pytest
from botocore.exceptions import ClientError

from launcher.local import client
from launcher.local.process_containers import processes_below

ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/any:1"
NEEDS = {"MinMemoryRequiredInMb": 256, "NumberOfCpuCoresRequired": 1}


@pytest.fixture(scope="module")
def fast(tmp_path_factory, connect, server_environment):
    home = tmp_path_factory.mktemp("components")
    yield connect(client.up(home, server_environment(SLIPWAY_LOCAL_SPEED="300")))
    client.down(home)


@pytest.fixture(scope="module")
def host(fast):
    """An endpoint without a model of its own."""
    variant = {"VariantName": "A", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    fast.sagemaker.create_endpoint_config(
        EndpointConfigName="host", ExecutionRoleArn=ROLE, ProductionVariants=[variant]
    )
    fast.sagemaker.create_endpoint(EndpointName="host", EndpointConfigName="host")
    assert fast.wait_in_service("host")["EndpointStatus"] == "InService"
    return "host"


def specification(**environment):
    container = {"Image": IMAGE, "Environment": environment}
    return {"Container": container, "ComputeResourceRequirements": NEEDS}


@pytest.fixture
def component(fast, host, unique):
    """Creates a component; its name. It is deleted after the test."""
    names = []

    def create(copies=1, **environment):
        name = unique("component")
        fast.sagemaker.create_inference_component(
            InferenceComponentName=name,
            EndpointName=host,
            VariantName="A",
            Specification=specification(**environment),
            RuntimeConfig={"CopyCount": copies},
        )
        names.append(name)
        return name

    yield create
    for name in names:
        fast.sagemaker.delete_inference_component(InferenceComponentName=name)
        fast.wait_for(lambda: listed(fast), lambda found, name=name: name not in found)


def listed(aws, **filters):
    found = aws.sagemaker.list_inference_components(MaxResults=100, **filters)["InferenceComponents"]
    return [item["InferenceComponentName"] for item in found]


def at_rest(aws, name, copies=None):
    def is_done(found):
        is_over = found["InferenceComponentStatus"] in ("InService", "Failed")
        return is_over and copies in (None, found["RuntimeConfig"]["CurrentCopyCount"])

    return aws.wait_for(lambda: aws.sagemaker.describe_inference_component(InferenceComponentName=name), is_done)


def ask(aws, name, body=b"x"):
    return aws.invoke("host", body, InferenceComponentName=name)["Body"].read()


def copies_running(aws, name):
    return [path for path in (aws.server.home / "jobs/serving").glob(f"host-{name}-*") if list(processes_below(path))]


def test_components_share_an_endpoint_and_are_asked_by_name(fast, component):
    first, second = component(PREFIX="one "), component(2, PREFIX="two ")
    for name in (first, second):
        assert at_rest(fast, name)["InferenceComponentStatus"] == "InService"
    assert (ask(fast, first), ask(fast, second)) == (b"one X", b"two X")
    assert [len(copies_running(fast, name)) for name in (first, second)] == [1, 2]
    assert set(listed(fast, EndpointNameEquals="host", VariantNameEquals="A")) >= {first, second}
    assert listed(fast, EndpointNameEquals="other") == []
    with pytest.raises(ClientError, match="name an inference component"):
        fast.invoke("host", b"x")
    with pytest.raises(ClientError, match="Inference Component nobody not found"):
        ask(fast, "nobody")
    with pytest.raises(ClientError, match="hosts inference components; delete them first"):
        fast.sagemaker.delete_endpoint(EndpointName="host")


def test_a_component_changes_its_copies_and_its_model(fast, component):
    name = component(PREFIX="old ")
    at_rest(fast, name, 1)
    fast.sagemaker.update_inference_component_runtime_config(
        InferenceComponentName=name, DesiredRuntimeConfig={"CopyCount": 2}
    )
    assert at_rest(fast, name, 2)["RuntimeConfig"]["DesiredCopyCount"] == 2
    fast.sagemaker.update_inference_component(InferenceComponentName=name, Specification=specification(PREFIX="new "))
    fast.wait_for(lambda: ask(fast, name), lambda answer: answer == b"new X")
    described = at_rest(fast, name, 2)
    assert described["Specification"]["Container"]["Environment"] == {"PREFIX": "new "}
    assert described["Specification"]["Container"]["DeployedImage"]["SpecifiedImage"] == IMAGE


def test_a_change_that_does_not_start_leaves_what_served(fast, component):
    name = component(PREFIX="old ")
    at_rest(fast, name, 1)
    fast.sagemaker.update_inference_component(InferenceComponentName=name, Specification=specification(BREAK="no"))
    with pytest.raises(ClientError, match="Cannot update in-progress inference component"):
        fast.sagemaker.update_inference_component(InferenceComponentName=name, Specification=specification())
    described = at_rest(fast, name)
    assert described["InferenceComponentStatus"] == "InService"
    assert "RuntimeError: no" in described["FailureReason"]
    assert ask(fast, name) == b"old X"


def test_a_component_that_never_started_is_failed(fast, component):
    described = at_rest(fast, component(BREAK="bad"))
    assert described["InferenceComponentStatus"] == "Failed"
    assert "inference component" in described["FailureReason"]


def test_a_component_sleeps_and_the_first_that_asks_wakes_it(fast, component):
    name = component(0)
    assert at_rest(fast, name)["RuntimeConfig"]["CurrentCopyCount"] == 0
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"inference-component/{name}",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
    }
    scaling = fast.client("application-autoscaling")
    scaling.register_scalable_target(**target, MinCapacity=0, MaxCapacity=2)
    steps = [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}]
    arn = scaling.put_scaling_policy(
        **target,
        PolicyName="wake",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={"AdjustmentType": "ChangeInCapacity", "StepAdjustments": steps},
    )["PolicyARN"]
    fast.client("cloudwatch").put_metric_alarm(
        AlarmName=f"{name}-wake",
        Namespace="AWS/SageMaker",
        MetricName="NoCapacityInvocationFailures",
        Dimensions=[{"Name": "InferenceComponentName", "Value": name}],
        Statistic="Maximum",
        Period=300,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        AlarmActions=[arn],
    )
    with pytest.raises(ClientError, match="ValidationError.*has no capacity to process this request"):
        ask(fast, name)
    at_rest(fast, name, 1)
    assert ask(fast, name) == b"X"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"EndpointName": "nobody"}, "Could not find endpoint"),
        ({"VariantName": "B"}, 'The variant name "B" does not exist'),
        ({"Specification": {"ComputeResourceRequirements": NEEDS}}, "either ModelName or Container"),
        ({"Specification": {"Container": {"Image": IMAGE}}}, "needs ComputeResourceRequirements"),
        ({"Specification": {"BaseInferenceComponentName": "base"}}, "no adapter inference components"),
        (
            {"Specification": {"ModelName": "nobody", "ComputeResourceRequirements": NEEDS}},
            "Could not find model",
        ),
    ],
)
@pytest.mark.usefixtures("host")
def test_what_a_component_cannot_be_is_refused(fast, changes, message):
    request = {
        "InferenceComponentName": "refused",
        "EndpointName": "host",
        "VariantName": "A",
        "Specification": specification(),
    }
    with pytest.raises(ClientError, match=message):
        fast.sagemaker.create_inference_component(**(request | changes))


def test_a_variant_with_a_model_hosts_no_components(fast, unique):
    name = unique("plain")
    fast.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": IMAGE})
    variant = {"VariantName": "A", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    fast.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    fast.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    request = {"InferenceComponentName": name, "EndpointName": name, "Specification": specification()}
    with pytest.raises(ClientError, match="is Creating; inference components can be created"):
        fast.sagemaker.create_inference_component(**request)
    fast.wait_in_service(name)
    with pytest.raises(ClientError, match="need a variant without ModelName"):
        fast.sagemaker.create_inference_component(**request)
    with pytest.raises(ClientError, match="no Specifications by instance"):
        fast.sagemaker.create_inference_component(
            InferenceComponentName=name, EndpointName=name, Specifications=[specification()]
        )
    fast.sagemaker.delete_endpoint(EndpointName=name)
