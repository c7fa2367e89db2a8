"""What the launcher notes on an endpoint: the way back, and when it expires."""

from datetime import UTC, datetime, timedelta

from launcher.jobs.api import ApiCall, tag_list
from launcher.project import Project

PREVIOUS_TAG = "slipway:previous-config"  # what `rollback` goes back to
EXPIRES_TAG = "slipway:expires"


def tags_of(project: Project, arn: str) -> dict[str, str]:
    """Tags of a resource by key."""
    reply = project.aws.call("sagemaker", "ListTags", ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for tag in reply["Tags"]}


def set_tags(project: Project, arn: str, tags: dict[str, str]) -> None:
    """Note some; none is no request."""
    if tags:
        project.aws.send(ApiCall("sagemaker", "AddTags", {"ResourceArn": arn, "Tags": tag_list(tags)}))


def expiry(seconds: int | None) -> dict[str, str]:
    """The tag of an endpoint that may be reaped after so long; nothing for one that stays."""
    if not seconds:
        return {}
    return {EXPIRES_TAG: (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")}
