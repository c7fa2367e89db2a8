"""Updates with a deployment strategy: traffic really moves, alarms take it back, and nobody's request is lost."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from launcher.local import client
from launcher.local.process_containers import processes_below

SPEED = 300  # a minute of waiting is 0.2 s
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/any:1"
ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"


@pytest.fixture(scope="module")
def fast(tmp_path_factory, connect, server_environment):
    """Clients of a server whose waits are short."""
    home = tmp_path_factory.mktemp("fast")
    yield connect(client.up(home, server_environment(SLIPWAY_LOCAL_SPEED=str(SPEED))))
    client.down(home)


@pytest.fixture
def configuration(fast, unique):
    """Makes an endpoint configuration of one variant `A`; its name."""

    def make(count=1, **environment):
        name = unique("config")
        container = {"Image": IMAGE, "Environment": environment}
        fast.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
        variant = {
            "VariantName": "A",
            "ModelName": name,
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": count,
        }
        fast.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        return name

    return make


@pytest.fixture
def served(fast, configuration, unique):
    """Deploys an endpoint that answers `old `; its name and configuration."""
    names = []

    def deploy(count=1):
        name, config = unique("endpoint"), configuration(count, PREFIX="old ")
        fast.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
        names.append(name)
        assert fast.wait_in_service(name)["EndpointStatus"] == "InService"
        return name, config

    yield deploy
    for name in names:
        fast.sagemaker.delete_endpoint(EndpointName=name)


class Load:
    """Callers that ask an endpoint without a pause, and what they were answered."""

    def __init__(self, aws, name, callers=4):
        self.answers = Counter()
        self._aws, self._name = aws, name
        self._ended = threading.Event()
        self._executor = ThreadPoolExecutor(callers)
        self._futures = [self._executor.submit(self._call) for _ in range(callers)]

    def _call(self):
        while not self._ended.is_set():
            try:
                self.answers[self._aws.invoke(self._name, b"x")["Body"].read()] += 1
            except ClientError as error:
                self.answers[error.response["Error"]["Code"]] += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended.set()
        for future in self._futures:
            future.result()
        self._executor.shutdown()


def traffic(kind, wait=600, **members):
    return {"TrafficRoutingConfiguration": {"Type": kind, "WaitIntervalInSeconds": wait, **members}}


CANARY = traffic("CANARY", 900, CanarySize={"Type": "CAPACITY_PERCENT", "Value": 30})


def update(aws, name, config, alarms=(), **policy):
    deployment = dict(policy)
    if alarms:
        deployment["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": alarm} for alarm in alarms]}
    aws.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config, DeploymentConfig=deployment)


def describe(aws, name):
    return aws.sagemaker.describe_endpoint(EndpointName=name)


def baking(description):
    """What the pending deployment's variant says while it bakes, or None."""
    for variant in description.get("PendingDeploymentSummary", {}).get("ProductionVariants", []):
        for status in variant["VariantStatus"]:
            return status["StatusMessage"] if status["Status"] == "Baking" else None
    return None


def fleets(aws, name):
    """The containers that run for an endpoint, by the variants' directories."""
    return [path.name for path in (aws.server.home / "jobs/serving").glob(f"{name}-A-*") if list(processes_below(path))]


@pytest.fixture
def alarm(fast, unique):
    """Makes an alarm on an endpoint's errors; its name."""

    def make(endpoint, period=300, **dimensions):
        name = unique("alarm")
        dimensions = {"EndpointName": endpoint, "VariantName": "A", **dimensions}
        fast.client("cloudwatch").put_metric_alarm(
            AlarmName=name,
            Namespace="AWS/SageMaker",
            MetricName="Invocation5XXErrors",
            Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
            Statistic="Average",
            Period=period,
            EvaluationPeriods=1,
            Threshold=0.1,
            ComparisonOperator="GreaterThanThreshold",
        )
        return name

    return make


def test_a_canary_gets_its_share_and_then_everything(fast, served, configuration):
    name, _ = served()
    config = configuration(PREFIX="new ")
    with Load(fast, name) as load:
        update(fast, name, config, BlueGreenUpdatePolicy=CANARY)
        described = fast.wait_for(lambda: describe(fast, name), baking)
        assert baking(described) == "30% of the traffic; waits are 300 times shorter"
        assert described["PendingDeploymentSummary"]["EndpointConfigName"] == config
        assert described["EndpointConfigName"] != config
        assert len(fleets(fast, name)) == 2
        load.answers.clear()
        fast.wait_for(lambda: len(load.answers), lambda count: count == 2)
        split_while = baking(describe(fast, name))
        described = fast.wait_for(lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "InService")
    assert set(load.answers) == {b"old X", b"new X"}  # no errors
    assert split_while.startswith("30%")  # both had answered by then
    assert described["EndpointConfigName"] == config
    assert "PendingDeploymentSummary" not in described
    assert described["LastDeploymentConfig"]["BlueGreenUpdatePolicy"] == CANARY
    assert len(fleets(fast, name)) == 1
    assert fast.invoke(name, b"x")["Body"].read() == b"new X"


