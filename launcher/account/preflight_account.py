"""What the account holds: buckets and prefixes, keys, quotas."""

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.account.fleets import fleets
from launcher.account.needs import values_of
from launcher.account.preflight_scene import DENIED, Scene, error_code
from launcher.errors import AwsRefused
from launcher.findings import Finding
from launcher.jobs.api import split_s3_uri

QUOTA_PAGE = "https://{region}.console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas/{code}"


def check_buckets(scene: Scene) -> Iterator[Finding]:
    """Whether every bucket exists in the job's region, and every given input holds something."""
    uris = values_of(scene.needs, "read", "write", "checkpoint")
    there = set()
    for bucket in dict.fromkeys([scene.context.bucket, *(split_s3_uri(uri)[0] for uri in uris)]):
        finding, exists = _bucket(scene, bucket)
        if exists:
            there.add(bucket)
        yield finding
    for uri in values_of(scene.needs, "read"):
        # what the launcher uploads itself, and the model of a job not run yet, cannot be there
        ours = uri in scene.uploaded or scene.context.job_name in uri
        if not ours and split_s3_uri(uri)[0] in there:
            yield _prefix(scene, uri)


def _bucket(scene: Scene, bucket: str) -> tuple[Finding, bool]:
    """A finding, and whether what lies in the bucket can be looked at."""
    try:
        reply = scene.aws.call("s3", "HeadBucket", Bucket=bucket)
    except AwsRefused as error:
        return _bucket_refused(scene, bucket, error), False
    headers = reply["ResponseMetadata"]["HTTPHeaders"]
    region = reply.get("BucketRegion") or headers.get("x-amz-bucket-region") or "us-east-1"
    if region != scene.context.region:
        fix = f"take a bucket in {scene.context.region}, or set region: {region}"
        detail = f"{bucket} lies in {region} and the job runs in {scene.context.region}"
        return Finding("bucket", "fail", detail, fix), False
    return Finding("bucket", "ok", f"{bucket} exists in {region}"), True


def _bucket_refused(scene: Scene, bucket: str, error: AwsRefused) -> Finding:
    code = error_code(error)
    if code in {"404", "NoSuchBucket"}:
        if bucket == scene.context.bucket:
            return Finding("bucket", "ok", f"{bucket} does not exist; the first job creates it")
        return Finding("bucket", "fail", f"{bucket} does not exist", f"aws s3 mb s3://{bucket}, or correct the name")
    if code in DENIED:
        detail = f"lacks s3:ListBucket on {bucket}, or the bucket belongs to somebody else"
        fix = "add the statement ListBuckets of the policy `caller`, or correct the bucket's own policy"
        return Finding("bucket", "fail", detail, fix, f"caller {scene.caller}")
    return Finding("bucket", "fail", str(error), "", f"caller {scene.caller}")


def _prefix(scene: Scene, uri: str) -> Finding:
    bucket, key = split_s3_uri(uri)
    try:
        reply = scene.aws.call("s3", "ListObjectsV2", Bucket=bucket, Prefix=key, MaxKeys=1)
    except AwsRefused as error:
        if error_code(error) in DENIED:
            detail, fix = (
                f"cannot be looked at: lacks s3:ListBucket on {bucket}",
                "add ListBuckets of the policy `caller`",
            )
            return Finding("input", "skip", detail, fix, f"caller {scene.caller}")
        raise
    if not reply.get("KeyCount"):
        return Finding("input", "fail", f"nothing lies under {uri}", "correct the URI, or upload what belongs there")
    return Finding("input", "ok", f"{uri} is not empty")


def check_keys(scene: Scene) -> Iterator[Finding]:
    """Whether every KMS key exists, is enabled, symmetric and in the job's region."""
    for key in values_of(scene.needs, "data_key", "volume_key"):
        try:
            found = scene.aws.call("kms", "DescribeKey", KeyId=key)["KeyMetadata"]
        except AwsRefused as error:
            if error_code(error) != "NotFoundException":
                raise
            yield Finding(
                "key", "fail", f"{key} does not exist in {scene.context.region}", "correct the id, ARN or alias"
            )
            continue
        yield _key(scene, key, found)


