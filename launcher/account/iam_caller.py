"""What who sends the requests must be allowed: the statements of the caller's policy."""

from collections.abc import Iterator
from typing import Literal

from launcher.account.iam_statements import (
    LOG_GROUPS,
    OBJECT_READ,
    OBJECT_WRITE,
    PULL_IMAGE,
    SERVICE,
    Arns,
    Statement,
    key_statements,
    keys,
    log_groups,
    objects,
    repositories_of,
)
from launcher.account.needs import Need, values_of
from launcher.config import Config
from launcher.jobs.api import JobContext, split_s3_uri
from launcher.jobs.common import image_uri, is_local_model, project_uri
from launcher.jobs.endpoint import endpoint_name, models_of

Kind = Literal["train", "transform", "deploy", "push"]
KINDS: tuple[Kind, ...] = ("train", "transform", "deploy", "push")
SCALING_ROLE = "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
INVOKE = ("sagemaker:InvokeEndpoint", "sagemaker:InvokeEndpointWithResponseStream")
INVOKE_QUEUED = ("sagemaker:InvokeEndpointAsync",)
DESCRIBED = {"TrainingJob": "training-job", "TransformJob": "transform-job", "Endpoint": "endpoint"}
PUSH_IMAGE = (
    *PULL_IMAGE,
    "ecr:CompleteLayerUpload",
    "ecr:CreateRepository",
    "ecr:DescribeImages",
    "ecr:DescribeRepositories",
    "ecr:InitiateLayerUpload",
    "ecr:PutImage",
    "ecr:PutLifecyclePolicy",
    "ecr:UploadLayerPart",
)


def caller_statements(
    config: Config, context: JobContext, arns: Arns, kinds: tuple[Kind, ...], needs: tuple[Need, ...]
) -> Iterator[Statement]:
    """What whoever sends the requests needs, for the chosen kinds of them."""
    names = tuple(dict.fromkeys((config.name, f"{config.name}-*", endpoint_name(config))))
    jobs: list[Kind] = [kind for kind in kinds if kind != "push"]
    if jobs:
        yield from _manage(arns, jobs, names, config)
        yield Statement(
            "PassRole", ("iam:PassRole",), (context.role_arn,), {"StringEquals": {"iam:PassedToService": SERVICE}}
        )
        if not (config.role or "").startswith("arn:"):
            yield Statement("FindRole", ("iam:GetRole",), (context.role_arn,))
        groups = log_groups(config, arns, LOG_GROUPS)
        yield Statement("ReadLogs", ("logs:DescribeLogStreams", "logs:GetLogEvents"), groups)
        yield from _transfers(config, context, arns, needs)
        yield from keys(arns, (), values_of(needs, "volume_key"))
    if "deploy" in kinds:
        scales = config.endpoint.scaling or any(item.scaling for item in config.endpoint.components)
        yield from _scaling(arns) if scales else _scaling_left_over(arns)
    if "push" in kinds:
        yield from _pushing(config, context, arns)


def _manage(arns: Arns, jobs: list[Kind], names: tuple[str, ...], config: Config) -> Iterator[Statement]:
    asked = (*names, *_named_jobs(config))
    for noun, kind in DESCRIBED.items():  # `logs NAME` and `stop NAME` ask all three what NAME is
        yield Statement(f"Find{noun}s", (f"sagemaker:Describe{noun}",), arns.sagemaker(kind, asked))
    lists = ("sagemaker:ListEndpoints", "sagemaker:ListTrainingJobs", "sagemaker:ListTransformJobs")
    yield Statement("ListJobs", lists, ("*",))
    if "train" in jobs:
        yield Statement("Train", _actions("TrainingJob", "Create Stop"), arns.sagemaker("training-job", names))
    if "transform" in jobs:
        yield Statement("Transform", _actions("TransformJob", "Create Stop"), arns.sagemaker("transform-job", names))
    if "transform" in jobs or "deploy" in jobs:
        yield Statement("Models", _actions("Model", "Create Describe Delete"), arns.sagemaker("model", names))
    if "deploy" in jobs:
        yield from _endpoints(arns, names, config)


