"""What the preflight checks look at, and how they tell a refusal from a failure."""

from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import ClientError

from launcher.account.iam_caller import Kind
from launcher.account.needs import Need
from launcher.aws import Aws
from launcher.config import Config
from launcher.errors import AwsRefused
from launcher.findings import Finding
from launcher.jobs import training, transform
from launcher.jobs.api import JobContext
from launcher.jobs.common import is_local_model, model_data_uri
from launcher.jobs.endpoint import models_of

DENIED = frozenset(
    {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError", "403", "Forbidden"}
)
HTTP_SERVER_ERROR = 500


@dataclass(frozen=True)
class Scene:
    """What the checks look at."""

    config: Config
    aws: Aws
    kinds: tuple[Kind, ...]
    caller: str
    """ARN of who asks."""
    context: JobContext
    needs: tuple[Need, ...]

    @property
    def role(self) -> str:
        """The execution role, as findings name it."""
        return f"execution role {self.context.role_arn}"

    @property
    def uploaded(self) -> frozenset[str]:
        """S3 places the launcher fills itself before it sends the request."""
        places = training.uploads(self.config, self.context, Path())
        if self.config.transform.input:
            places = [*places, *transform.uploads(self.config, self.context, Path())]
        models = (self.config.transform.model or "", *models_of(self.config.endpoint).values())
        archives = [model_data_uri(self.config, self.context, model) for model in models if is_local_model(model)]
        return frozenset((*(place.uri for place in places), *archives))


def refused(name: str, action: str, caller: str, error: AwsRefused) -> Finding:
    """A check that AWS did not answer: not allowed is no failure, as the job may work all the same."""
    if error_code(error) in DENIED:
        fix = "attach the policy `preflight` of `python -m launcher iam policy` to the caller"
        return Finding(name, "skip", f"cannot be checked: lacks {action}", fix, f"caller {caller}")
    if http_status(error) >= HTTP_SERVER_ERROR:  # their trouble, not the caller's; it says nothing about the job
        return Finding(name, "skip", f"cannot be checked now: {error}", "try again later", f"caller {caller}")
    return Finding(name, "fail", str(error), "", f"caller {caller}")


def error_code(error: AwsRefused) -> str:
    """The service's code of a refusal, such as `NoSuchEntity`; empty where it has none."""
    cause = error.__cause__
    return cause.response["Error"].get("Code", "") if isinstance(cause, ClientError) else ""


def http_status(error: AwsRefused) -> int:
    """HTTP status of a refusal; 0 where there was no answer."""
    cause = error.__cause__
    return cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(cause, ClientError) else 0
