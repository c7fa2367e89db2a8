"""Who may do what: the execution role, who trusts whom, and IAM's own verdict on every action of the policies."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.account.iam import policies
from launcher.account.iam_statements import SERVICE, Statement
from launcher.account.preflight_scene import Scene, error_code, refused
from launcher.aws import Aws
from launcher.config import Config
from launcher.errors import AwsRefused
from launcher.findings import Finding

# Statements of the caller's policy that are needed once, and when: without them most requests still work.
NEEDED_ONCE = {
    "CreateBucket": "needed only while the bucket does not exist",
    "ScalingRole": "needed only while the account has no such service-linked role",
    "EndComponents": "needed only to end inference components of an earlier configuration",
    "FindOldComponents": "needed only to end inference components of an earlier configuration",
    "EndScaling": "needed only to end the scaling of an earlier configuration",
    "EndScalingAlarms": "needed only to end the scaling of an earlier configuration",
}
TRUST_ACTIONS = frozenset({"sts:AssumeRole", "sts:*", "*"})


def check_role(config: Config, aws: Aws, caller: Mapping[str, Any]) -> tuple[list[Finding], str | None]:
    """Findings on the execution role, and its ARN where it is known."""
    if not config.role:
        fix = "set role in launcher.yaml; `python -m launcher iam policy` prints the policies to make one with"
        return [Finding("role", "fail", "no execution role is configured", fix)], None
    name = config.role.rpartition("/")[2]
    arn = config.role if config.role.startswith("arn:") else None
    who = f"execution role {arn or name}"
    if arn and arn.split(":")[4] != caller["Account"]:
        detail = f"lies in account {arn.split(':')[4]}, and the caller in {caller['Account']}"
        return [Finding("role", "fail", detail, "take a role of the caller's account", who)], arn
    try:
        role = aws.call("iam", "GetRole", RoleName=name)["Role"]
    except AwsRefused as error:
        if error_code(error) == "NoSuchEntity":
            fix = "create it with the trust policy and the policy that `python -m launcher iam policy` prints"
            return [Finding("role", "fail", "does not exist", fix, who)], None
        guessed = f"arn:{caller['Arn'].split(':')[1]}:iam::{caller['Account']}:role/{name}"
        return [refused("role", "iam:GetRole", caller["Arn"], error)], arn or guessed
    return [Finding("role", "ok", "exists", "", f"execution role {role['Arn']}"), _trust(role, caller)], role["Arn"]


def _trust(role: Mapping[str, Any], caller: Mapping[str, Any]) -> Finding:
    who = f"execution role {role['Arn']}"
    document = role["AssumeRolePolicyDocument"]
    fix = f"aws iam update-assume-role-policy --role-name {role['RoleName']} with the `trust` policy of iam policy"
    letting = [item for item in _listed(document["Statement"]) if _lets_sagemaker_in(item)]
    if not letting:
        return Finding("trust", "fail", f"does not trust {SERVICE}", fix, who)
    accounts = [_listed(item.get("Condition", {}).get("StringEquals", {}).get("aws:SourceAccount")) for item in letting]
    if all(named and caller["Account"] not in named for named in accounts):
        detail = f"trusts {SERVICE} only for account {', '.join(accounts[0])}, not {caller['Account']}"
        return Finding("trust", "fail", detail, fix, who)
    return Finding("trust", "ok", f"trusts {SERVICE}", "", who)


def _lets_sagemaker_in(statement: Mapping[str, Any]) -> bool:
    principal = statement.get("Principal", {})
    services = _listed(principal.get("Service")) if isinstance(principal, Mapping) else []
    allowed = TRUST_ACTIONS.intersection(_listed(statement.get("Action")))
    return statement["Effect"] == "Allow" and SERVICE in services and bool(allowed)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def check_caller(scene: Scene) -> Iterator[Finding]:
    """Whether the caller may send the requests, pass the role, move files and read logs."""
    who = f"caller {scene.caller}"
    source = _policy_source(scene)
    if source is None:
        detail = "is the account's root, or federated: IAM cannot simulate it"
        yield Finding("caller's permissions", "skip", detail, "work with an IAM role instead", who)
        return
    statements = policies(scene.config, scene.context, scene.kinds).caller
    yield from _simulated("caller's permissions", scene, source, who, statements)


def check_role_permissions(scene: Scene) -> Iterator[Finding]:
    """Whether the execution role may read, write, log and pull."""
    statements = policies(scene.config, scene.context, scene.kinds).execution_role
    yield from _simulated("role's permissions", scene, scene.context.role_arn, scene.role, statements)


def _policy_source(scene: Scene) -> str | None:
    """The user or role whose policies decide what the caller may do."""
    resource = scene.caller.split(":", 5)[5]
    if resource.startswith("user/"):
        return scene.caller
    if not resource.startswith("assumed-role/"):
        return None
    name = resource.split("/")[1]
    try:
        return scene.aws.call("iam", "GetRole", RoleName=name)["Role"]["Arn"]  # it may have a path, as SSO's roles do
    except AwsRefused:
        return f"arn:{scene.caller.split(':')[1]}:iam::{scene.context.account}:role/{name}"


def _simulated(name: str, scene: Scene, source: str, who: str, statements: Iterable[Statement]) -> Iterator[Finding]:
    statements = list(statements)
    found = [item for statement in statements for item in _denied(name, scene, source, who, statement)]
    if not found:
        count = sum(len(statement.actions) for statement in statements)
        found = [Finding(name, "ok", f"{count} actions allowed (bucket and key policies are not simulated)", "", who)]
    yield from found


def _denied(name: str, scene: Scene, source: str, who: str, statement: Statement) -> Iterator[Finding]:
    """One finding for everything in a statement that is denied for the same reason."""
    reasons: dict[str, list[tuple[str, str]]] = {}
    for action, resource, decision in _denials(scene.aws, source, statement):
        reasons.setdefault(_because(decision), []).append((action, resource))
    for reason, denied in reasons.items():
        actions = ", ".join(dict.fromkeys(action for action, _ in denied))
        resources = list(dict.fromkeys(resource for _, resource in denied))
        others = f" and {len(resources) - 1} more" if len(resources) > 1 else ""
        once = NEEDED_ONCE.get(statement.sid)
        detail = f"lacks {actions} on {resources[0]}{others}{reason}" + (f"; {once}" if once else "")
        yield Finding(name, "warn" if once else "fail", detail, _fix(reason, statement, name), who)


def _denials(aws: Aws, source: str, statement: Statement) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Action, resource and decision of everything in a statement that IAM would deny."""
    request: dict[str, Any] = {
        "PolicySourceArn": source,
        "ActionNames": sorted(statement.actions),
        "ResourceArns": [sample(resource) for resource in statement.resources],
        "ContextEntries": list(context_entries(statement.condition or {})),
    }
    while True:
        reply = aws.call("iam", "SimulatePrincipalPolicy", **request)
        for result in reply["EvaluationResults"]:
            specific = result.get("ResourceSpecificResults") or [result]
            for item in specific:
                decision = item.get("EvalResourceDecision") or item["EvalDecision"]
                resource = item.get("EvalResourceName", "*")
                if decision != "allowed":
                    yield result["EvalActionName"], resource, {**result, "decision": decision}
        if not reply.get("IsTruncated"):
            return
        request["Marker"] = reply["Marker"]


