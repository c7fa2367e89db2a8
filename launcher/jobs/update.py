"""UpdateEndpoint: to another configuration as the `rollout` section says, and back again."""

from collections.abc import Sequence
from typing import Any

from launcher.config import Config
from launcher.config.endpoint import Endpoint
from launcher.jobs.api import ApiCall
from launcher.jobs.endpoint import endpoint_name
from launcher.jobs.training import prune


def update_call(config: Config, endpoint_config_name: str, alarms: Sequence[str] = ()) -> ApiCall:
    """UpdateEndpoint to another configuration, as the `rollout` section says; `alarms` may take it back."""
    request: dict[str, Any] = {
        "EndpointName": endpoint_name(config),
        "EndpointConfigName": endpoint_config_name,
        "DeploymentConfig": _guardrails(config.endpoint, alarms),
    }
    if config.endpoint.scaling:  # what autoscaling has made of the instance count stays; the weights are the file's
        request["RetainAllVariantProperties"] = True
        request["ExcludeRetainedVariantProperties"] = [{"VariantPropertyType": "DesiredWeight"}]
    return ApiCall("sagemaker", "UpdateEndpoint", prune(request))


def return_call(config: Config, endpoint_config_name: str) -> ApiCall:
    """UpdateEndpoint back to an earlier configuration: at once, and whatever an alarm says about the present one."""
    section = config.endpoint.model_copy(update={"rollout": None})
    return update_call(config.model_copy(update={"endpoint": section}), endpoint_config_name)


def _guardrails(endpoint: Endpoint, alarms: Sequence[str]) -> dict[str, Any] | None:
    rollout = endpoint.rollout
    if not rollout:
        return None
    size = {"Type": "CAPACITY_PERCENT", "Value": rollout.percent}
    shared = {"WaitIntervalInSeconds": rollout.wait}
    limit = {"MaximumExecutionTimeoutInSeconds": rollout.timeout}
    back = {"Alarms": [{"AlarmName": name} for name in alarms]} if alarms else None
    if rollout.type == "rolling":
        return prune(
            {"RollingUpdatePolicy": {"MaximumBatchSize": size, **shared, **limit}, "AutoRollbackConfiguration": back}
        )
    routing: dict[str, Any] = {"Type": rollout.type.upper(), **shared}
    if rollout.type != "all_at_once":
        routing[{"canary": "CanarySize", "linear": "LinearStepSize"}[rollout.type]] = size
    policy = {
        "TrafficRoutingConfiguration": routing,
        "TerminationWaitInSeconds": rollout.keep_old or None,
        **limit,
    }
    return prune({"BlueGreenUpdatePolicy": prune(policy), "AutoRollbackConfiguration": back})
