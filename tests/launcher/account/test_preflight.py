"""Every finding of `preflight`, each on an account of moto's that is broken in exactly that way."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import boto3
import botocore.loaders
import botocore.session
import pytest
from botocore.parsers import ResponseParserError

from launcher.account.cost import Prices
from launcher.account.preflight import PreflightRefused, preflight, refuse
from launcher.account.preflight_identity import context_entries, sample
from launcher.aws import Aws
from launcher.config import Config
from launcher.findings import Finding, failures

REGION, ACCOUNT = "us-east-1", "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/jobs"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
IMAGE = f"{REGISTRY}/slipway-train:latest"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DIGEST = "sha256:" + "ab" * 32
PRICES = Prices("a test", "2026-01", {REGION: {"instances": {"ml.m5.xlarge": 0.25, "ml.g5.xlarge": 1.5}}})
TYPES = ("ml.m5.xlarge", "ml.g5.xlarge", "ml.m7g.xlarge")
USES = ("training job", "spot training job", "training warm pool", "transform job", "endpoint")


class Account:
    """A healthy account; tests break one thing in it."""

    def __init__(self, aws, blobs: str) -> None:
        self.aws, self.blobs = aws, blobs
        self.denied: dict[tuple[str, str], dict] = {}
        self.quotas = {f"{kind} for {use} usage": 4.0 for kind in TYPES for use in USES}
        self.simulated: list[dict[str, str]] = []
        self.refused: dict[tuple[str, str], str | dict] = {}
        events = aws.session.events
        events.register("before-call.*.*", self._refuse)
        events.register("before-call.iam.SimulatePrincipalPolicy", self._simulate)
        events.register("before-call.service-quotas.ListServiceQuotas", self._list_quotas)
        events.register("before-call.ecr.GetDownloadUrlForLayer", self._blob_url)
        self.trust({"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"})
        aws.call("s3", "CreateBucket", Bucket="project")
        for name in ("slipway-train", "slipway-serve"):
            aws.call("ecr", "CreateRepository", repositoryName=name)
            self.push(name)

    def trust(self, statement: dict) -> None:
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        if getattr(self, "_made", False):
            self.aws.call("iam", "UpdateAssumeRolePolicy", RoleName="jobs", PolicyDocument=document)
        else:
            self.aws.call("iam", "CreateRole", RoleName="jobs", AssumeRolePolicyDocument=document)
        self._made = True

    def push(self, name: str, media_type: str = DOCKER, manifest: dict | None = None, tag: str = "latest") -> None:
        size = {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": 2 * 10**9, "digest": DIGEST}
        config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 10, "digest": DIGEST}
        body = manifest or {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [size]}
        self.aws.call(
            "ecr",
            "PutImage",
            repositoryName=name,
            imageManifest=json.dumps(body),
            imageManifestMediaType=media_type,
            imageTag=tag,
        )

    def check(self, *, kinds=("train",), **values) -> list[Finding]:
        config = {"name": "digits", "role": ROLE, "bucket": "project", **values}
        config.setdefault("training", {"instance_type": "ml.m5.xlarge"})
        return preflight(Config.model_validate(config), self.aws, PRICES, kinds)

    def _refuse(self, model, **_):
        code = self.refused.get((model.service_model.service_name, model.name))
        if code is None:
            return None
        reply = code if isinstance(code, dict) else {"Error": {"Code": code, "Message": "no"}}
        return SimpleNamespace(status_code=403, headers={}), reply

    def _simulate(self, params, **_):
        body = params["body"]
        self.simulated.append(body)
        actions = [value for key, value in sorted(body.items()) if key.startswith("ActionNames.member.")]
        resources = [value for key, value in sorted(body.items()) if key.startswith("ResourceArns.member.")]
        results = [
            {
                "EvalActionName": action,
                "EvalDecision": "allowed",
                "EvalResourceName": resource,
                **self.denied.get((body["PolicySourceArn"].rpartition("/")[2], action), {}),
            }
            for action in actions
            for resource in resources
        ]
        return SimpleNamespace(status_code=200, headers={}), {"EvaluationResults": results, "IsTruncated": False}

    def _list_quotas(self, params, **_):
        """Two pages, as the real list has many."""
        items = [
            {"QuotaName": name, "QuotaCode": f"L-{index:04}", "Value": value}
            for index, (name, value) in enumerate(self.quotas.items())
        ]
        second = "NextToken" in json.loads(params["body"])
        page = {"Quotas": items[8:]} if second else {"Quotas": items[:8], "NextToken": "more"}
        return SimpleNamespace(status_code=200, headers={}), page

    def _blob_url(self, **_):
        return SimpleNamespace(status_code=200, headers={}), {"downloadUrl": self.blobs, "layerDigest": DIGEST}


@pytest.fixture
def blob() -> dict:
    """The image's configuration, as the registry would serve it."""
    return {"architecture": "amd64", "os": "linux"}