def sample(resource: str) -> str:
    """An ARN that a resource pattern covers: the simulator wants names."""
    if resource == "*":
        return resource
    if ":log-group:" in resource:
        return resource.replace(":*", ":log-stream:preflight")
    return resource.replace("*", "preflight")


def context_entries(condition: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The simulator's context in which a condition holds."""
    for operator, keys in condition.items():
        for key, value in keys.items():
            kind = "boolean" if operator == "Bool" else "string"
            values = [text.replace("*", "preflight") for text in _listed(value)]
            several = operator.startswith("ForAnyValue")
            yield {
                "ContextKeyName": key,
                "ContextKeyValues": values if several else values[:1],
                "ContextKeyType": "stringList" if several else kind,
            }


def _because(decision: Mapping[str, Any]) -> str:
    if not decision.get("OrganizationsDecisionDetail", {}).get("AllowedByOrganizations", True):
        return " (the organization's policies forbid it)"
    if not decision.get("PermissionsBoundaryDecisionDetail", {}).get("AllowedByPermissionsBoundary", True):
        return " (its permissions boundary forbids it)"
    return " (a statement denies it)" if decision["decision"] == "explicitDeny" else ""


def _fix(reason: str, statement: Statement, name: str) -> str:
    if reason:
        return "ask who owns that policy; an Allow cannot overrule it"
    policy = "caller" if name.startswith("caller") else "execution_role"
    return f"add the statement {statement.sid} of the policy `{policy}` that `python -m launcher iam policy` prints"
