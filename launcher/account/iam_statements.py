"""IAM statements as values, and how buckets, keys and repositories become resources of one."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.account.needs import ECR_IMAGE
from launcher.config import Config
from launcher.jobs.api import split_s3_uri
from launcher.jobs.endpoint import endpoint_name

SERVICE = "sagemaker.amazonaws.com"
LOG_GROUPS = {
    "CreateTrainingJob": "/aws/sagemaker/TrainingJobs",
    "CreateTransformJob": "/aws/sagemaker/TransformJobs",
    "CreateEndpoint": "/aws/sagemaker/Endpoints/{name}",
}
OBJECT_READ, OBJECT_WRITE = ("s3:GetObject",), ("s3:PutObject", "s3:AbortMultipartUpload")
# SageMaker deletes from S3 what a job deletes from its checkpoint directory (contract 1.10).
CHECKPOINT_ACCESS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
PULL_IMAGE = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")

# Actions for which IAM knows no resource: a policy can only say "*".
WITHOUT_RESOURCES = frozenset(
    {
        "application-autoscaling:DescribeScalableTargets",
        "application-autoscaling:DescribeScalingPolicies",
        "application-autoscaling:DescribeScheduledActions",
        "cloudwatch:GetMetricStatistics",
        "cloudwatch:PutMetricData",
        "ec2:DescribeDhcpOptions",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeRouteTables",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSubnets",
        "ec2:DescribeVpcEndpoints",
        "ec2:DescribeVpcs",
        "ecr:GetAuthorizationToken",
        "sagemaker:ListEndpoints",
        "sagemaker:ListInferenceComponents",
        "sagemaker:ListTrainingJobs",
        "sagemaker:ListTransformJobs",
        "servicequotas:ListServiceQuotas",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
    }
)


@dataclass(frozen=True)
class Statement:
    """One Allow statement of an IAM policy."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    condition: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if any("*" in action for action in self.actions):
            raise ValueError(f"{self.sid}: an action with '*' grants more than it names; list the actions")
        wide = sorted(set(self.actions) - WITHOUT_RESOURCES)
        if "*" in self.resources and wide:
            raise ValueError(
                f"{self.sid}: resource '*' for {', '.join(wide)}, which can be limited; name the resources"
            )

    def document(self) -> dict[str, Any]:
        """As IAM's JSON."""
        body: dict[str, Any] = {
            "Sid": self.sid,
            "Effect": "Allow",
            "Action": sorted(self.actions),
            "Resource": sorted(self.resources) if len(self.resources) > 1 else self.resources[0],
        }
        return {**body, "Condition": dict(self.condition)} if self.condition else body


def policy_document(statements: Iterable[Statement]) -> dict[str, Any]:
    """A policy as IAM takes it."""
    return {"Version": "2012-10-17", "Statement": [statement.document() for statement in statements]}


def policy_size(document: Mapping[str, Any]) -> int:
    """Characters as IAM counts them: without white space."""
    return len(re.sub(r"\s", "", json.dumps(document)))