def _named_jobs(config: Config) -> tuple[str, ...]:
    """Training jobs, perhaps of other projects, whose models the configuration names."""
    models = (config.transform.model or "", *models_of(config.endpoint).values())
    return tuple(model for model in models if model and not model.startswith("s3://") and not is_local_model(model))


def _actions(noun: str, verbs: str) -> tuple[str, ...]:
    return (*(f"sagemaker:{verb}{noun}" for verb in verbs.split()), "sagemaker:AddTags", "sagemaker:ListTags")


def _endpoints(arns: Arns, names: tuple[str, ...], config: Config) -> Iterator[Statement]:
    endpoints = arns.sagemaker("endpoint", names)
    configs = arns.sagemaker("endpoint-config", (*names, f"{endpoint_name(config)}-*"))
    yield Statement("EndpointConfigs", _actions("EndpointConfig", "Create Describe Delete"), configs)
    # CreateEndpoint and UpdateEndpoint are checked against the endpoint and against its configuration
    yield Statement("Deploy", ("sagemaker:CreateEndpoint", "sagemaker:UpdateEndpoint"), (*endpoints, *configs))
    invoking = INVOKE_QUEUED if config.endpoint.asynchronous else INVOKE
    using = (*_actions("Endpoint", "Delete"), "sagemaker:UpdateEndpointWeightsAndCapacities", *invoking)
    yield Statement("UseEndpoints", using, endpoints)
    # `delete` looks for what scales the endpoint, `reap` for the last invocation
    looking = ("application-autoscaling:DescribeScalableTargets", "cloudwatch:GetMetricStatistics")
    yield Statement("LookAtEndpoints", looking, ("*",))
    # `delete` looks for them by the beginning of their names, and that is a question about all alarms
    yield Statement("LookAtAlarms", ("cloudwatch:DescribeAlarms",), (arns.of("cloudwatch", "alarm:*"),))
    # `rollback` of an update under way sets one off
    alarms = tuple(f"cloudwatch:{name}" for name in ("DeleteAlarms", "PutMetricAlarm", "SetAlarmState", "TagResource"))
    yield Statement("EndpointAlarms", alarms, (arns.of("cloudwatch", f"alarm:{endpoint_name(config)}-*"),))
    components = arns.sagemaker("inference-component", (f"{endpoint_name(config)}-*",))
    listing = ("sagemaker:ListInferenceComponents",)
    if config.endpoint.components:
        verbs = "Create Update Delete Describe"
        yield Statement("Components", (*_actions("InferenceComponent", verbs), *invoking), (*components, *endpoints))
        yield Statement("ListComponents", listing, ("*",))
    else:  # an earlier configuration may have had some: what the file no longer asks for, the next `deploy` ends
        yield Statement("EndComponents", ENDING_COMPONENTS, components)
        yield Statement("FindOldComponents", listing, ("*",))


def _transfers(config: Config, context: JobContext, arns: Arns, needs: tuple[Need, ...]) -> Iterator[Statement]:
    project = project_uri(config, context, "")
    own = (*OBJECT_READ, *OBJECT_WRITE, "s3:DeleteObject", "s3:ListMultipartUploadParts")
    yield from objects(arns, "ProjectFiles", own, [project])
    elsewhere = [uri for uri in values_of(needs, "read", "write", "checkpoint") if not uri.startswith(project)]
    yield from objects(arns, "FilesElsewhere", OBJECT_READ, elsewhere)
    # no condition on the prefix: HeadBucket, with which the bucket is looked for, has none
    buckets = dict.fromkeys([context.bucket, *(split_s3_uri(uri)[0] for uri in elsewhere)])
    # the latter finds what an upload that broke off has left
    listing = ("s3:ListBucket", "s3:ListBucketMultipartUploads")
    yield Statement("ListBuckets", listing, tuple(map(arns.bucket, buckets)))
    if config.bucket is None:
        yield Statement("CreateBucket", ("s3:CreateBucket",), (arns.bucket(context.bucket),))
    if values_of(needs, "data_key"):
        yield from key_statements(arns, "ReadEncryptedOutputs", ("kms:Decrypt",), values_of(needs, "data_key"), {})


