"""Deletes an endpoint with everything that hangs on it."""

import time
from typing import Any

from launcher import attachments, run
from launcher.errors import TimedOut
from launcher.jobs.api import ApiCall
from launcher.project import Project

DELETE_SECONDS = 900  # instances are released within minutes
DELETE_POLL_SECONDS = 0.5


def delete(project: Project, name: str, wait: bool = True, kept: str = "") -> None:
    """Delete an endpoint with its scaling, components, alarms and configuration; models stay, others may use them.

    Args:
        project: whose account it is in.
        name: of the endpoint.
        wait: until it is gone.
        kept: a configuration that stays: the endpoint is made anew with it.

    Raises:
        AwsRefused: there is no such endpoint.
        TimedOut: it is still there after a while.
    """
    description = project.aws.call("sagemaker", "DescribeEndpoint", EndpointName=name)
    attachments.stop_scaling(project, name, attachments.variant_ids(name, variants_of(description)))
    configuration = description["EndpointConfigName"]
    configured = project.describe_or_none("EndpointConfig", configuration)
    if attachments.hosts_components(project, configuration):
        for component in attachments.components_of(project, name):
            attachments.remove_component(project, component)
    attachments.remove_alarms(project, name)
    project.aws.send(run.ENDPOINT.stop_call(name))
    if configured and configuration != kept:
        project.aws.send(ApiCall("sagemaker", "DeleteEndpointConfig", {"EndpointConfigName": configuration}))
    deadline = time.monotonic() + DELETE_SECONDS
    while wait and project.describe_or_none("Endpoint", name):
        if time.monotonic() > deadline:
            raise TimedOut(f"endpoint {name} is still being deleted after {DELETE_SECONDS} s; look again later")
        time.sleep(DELETE_POLL_SECONDS)


def variants_of(description: dict[str, Any]) -> list[str]:
    """Names of the variants in a DescribeEndpoint reply; one that is being created lists none yet."""
    return [variant["VariantName"] for variant in description.get("ProductionVariants", [])]