def test_an_alarm_that_is_set_while_it_bakes_takes_the_update_back(fast, served, configuration, alarm):
    name, before = served()
    ringing = alarm(name)
    with Load(fast, name) as load:
        config = configuration(PREFIX="new ")
        policy = traffic("LINEAR", 3600, LinearStepSize={"Type": "CAPACITY_PERCENT", "Value": 50})
        update(fast, name, config, [ringing], BlueGreenUpdatePolicy=policy)
        fast.wait_for(lambda: describe(fast, name), baking)
        fast.client("cloudwatch").set_alarm_state(AlarmName=ringing, StateValue="ALARM", StateReason="a person")
        described = fast.wait_for(
            lambda: describe(fast, name), lambda found: found["EndpointStatus"] not in ("Updating", "RollingBack")
        )
    assert described["EndpointStatus"] == "InService"
    assert described["FailureReason"] == f"One or more configured alarms went into ALARM state: {ringing}."
    assert described["EndpointConfigName"] == before
    assert "PendingDeploymentSummary" not in described
    assert set(load.answers) == {b"old X", b"new X"}
    assert len(fleets(fast, name)) == 1
    assert fast.invoke(name, b"x")["Body"].read() == b"old X"


def test_the_errors_of_a_bad_model_ring_its_alarm_by_themselves(fast, served, configuration, alarm):
    name, before = served()
    bad = configuration(STATUS="500")
    errors = alarm(name, EndpointConfigName=bad)
    statuses = []
    with Load(fast, name) as load:
        update(fast, name, bad, [errors], BlueGreenUpdatePolicy=CANARY)

        def look():
            statuses.append(describe(fast, name)["EndpointStatus"])
            return statuses[-1]

        fast.wait_for(look, lambda status: status == "InService")
    assert describe(fast, name)["EndpointConfigName"] == before
    assert errors in describe(fast, name)["FailureReason"]
    assert set(load.answers) == {b"old X", "ModelError"}
    (described,) = fast.client("cloudwatch").describe_alarms(AlarmNames=[errors])["MetricAlarms"]
    assert "Invocation5XXErrors" in described["StateReason"]
    assert fast.invoke(name, b"x")["Body"].read() == b"old X"


