"""What `--dry-run` prints: the requests of a job kind, made and checked without an account."""

from pathlib import Path

from launcher.account.secrets import refuse_secrets
from launcher.config import Config
from launcher.jobs import alarms, components, endpoint, scaling, training, transform
from launcher.jobs.api import ApiCall, JobContext
from launcher.jobs.common import model_data_uri
from launcher.jobs.model import ServedModel
from launcher.jobs.update import update_call
from launcher.project import default_bucket, new_job_name, with_code_uri
from launcher.validate import refuse_malformed

DRY_RUN_ACCOUNT = "111122223333"  # AWS's own example account
DRY_RUN_JOB = "newest-training-job"


def dry_context(config: Config) -> JobContext:
    """A context without an account: what is not known offline is AWS's example."""
    role = config.role or "slipway-execution-role"
    return JobContext(
        job_name=new_job_name(config),
        account=DRY_RUN_ACCOUNT,
        region=config.region,
        bucket=config.bucket or default_bucket(config.region, DRY_RUN_ACCOUNT),
        role_arn=role if role.startswith("arn:") else f"arn:aws:iam::{DRY_RUN_ACCOUNT}:role/{role}",
    )


def dry_calls(kind: str, config: Config, directory: Path) -> list[ApiCall]:
    """The requests of a job kind, made without asking anybody.

    Args:
        kind: `train`, `transform` or `deploy`.
        config: the project's.
        directory: where its relative paths start.

    Raises:
        ConfigError: something needed is not configured, or a request is one the service would refuse.
    """
    calls = _dry_calls(kind, config, dry_context(config), directory)
    refuse_secrets(calls)
    for call in calls:
        refuse_malformed(call)
    return calls


def _dry_calls(kind: str, config: Config, context: JobContext, directory: Path) -> list[ApiCall]:
    if kind == "train":
        training.refuse_missing(config.training, directory)
        return training.calls(config, context)
    if kind == "transform":
        model = config.transform.model or DRY_RUN_JOB
        return transform.calls(config, context, _dry_model(config, context, directory, model))
    models = {
        name: _dry_model(config, context, directory, model or DRY_RUN_JOB)
        for name, model in endpoint.models_of(config.endpoint).items()
    }
    *parts, create = endpoint.calls(config, context, models)
    name = create.request["EndpointConfigName"]
    update = [update_call(config, name, alarms.names(config))] if config.endpoint.rollout else []
    hosted = components.calls(config, context, models)
    return [*parts, *alarms.calls(config), create, *update, *hosted, *scaling.calls(config)]


def _dry_model(config: Config, context: JobContext, directory: Path, model: str) -> ServedModel:
    return ServedModel(with_code_uri(config, context, directory, model_data_uri(config, context, model)))
