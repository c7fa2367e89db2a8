"""However the server ends, and whatever its endpoints are doing at that moment, nothing of it is left running."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from container.contract import OptMl
from launcher.local import client
from launcher.local.changes import Changes
from launcher.local.containers import ContainerSpec, ContainerStartError
from launcher.local.endpoint_metrics import EndpointMetrics, Source
from launcher.local.errors import JobFailed
from launcher.local.fleet import Fleet, FleetPlan
from launcher.local.process_containers import ProcessRuntime, processes_below

ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
HOUR = 3600
CANARY = {
    "TrafficRoutingConfiguration": {
        "Type": "CANARY",
        "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 50},
        "WaitIntervalInSeconds": HOUR,
    },
    "MaximumExecutionTimeoutInSeconds": 4 * HOUR,
}
QUICK, SLOW_TO_START, SLOW_TO_END = {}, {"LOAD_SECONDS": "60"}, {"STOP_SECONDS": "2"}


class Scene:
    """Endpoints of one server, each in the middle of something."""

    def __init__(self, aws, image="x"):
        self.aws, self.sagemaker, self.image = aws, aws.sagemaker, image

    def config(self, name, environment, **members):
        model = {"Image": self.image, "Environment": environment}
        self.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=model)
        variant = {"VariantName": "A", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1, **members}
        hosted = {} if "ManagedInstanceScaling" in members else {"ModelName": name}
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name, ExecutionRoleArn=ROLE, ProductionVariants=[variant | hosted]
        )

    def endpoint(self, name, environment=None, **members):
        self.config(name, environment or {}, **members)
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)

    def in_service(self, *names):
        for name in names:
            assert self.aws.wait_in_service(name)["EndpointStatus"] == "InService"

    def wait_for_variant(self, name, status):
        def pending(found):
            variants = found.get("PendingDeploymentSummary", {}).get("ProductionVariants", [{}])
            return [item["Status"] for item in variants[0].get("VariantStatus", [])] == [status]

        self.aws.wait_for(lambda: self.sagemaker.describe_endpoint(EndpointName=name), pending)

    def component(self, name, environment):
        self.sagemaker.create_inference_component(
            InferenceComponentName=name,
            EndpointName="hosting",
            VariantName="A",
            Specification={
                "Container": {"Image": self.image, "Environment": environment},
                "ComputeResourceRequirements": {"NumberOfCpuCoresRequired": 1, "MinMemoryRequiredInMb": 128},
            },
            RuntimeConfig={"CopyCount": 1},
        )

    def wait_for_component(self, name):
        self.aws.wait_for(
            lambda: self.sagemaker.describe_inference_component(InferenceComponentName=name),
            lambda found: found["InferenceComponentStatus"] == "InService",
        )

    def start(self):
        """Everything that can go on at once, up to its middle."""
        for name in ("deleted", "updated", "baking", "scaled", "replaced"):
            self.endpoint(name, SLOW_TO_END if name == "deleted" else QUICK)
        self.endpoint("hosting", ManagedInstanceScaling={"Status": "ENABLED"})
        self.in_service("deleted", "updated", "baking", "scaled", "replaced", "hosting")
        self.component("kept", QUICK)
        self.component("removed", SLOW_TO_END)
        self.wait_for_component("removed")
        self.wait_for_component("kept")

    def act(self):
        """Bring each one to its moment; the shortest last."""
        self.config("next-baking", QUICK)
        update = {"DeploymentConfig": {"BlueGreenUpdatePolicy": CANARY}}
        self.sagemaker.update_endpoint(EndpointName="baking", EndpointConfigName="next-baking", **update)
        self.wait_for_variant("baking", "Baking")
        self.config("next-updated", SLOW_TO_START)
        self.sagemaker.update_endpoint(EndpointName="updated", EndpointConfigName="next-updated")
        self.wait_for_variant("updated", "Creating")
        self.endpoint("created", SLOW_TO_START)
        self.component("placed", SLOW_TO_START)
        more = [{"VariantName": "A", "DesiredInstanceCount": 3}]
        self.sagemaker.update_endpoint_weights_and_capacities(EndpointName="scaled", DesiredWeightsAndCapacities=more)
        self.aws.invoke("replaced", b"sick")
        self.sagemaker.delete_inference_component(InferenceComponentName="removed")
        self.sagemaker.delete_endpoint(EndpointName="deleted")


def test_down_in_the_middle_of_every_change_leaves_no_process(own_server):
    scene = Scene(own_server())
    scene.start()
    scene.act()
    home = scene.aws.server.home
    client.down(home)
    assert list(processes_below(home)) == []


@pytest.mark.slow
def test_kill_9_in_the_middle_of_every_change_leaves_what_was_there_before(own_server):
    scene = Scene(own_server())
    scene.start()
    scene.act()
    home = scene.aws.server.home
    os.kill(scene.aws.server.pid, signal.SIGKILL)
    left = set(processes_below(home))
    assert left

    again = Scene(own_server())
    assert left & set(processes_below(home)) == set()
    again.in_service("updated", "baking", "scaled", "replaced", "hosting")
    again.wait_for_component("kept")
    listed = again.sagemaker.list_endpoints(MaxResults=100)["Endpoints"]
    statuses = {item["EndpointName"]: item["EndpointStatus"] for item in listed}
    assert statuses.pop("created") == "Creating"
    assert set(statuses.values()) == {"InService"}
    assert "deleted" not in statuses
    for name in ("updated", "baking"):
        described = again.sagemaker.describe_endpoint(EndpointName=name)
        assert (described["EndpointConfigName"], "PendingDeploymentSummary" in described) == (name, False)
        assert f"while the endpoint was updated to next-{name}; it serves {name} again" in described["FailureReason"]
    components = again.sagemaker.list_inference_components()["InferenceComponents"]
    assert {item["InferenceComponentName"] for item in components} == {"kept", "placed"}


def test_nothing_starts_behind_a_closed_door(tmp_path):
    runtime = ProcessRuntime(tmp_path / "jobs", tmp_path / "home", None)
    tree = OptMl(tmp_path / "jobs/job/ml")
    tree.base.mkdir(parents=True)
    spec = ContainerSpec("c", "x", "", tree, entrypoint=("sleep", "600"))
    container = runtime.start(spec, lambda line: None)
    runtime.close()
    assert container.wait(60) == 128 + signal.SIGKILL
    with pytest.raises(ContainerStartError, match="the local SageMaker is ending"):
        runtime.start(spec, lambda line: None)


def test_a_change_that_breaks_off_says_so_and_the_next_one_runs():
    said, done = [], threading.Event()
    changes = Changes("endpoint e", said.append)
    changes.submit(lambda: 1 / 0)
    changes.submit(done.set)
    assert done.wait(60)
    assert said == ["InternalServerError: ZeroDivisionError: division by zero"]
    changes.end()
    changes.submit(lambda: pytest.fail("after the end nothing is done"))


def test_a_fleet_that_cannot_grow_wants_no_more_than_it_has(tmp_path):
    def no_model():
        raise JobFailed("the model is gone")

    source = Source("e", "A", "c")
    plan = FleetPlan("variant A", "e-A", "A", no_model, source, 1.0, threading.Event())
    fleet = Fleet(SimpleNamespace(), plan, EndpointMetrics("us-east-1"))
    with pytest.raises(JobFailed, match="the model is gone"):
        fleet.scale_to(2)
    assert (fleet.desired, fleet.size) == (0, 0)
