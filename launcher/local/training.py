"""The life of one training job: prepare, download, train, upload, and the true end."""

import signal
import time
from pathlib import Path
from typing import Any

from container import contract
from container.contract import OptMl, truncate_utf8
from launcher.local import artifacts
from launcher.local.buckets import BucketError, parse_s3_uri
from launcher.local.channels import file_system_mounts, provide
from launcher.local.checkpoints import CheckpointSync
from launcher.local.cluster import Outcome, supervise
from launcher.local.containers import TRAIN, Container, ContainerSpec, ContainerStartError, free_port
from launcher.local.errors import JobFailed
from launcher.local.logs import TRAINING_GROUP, LogStream
from launcher.local.metrics import MetricScanner
from launcher.local.opt_ml import write_training_input
from launcher.local.pipes import PipeFeeder
from launcher.local.platform import SHUTDOWN_REASON, JobControl, Platform, stop_all
from launcher.local.store import TRAINING_JOB, Document
from launcher.local.training_request import (
    failure_reason,
    host_names,
    hosts_of_groups,
    job_environment,
    max_runtime_seconds,
    next_transitions,
)

KILLED = 128 + signal.SIGKILL


class TrainingJob:
    """Runs one job; `run` is called once, on a thread of the job queue."""

    def __init__(self, platform: Platform, request: Document) -> None:
        self._platform = platform
        self._request = request
        self._name = request["TrainingJobName"]
        self._hosts = host_names(request)
        self._channels = request.get("InputDataConfig", [])
        self._directory = platform.jobs_directory / TRAINING_JOB.arn_type / self._name
        self._trees = {host: OptMl(self._directory / host / "ml") for host in self._hosts}
        self._network = f"slipway-{self._name}"
        definitions = request["AlgorithmSpecification"].get("MetricDefinitions", [])
        self._metrics = MetricScanner(definitions, self._name, platform.region)
        self._feeders: list[PipeFeeder] = []
        self._master_port = free_port()
        self._billable_seconds = 0.0
        self._retries_left = request.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)

    def run(self, control: JobControl) -> None:
        try:
            while not self._run_once(control):
                pass
        except (JobFailed, BucketError, ContainerStartError) as error:
            self._end("Failed", "Failed", str(error) if isinstance(error, JobFailed) else f"ClientError: {error}")
        except Exception as error:
            self._end("Failed", "Failed", f"InternalServerError: {type(error).__name__}: {error}")
            raise
        finally:
            self._platform.runtime.remove_network(self._network)
            self._remove_trees()

    def _run_once(self, control: JobControl) -> bool:
        """One attempt; False after a spot interruption, or where RetryStrategy asks for the next one."""
        if control.stop_requested:
            self._end("Stopped", "Stopped")
            return True
        if control.shutdown_requested:
            raise JobFailed(SHUTDOWN_REASON)
        self._lay_out()
        checkpoints = self._download()
        outcome = self._train(control, checkpoints)
        if outcome.secondary_status == "Interrupted" or self._retries(outcome):
            control.interrupt_requested = False
            self._remove_trees()
            self._transition("Starting")
            return False
        self._finish(outcome)
        return True

    def _retries(self, outcome: Outcome) -> bool:
        """Whether to try again: SageMaker does after an error of its own, for which a killed container stands here."""
        if outcome.exit_code != KILLED or not self._retries_left:
            return False
        self._retries_left -= 1
        self._warn(f"the container of {outcome.failed_host} was killed; trying again, {self._retries_left} more times")
        return True

    # --- before -----------------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        interface = "lo" if self._platform.runtime.name == "process" else contract.DEFAULT_NETWORK_INTERFACE
        for host, tree in self._trees.items():
            write_training_input(tree, self._request, host, self._hosts, interface)

    def _download(self) -> CheckpointSync | None:
        self._transition("Downloading")
        for channel in self._channels:
            source = channel["DataSource"].get("S3DataSource")
            if source is not None:
                hosts = hosts_of_groups(self._request, source.get("InstanceGroupNames", []))
                trees = {host: self._trees[host] for host in hosts}
                self._feeders += provide(self._platform.buckets, self._request, channel, trees)
        if "CheckpointConfig" not in self._request:
            return None
        directories = {host: self._checkpoint_directory(tree) for host, tree in self._trees.items()}
        sync = CheckpointSync(self._platform.buckets, self._request["CheckpointConfig"]["S3Uri"], directories)
        sync.restore()
        return sync

    def _checkpoint_directory(self, tree: OptMl) -> Path:
        local_path = Path(self._request["CheckpointConfig"].get("LocalPath") or contract.BASE_DIR / "checkpoints")
        return tree.base / local_path.relative_to(contract.BASE_DIR)

    # --- while ------------------------------------------------------------------------------------------------------

    def _train(self, control: JobControl, checkpoints: CheckpointSync | None) -> Outcome:
        containers: dict[str, Container] = {}
        streams: list[LogStream] = []
        self._transition("Training")
        began = time.time()
        self._update(TrainingStartTime=self._document().get("TrainingStartTime", began))
        if checkpoints:
            checkpoints.start()
        try:
            stamp = int(began * 1000)
            for host in self._hosts:
                stream = self._platform.logs.stream(TRAINING_GROUP, f"{self._name}/{host}-{stamp}")
                streams.append(stream)
                containers[host] = self._start(host, stream)
            deadline = began + max_runtime_seconds(self._request) - self._billable_seconds
            return supervise(containers, control, deadline, contract.TRAINING_STOP_SECONDS, self._report)
        finally:
            stop_all(list(containers.values()), 0)
            self._stop_feeders()
            if checkpoints:
                checkpoints.finish()
            for stream in streams:
                stream.close()
            self._billable_seconds += time.time() - began

    def _start(self, host: str, stream: LogStream) -> Container:
        def keep(line: str) -> None:
            stream.write(line)
            self._metrics.scan(line)

        algorithm = self._request["AlgorithmSpecification"]
        isolated = self._request.get("EnableNetworkIsolation", False)
        spec = ContainerSpec(
            name=f"{self._network}-{host}-{stream.name.rpartition('-')[2]}",
            image=algorithm["TrainingImage"],
            argument=TRAIN,
            opt_ml=self._trees[host],
            environment=self._platform.credentials(isolated) | self._rendezvous() | self._job_environment(),
            entrypoint=tuple(algorithm.get("ContainerEntrypoint", ())),
            arguments=tuple(algorithm.get("ContainerArguments", ())),
            network=self._network,
            alias=host,
            isolated=isolated,
            mounts=file_system_mounts(self._platform.home, self._channels, self._trees[host]),
        )
        return self._platform.runtime.start(spec, keep)

    def _job_environment(self) -> dict[str, str]:
        return job_environment(self._request, self._platform.arn(TRAINING_JOB, self._name))

    def _rendezvous(self) -> dict[str, str]:
        """Processes share one machine: its loopback address and a free port stand for the first host's."""
        if self._platform.runtime.name != "process":
            return {}
        return {contract.MASTER_ADDR: "127.0.0.1", contract.MASTER_PORT_VARIABLE: str(self._master_port)}

    def _report(self, secondary_status: str) -> None:
        if secondary_status == "Stopping":
            self._update(TrainingJobStatus="Stopping")
        self._transition(secondary_status)

    # --- after ------------------------------------------------------------------------------------------------------

    def _finish(self, outcome: Outcome) -> None:
        for tree in self._trees.values():
            self._platform.runtime.reclaim(tree.base, self._request["AlgorithmSpecification"]["TrainingImage"])
        if outcome.secondary_status == "Failed":
            self._upload("output.tar.gz", [tree.output_data for tree in self._trees.values()])
            path = self._trees[outcome.failed_host].failure
            text = path.read_text("utf-8", "replace").strip() if path.is_file() else ""
            raise JobFailed(failure_reason(text, outcome.exit_code))
        self._transition("Uploading")
        uri = self._upload("model.tar.gz", [tree.model for tree in self._trees.values()])
        self._upload("output.tar.gz", [tree.output_data for tree in self._trees.values()])
        if uri:
            self._update(ModelArtifacts={"S3ModelArtifacts": uri})
        self._end("Completed" if outcome.secondary_status == "Completed" else "Stopped", outcome.secondary_status)

    def _upload(self, archive: str, directories: list[Path]) -> str:
        """Merge the hosts' directories into one archive below S3OutputPath; its URI."""
        files, clashes = artifacts.files_of(directories)
        for name in clashes:
            self._warn(f"{name} of {archive} was written by more than one host; the first host's file is kept")
        output = self._request["OutputDataConfig"]
        folder = f"{output['S3OutputPath'].rstrip('/')}/{self._name}/output"
        if output.get("CompressionType") == "NONE":
            return self._upload_files(files, f"{folder}/{archive.removesuffix('.tar.gz')}/")
        if archive == "output.tar.gz" and not files:
            return ""
        bucket, key = parse_s3_uri(f"{folder}/{archive}")
        self._platform.buckets.write(bucket, key, artifacts.pack(files), "application/x-tar")
        return f"s3://{bucket}/{key}"

    def _upload_files(self, files: dict[str, Path], folder: str) -> str:
        bucket, prefix = parse_s3_uri(folder)
        for name, path in files.items():
            self._platform.buckets.write(bucket, prefix + name, path.read_bytes())
        return folder

    def _warn(self, line: str) -> None:
        stream = self._platform.logs.stream(TRAINING_GROUP, f"{self._name}/platform")
        stream.write(f"WARNING: {line}")
        stream.close()

    def _stop_feeders(self) -> None:
        for feeder in self._feeders:
            feeder.stop()
        self._feeders.clear()

    def _remove_trees(self) -> None:
        self._stop_feeders()
        if self._directory.exists():
            self._platform.runtime.reclaim(self._directory, self._request["AlgorithmSpecification"]["TrainingImage"])
            artifacts.remove_tree(self._directory)

    # --- status -----------------------------------------------------------------------------------------------------

    def _document(self) -> Document:
        return self._platform.store.find(TRAINING_JOB, self._name) or {}

    def _update(self, **members: Any) -> None:
        self._platform.store.update(TRAINING_JOB, self._name, **members)

    def _transition(self, secondary_status: str) -> None:
        transitions = next_transitions(self._document()["SecondaryStatusTransitions"], secondary_status, time.time())
        self._update(SecondaryStatus=secondary_status, SecondaryStatusTransitions=transitions)

    def _end(self, status: str, secondary_status: str, reason: str | None = None) -> None:
        now = time.time()
        transitions = next_transitions(self._document()["SecondaryStatusTransitions"], secondary_status, now)
        transitions[-1]["EndTime"] = now
        self._update(
            TrainingJobStatus=status,
            SecondaryStatus=secondary_status,
            SecondaryStatusTransitions=transitions,
            TrainingEndTime=now,
            TrainingTimeInSeconds=max(1, round(self._billable_seconds)),
            BillableTimeInSeconds=max(1, round(self._billable_seconds)),
            FinalMetricDataList=self._metrics.final(),
            **({"FailureReason": truncate_utf8(reason, contract.FAILURE_REASON_LIMIT)} if reason else {}),
        )
