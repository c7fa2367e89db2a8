import ast
import json
import re
from pathlib import Path

import pytest

from launcher.account.iam import POLICY_LIMIT, Policies, policies
from launcher.account.iam_statements import WITHOUT_RESOURCES, Statement, policy_size
from launcher.config import Config
from launcher.dry_run import dry_context
from launcher.jobs.api import JobContext
from launcher.validate import service_model

GOLDEN = Path(__file__).parent / "golden"
LAUNCHER = Path(__file__).parents[3] / "launcher"
KEY = "11111111-2222-3333-4444-555555555555"
# IAM's prefix -> botocore's names of the services
SERVICES = {
    "application-autoscaling": ["application-autoscaling"],
    "cloudwatch": ["cloudwatch"],
    "codebuild": ["codebuild"],
    "ec2": ["ec2"],
    "ecr": ["ecr"],
    "iam": ["iam"],
    "kms": ["kms"],
    "logs": ["logs"],
    "s3": ["s3"],
    "sagemaker": ["sagemaker", "sagemaker-runtime"],
    "servicequotas": ["service-quotas"],
    "sns": ["sns"],
}
# Permissions that are no operation of the same name; AWS's own managed policies spell them so.
NOT_OPERATIONS = {"iam:PassRole", "s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:ListMultipartUploadParts"}
IMPLIED = {
    "s3:HeadBucket": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:UploadPart": "s3:PutObject",
    "s3:CompleteMultipartUpload": "s3:PutObject",
    "s3:ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "s3:ListParts": "s3:ListMultipartUploadParts",
}
FREE = {"sts:GetCallerIdentity"}  # needs no permission

FULL = {
    "name": "cv",
    "role": "arn:aws:iam::123456789012:role/jobs",
    "bucket": "cv-bucket",
    "training": {
        "channels": {
            "train": "./data",
            "validation": "s3://elsewhere/validation",
            "labels": {"source": "s3://elsewhere/labels.manifest", "data_type": "ManifestFile"},
            "shared": "fs-0123456789abcdef0:/data",
        },
        "code": "src",
        "environment": {"EXTRA": "s3://elsewhere/extra/", "MODE": "fast"},
        "spot": True,
        "remote_debug": True,
        "volume_kms_key": f"arn:aws:kms:us-east-1:123456789012:key/{KEY}",
        "output": {"kms_key": "alias/outputs"},
    },
    "transform": {"input": "s3://elsewhere/rows/", "model": "other-job", "output": {"kms_key": KEY}},
    "endpoint": {
        "name": "Digits",
        "asynchronous": {"success_topic": "arn:aws:sns:us-east-1:123456789012:done"},
        "capture": True,
        "kms_key": KEY,
        "scaling": {"min": 0, "max": 2},
        "rollout": {"type": "canary", "alarms": ["errors"]},
    },
    "images": {"codebuild_project": "cv-images"},
    "network": {"subnets": ["subnet-1"], "security_groups": ["sg-1"]},
}


def of(values: dict, account: str = "123456789012", **arguments):
    config = Config.model_validate(values)
    context = dry_context(config)
    context = JobContext(
        context.job_name,
        account,
        context.region,
        config.bucket or f"sagemaker-{config.region}-{account}",
        context.role_arn.replace("111122223333", account),
    )
    return policies(config, context, **arguments)


def every(found: Policies) -> list[Statement]:
    return [*found.execution_role, *found.caller, *found.preflight]


def statements(found) -> dict[str, Statement]:
    return {item.sid: item for item in found}


@pytest.mark.parametrize(("name", "values"), [("defaults", {}), ("everything", FULL)])
def test_the_policies_of_a_configuration_are_those_in_the_golden_file(name, values):
    golden = GOLDEN / f"iam_{name}.json"
    assert of(values).documents() == json.loads(golden.read_text())


@pytest.mark.parametrize("values", [{}, FULL])
def test_every_action_is_one_that_aws_has(values):
    found = of(values)
    for item in every(found):
        for action in item.actions:
            prefix, _, operation = action.partition(":")
            if action in NOT_OPERATIONS or prefix == "ssmmessages":
                continue
            assert any(operation in service_model(name)["operations"] for name in SERVICES[prefix]), action


def test_actions_that_are_no_operation_are_spelled_as_in_aws_own_managed_policies():
    import moto.iam.aws_managed_policies as managed

    known = set(re.findall(r'"(\w+:\w+)"', managed.aws_managed_policies_data))
    agent = {action for action in WITHOUT_RESOURCES if action.startswith("ssmmessages:")}
    assert (NOT_OPERATIONS | agent) <= known