@dataclass(frozen=True)
class Arns:
    """Names of resources in one account and region."""

    account: str
    region: str

    @property
    def partition(self) -> str:
        """`aws`, or one of the separate clouds."""
        if self.region.startswith("cn-"):
            return "aws-cn"
        return "aws-us-gov" if self.region.startswith("us-gov") else "aws"

    def of(self, service: str, resource: str) -> str:
        """`arn:aws:<service>:<region>:<account>:<resource>`."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def bucket(self, name: str) -> str:
        """A bucket's ARN; S3's carry neither region nor account."""
        return f"arn:{self.partition}:s3:::{name}"

    def sagemaker(self, kind: str, names: Iterable[str]) -> tuple[str, ...]:
        """ARNs of named resources; SageMaker writes the names in them in lower case."""
        return tuple(dict.fromkeys(self.of("sagemaker", f"{kind}/{name.lower()}") for name in names))

    def log_group(self, name: str) -> str:
        """A log group with its streams: what CloudWatch Logs wants to see in a policy."""
        return self.of("logs", f"log-group:{name}:*")

    def key(self, key: str) -> str:
        """A KMS key given by ARN or id."""
        return key if key.startswith("arn:") else self.of("kms", f"key/{key}")

    def repository(self, image: str) -> str | None:
        """The ECR repository of an image reference; None where it lies elsewhere."""
        match = ECR_IMAGE.fullmatch(image)
        if not match:
            return None
        return f"arn:{self.partition}:ecr:{match['region']}:{match['account']}:repository/{match['repository']}"


def objects(arns: Arns, sid: str, actions: tuple[str, ...], uris: Iterable[str]) -> Iterator[Statement]:
    """Access to the objects that S3 URIs mean: a prefix, as SageMaker takes it, or one archive."""
    resources = tuple(dict.fromkeys(f"{arns.bucket(bucket)}/{key}" for bucket, key in map(_key_pattern, uris)))
    if resources:
        yield Statement(sid, actions, _without_covered(resources))


def folder(uri: str) -> str:
    """An S3 URI below which SageMaker writes: it puts a slash between, whether there is one or not."""
    return f"{uri.rstrip('/')}/"


def _key_pattern(uri: str) -> tuple[str, str]:
    """Bucket, and the pattern of the keys that an S3 prefix (not a folder) or an archive means."""
    bucket, key = split_s3_uri(uri)
    if key.endswith((".tar.gz", "*")):
        return bucket, key
    return bucket, f"{key}*"


def _without_covered(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns that no other one covers."""

    def covers(wide: str, narrow: str) -> bool:
        return wide != narrow and wide.endswith("*") and narrow.startswith(wide[:-1])

    return tuple(item for item in patterns if not any(covers(other, item) for other in patterns))


def repositories_of(arns: Arns, images: Iterable[str]) -> tuple[str, ...]:
    """ECR repositories of image references."""
    return tuple(dict.fromkeys(filter(None, map(arns.repository, images))))


def key_statements(
    arns: Arns, sid: str, actions: tuple[str, ...], keys: tuple[str, ...], condition: dict[str, Any]
) -> Iterator[Statement]:
    """Statements on keys; an alias cannot be a resource, so it is a condition on any key of its account and region."""
    plain = tuple(dict.fromkeys(arns.key(key) for key in keys if "alias/" not in key))
    aliases = sorted("alias/" + key.rpartition("alias/")[2] for key in keys if "alias/" in key)
    if plain:
        yield Statement(sid, actions, plain, condition or None)
    if aliases:
        named = {**condition, "ForAnyValue:StringEquals": {"kms:ResourceAliases": aliases}}
        yield Statement(f"{sid}ByAlias", actions, (arns.of("kms", "key/*"),), named)


def listing(arns: Arns, uris: Iterable[str]) -> Iterator[Statement]:
    """ListBucket, limited to the prefixes that are read."""
    by_bucket: dict[str, list[str]] = {}
    for bucket, key in map(_key_pattern, uris):
        by_bucket.setdefault(bucket, []).append(key)
    for index, (bucket, keys) in enumerate(by_bucket.items(), 1):
        prefixes = sorted(_without_covered(tuple(dict.fromkeys(keys))))
        limited = None if "*" in prefixes else {"StringLike": {"s3:prefix": prefixes}}
        yield Statement(f"ListInputs{index}", ("s3:ListBucket",), (arns.bucket(bucket),), limited)


def log_groups(config: Config, arns: Arns, operations: Iterable[str]) -> tuple[str, ...]:
    """Log groups of what the operations create."""
    name = endpoint_name(config)
    return tuple(arns.log_group(group.format(name=name)) for key, group in LOG_GROUPS.items() if key in operations)


def keys(arns: Arns, data: tuple[str, ...], volumes: tuple[str, ...]) -> Iterator[Statement]:
    """Use of the keys that encrypt objects, and grants on those that encrypt volumes."""
    if data:
        yield from key_statements(arns, "UseDataKeys", ("kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"), data, {})
    if volumes:
        for_services = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        yield from key_statements(arns, "UseVolumeKeys", ("kms:CreateGrant",), volumes, for_services)
