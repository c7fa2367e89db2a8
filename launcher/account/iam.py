"""Least-privilege policies for one configuration, derived from the very requests it will send.

Sources: the Developer Guide's "How to use SageMaker AI execution roles" (what a role needs per API), "Cross-service
confused deputy prevention" (the trust policy's condition), "Auto-Rollback Configuration" (DescribeAlarms), and the
Service Authorization Reference (which actions take a resource).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from launcher.account.iam_caller import KINDS, Kind, caller_statements, preflight_statements
from launcher.account.iam_statements import (
    CHECKPOINT_ACCESS,
    OBJECT_READ,
    OBJECT_WRITE,
    PULL_IMAGE,
    SERVICE,
    Arns,
    Statement,
    folder,
    keys,
    listing,
    log_groups,
    objects,
    policy_document,
    policy_size,
    repositories_of,
)
from launcher.account.needs import ECR_IMAGE, Need, needs_of, planned_calls, values_of
from launcher.config import Config
from launcher.jobs.alarms import names as alarm_names
from launcher.jobs.api import ApiCall, JobContext
from launcher.jobs.common import project_uri
from launcher.jobs.endpoint import endpoint_name

POLICY_LIMIT = 6144  # characters of a managed policy, white space not counted (IAM quotas)

VPC_DESCRIBE = (
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
)
REMOTE_DEBUG = (
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
)


@dataclass(frozen=True)
class Policies:
    """Everything two identities need: the role the jobs run as, and who sends the requests."""

    execution_role: tuple[Statement, ...]
    caller: tuple[Statement, ...]
    preflight: tuple[Statement, ...]
    """For the caller, optional and reading only: what `preflight` asks to find what is missing."""
    trust: dict[str, Any]
    """The role's trust policy: who may become it."""
    notes: tuple[str, ...]
    """What the policies cannot say, one sentence each."""

    def documents(self) -> dict[str, Any]:
        """Policy documents by the name of what they are attached to."""
        return {
            "execution_role": policy_document(self.execution_role),
            "caller": policy_document(self.caller),
            "preflight": policy_document(self.preflight),
            "trust": self.trust,
            "notes": list(self.notes),
        }


def policies(config: Config, context: JobContext, kinds: Iterable[Kind] = KINDS) -> Policies:
    """The policies with which exactly this configuration works.

    Args:
        config: the project's.
        context: account, region, bucket and role; its job name is not used.
        kinds: what the caller will do; `transform` counts only with an input.

    Raises:
        ConfigError: something a request needs is not configured.
    """
    kinds = tuple(kind for kind in kinds if kind != "transform" or config.transform.input)
    named = JobContext(f"{config.name}-*", context.account, context.region, context.bucket, context.role_arn)
    calls = planned_calls(config, named, kinds)
    arns = Arns(context.account, context.region)
    needs = tuple(dict.fromkeys(need for call in calls for need in needs_of(call)))
    if config.endpoint.asynchronous and "deploy" in kinds:
        requests = project_uri(config, named, "async", endpoint_name(config), "input")
        needs = (*needs, Need("read", f"{requests}/"))
    role = tuple(_role_statements(config, arns, calls, needs))
    caller = tuple(caller_statements(config, named, arns, kinds, needs))
    preflight = tuple(preflight_statements(config, named, arns, needs))
    notes = tuple(_notes(config, needs, {"execution role": role, "caller": caller, "preflight": preflight}))
    return Policies(role, caller, preflight, trust_policy(context.account), notes)


def _role_statements(config: Config, arns: Arns, calls: list[ApiCall], needs: tuple[Need, ...]) -> Iterator[Statement]:
    yield from objects(arns, "ReadInputs", OBJECT_READ, values_of(needs, "read"))
    yield from objects(arns, "WriteOutputs", OBJECT_WRITE, map(folder, values_of(needs, "write")))
    yield from objects(arns, "Checkpoints", CHECKPOINT_ACCESS, map(folder, values_of(needs, "checkpoint")))
    yield from listing(arns, values_of(needs, "read", "checkpoint"))
    repositories = repositories_of(arns, values_of(needs, "image"))
    if repositories:
        yield Statement("PullImages", PULL_IMAGE, repositories)
        yield Statement("LogInToRegistry", ("ecr:GetAuthorizationToken",), ("*",))
    groups = log_groups(config, arns, {call.operation for call in calls})
    if groups:
        actions = ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")
        yield Statement("WriteLogs", actions, groups)
        namespaces = {"StringLike": {"cloudwatch:namespace": ["/aws/sagemaker/*", "AWS/SageMaker"]}}
        yield Statement("PublishMetrics", ("cloudwatch:PutMetricData",), ("*",), namespaces)
    yield from keys(arns, values_of(needs, "data_key"), values_of(needs, "volume_key"))
    yield from _network(config, arns)
    yield from _role_extras(config, arns, needs, calls)


