"""The machines that an `endpoint` section asks for: what is paid for, and what quotas and subnets must hold."""

from dataclasses import dataclass

from launcher.config.endpoint import Endpoint
from launcher.config.scaling import Scaling
from launcher.jobs.endpoint import endpoint_variants


@dataclass(frozen=True)
class Fleet:
    """Instances of one type behind an endpoint."""

    name: str
    instance_type: str
    count: int
    """At the start."""
    most: int
    """When everything has scaled out."""


def fleets(endpoint: Endpoint) -> list[Fleet]:
    """One for each variant; one for the hosts of inference components; none of a serverless endpoint."""
    if endpoint.serverless:
        return []
    if endpoint.components:
        count = max(1, endpoint.instance_count)
        managed = endpoint.managed_instances
        return [Fleet("instances", endpoint.instance_type, count, max(count, managed.max) if managed else count)]
    found = []
    for variant in [*endpoint_variants(endpoint), *([endpoint.shadow] if endpoint.shadow else [])]:
        count = endpoint.instance_count if variant.instance_count is None else variant.instance_count
        scaling = endpoint.scaling if variant is not endpoint.shadow else None  # a shadow keeps its size
        most = max(count, *_bounds(scaling)) if scaling else count
        found.append(Fleet(f"variant {variant.name}", variant.instance_type or endpoint.instance_type, count, most))
    return found


def _bounds(scaling: Scaling) -> list[int]:
    """Upper bounds at all times."""
    return [scaling.max, *(item.max for item in scaling.schedule if item.max is not None)]