ENDING_COMPONENTS = ("sagemaker:DeleteInferenceComponent", "sagemaker:DescribeInferenceComponent")
OF_SAGEMAKER = {"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}}


def _scaling_left_over(arns: Arns) -> Iterator[Statement]:
    """An earlier configuration may have scaled: what the file no longer asks for, the next `deploy` ends."""
    targets = (arns.of("application-autoscaling", "scalable-target/*"),)
    yield Statement("EndScaling", ("application-autoscaling:DeregisterScalableTarget",), targets, OF_SAGEMAKER)
    tracking = (arns.of("cloudwatch", "alarm:TargetTracking-*"),)
    yield Statement("EndScalingAlarms", ("cloudwatch:DeleteAlarms",), tracking)


def _scaling(arns: Arns) -> Iterator[Statement]:
    changing = [f"{verb}ScalableTarget" for verb in ("Register", "Deregister")]
    changing += [f"{verb}{noun}" for noun in ("ScalingPolicy", "ScheduledAction") for verb in ("Put", "Delete")]
    yield Statement(
        "ScaleEndpoints",
        tuple(f"application-autoscaling:{name}" for name in changing),
        (arns.of("application-autoscaling", "scalable-target/*"),),
        OF_SAGEMAKER,
    )
    looking = [f"application-autoscaling:Describe{noun}" for noun in ("ScalingPolicies", "ScheduledActions")]
    yield Statement("LookAtScaling", tuple(looking), ("*",))
    # target tracking makes alarms of its own in the caller's name
    tracking = (arns.of("cloudwatch", "alarm:TargetTracking-*"),)
    yield Statement("ScalingAlarms", ("cloudwatch:DeleteAlarms", "cloudwatch:PutMetricAlarm"), tracking)
    linked = f"aws-service-role/sagemaker.application-autoscaling.amazonaws.com/{SCALING_ROLE}"
    yield Statement(
        "ScalingRole",
        ("iam:CreateServiceLinkedRole",),
        (f"arn:{arns.partition}:iam::{arns.account}:role/{linked}",),
        {"StringEquals": {"iam:AWSServiceName": "sagemaker.application-autoscaling.amazonaws.com"}},
    )


def _pushing(config: Config, context: JobContext, arns: Arns) -> Iterator[Statement]:
    images = (image_uri(config, "training", context), image_uri(config, "serving", context))
    repositories = repositories_of(arns, images)
    if repositories:
        yield Statement("PushImages", PUSH_IMAGE, repositories)
        yield Statement("LogInToRegistry", ("ecr:GetAuthorizationToken",), ("*",))
    project = config.images.codebuild_project
    if project:  # `build --remote`; the artifact images.json lies in a bucket that only the CodeBuild project knows
        building = ("codebuild:StartBuild", "codebuild:BatchGetBuilds")
        yield Statement("BuildInCodeBuild", building, (arns.of("codebuild", f"project/{project}"),))
        group = arns.of("logs", f"log-group:/aws/codebuild/{project}:*")
        yield Statement("ReadBuildLogs", ("logs:GetLogEvents",), (group,))


def preflight_statements(
    config: Config, context: JobContext, arns: Arns, needs: tuple[Need, ...]
) -> Iterator[Statement]:
    """What `preflight` asks beyond what the verbs need; nothing here changes anything."""
    simulated = (context.role_arn, f"arn:{arns.partition}:iam::{arns.account}:user/${{aws:username}}")
    yield Statement("PreflightRole", ("iam:GetRole", "iam:SimulatePrincipalPolicy"), simulated)
    yield Statement("PreflightQuotas", ("servicequotas:ListServiceQuotas",), ("*",))
    repositories = repositories_of(arns, values_of(needs, "image"))
    if repositories:
        yield Statement("PreflightImages", ("ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"), repositories)
    used = values_of(needs, "data_key", "volume_key")
    if used:
        yield from key_statements(arns, "PreflightKeys", ("kms:DescribeKey",), used, {})
    if config.network.subnets:
        looking = ("RouteTables", "SecurityGroups", "Subnets", "VpcEndpoints")
        yield Statement("PreflightVpc", tuple(f"ec2:Describe{noun}" for noun in looking), ("*",))