def _role_extras(config: Config, arns: Arns, needs: tuple[Need, ...], calls: list[ApiCall]) -> Iterator[Statement]:
    topics = values_of(needs, "topic")
    if topics:
        yield Statement("NotifyAboutAsyncAnswers", ("sns:Publish",), topics)
    operations = {call.operation for call in calls}
    if alarm_names(config) and "CreateEndpoint" in operations:
        alarms = tuple(arns.of("cloudwatch", f"alarm:{name}") for name in alarm_names(config))
        yield Statement("WatchRolloutAlarms", ("cloudwatch:DescribeAlarms",), alarms)
    if config.training.remote_debug and "CreateTrainingJob" in operations:
        yield Statement("RemoteDebug", REMOTE_DEBUG, ("*",))


def _network(config: Config, arns: Arns) -> Iterator[Statement]:
    network = config.network
    if not network.subnets:
        return
    interfaces = arns.of("ec2", "network-interface/*")
    subnets = tuple(arns.of("ec2", f"subnet/{name}") for name in network.subnets)
    groups = tuple(arns.of("ec2", f"security-group/{name}") for name in network.security_groups)
    yield Statement("AttachToVpc", ("ec2:CreateNetworkInterface",), (interfaces, *subnets, *groups))
    yield Statement(
        "DetachFromVpc", ("ec2:DeleteNetworkInterface", "ec2:DeleteNetworkInterfacePermission"), (interfaces,)
    )
    for_service = {"StringEquals": {"ec2:AuthorizedService": SERVICE}}
    yield Statement("LendInterfaces", ("ec2:CreateNetworkInterfacePermission",), (interfaces,), for_service)
    yield Statement("LookAtVpc", VPC_DESCRIBE, ("*",))


def trust_policy(account: str) -> dict[str, Any]:
    """Lets SageMaker, working for this account and no other, become the role."""
    statement = {
        "Sid": "SageMaker",
        "Effect": "Allow",
        "Principal": {"Service": SERVICE},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": account}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def _notes(config: Config, needs: tuple[Need, ...], parts: dict[str, tuple[Statement, ...]]) -> Iterator[str]:
    every = [item for statements in parts.values() for item in statements]
    wide = sorted({action for item in every if item.resources == ("*",) for action in item.actions})
    yield f'resource "*" stands only where IAM knows no resource: {", ".join(wide)}'
    for name, statements in parts.items():
        size = policy_size(policy_document(statements))
        if size > POLICY_LIMIT:
            yield f"the policy {name} has {size} characters and IAM takes {POLICY_LIMIT}: attach it as two policies"
    for image in values_of(needs, "image"):
        if not ECR_IMAGE.fullmatch(image):
            yield f"{image} does not lie in ECR: SageMaker pulls from ECR, so no statement can grant it"
    yield from _notes_on_resources(config, needs)


def _notes_on_resources(config: Config, needs: tuple[Need, ...]) -> Iterator[str]:
    if any(channel.data_type != "S3Prefix" for channel in config.training.channels.values()):
        yield "a manifest names objects elsewhere: add s3:GetObject on the prefix it gives to the role's ReadInputs"
    if values_of(needs, "file_system"):
        yield "EFS and FSx are mounted through the VPC: the security groups must let the file system's port through"
    used = values_of(needs, "data_key", "volume_key")
    if used:
        yield "KMS: a key's own policy must let IAM policies of its account decide, or name both identities itself"
    if any("alias/" in key for key in used):
        yield "a KMS alias is no resource: the statements match it by the condition kms:ResourceAliases"
