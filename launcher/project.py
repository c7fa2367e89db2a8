"""A project's configuration meets an account: names and places are decided, inputs uploaded, requests sent."""

import logging
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import load_times
from launcher.account.secrets import refuse_secrets
from launcher.checksum import digest
from launcher.config import Config
from launcher.console import size_text
from launcher.errors import AwsRefused, ConfigError, JobFailed
from launcher.jobs import training, transform
from launcher.jobs.api import ApiCall, JobContext, Upload, content_name, s3_join, tag_list, unique_name
from launcher.jobs.common import data_directories, is_local_model, model_data_uri, project_uri
from launcher.jobs.model import ServedModel
from launcher.packing import code_digest
from launcher.provenance import provenance

if TYPE_CHECKING:
    from launcher.aws import Aws
    from launcher.data import Progress

logger = logging.getLogger(__name__)

CONTENT_DIGITS = 12  # of an archive's digest, in the place it is uploaded to
NO_CAPACITY = re.compile(r"CapacityError|InsufficientInstanceCapacity|InsufficientCapacity")


def new_job_name(config: Config) -> str:
    """A name for a job that starts now."""
    return unique_name(config.name, datetime.now(UTC), secrets.token_hex(2))


def default_bucket(region: str, account: str) -> str:
    """The bucket every SageMaker tool uses where none is named."""
    return f"sagemaker-{region}-{account}"


def with_code_uri(config: Config, context: JobContext, directory: Path, uri: str) -> str:
    """Where a model archive lies once it holds the project's serving code; itself where there is none.

    The place is made of the archive's URI and the code's content, so that a change of either is another model.

    Raises:
        ConfigError: the code directory is missing or empty.
    """
    if not config.endpoint.code or config.endpoint.multi_model:
        return uri
    code = code_digest(directory / config.endpoint.code, data_directories(config, directory))
    name = content_name("model", {"archive": uri, "code": code})
    return project_uri(config, context, "models", name, "model.tar.gz")