@pytest.mark.parametrize("values", [{}, FULL])
def test_a_star_stands_only_where_the_note_says_that_iam_knows_no_resource(values):
    found = of(values)
    wide = {
        a
        for item in (*found.execution_role, *found.caller, *found.preflight)
        if "*" in item.resources
        for a in item.actions
    }
    assert wide
    assert wide <= WITHOUT_RESOURCES
    assert all(action in found.notes[0] for action in wide)


def test_a_statement_with_a_star_where_a_resource_is_possible_is_refused():
    with pytest.raises(ValueError, match="resource '\\*' for s3:GetObject, which can be limited"):
        Statement("Wide", ("s3:GetObject", "ecr:GetAuthorizationToken"), ("*",))


def test_an_action_with_a_star_is_refused():
    with pytest.raises(ValueError, match="an action with '\\*' grants more than it names"):
        Statement("Wide", ("s3:Get*",), ("arn:aws:s3:::bucket/*",))


def test_the_role_may_be_passed_to_sagemaker_only():
    item = statements(of({"role": "arn:aws:iam::123456789012:role/jobs"}).caller)["PassRole"]
    assert item.resources == ("arn:aws:iam::123456789012:role/jobs",)
    assert item.condition == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}


def test_the_trust_policy_lets_sagemaker_in_for_this_account_only():
    (statement,) = of({}).trust["Statement"]
    assert statement["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}


def test_network_actions_appear_only_with_a_vpc():
    without, with_vpc = of({}), of({"network": {"subnets": ["subnet-1"], "security_groups": ["sg-1"]}})
    assert not any(a.startswith("ec2:") for item in every(without) for a in item.actions)
    attach = statements(with_vpc.execution_role)["AttachToVpc"]
    assert "arn:aws:ec2:us-east-1:123456789012:subnet/subnet-1" in attach.resources
    lend = statements(with_vpc.execution_role)["LendInterfaces"]
    assert lend.condition == {"StringEquals": {"ec2:AuthorizedService": "sagemaker.amazonaws.com"}}


def test_the_role_reads_the_prefix_of_a_channel_and_nothing_beside_it():
    role = statements(of({"training": {"channels": {"train": "s3://data/cats"}}}, kinds=["train"]).execution_role)
    assert role["ReadInputs"].resources == ("arn:aws:s3:::data/cats*",)
    assert role["ListInputs1"].condition == {"StringLike": {"s3:prefix": ["cats*"]}}


def test_a_whole_bucket_as_a_channel_is_listed_without_a_prefix():
    role = statements(of({"training": {"channels": {"train": "s3://data"}}}, kinds=["train"]).execution_role)
    assert role["ReadInputs"].resources == ("arn:aws:s3:::data/*",)
    assert role["ListInputs1"].condition is None


def test_the_role_deletes_in_the_checkpoint_folder_only():
    found = of({"training": {"checkpoints": "s3://data/checkpoints"}}).execution_role
    deleting = [item for item in found if "s3:DeleteObject" in item.actions]
    assert [item.resources for item in deleting] == [("arn:aws:s3:::data/checkpoints/*",)]


def test_arns_hold_names_in_lower_case_as_sagemaker_writes_them():
    caller = statements(of({"endpoint": {"name": "Digits"}}, kinds=["deploy"]).caller)
    assert "arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits" in caller["UseEndpoints"].resources


@pytest.mark.parametrize(
    ("region", "partition"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("eu-west-1", "aws")]
)
def test_the_separate_clouds_have_their_own_partition(region, partition):
    role = statements(of({"region": region}, kinds=["train"]).execution_role)
    assert role["WriteOutputs"].resources[0].startswith(f"arn:{partition}:s3:::")
    assert role["PullImages"].resources[0].startswith(f"arn:{partition}:ecr:{region}:123456789012:")


def test_a_key_alias_becomes_a_condition_because_it_is_no_resource():
    item = statements(of(FULL).execution_role)["UseDataKeysByAlias"]
    assert item.resources == ("arn:aws:kms:us-east-1:123456789012:key/*",)
    assert item.condition == {"ForAnyValue:StringEquals": {"kms:ResourceAliases": ["alias/outputs"]}}


def test_a_grant_on_a_volume_key_is_for_aws_services_only():
    item = statements(of(FULL).execution_role)["UseVolumeKeys"]
    assert item.actions == ("kms:CreateGrant",)
    assert item.condition == {"Bool": {"kms:GrantIsForAWSResource": "true"}}


def test_a_caller_who_only_trains_may_not_touch_endpoints():
    actions = {action for item in of({}, kinds=["train"]).caller for action in item.actions}
    assert "sagemaker:CreateTrainingJob" in actions
    assert not {"sagemaker:CreateEndpoint", "sagemaker:DeleteEndpoint", "ecr:PutImage"} & actions


def test_a_caller_who_only_pushes_passes_no_role():
    actions = {action for item in of({}, kinds=["push"]).caller for action in item.actions}
    assert "ecr:PutImage" in actions
    assert not {"iam:PassRole", "sagemaker:CreateTrainingJob", "s3:PutObject"} & actions


def test_an_image_outside_ecr_is_said_and_not_granted():
    found = of({"images": {"registry": ""}})
    assert "slipway-train:latest does not lie in ECR: SageMaker pulls from ECR" in " ".join(found.notes)
    assert not any("ecr:" in action for item in found.execution_role for action in item.actions)


def test_a_policy_over_iam_s_limit_is_said():
    many = {f"channel{index}": f"s3://bucket-{index:03}-with-a-long-name-for-a-bucket/folder/" for index in range(19)}
    values = {"training": {"channels": many, "environment": {f"V{i}": f"s3://env-{i}/" + "x" * 400 for i in range(9)}}}
    found = of(values)
    assert policy_size(found.documents()["execution_role"]) > POLICY_LIMIT
    assert "characters and IAM takes 6144: attach it as two policies" in " ".join(found.notes)


def test_the_policies_of_a_full_project_fit_into_managed_policies_of_their_own():
    documents = of(FULL).documents()
    assert policy_size(documents["execution_role"]) < POLICY_LIMIT


def test_every_request_the_launcher_spells_out_is_granted_to_the_caller():
    components = {"endpoint": {"components": [{"name": "a", "model": "s3://b/1"}]}}
    caller = [*of(FULL).caller, *of(FULL).preflight, *of({}).caller, *of(components).caller]
    granted = {action for item in caller for action in item.actions} | FREE
    asked = {action for path in sorted(LAUNCHER.glob("**/*.py")) if "local" not in path.parts for action in calls(path)}
    assert len(asked) > 10
    missing = {action for action in asked if IMPLIED.get(action, action) not in granted}
    assert not missing, "grant them in launcher/account/iam_caller.py"


def calls(path: Path) -> set[str]:
    """Actions of `….call("service", "Operation")` and `ApiCall("service", "Operation")` in a source file."""
    prefixes = {name: prefix for prefix, names in SERVICES.items() for name in names}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            continue
        words = [item.value for item in node.args[:2] if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        if len(words) == 2 and getattr(node.func, "attr", getattr(node.func, "id", "")) in {"call", "ApiCall"}:
            found.add(f"{prefixes.get(words[0], words[0])}:{words[1]}")
    return found


@pytest.mark.parametrize("values", [{}, FULL, {"region": "cn-north-1"}])
def test_iam_accepts_every_document(aws, values):
    documents = of(values).documents()
    iam = aws.client("iam")
    iam.create_role(RoleName="jobs", AssumeRolePolicyDocument=json.dumps(documents["trust"]))
    for name in ("execution_role", "caller", "preflight"):
        # as an inline policy of a role: the larger limit, so that what is judged is the form
        iam.put_role_policy(RoleName="jobs", PolicyName=name, PolicyDocument=json.dumps(documents[name]))
        assert iam.get_role_policy(RoleName="jobs", PolicyName=name)["PolicyDocument"] == documents[name]


def granted(found: Policies) -> dict[str, set[str]]:
    """Action -> resources, of the caller."""
    actions: dict[str, set[str]] = {}
    for statement in found.caller:
        for action in statement.actions:
            actions.setdefault(action, set()).update(statement.resources)
    return actions


def test_what_the_file_no_longer_asks_for_the_caller_may_still_end():
    found = granted(of({"name": "cv"}, kinds=("deploy",)))  # neither scaling nor components
    for action in ("DeregisterScalableTarget", "DescribeScalableTargets"):
        assert f"application-autoscaling:{action}" in found
    for action in ("Delete", "Describe"):
        (component,) = found[f"sagemaker:{action}InferenceComponent"]
        assert component.endswith("inference-component/cv-*")
    assert "sagemaker:ListInferenceComponents" in found
    assert any("alarm:cv-" in item for item in found["cloudwatch:DeleteAlarms"])
    assert "sagemaker:CreateInferenceComponent" not in found
    assert "application-autoscaling:PutScalingPolicy" not in found


def test_the_caller_may_set_off_the_alarms_that_take_an_update_back():
    found = granted(of({"name": "cv", "endpoint": {"rollout": {"type": "canary"}}}, kinds=("deploy",)))
    assert any(item.endswith("alarm:cv-*") for item in found["cloudwatch:SetAlarmState"])