@pytest.fixture
def blobs(blob) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(blob).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/blob"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def models():
    """botocore's service models, read once for all tests of this file."""
    return botocore.loaders.create_loader()


@pytest.fixture
def aws(aws, models) -> Aws:
    session = botocore.session.Session()
    session.register_component("data_loader", models)
    return Aws(REGION, boto3.Session(botocore_session=session, region_name=REGION))


@pytest.fixture
def account(aws, blobs) -> Account:
    return Account(aws, blobs)


@pytest.fixture
def refusing(account):
    """Makes AWS refuse an operation with a code."""

    def refuse_operation(service: str, operation: str, code: str) -> None:
        account.refused[service, operation] = code

    return refuse_operation


def one(found: list[Finding], check: str) -> Finding:
    (finding,) = [item for item in found if item.check == check]
    return finding


def only_failure(found: list[Finding]) -> Finding:
    (finding,) = failures(found)
    return finding


def test_a_healthy_account_passes_every_check(account):
    found = account.check(
        kinds=("train", "transform", "deploy"),
        transform={"input": "./rows", "instance_type": "ml.m5.xlarge"},
        endpoint={"instance_type": "ml.m5.xlarge"},
    )
    assert [item for item in found if item.status != "ok"] == []
    checks = {item.check for item in found}
    assert {"request", "secrets", "cost", "credentials", "role", "trust", "quota", "bucket", "image"} <= checks
    refuse(found)


def test_a_failure_ends_with_status_3_and_names_the_checks():
    found = [Finding("role", "fail", "x"), Finding("trust", "ok", "y"), Finding("quota", "fail", "z")]
    with pytest.raises(PreflightRefused, match="2 of 3 checks failed: role, quota; nothing has been sent") as error:
        refuse(found)
    assert error.value.exit_code == 3


# --- the request itself -----------------------------------------------------------------------------------------------


def test_a_request_the_service_would_refuse_fails_before_anything_is_asked(account):
    found = account.check(network={"subnets": ["x" * 40], "security_groups": ["sg-1"]})
    assert "above the maximum of 32" in next(item for item in found if item.check == "request").detail


def test_hyperparameters_sagemaker_does_not_take_fail(account):
    found = account.check(training={"hyperparameters": {f"p{index}": index for index in range(101)}})
    assert "101 entries" in only_failure(found).detail


def test_an_unknown_instance_type_is_a_warning_as_lists_age(account):
    found = account.check(training={"instance_type": "ml.z99.xlarge"})
    assert one(found, "request").status == "warn"


def test_a_secret_in_the_environment_fails(account):
    found = account.check(training={"instance_type": "ml.m5.xlarge", "environment": {"API_TOKEN": "kX9pQ2mZr7wT"}})
    finding = only_failure(found)
    assert finding.check == "secrets"
    assert "kX9pQ2mZr7wT" not in finding.detail


def test_a_job_over_its_cap_fails(account):
    finding = only_failure(account.check(limits={"max_job_cost": 1}))
    assert (finding.check, "may cost $6.00" in finding.detail) == ("cost", True)


# --- identities -------------------------------------------------------------------------------------------------------


def test_without_credentials_nothing_else_is_asked(account, refusing):
    refusing("sts", "GetCallerIdentity", "ExpiredToken")
    found = account.check()
    finding = only_failure(found)
    assert (finding.check, finding.identity) == ("credentials", "caller")
    assert "ExpiredToken" in finding.detail
    assert found[-1] is finding


def test_a_missing_role_setting_fails(account):
    assert only_failure(account.check(role=None)).detail == "no execution role is configured"


def test_a_role_that_does_not_exist_fails(account):
    finding = only_failure(account.check(role="nobody"))
    assert (finding.detail, finding.identity) == ("does not exist", "execution role nobody")
    assert "`python -m launcher iam policy` prints" in finding.fix


def test_a_role_of_another_account_fails(account):
    finding = failures(account.check(role="arn:aws:iam::999999999999:role/jobs"))[0]
    assert finding.detail == f"lies in account 999999999999, and the caller in {ACCOUNT}"


