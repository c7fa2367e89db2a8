"""Whether a job can run in the configured VPC: it exists, has addresses left, leads to S3, and hosts see each other."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.account.fleets import fleets
from launcher.account.preflight_scene import Scene, error_code
from launcher.errors import AwsRefused
from launcher.findings import Finding


def check_network(scene: Scene) -> Iterator[Finding]:
    """Whether subnets and security groups exist in one VPC, have addresses left and lead to S3."""
    network = scene.config.network
    if not network.subnets:
        return
    try:
        subnets = scene.aws.call("ec2", "DescribeSubnets", SubnetIds=network.subnets)["Subnets"]
        groups = scene.aws.call("ec2", "DescribeSecurityGroups", GroupIds=network.security_groups)["SecurityGroups"]
    except AwsRefused as error:
        if "NotFound" not in error_code(error) and "Malformed" not in error_code(error):
            raise
        yield Finding("network", "fail", str(error), "correct network.subnets or network.security_groups")
        return
    clouds = {item["VpcId"] for item in (*subnets, *groups)}
    if len(clouds) > 1:
        detail = f"subnets and security groups lie in different VPCs: {', '.join(sorted(clouds))}"
        yield Finding("network", "fail", detail, "take them all from one VPC")
        return
    yield _addresses(scene, subnets)
    yield _way_to_s3(scene, clouds.pop(), subnets)
    if "train" in scene.kinds and scene.config.training.instance_count > 1:
        yield _hosts_reach_each_other(groups)


def _addresses(scene: Scene, subnets: Iterable[Mapping[str, Any]]) -> Finding:
    left = sum(subnet["AvailableIpAddressCount"] for subnet in subnets)
    counts = [scene.config.training.instance_count if "train" in scene.kinds else 0]
    counts.append(sum(fleet.most for fleet in fleets(scene.config.endpoint)) if "deploy" in scene.kinds else 0)
    if left < max(counts):
        detail = f"the subnets have {left} addresses left and {max(counts)} instances need one each"
        return Finding("network", "fail", detail, "take larger subnets, or more of them")
    return Finding("network", "ok", f"one VPC, {left} addresses left")


def _way_to_s3(scene: Scene, cloud: str, subnets: Iterable[Mapping[str, Any]]) -> Finding:
    ec2, region = scene.aws, scene.context.region
    of_cloud = {"Name": "vpc-id", "Values": [cloud]}
    wanted = [of_cloud, {"Name": "service-name", "Values": [f"com.amazonaws.{region}.s3"]}]
    endpoints = ec2.call("ec2", "DescribeVpcEndpoints", Filters=wanted)["VpcEndpoints"]
    if any(item["State"].lower() == "available" for item in endpoints):  # a deleted one is described for a while
        return Finding("way to S3", "ok", f"{cloud} has an S3 endpoint")
    tables = ec2.call("ec2", "DescribeRouteTables", Filters=[of_cloud])["RouteTables"]
    blocked = [subnet["SubnetId"] for subnet in subnets if not _leads_out(subnet["SubnetId"], tables)]
    if blocked:
        detail = f"no S3 endpoint in {cloud}, and no NAT route from {', '.join(blocked)}: inputs could not be read"
        fix = f"aws ec2 create-vpc-endpoint --vpc-id {cloud} --service-name com.amazonaws.{region}.s3"
        return Finding("way to S3", "fail", detail, fix)
    return Finding("way to S3", "ok", "through a NAT or transit gateway")


def _leads_out(subnet: str, tables: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the subnet's route table (its own, else the VPC's main one) has a way out that SageMaker can use.

    An internet gateway is none: a job's network interfaces have no public address.
    """
    tables = list(tables)
    own = [table for table in tables if any(a.get("SubnetId") == subnet for a in table["Associations"])]
    main = [table for table in tables if any(a.get("Main") for a in table["Associations"])]
    routes = [route for table in own or main for route in table["Routes"]]
    away = [route for route in routes if route.get("DestinationCidrBlock") == "0.0.0.0/0"]
    return any(route.get("NatGatewayId") or route.get("TransitGatewayId") for route in away)


def _hosts_reach_each_other(groups: Iterable[Mapping[str, Any]]) -> Finding:
    groups = list(groups)
    names = {group["GroupId"] for group in groups}
    among = any(
        pair.get("GroupId") in names
        for group in groups
        for rule in group["IpPermissions"]
        for pair in rule.get("UserIdGroupPairs", [])
    )
    if among:
        return Finding("hosts", "ok", "the security groups let the hosts reach each other")
    name = sorted(names)[0]
    fix = f"aws ec2 authorize-security-group-ingress --group-id {name} --source-group {name} --protocol all"
    return Finding("hosts", "warn", "no rule lets the hosts of a job reach each other: they would wait in vain", fix)
