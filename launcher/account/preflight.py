"""Asks, before anything is sent, what would make a request fail minutes later; each finding says who lacks what.

Reading only. What the caller may not even ask is skipped and said. Permissions are judged by IAM's own simulator
against the statements of `launcher.account.iam`, so that the two cannot disagree.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from botocore.parsers import ResponseParserError

from launcher.account import cost
from launcher.account.iam_caller import Kind
from launcher.account.needs import needs_of, planned_calls, values_of
from launcher.account.preflight_account import check_buckets, check_keys, check_quotas
from launcher.account.preflight_identity import check_caller, check_role, check_role_permissions
from launcher.account.preflight_image import check_images
from launcher.account.preflight_network import check_network
from launcher.account.preflight_scene import Scene, refused
from launcher.account.secrets import secrets_in
from launcher.aws import Aws
from launcher.config import Config
from launcher.dry_run import dry_context
from launcher.errors import AwsRefused, ConfigError, LauncherError
from launcher.findings import Finding, failures
from launcher.jobs.api import ApiCall, JobContext
from launcher.project import default_bucket, new_job_name
from launcher.validate import enum_problems, problems

logger = logging.getLogger(__name__)

THREADS = 8
Check = Callable[[Scene], Iterable[Finding]]


class PreflightRefused(LauncherError):
    """A check failed before anything was sent."""

    exit_code = 3


def preflight(
    config: Config, aws: Aws, prices: cost.Prices, kinds: Iterable[Kind] = ("train", "transform", "deploy")
) -> list[Finding]:
    """Every check of what the configuration is about to do.

    Args:
        config: the project's.
        aws: the account and region it will work in.
        prices: for the caps in `limits`.
        kinds: what will be done; `transform` counts only with an input.
    """
    kinds = tuple(kind for kind in kinds if kind != "transform" or config.transform.input)
    try:
        requests = planned_calls(config, dry_context(config), kinds)
    except ConfigError as error:
        return [Finding("request", "fail", str(error))]
    found = [*_offline(requests), *_costs(config, prices, kinds)]
    try:
        caller = aws.call("sts", "GetCallerIdentity")
    except AwsRefused as error:
        return [*found, Finding("credentials", "fail", str(error), "aws sso login, or set AWS_PROFILE", "caller")]
    found.append(Finding("credentials", "ok", f"account {caller['Account']}, {config.region}", "", caller["Arn"]))
    role, role_arn = check_role(config, aws, caller)
    found += role
    if role_arn is None:
        return found
    context = JobContext(
        job_name=new_job_name(config),
        account=caller["Account"],
        region=config.region,
        bucket=config.bucket or default_bucket(config.region, caller["Account"]),
        role_arn=role_arn,
    )
    calls = planned_calls(config, context, kinds)
    needs = tuple(dict.fromkeys(need for call in calls for need in needs_of(call)))
    scene = Scene(config, aws, kinds, caller["Arn"], context, needs)
    return [*found, *_run_all(scene)]


def refuse(findings: Iterable[Finding]) -> None:
    """End with exit status 3 where a check failed.

    Raises:
        PreflightRefused: how many, and which.
    """
    found = list(findings)
    failed = failures(found)
    if failed:
        names = ", ".join(dict.fromkeys(item.check for item in failed))
        raise PreflightRefused(f"{len(failed)} of {len(found)} checks failed: {names}; nothing has been sent")


def refuse_over_quota(config: Config, aws: Aws, kind: Kind) -> None:
    """Refuse what the account's quotas do not allow, before hours of upload; who may not ask them is not stopped.

    Raises:
        PreflightRefused: which quota, and where to ask for more.
    """
    scene = Scene(config, aws, (kind,), "", dry_context(config), ())
    try:
        failed = failures(check_quotas(scene))
    except AwsRefused as error:
        logger.debug("quotas cannot be asked: %s", error)
        return
    if failed:
        raise PreflightRefused("; ".join(f"{item.detail}; {item.fix}" for item in failed) + "; nothing has been sent")


def _run_all(scene: Scene) -> list[Finding]:
    checks: list[tuple[str, str, Check]] = [
        ("caller's permissions", "iam:SimulatePrincipalPolicy", check_caller),
        ("role's permissions", "iam:SimulatePrincipalPolicy", check_role_permissions),
        ("S3", "s3:ListBucket", check_buckets),
        ("KMS", "kms:DescribeKey", check_keys),
        ("image", "ecr:BatchGetImage", check_images),
        ("network", "ec2:DescribeSubnets", check_network),
        ("quota", "servicequotas:ListServiceQuotas", check_quotas),
    ]
    for service in _services(scene):
        scene.aws.client(service)  # made here: a session may not make clients in several threads
    with ThreadPoolExecutor(THREADS) as pool:
        return [item for found in pool.map(partial(_run, scene), checks) for item in found]


def _services(scene: Scene) -> list[str]:
    keys = ["kms"] if values_of(scene.needs, "data_key", "volume_key") else []
    network = ["ec2"] if scene.config.network.subnets else []  # its model alone takes a second to read
    return ["iam", "s3", "ecr", "service-quotas", *keys, *network]


def _run(scene: Scene, named: tuple[str, str, Check]) -> list[Finding]:
    name, action, check = named
    try:
        return list(check(scene))
    except AwsRefused as error:
        cause = error.__cause__
        if not isinstance(cause, ResponseParserError):
            return [refused(name, action, scene.caller, error)]
        # a local server or a proxy in between that has no such service
        detail = f"{action} was not answered as AWS answers: {' '.join(str(cause).split())[:80]}"
        return [Finding(name, "skip", detail, "", f"caller {scene.caller}")]


def _offline(calls: list[ApiCall]) -> Iterator[Finding]:
    unknown = [problem for call in calls for problem in enum_problems(call)]
    wrong = [problem for call in calls for problem in problems(call) if problem not in unknown]
    for problem in wrong:
        yield Finding("request", "fail", problem, "change it in launcher.yaml; the service would refuse it")
    for problem in unknown:
        yield Finding("request", "warn", problem, "check the spelling; it is sent all the same, as lists age")
    if not wrong and not unknown:
        yield Finding("request", "ok", f"{', '.join(call.operation for call in calls)}: well formed")
    secrets = secrets_in(calls)
    for secret in secrets:
        yield Finding("secrets", "fail", str(secret), "pass the ARN of a secret in Secrets Manager instead")
    if not secrets:
        yield Finding("secrets", "ok", "none in environment and hyperparameters")


def _costs(config: Config, prices: cost.Prices, kinds: tuple[Kind, ...]) -> Iterator[Finding]:
    for kind in kinds:
        if kind == "push":
            continue
        found = cost.estimate(kind, config, prices)
        try:
            cost.refuse_over_limit(found, config.limits)
        except cost.OverBudget as error:
            yield Finding("cost", "fail", str(error))
        else:
            yield Finding("cost", "ok", f"{found.lines()[0].removeprefix('-> ')} (prices of {prices.date})")