def test_a_caller_who_may_not_look_at_the_role_is_told_so_and_the_rest_is_checked(account, refusing):
    refusing("iam", "GetRole", "AccessDenied")
    found = account.check()
    finding = one(found, "role")
    assert (finding.status, finding.detail) == ("skip", "cannot be checked: lacks iam:GetRole")
    assert finding.identity == f"caller arn:aws:sts::{ACCOUNT}:user/moto"
    assert one(found, "bucket").status == "ok"


def test_a_role_known_by_name_only_is_guessed_where_nobody_may_look_at_it(account, refusing):
    refusing("iam", "GetRole", "AccessDenied")
    found = account.check(role="jobs")
    assert one(found, "role").status == "skip"
    assert one(found, "role's permissions").identity == f"execution role {ROLE}"


@pytest.mark.parametrize(
    "statement",
    [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"},
        {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"},
        {"Effect": "Deny", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"},
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:TagSession"},
        {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"},
    ],
)
def test_a_role_that_does_not_trust_sagemaker_fails(account, statement):
    account.trust(statement)
    finding = only_failure(account.check())
    assert (finding.check, finding.detail) == ("trust", "does not trust sagemaker.amazonaws.com")
    assert finding.identity == f"execution role {ROLE}"
    assert "update-assume-role-policy --role-name jobs" in finding.fix


def test_a_role_that_trusts_sagemaker_of_another_account_only_fails(account):
    account.trust(
        {
            "Effect": "Allow",
            "Principal": {"Service": ["sagemaker.amazonaws.com"]},
            "Action": ["sts:AssumeRole"],
            "Condition": {"StringEquals": {"aws:SourceAccount": "999999999999"}},
        }
    )
    assert "only for account 999999999999" in only_failure(account.check()).detail


def test_our_own_trust_policy_is_accepted(account):
    from launcher.account.iam import trust_policy

    account.trust(trust_policy(ACCOUNT)["Statement"][0])
    assert one(account.check(), "trust").status == "ok"


def test_a_caller_who_may_not_pass_the_role_is_named(account):
    account.denied["moto", "iam:PassRole"] = {"EvalDecision": "implicitDeny"}
    finding = only_failure(account.check())
    assert (finding.check, finding.detail) == ("caller's permissions", f"lacks iam:PassRole on {ROLE}")
    assert finding.identity == f"caller arn:aws:sts::{ACCOUNT}:user/moto"
    assert finding.fix.startswith("add the statement PassRole of the policy `caller`")


def test_what_is_denied_together_is_told_together(account):
    for verb in ("Create", "Stop"):
        account.denied["moto", f"sagemaker:{verb}TrainingJob"] = {"EvalDecision": "implicitDeny"}
    finding = only_failure(account.check())
    job = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/digits"
    assert finding.detail == f"lacks sagemaker:CreateTrainingJob, sagemaker:StopTrainingJob on {job} and 1 more"


def test_what_is_needed_once_is_only_a_warning(account):
    account.denied["moto", "s3:CreateBucket"] = {"EvalDecision": "implicitDeny"}
    finding = one(account.check(bucket=None), "caller's permissions")
    assert finding.status == "warn"
    assert finding.detail.endswith("; needed only while the bucket does not exist")


def test_what_only_ends_an_earlier_configuration_is_only_a_warning(account):
    account.denied["moto", "application-autoscaling:DeregisterScalableTarget"] = {"EvalDecision": "implicitDeny"}
    finding = one(account.check(kinds=("deploy",)), "caller's permissions")
    assert finding.status == "warn"
    assert finding.detail.endswith("; needed only to end the scaling of an earlier configuration")


def test_passing_the_role_is_simulated_for_sagemaker(account):
    account.check()
    body = next(item for item in account.simulated if item["ActionNames.member.1"] == "iam:PassRole")
    assert body["ContextEntries.member.1.ContextKeyName"] == "iam:PassedToService"
    assert body["ContextEntries.member.1.ContextKeyValues.member.1"] == "sagemaker.amazonaws.com"


def test_a_role_that_may_not_read_the_input_is_named(account):
    account.denied["jobs", "s3:GetObject"] = {"EvalDecision": "implicitDeny"}
    account.aws.call("s3", "PutObject", Bucket="project", Key="cats/1.png", Body=b"x")
    training = {"instance_type": "ml.m5.xlarge", "channels": {"train": "s3://project/cats/"}}
    finding = only_failure(account.check(training=training))
    assert finding.detail == "lacks s3:GetObject on arn:aws:s3:::project/cats/preflight"
    assert (finding.check, finding.identity) == ("role's permissions", f"execution role {ROLE}")
    assert finding.fix.startswith("add the statement ReadInputs of the policy `execution_role`")


@pytest.mark.parametrize(
    ("decision", "reason"),
    [
        ({"EvalDecision": "explicitDeny"}, "a statement denies it"),
        (
            {"EvalDecision": "implicitDeny", "OrganizationsDecisionDetail": {"AllowedByOrganizations": False}},
            "the organization's policies forbid it",
        ),
        (
            {
                "EvalDecision": "implicitDeny",
                "PermissionsBoundaryDecisionDetail": {"AllowedByPermissionsBoundary": False},
            },
            "its permissions boundary forbids it",
        ),
    ],
)
def test_a_denial_that_no_allow_overrules_says_so(account, decision, reason):
    account.denied["jobs", "logs:PutLogEvents"] = decision
    finding = only_failure(account.check())
    assert finding.detail.endswith(f"({reason})")
    assert finding.fix == "ask who owns that policy; an Allow cannot overrule it"


def test_results_per_resource_are_read_where_the_simulator_gives_them(account):
    resource = {"EvalResourceName": "arn:aws:s3:::project/one", "EvalResourceDecision": "implicitDeny"}
    account.denied["jobs", "s3:PutObject"] = {"ResourceSpecificResults": [resource]}
    assert "lacks s3:PutObject on arn:aws:s3:::project/one" in only_failure(account.check()).detail


def test_a_caller_without_the_simulator_is_told_and_the_rest_is_checked(account, refusing):
    refusing("iam", "SimulatePrincipalPolicy", "AccessDenied")
    found = account.check()
    assert failures(found) == []
    finding = one(found, "caller's permissions")
    assert (finding.status, finding.detail) == ("skip", "cannot be checked: lacks iam:SimulatePrincipalPolicy")
    assert "policy `preflight`" in finding.fix


def test_an_assumed_role_is_simulated_as_the_role_with_its_path(account, canned):
    document = json.dumps({"Version": "2012-10-17", "Statement": []})
    account.aws.call("iam", "CreateRole", RoleName="dev", Path="/sso/", AssumeRolePolicyDocument=document)
    caller = f"arn:aws:sts::{ACCOUNT}:assumed-role/dev/ada"
    canned("GetCallerIdentity", {"Account": ACCOUNT, "Arn": caller, "UserId": "x"}, service="sts")
    account.check()
    assert f"arn:aws:iam::{ACCOUNT}:role/sso/dev" in {body["PolicySourceArn"] for body in account.simulated}


def test_an_assumed_role_nobody_may_look_at_is_simulated_by_its_name(account, canned):
    caller = f"arn:aws:sts::{ACCOUNT}:assumed-role/unknown/ada"
    canned("GetCallerIdentity", {"Account": ACCOUNT, "Arn": caller, "UserId": "x"}, service="sts")
    account.check()
    assert f"arn:aws:iam::{ACCOUNT}:role/unknown" in {body["PolicySourceArn"] for body in account.simulated}


def test_root_cannot_be_simulated(account, canned):
    root = {"Account": ACCOUNT, "Arn": f"arn:aws:iam::{ACCOUNT}:root", "UserId": "x"}
    canned("GetCallerIdentity", root, service="sts")
    finding = one(account.check(), "caller's permissions")
    assert (finding.status, finding.fix) == ("skip", "work with an IAM role instead")


def test_a_pattern_becomes_a_name_for_the_simulator():
    assert sample("arn:aws:s3:::b/x/*") == "arn:aws:s3:::b/x/preflight"
    assert sample("*") == "*"
    assert sample("arn:aws:logs:r:a:log-group:/g:*") == "arn:aws:logs:r:a:log-group:/g:log-stream:preflight"


def test_conditions_become_the_simulator_s_context():
    entries = list(
        context_entries(
            {
                "Bool": {"kms:GrantIsForAWSResource": "true"},
                "StringLike": {"s3:prefix": ["a/*", "b/*"]},
                "ForAnyValue:StringEquals": {"kms:ResourceAliases": ["alias/a", "alias/b"]},
            }
        )
    )
    assert [(entry["ContextKeyType"], entry["ContextKeyValues"]) for entry in entries] == [
        ("boolean", ["true"]),
        ("string", ["a/preflight"]),
        ("stringList", ["alias/a", "alias/b"]),
    ]


# --- S3 and KMS -------------------------------------------------------------------------------------------------------


def test_the_project_s_bucket_may_be_missing_as_the_first_job_creates_it(account):
    finding = one(account.check(bucket="not-yet-there"), "bucket")
    assert (finding.status, finding.detail) == ("ok", "not-yet-there does not exist; the first job creates it")


def test_another_bucket_must_exist(account):
    finding = only_failure(account.check(training={"instance_type": TYPES[0], "channels": {"train": "s3://nowhere/x"}}))
    assert (finding.check, finding.detail) == ("bucket", "nowhere does not exist")
    assert finding.fix.startswith("aws s3 mb s3://nowhere")


def test_a_bucket_of_another_region_fails(account):
    account.aws.call(
        "s3", "CreateBucket", Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    finding = only_failure(account.check(bucket="far-away"))
    assert finding.detail == "far-away lies in eu-west-1 and the job runs in us-east-1"


def test_a_bucket_the_caller_may_not_see_names_the_caller(account, refusing):
    refusing("s3", "HeadBucket", "403")
    finding = only_failure(account.check())
    assert "lacks s3:ListBucket on project" in finding.detail
    assert finding.identity.startswith("caller ")


def test_a_bucket_that_cannot_be_asked_for_fails_with_the_service_s_words(account, refusing):
    refusing("s3", "HeadBucket", "SlowDown")
    assert "HeadBucket was refused: SlowDown" in only_failure(account.check()).detail


def test_an_empty_prefix_fails_and_local_channels_are_not_looked_for(account):
    channels = {"train": "s3://project/cats/", "validation": "./validation"}
    found = account.check(training={"instance_type": TYPES[0], "channels": channels})
    assert only_failure(found).detail == "nothing lies under s3://project/cats/"


def test_a_model_archive_that_is_uploaded_first_is_not_looked_for(account):
    endpoint = {"instance_type": TYPES[0], "model": "build/model.tar.gz"}
    assert failures(account.check(kinds=("deploy",), endpoint=endpoint)) == []
    endpoint["model"] = "s3://project/model.tar.gz"
    assert only_failure(account.check(kinds=("deploy",), endpoint=endpoint)).check == "input"


def test_a_prefix_the_caller_may_not_list_is_skipped(account, refusing):
    refusing("s3", "ListObjectsV2", "AccessDenied")
    training = {"instance_type": TYPES[0], "channels": {"train": "s3://project/cats/"}}
    finding = one(account.check(training=training), "input")
    assert (finding.status, "lacks s3:ListBucket" in finding.detail) == ("skip", True)


def test_an_error_while_listing_fails(account, refusing):
    refusing("s3", "ListObjectsV2", "InternalError")
    training = {"instance_type": TYPES[0], "channels": {"train": "s3://project/cats/"}}
    assert "InternalError" in only_failure(account.check(training=training)).detail


def key_of(account, **options) -> str:
    return account.aws.call("kms", "CreateKey", **options)["KeyMetadata"]["KeyId"]


def with_key(key: str) -> dict:
    return {"training": {"instance_type": TYPES[0], "volume_kms_key": key}}


def test_an_enabled_key_passes_by_id_and_by_alias(account):
    key = key_of(account)
    account.aws.call("kms", "CreateAlias", AliasName="alias/jobs", TargetKeyId=key)
    assert one(account.check(**with_key(key)), "key").detail == f"{key} is enabled"
    assert one(account.check(**with_key("alias/jobs")), "key").detail == "alias/jobs is enabled"


def test_a_disabled_key_fails_with_the_command_that_enables_it(account):
    key = key_of(account)
    account.aws.call("kms", "DisableKey", KeyId=key)
    finding = only_failure(account.check(**with_key(key)))
    assert (finding.detail, finding.fix) == (f"{key} is disabled", f"aws kms enable-key --key-id {key}")


def test_a_key_about_to_be_deleted_fails(account):
    key = key_of(account)
    account.aws.call("kms", "ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    finding = only_failure(account.check(**with_key(key)))
    assert (finding.detail, finding.fix) == (
        f"{key} is about to be deleted",
        f"aws kms cancel-key-deletion --key-id {key}",
    )


def test_a_key_that_does_not_exist_fails(account):
    assert only_failure(account.check(**with_key("alias/nobody"))).detail == "alias/nobody does not exist in us-east-1"


def test_an_asymmetric_key_fails(account):
    key = key_of(account, KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")
    assert "is a RSA_2048 key" in only_failure(account.check(**with_key(key))).detail


def test_a_key_of_another_region_fails(account, canned):
    found = {"KeyId": "k", "Arn": f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/k", "KeyState": "Enabled"}
    canned("DescribeKey", {"KeyMetadata": found}, service="kms")
    assert "lies in eu-west-1" in only_failure(account.check(**with_key("alias/far"))).detail


def test_keys_the_caller_may_not_describe_are_skipped(account, refusing):
    refusing("kms", "DescribeKey", "AccessDeniedException")
    finding = one(account.check(**with_key("alias/jobs")), "KMS")
    assert (finding.status, finding.detail) == ("skip", "cannot be checked: lacks kms:DescribeKey")


# --- images -----------------------------------------------------------------------------------------------------------


def image_finding(found: list[Finding]) -> Finding:
    return one(found, "image")


def test_a_good_image_is_told_with_processor_and_size(account):
    finding = image_finding(account.check())
    assert finding.detail == f"{IMAGE}: single Docker v2 manifest, amd64, 2.00 GB compressed"


def test_an_image_by_digest_is_found(account):
    digest = account.aws.call("ecr", "DescribeImages", repositoryName="slipway-train")["imageDetails"][0]["imageDigest"]
    uri = f"{REGISTRY}/slipway-train@{digest}"
    assert image_finding(account.check(images={"training": {"uri": uri}})).status == "ok"


@pytest.mark.parametrize(
    ("image", "detail"),
    [
        ({"tag": "v9"}, "the repository holds no v9"),
        ({"repository": "nothing-here"}, "there is no repository nothing-here"),
        ({"uri": f"{REGISTRY}/slipway-train@{DIGEST}"}, f"the repository holds no {DIGEST}"),
        ({"uri": "docker.io/library/python:3.11"}, "does not lie in ECR, and SageMaker pulls from nowhere else"),
        (
            {"uri": f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/slipway-train:latest"},
            "lies in eu-west-1 and the job runs in us-east-1",
        ),
    ],
)
def test_an_image_that_cannot_be_pulled_fails(account, image, detail):
    finding = only_failure(account.check(images={"training": image}))
    assert finding.detail.endswith(detail)
    assert finding.fix


@pytest.mark.parametrize(
    ("media_type", "manifest", "detail"),
    [
        ("application/vnd.oci.image.index.v1+json", {"manifests": []}, "is an OCI index"),
        ("application/vnd.docker.distribution.manifest.list.v2+json", {"manifests": []}, "is a manifest list"),
        ("application/vnd.oci.image.manifest.v1+json", {"config": {}, "layers": []}, "has the manifest type"),
    ],
)
def test_an_image_of_a_form_sagemaker_refuses_fails(account, media_type, manifest, detail):
    body = {"schemaVersion": 2, "mediaType": media_type, **manifest}
    if "manifests" in manifest:
        platform = {"architecture": "amd64", "os": "linux"}
        body["manifests"] = [{"mediaType": DOCKER, "digest": DIGEST, "size": 1, "platform": platform}]
    account.push("slipway-train", media_type, body, tag="oci")
    finding = only_failure(account.check(images={"training": {"tag": "oci"}}))
    assert detail in finding.detail
    assert "SageMaker accepts" in finding.detail


def test_an_image_for_another_processor_fails(account, blob):
    blob["architecture"] = "arm64"
    finding = only_failure(account.check())
    assert finding.detail == f"{IMAGE} is built for linux/arm64 and ml.m5.xlarge runs linux/amd64"
    assert finding.fix.startswith("set its platform to linux/amd64")


def test_a_graviton_instance_wants_an_arm_image(account, blob):
    endpoint = {"instance_type": "ml.m7g.xlarge"}
    failed = only_failure(account.check(kinds=("deploy",), endpoint=endpoint))
    assert (
        failed.detail == f"{REGISTRY}/slipway-serve:latest is built for linux/amd64 and ml.m7g.xlarge runs linux/arm64"
    )
    blob["architecture"] = "arm64"
    assert failures(account.check(kinds=("deploy",), endpoint=endpoint)) == []


def test_each_container_of_an_endpoint_is_looked_at(account, blob):
    blob["architecture"] = "arm64"
    containers = [{"name": "first"}, {"name": "second", "image": IMAGE}]
    found = account.check(kinds=("deploy",), endpoint={"instance_type": TYPES[0], "containers": containers})
    built = [item.detail.partition(" is built for linux/arm64 and ml.m5.xlarge")[0] for item in failures(found)]
    assert built == [f"{REGISTRY}/slipway-serve:latest", IMAGE]


def test_a_windows_image_fails(account, blob):
    blob["os"] = "windows"
    assert "is built for windows/amd64 and SageMaker runs linux/amd64" in only_failure(account.check()).detail


def test_an_image_whose_configuration_cannot_be_read_is_a_warning(account, refusing):
    refusing("ecr", "GetDownloadUrlForLayer", "AccessDeniedException")
    finding = image_finding(account.check())
    assert (finding.status, "could not be read" in finding.detail) == ("warn", True)


def test_images_the_caller_may_not_look_at_are_skipped(account, refusing):
    refusing("ecr", "BatchGetImage", "AccessDeniedException")
    finding = one(account.check(), "image")
    assert (finding.status, finding.detail) == ("skip", "cannot be checked: lacks ecr:BatchGetImage")


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.fixture
def network(account):
    """A VPC with one subnet, a security group and an S3 endpoint."""
    ec2 = account.aws.client("ec2")
    cloud = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=cloud, CidrBlock="10.0.1.0/28")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(VpcId=cloud, GroupName="jobs", Description="jobs")["GroupId"]
    s3 = {"ServiceName": "com.amazonaws.us-east-1.s3", "VpcEndpointType": "Gateway"}
    endpoint = ec2.create_vpc_endpoint(VpcId=cloud, **s3)["VpcEndpoint"]
    names = SimpleNamespace(ec2=ec2, cloud=cloud, subnet=subnet, group=group, endpoint=endpoint["VpcEndpointId"])
    names.section = {"subnets": [subnet], "security_groups": [group]}
    return names


def test_a_good_network_passes(account, network):
    found = account.check(network=network.section)
    assert failures(found) == []
    assert one(found, "network").detail == "one VPC, 11 addresses left"
    assert one(found, "way to S3").status == "ok"


@pytest.mark.parametrize("change", [{"subnets": ["subnet-0123456789abcdef0"]}, {"security_groups": ["sg-0123456789"]}])
def test_subnets_and_groups_must_exist(account, network, change):
    finding = only_failure(account.check(network={**network.section, **change}))
    assert "NotFound" in finding.detail
    assert finding.fix.startswith("correct network.subnets")


def test_subnets_and_groups_must_lie_in_one_vpc(account, network):
    other = network.ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    group = network.ec2.create_security_group(VpcId=other, GroupName="far", Description="far")["GroupId"]
    found = account.check(network={**network.section, "security_groups": [group]})
    assert "lie in different VPCs" in only_failure(found).detail


def test_a_subnet_with_too_few_addresses_fails(account, network):
    account.quotas = dict.fromkeys(account.quotas, 99.0)
    training = {"instance_type": TYPES[0], "instance_count": 12}
    finding = only_failure(account.check(network=network.section, training=training))
    assert finding.detail == "the subnets have 11 addresses left and 12 instances need one each"


def test_a_network_without_a_way_to_s3_fails(account, network):
    network.ec2.delete_vpc_endpoints(VpcEndpointIds=[network.endpoint])
    finding = only_failure(account.check(network=network.section))
    assert finding.check == "way to S3"
    assert finding.fix == (
        f"aws ec2 create-vpc-endpoint --vpc-id {network.cloud} --service-name com.amazonaws.us-east-1.s3"
    )


def test_an_internet_gateway_is_no_way_and_a_nat_gateway_is(account, network):
    ec2 = network.ec2
    ec2.delete_vpc_endpoints(VpcEndpointIds=[network.endpoint])
    table = ec2.create_route_table(VpcId=network.cloud)["RouteTable"]["RouteTableId"]
    ec2.associate_route_table(RouteTableId=table, SubnetId=network.subnet)
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=network.cloud)
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    assert only_failure(account.check(network=network.section)).check == "way to S3"
    ec2.delete_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0")
    address = ec2.allocate_address()["AllocationId"]
    nat = ec2.create_nat_gateway(SubnetId=network.subnet, AllocationId=address)["NatGateway"]["NatGatewayId"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat)
    assert one(account.check(network=network.section), "way to S3").detail == "through a NAT or transit gateway"


def test_hosts_that_cannot_reach_each_other_are_a_warning_with_the_command(account, network):
    training = {"instance_type": TYPES[0], "instance_count": 2}
    finding = one(account.check(network=network.section, training=training), "hosts")
    assert finding.status == "warn"
    assert f"--group-id {network.group} --source-group {network.group}" in finding.fix
    pair = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": network.group}]}]
    network.ec2.authorize_security_group_ingress(GroupId=network.group, IpPermissions=pair)
    assert one(account.check(network=network.section, training=training), "hosts").status == "ok"


def test_a_network_the_caller_may_not_look_at_is_skipped(account, network, refusing):
    refusing("ec2", "DescribeSubnets", "UnauthorizedOperation")
    finding = one(account.check(network=network.section), "network")
    assert (finding.status, finding.detail) == ("skip", "cannot be checked: lacks ec2:DescribeSubnets")


# --- quotas -----------------------------------------------------------------------------------------------------------


def test_a_quota_of_zero_fails_with_a_link_to_ask_for_more(account):
    account.quotas["ml.g5.xlarge for training job usage"] = 0.0
    finding = only_failure(account.check(training={"instance_type": "ml.g5.xlarge"}))
    assert finding.detail == "ml.g5.xlarge for training job usage: the limit is 0 and 1 are needed"
    assert re.search(r"https://us-east-1\.console\.aws\.amazon\.com/servicequotas/.*/quotas/L-\d{4}$", finding.fix)


def test_of_several_instance_types_one_with_quota_is_enough(account):
    account.quotas["ml.g5.xlarge for training job usage"] = 0.0
    found = account.check(training={"instance_type": ["ml.g5.xlarge", "ml.m5.xlarge"]})
    assert failures(found) == []
    assert [item.status for item in found if item.check == "quota"] == ["warn", "ok"]


@pytest.mark.parametrize(
    ("values", "kinds", "quota"),
    [
        ({"training": {"instance_type": "ml.m5.xlarge", "spot": True}}, ("train",), "spot training job"),
        ({"training": {"instance_type": "ml.m5.xlarge", "keep_alive": "10m"}}, ("train",), "training warm pool"),
        ({"transform": {"input": "./x", "instance_type": "ml.m5.xlarge"}}, ("transform",), "transform job"),
        ({"endpoint": {"instance_type": "ml.m5.xlarge"}}, ("deploy",), "endpoint"),
        (
            {"training": {"instance_groups": [{"name": "a", "instance_type": "ml.m5.xlarge"}]}},
            ("train",),
            "training job",
        ),
    ],
)
def test_each_use_has_its_own_quota(account, values, kinds, quota):
    account.quotas[f"ml.m5.xlarge for {quota} usage"] = 0.0
    finding = only_failure(account.check(kinds=kinds, **values))
    assert finding.detail.startswith(f"ml.m5.xlarge for {quota} usage: the limit is 0")


def test_an_endpoint_needs_quota_for_all_variants_scaled_out(account):
    variants = [{"name": name, "model": "s3://project/m.tar.gz"} for name in ("a", "b")]
    account.aws.call("s3", "PutObject", Bucket="project", Key="m.tar.gz", Body=b"x")
    endpoint = {"instance_type": "ml.m5.xlarge", "variants": variants, "scaling": {"max": 3, "target": 60}}
    assert "the limit is 4 and 6 are needed" in only_failure(account.check(kinds=("deploy",), endpoint=endpoint)).detail


def test_a_serverless_endpoint_needs_no_instance_quota(account):
    found = account.check(kinds=("deploy",), endpoint={"serverless": True})
    assert not [item for item in found if item.check == "quota"]


def test_a_type_service_quotas_does_not_know_is_skipped(account):
    finding = one(account.check(training={"instance_type": "ml.c5.xlarge"}), "quota")
    assert (finding.status, finding.detail) == ("skip", "Service Quotas knows no 'ml.c5.xlarge for training job usage'")


def test_quotas_the_caller_may_not_list_are_skipped(account, refusing):
    refusing("service-quotas", "ListServiceQuotas", "AccessDeniedException")
    assert one(account.check(), "quota").detail == "cannot be checked: lacks servicequotas:ListServiceQuotas"


def test_a_service_that_fails_otherwise_is_a_failure_in_its_own_words(account, refusing):
    refusing("service-quotas", "ListServiceQuotas", "ServiceException")
    finding = only_failure(account.check())
    assert "ListServiceQuotas was refused: ServiceException" in finding.detail


def test_a_service_in_trouble_says_nothing_about_the_job(account):
    trouble = {"Error": {"Code": "ServiceException", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 500}}
    account.refused["service-quotas", "ListServiceQuotas"] = trouble
    finding = one(account.check(), "quota")
    assert (finding.status, finding.fix) == ("skip", "try again later")


def test_a_service_that_does_not_answer_as_aws_does_is_skipped(account):
    def garbled(**_):
        raise ResponseParserError("Unable to parse response,\n invalid XML received")

    account.aws.session.events.register_first("before-call.service-quotas.ListServiceQuotas", garbled)
    finding = one(account.check(), "quota")
    assert finding.status == "skip"
    assert "was not answered as AWS answers: Unable to parse response, invalid XML" in finding.detail
