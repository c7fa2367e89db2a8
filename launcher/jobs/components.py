"""CreateInferenceComponent: several models that share an endpoint's machines."""

from typing import Any

from launcher.config import Config
from launcher.config.endpoint import Component
from launcher.jobs.api import NAME_LIMIT, ApiCall, JobContext, tag_list
from launcher.jobs.common import tags
from launcher.jobs.endpoint import DEFAULT_VARIANT, component_environment, endpoint_name
from launcher.jobs.model import ServedModel, model_call
from launcher.jobs.timeouts import timeouts
from launcher.jobs.training import prune


def component_name(config: Config, name: str) -> str:
    """InferenceComponentName, which is the account's: the endpoint's name stands before it."""
    return f"{endpoint_name(config)}-{name}"[:NAME_LIMIT]


def calls(config: Config, context: JobContext, models: dict[str, ServedModel]) -> list[ApiCall]:
    """CreateInferenceComponent for each entry of `components`; the endpoint must be in service by then."""
    return [
        ApiCall(
            "sagemaker",
            "CreateInferenceComponent",
            {
                "InferenceComponentName": component_name(config, item.name),
                "EndpointName": endpoint_name(config),
                "VariantName": DEFAULT_VARIANT,
                "Specification": _component_specification(config, context, item, models[item.name]),
                "RuntimeConfig": {"CopyCount": item.copies},
                "Tags": tag_list(tags(config)),
            },
        )
        for item in config.endpoint.components
    ]


def _component_specification(
    config: Config, context: JobContext, item: Component, model: ServedModel
) -> dict[str, Any]:
    limits = timeouts(config.endpoint, model)
    environment = component_environment(config.endpoint, item.name)
    needs = {
        "NumberOfCpuCoresRequired": item.cpus,
        "NumberOfAcceleratorDevicesRequired": item.accelerators,
        "MinMemoryRequiredInMb": item.memory_mb,
    }
    startup_parameters = {
        "ModelDataDownloadTimeoutInSeconds": limits.download.seconds,
        "ContainerStartupHealthCheckTimeoutInSeconds": limits.startup.seconds,
    }
    return prune(
        {
            "ModelName": model_call(config, context, model, environment).request["ModelName"],
            "StartupParameters": prune(startup_parameters) or None,
            "ComputeResourceRequirements": prune(needs),
        }
    )