@dataclass(frozen=True)
class Project:
    """A configuration with the account it works in."""

    config: Config
    directory: Path
    aws: "Aws"
    progress: "Progress"
    home: Path = Path(".launcher")
    """Where this machine's notes lie."""

    def context(self, job_name: str | None = None) -> JobContext:
        """What requests need to know of the account; creates the bucket where it is missing."""
        bucket = self.config.bucket or default_bucket(self.config.region, self.aws.account)
        self.aws.ensure_bucket(bucket)
        return JobContext(
            job_name=job_name or new_job_name(self.config),
            account=self.aws.account,
            region=self.config.region,
            bucket=bucket,
            role_arn=self.aws.role_arn(self.config.role),
        )

    def start_training(self, instance_type: str | None = None) -> str:
        """Upload the inputs and send the request.

        Args:
            instance_type: this one alone, whatever is configured.

        Returns:
            The job's name.
        """
        training.refuse_missing(self.config.training, self.directory)
        context = self.context()
        digests = self._upload(training.uploads(self.config, context, self.directory))
        (call,) = training.calls(self.config, context, instance_type)
        call.request["Tags"] += tag_list(provenance(self.directory, digests))
        self.send([call])
        return context.job_name

    def train(self, follow: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Run a training job to its end; on spot, without capacity for one instance type, on the next.

        On demand, SageMaker is given all types in one request and takes the first that it has.

        Args:
            follow: waits for the job of a name and returns its description.

        Raises:
            AwsRefused: the request was refused, and not for want of capacity.
            JobFailed: the job failed, and not for want of capacity.
        """
        if training.sagemaker_chooses(self.config.training):
            return follow(self.start_training())
        *others, last = training.types_of(self.config.training)
        for instance_type in others:
            try:
                return follow(self.start_training(instance_type))
            except (AwsRefused, JobFailed) as error:
                if not NO_CAPACITY.search(str(error)):
                    raise
                logger.warning("there is no capacity for %s; trying the next type", instance_type)
        return follow(self.start_training(last))

    def start_transform(self) -> str:
        """Upload the inputs and send the requests.

        Returns:
            The job's name.
        """
        context = self.context()
        model = self.served_model(context, self.config.transform.model or "")
        calls = transform.calls(self.config, context, model)
        self._upload(transform.uploads(self.config, context, self.directory))
        self.send([call for call in calls if not self.exists(call)])
        return context.job_name

    def served_model(self, context: JobContext, model: str) -> ServedModel:
        """The archive a configured model means: an S3 URI, a local file (uploaded now) or a training job's.

        Raises:
            ConfigError: there is no such archive.
        """
        from launcher import data

        name = model or self.newest_training_job()
        if is_local_model(name):
            uri = self._upload_model(context, name)
        else:
            uri = name if name.startswith("s3://") else self.artifact_uri(name)
        if self.config.endpoint.multi_model:
            return ServedModel(uri)  # a prefix
        found = data.stored(self.aws, uri)
        if found is None:
            raise ConfigError(f"there is no model archive at {uri}; name a finished job, an S3 URI or a local file")
        target = self._with_code(context, uri)
        if target != uri:
            found = data.stored(self.aws, target) or found
        entry = load_times.known(self.home, found.etag)
        return ServedModel(target, found.bytes, found.etag, entry.measured if entry else None)

    def _upload_model(self, context: JobContext, name: str) -> str:
        """Where a local archive lies, after its upload: other content has another place.

        The model that SageMaker knows points there: an archive that was packed anew must become another model, and
        what served before must find its own when the endpoint goes back to it.
        """
        from launcher import data

        path = self.directory / name
        folder, _, file = model_data_uri(self.config, context, name).rpartition("/")
        content = digest(path).etag[:CONTENT_DIGITS] if path.is_file() else ""
        uri = f"{folder}/{content}/{file}"
        data.upload(self.aws, path, uri, self.progress)
        return uri

    def _with_code(self, context: JobContext, uri: str) -> str:
        """The archive with the project's serving code in it, made and uploaded where it is not there yet."""
        from launcher import data, packing

        target = with_code_uri(self.config, context, self.directory, uri)
        if target == uri or data.stored(self.aws, target) is not None:
            return target
        code = self.directory / str(self.config.endpoint.code)
        with tempfile.TemporaryDirectory() as folder:
            data.download(self.aws, uri, Path(folder) / "in", self.progress)
            packed = Path(folder) / "model.tar.gz"
            archive = Path(folder) / "in" / uri.rpartition("/")[2]
            packing.repack(archive, code, packed, data_directories(self.config, self.directory))
            data.upload(self.aws, packed, target, self.progress)
        logger.info("-> put %s into the model: %s", code, target)
        return target

    def artifact_uri(self, job_name: str) -> str:
        """Where a training job left its model.

        Raises:
            ConfigError: it has not finished.
        """
        description = self.aws.call("sagemaker", "DescribeTrainingJob", TrainingJobName=job_name)
        uri = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
        if not uri:
            status = description["TrainingJobStatus"]
            raise ConfigError(f"training job {job_name} is {status} and has no model yet; wait for it with `logs -f`")
        return uri

    def output_uri(self, job_name: str) -> str:
        """The folder of what a job left: answers, or model and output.tar.gz; a failed one left the latter alone.

        Raises:
            ConfigError: there is no such job, or the training job has not ended.
        """
        description = self.describe_or_none("TrainingJob", job_name)
        if description is None:
            transformed = self.describe_or_none("TransformJob", job_name)
            if transformed is None:
                raise ConfigError(f"no training or transform job is named {job_name!r}")
            return s3_join(transformed["TransformOutput"]["S3OutputPath"], "")
        status = description["TrainingJobStatus"]
        if status in {"InProgress", "Stopping"}:
            raise ConfigError(f"training job {job_name} is {status}; wait for it with `logs -f`")
        return s3_join(description["OutputDataConfig"]["S3OutputPath"], job_name, "output", "")

    def newest_training_job(self) -> str:
        """The last training job of this project that has completed.

        Raises:
            ConfigError: there is none.
        """
        ours = re.compile(rf"{self.config.name}-\d{{8}}-\d{{6}}-\w+")  # not those of a project `<name>-other`
        jobs = self.aws.listed(
            "ListTrainingJobs",
            "TrainingJobSummaries",
            NameContains=self.config.name,
            StatusEquals="Completed",
            SortBy="CreationTime",
            SortOrder="Descending",
        )
        for summary in jobs:
            if ours.fullmatch(summary["TrainingJobName"]):
                return summary["TrainingJobName"]
        raise ConfigError(
            f"no training job of the project {self.config.name!r} has completed; run `python -m launcher train`, "
            "or name a model"
        )

    def exists(self, call: ApiCall) -> bool:
        """Whether what a Create request makes is there already (under its content-made name)."""
        noun = call.operation.removeprefix("Create")
        return noun in {"Model", "EndpointConfig"} and bool(self.describe_or_none(noun, call.request[f"{noun}Name"]))

    def describe_or_none(self, noun: str, name: str) -> dict[str, Any] | None:
        """A description, or None where there is nothing of that name."""
        from botocore.exceptions import ClientError

        try:
            return self.aws.call("sagemaker", f"Describe{noun}", **{f"{noun}Name": name})
        except AwsRefused as error:
            cause = error.__cause__
            code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""
            if code in {"ValidationException", "ResourceNotFound"}:
                return None
            raise

    def _upload(self, uploads: list[Upload]) -> list[str]:
        from launcher import data

        digests = []
        for item in uploads:
            done = data.upload(self.aws, item.source, item.uri, self.progress, item.without)
            digests.append(done.digest)
            logger.info(
                "-> uploaded %s: %d file%s (%s), %d were there, %.1f s",
                *(item.source, done.files, "s" if done.files != 1 else ""),
                size_text(done.bytes),
                done.skipped,
                done.seconds,
            )
        return digests

    def send(self, calls: list[ApiCall]) -> None:
        """Send requests in order, after a look for secrets."""
        refuse_secrets(calls)
        for call in calls:
            self.aws.send(call)
            logger.info("-> %s %s", call.operation, _name_in(call.request))


def _name_in(request: Mapping[str, Any]) -> str:
    return next(value for key, value in request.items() if key.endswith("Name"))