def _key(scene: Scene, key: str, found: Mapping[str, Any]) -> Finding:
    region = found["Arn"].split(":")[3]
    if region != scene.context.region:
        detail = f"{key} lies in {region} and the job runs in {scene.context.region}"
        return Finding("key", "fail", detail, f"take a key in {scene.context.region}")
    if found["KeyState"] == "PendingDeletion":
        return Finding(
            "key", "fail", f"{key} is about to be deleted", f"aws kms cancel-key-deletion --key-id {found['KeyId']}"
        )
    if found["KeyState"] != "Enabled":
        detail = f"{key} is {found['KeyState'].lower()}"
        return Finding("key", "fail", detail, f"aws kms enable-key --key-id {found['KeyId']}")
    if found.get("KeySpec", "SYMMETRIC_DEFAULT") != "SYMMETRIC_DEFAULT":
        detail = f"{key} is a {found['KeySpec']} key, and S3 and volumes take symmetric ones only"
        return Finding("key", "fail", detail, "create one with aws kms create-key")
    return Finding("key", "ok", f"{key} is enabled")


def check_quotas(scene: Scene) -> Iterator[Finding]:
    """Whether the account's limits allow the instances; how many of them are in use nobody says beforehand."""
    wanted = dict(_wanted(scene))
    if not wanted:
        return
    limits = _limits(scene)
    choices = set(scene.config.training.instance_type)
    enough = any(
        limits.get(name, {"Value": 0})["Value"] >= count
        for name, count in wanted.items()
        if "training job usage" in name and name.split()[0] in choices
    )
    for name, count in wanted.items():
        if name not in limits:
            yield Finding("quota", "skip", f"Service Quotas knows no '{name}'", "check the instance type's name")
            continue
        value = limits[name]["Value"]
        if value >= count:
            yield Finding("quota", "ok", f"{name}: {value:g} (needs {count})")
            continue
        another = "training job usage" in name and enough
        fix = "ask for more: " + QUOTA_PAGE.format(region=scene.context.region, code=limits[name]["QuotaCode"])
        detail = f"{name}: the limit is {value:g} and {count} are needed"
        yield Finding("quota", "warn" if another else "fail", detail, fix)


def _wanted(scene: Scene) -> Iterator[tuple[str, int]]:
    """Quota name -> instances, as Service Quotas spells it."""
    training, transform = scene.config.training, scene.config.transform
    if "train" in scene.kinds:
        use = "spot training job usage" if training.spot else "training job usage"
        groups = [(group.instance_type, group.instance_count) for group in training.instance_groups]
        types = groups or [(name, training.instance_count) for name in training.instance_type]
        for name, count in types:
            yield f"{name} for {use}", count
            if training.keep_alive:
                yield f"{name} for training warm pool usage", count
    if "transform" in scene.kinds:
        yield f"{transform.instance_type} for transform job usage", transform.instance_count
    if "deploy" in scene.kinds:
        yield from _endpoint_instances(scene).items()


def _endpoint_instances(scene: Scene) -> dict[str, int]:
    counts: dict[str, int] = {}
    for fleet in fleets(scene.config.endpoint):
        name = f"{fleet.instance_type} for endpoint usage"
        counts[name] = counts.get(name, 0) + fleet.most
    return counts


def _limits(scene: Scene) -> dict[str, Mapping[str, Any]]:
    request: dict[str, Any] = {"ServiceCode": "sagemaker", "MaxResults": 100}
    found: dict[str, Mapping[str, Any]] = {}
    while True:
        reply = scene.aws.call("service-quotas", "ListServiceQuotas", **request)
        found |= {item["QuotaName"]: item for item in reply["Quotas"]}
        if not reply.get("NextToken"):
            return found
        request["NextToken"] = reply["NextToken"]
