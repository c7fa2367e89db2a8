"""The life of one processing job: download, run, upload, and the true end."""

import time
from collections.abc import Mapping
from typing import Any

from container import contract
from container.contract import OptMl, truncate_utf8
from launcher.local import artifacts
from launcher.local.buckets import BucketError, parse_s3_uri
from launcher.local.checkpoints import CheckpointSync
from launcher.local.cluster import Outcome, supervise
from launcher.local.containers import Container, ContainerSpec, ContainerStartError
from launcher.local.errors import JobFailed
from launcher.local.inputs import download, shard, source_objects
from launcher.local.logs import PROCESSING_GROUP, LogStream
from launcher.local.opt_ml import below, processing_outputs, write_processing_input
from launcher.local.platform import SHUTDOWN_REASON, JobControl, Platform, stop_all
from launcher.local.store import PROCESSING_JOB, Document

STOP_SECONDS = 30.0  # from SIGTERM to SIGKILL; the service's own grace is not documented
DEFAULT_RUNTIME_SECONDS = 86400  # ProcessingStoppingCondition: "the default value is 1 day"


class ProcessingJob:
    """Runs one job; `run` is called once, on a thread of the job queue."""

    def __init__(self, platform: Platform, request: Document) -> None:
        self._platform = platform
        self._request = request
        self._name = request["ProcessingJobName"]
        self._arn = platform.arn(PROCESSING_JOB, self._name)
        self._image = request["AppSpecification"]["ImageUri"]
        count = request["ProcessingResources"]["ClusterConfig"]["InstanceCount"]
        self._hosts = [f"algo-{index}" for index in range(1, count + 1)]
        self._directory = platform.jobs_directory / PROCESSING_JOB.arn_type / self._name
        self._trees = {host: OptMl(self._directory / host / "ml") for host in self._hosts}
        self._network = f"slipway-processing-{self._name}"

    def run(self, control: JobControl) -> None:
        try:
            self._run(control)
        except (JobFailed, BucketError, ContainerStartError) as error:
            self._end("Failed", str(error) if isinstance(error, JobFailed) else f"ClientError: {error}")
        except Exception as error:
            self._end("Failed", f"InternalServerError: {type(error).__name__}: {error}")
            raise
        finally:
            self._platform.runtime.remove_network(self._network)
            if self._directory.exists():
                self._platform.runtime.reclaim(self._directory, self._image)
                artifacts.remove_tree(self._directory)

    def _run(self, control: JobControl) -> None:
        if control.stop_requested:
            self._end("Stopped")
            return
        if control.shutdown_requested:
            raise JobFailed(SHUTDOWN_REASON)
        for host, tree in self._trees.items():
            write_processing_input(tree, self._request, self._arn, host, self._hosts)
        self._download()
        outcome = self._process(control)
        self._platform.runtime.reclaim(self._directory, self._image)
        self._upload()
        message = self._exit_message()
        if outcome.secondary_status == "Failed":
            raise JobFailed(f"AlgorithmError: {message or 'See job logs for more information'}")
        self._end("Completed" if outcome.secondary_status == "Completed" else "Stopped")

    def _download(self) -> None:
        for item in self._request.get("ProcessingInputs", []):
            if item.get("AppManaged", False):
                continue
            source = item["S3Input"]
            objects = source_objects(self._platform.buckets, source)
            distribution = source.get("S3DataDistributionType", "FullyReplicated")
            for index, tree in enumerate(self._trees.values()):
                mine = shard(objects, index, len(self._hosts), distribution)
                download(self._platform.buckets, mine, below(tree, source["LocalPath"]))

    def _process(self, control: JobControl) -> Outcome:
        began = time.time()
        self._update(ProcessingStartTime=began)
        containers: dict[str, Container] = {}
        streams: list[LogStream] = []
        syncs = self._continuous_outputs()
        try:
            for host in self._hosts:
                stream = self._platform.logs.stream(PROCESSING_GROUP, f"{self._name}/{host}-{int(began * 1000)}")
                streams.append(stream)
                containers[host] = self._platform.runtime.start(self._spec(host), stream.write)
            limit = self._request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_SECONDS)
            return supervise(containers, control, began + limit, STOP_SECONDS, lambda _: self._stopping())
        finally:
            stop_all(list(containers.values()), 0)
            for sync in syncs:
                sync.finish()
            for stream in streams:
                stream.close()

    def _spec(self, host: str) -> ContainerSpec:
        application = self._request["AppSpecification"]
        isolated = self._request.get("NetworkConfig", {}).get("EnableNetworkIsolation", False)
        own = {"PROCESSING_JOB_NAME": self._name, "PROCESSING_JOB_ARN": self._arn}
        return ContainerSpec(
            name=f"{self._network}-{host}",
            image=self._image,
            argument="",
            opt_ml=self._trees[host],
            environment=self._platform.credentials(isolated) | own | self._request.get("Environment", {}),
            entrypoint=tuple(application.get("ContainerEntrypoint", ())),
            arguments=tuple(application.get("ContainerArguments", ())),
            network=self._network,
            alias=host,
            isolated=isolated,
        )

    def _continuous_outputs(self) -> list[CheckpointSync]:
        syncs = []
        for output in processing_outputs(self._request):
            if output["S3UploadMode"] == "Continuous":
                directories = {host: below(tree, output["LocalPath"]) for host, tree in self._trees.items()}
                sync = CheckpointSync(self._platform.buckets, output["S3Uri"], directories, deletes=False)
                sync.start()
                syncs.append(sync)
        return syncs

    def _upload(self) -> None:
        """Every output of every host; "symlinks are not followed"."""
        for output in processing_outputs(self._request):
            bucket, prefix = parse_s3_uri(output["S3Uri"])
            files, _ = artifacts.files_of([below(tree, output["LocalPath"]) for tree in self._trees.values()])
            for name, path in files.items():
                if not path.is_symlink():
                    key = f"{prefix.rstrip('/')}/{name}".lstrip("/")
                    self._platform.buckets.write(bucket, key, path.read_bytes())

    def _exit_message(self) -> str:
        """ExitMessage: what all hosts left, cut to 1 KB.

        Raises:
            JobFailed: a host left something that is not UTF-8.
        """
        paths = [tree.exit_message for tree in self._trees.values() if tree.exit_message.is_file()]
        try:
            text = "".join(path.read_text("utf-8") for path in paths)
        except UnicodeDecodeError as error:
            raise JobFailed(f"ClientError: the exit message is not UTF-8: {error}") from error
        message = truncate_utf8(text, contract.EXIT_MESSAGE_LIMIT_BYTES)
        if message:
            self._update(ExitMessage=message)
        return message

    def _stopping(self) -> None:
        self._update(ProcessingJobStatus="Stopping")

    def _end(self, status: str, reason: str | None = None) -> None:
        members: Mapping[str, Any] = {}
        if reason:
            members = {"FailureReason": truncate_utf8(reason, contract.FAILURE_REASON_LIMIT)}
        self._update(ProcessingJobStatus=status, ProcessingEndTime=time.time(), **members)

    def _update(self, **members: Any) -> None:
        self._platform.store.update(PROCESSING_JOB, self._name, **members)