def test_a_rolling_update_moves_instances_with_the_traffic(fast, served, configuration):
    name, _ = served(count=2)
    assert len(fleets(fast, name)) == 2
    config = configuration(2, PREFIX="new ")
    policy = {"MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1}, "WaitIntervalInSeconds": 300}
    seen = set()
    with Load(fast, name) as load:
        update(fast, name, config, RollingUpdatePolicy=policy)

        def look():
            found = describe(fast, name)
            if baking(found):
                seen.add((baking(found).partition(";")[0], len(fleets(fast, name))))
            return found

        described = fast.wait_for(look, lambda found: found["EndpointStatus"] == "InService")
    assert ("50% of the traffic", 2) in seen  # one old and one new instance, not two and two
    assert set(load.answers) == {b"old X", b"new X"}
    assert described["EndpointConfigName"] == config
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert len(fleets(fast, name)) == 2


def test_a_rolling_update_is_rolled_back_to_all_old_instances(fast, served, configuration, alarm):
    name, before = served(count=2)
    ringing = alarm(name)
    policy = {"MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1}, "WaitIntervalInSeconds": 3600}
    with Load(fast, name) as load:
        update(fast, name, configuration(2, PREFIX="new "), [ringing], RollingUpdatePolicy=policy)
        fast.wait_for(lambda: describe(fast, name), baking)
        fast.client("cloudwatch").set_alarm_state(AlarmName=ringing, StateValue="ALARM", StateReason="a person")
        described = fast.wait_for(lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "InService")
    assert described["EndpointConfigName"] == before
    assert set(load.answers) == {b"old X", b"new X"}
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert len(fleets(fast, name)) == 2


def test_an_update_over_its_time_is_taken_back(fast, served, configuration):
    name, before = served()
    slow = configuration(PREFIX="new ", LOAD_SECONDS="3")
    policy = traffic("ALL_AT_ONCE", 0) | {"MaximumExecutionTimeoutInSeconds": 600}
    update(fast, name, slow, BlueGreenUpdatePolicy=policy)
    described = fast.wait_for(lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "InService")
    assert described["FailureReason"] == "The deployment did not end within its 600 seconds."
    assert described["EndpointConfigName"] == before
    assert len(fleets(fast, name)) == 1


def test_what_a_deployment_cannot_have_is_refused(fast, served, configuration):
    name, config = served()
    with pytest.raises(ClientError, match="Could not find the CloudWatch alarm nobody"):
        update(fast, name, config, ["nobody"], BlueGreenUpdatePolicy=CANARY)
    variant = {"VariantName": "A", "ModelName": config}
    serverless = {"ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1}}
    fast.sagemaker.create_endpoint_config(EndpointConfigName=f"{config}-s", ProductionVariants=[variant | serverless])
    with pytest.raises(ClientError, match="not for serverless endpoints"):
        update(fast, name, f"{config}-s", BlueGreenUpdatePolicy=CANARY)
    assert describe(fast, name)["EndpointStatus"] == "InService"


def test_an_update_keeps_counts_and_the_deployment_strategy_where_it_is_told_to(fast, served, configuration):
    name, _ = served()
    desired = [{"VariantName": "A", "DesiredInstanceCount": 2}]
    fast.sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=desired)
    fast.wait_for(lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "InService")
    assert len(fleets(fast, name)) == 2
    update(fast, name, configuration(PREFIX="new "), BlueGreenUpdatePolicy=traffic("ALL_AT_ONCE", 0))
    described = fast.wait_for(lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "InService")
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 1  # the configuration's, again
    fast.sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=desired)
    fast.wait_for(lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "InService")
    fast.sagemaker.update_endpoint(
        EndpointName=name,
        EndpointConfigName=configuration(PREFIX="third "),
        RetainAllVariantProperties=True,
        RetainDeploymentConfig=True,
    )
    described = fast.wait_for(lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "InService")
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert "BlueGreenUpdatePolicy" in described["LastDeploymentConfig"]


def test_invocations_are_metrics_with_the_services_names_and_dimensions(fast, served):
    name, config = served()
    fast.invoke(name, b"x")
    fast.invoke(name, b"y")
    with pytest.raises(ClientError, match="ModelError"):
        fast.invoke(name, b"status 400")
    listed = fast.client("cloudwatch").list_metrics(
        Namespace="AWS/SageMaker", Dimensions=[{"Name": "EndpointName", "Value": name}]
    )["Metrics"]
    names = {metric["MetricName"] for metric in listed}
    assert names >= {"Invocations", "InvocationsPerInstance", "ModelLatency", "OverheadLatency", "Invocation4XXErrors"}
    dimensions = [
        {"Name": "EndpointName", "Value": name},
        {"Name": "VariantName", "Value": "A"},
        {"Name": "EndpointConfigName", "Value": config},
    ]
    assert total(fast, "Invocations", dimensions) == 3
    assert total(fast, "Invocation4XXErrors", dimensions) == 1
    assert total(fast, "ModelLatency", dimensions) > 100  # microseconds


def total(aws, metric, dimensions):
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    points = aws.client("cloudwatch").get_metric_statistics(
        Namespace="AWS/SageMaker",
        MetricName=metric,
        Dimensions=dimensions,
        StartTime=now - timedelta(minutes=10),
        EndTime=now + timedelta(minutes=1),
        Period=3600,
        Statistics=["Sum"],
    )["Datapoints"]
    return sum(point["Sum"] for point in points)


def test_a_rolling_rollback_whose_old_model_no_longer_starts_says_so(fast, served, configuration, alarm, tmp_path):
    flag = tmp_path / "broken"
    name, _ = served(count=2)
    breaking = configuration(2, PREFIX="middle ", BREAK_IF=str(flag))
    update(fast, name, breaking, BlueGreenUpdatePolicy=traffic("ALL_AT_ONCE", 0))
    fast.wait_for(lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "InService")
    ringing = alarm(name)
    policy = {"MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1}, "WaitIntervalInSeconds": 3600}
    update(fast, name, configuration(2, PREFIX="new "), [ringing], RollingUpdatePolicy=policy)
    fast.wait_for(lambda: describe(fast, name), baking)
    flag.touch()
    fast.client("cloudwatch").set_alarm_state(AlarmName=ringing, StateValue="ALARM", StateReason="a person")
    failed = fast.wait_for(
        lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "UpdateRollbackFailed"
    )
    assert "The rollback failed" in failed["FailureReason"]
    assert fast.invoke(name, b"x")["Body"].read() in (b"middle X", b"new X")  # what runs goes on serving
    update(fast, name, configuration(1, PREFIX="healed "), RollingUpdatePolicy={**policy, "WaitIntervalInSeconds": 0})
    fast.wait_for(lambda: describe(fast, name), lambda found: found["EndpointStatus"] == "InService")
    assert fast.invoke(name, b"x")["Body"].read() == b"healed X"
    running = fast.server.home / "jobs/serving"
    assert len(list(running.glob(f"{name}-*"))) == 1  # of all three, one is left
