"""Watches a job or endpoint until it is done, the same way for every kind: statuses, logs of all hosts, the outcome."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from botocore.exceptions import ClientError

from launcher.aws import Aws, refusals
from launcher.errors import AwsRefused, Detached, JobFailed, JobStopped, TimedOut
from launcher.explain import explain
from launcher.jobs.api import ApiCall

logger = logging.getLogger(__name__)
container_logger = logging.getLogger(f"{__name__}.container")

FIRST_POLL_SECONDS = 0.5  # a local job of seconds should be seen ending; polls then slow down for jobs of hours
LAST_POLL_SECONDS = 10.0
METRICS_SECONDS = 30.0  # between two lines of metrics: a log that tells each value at once drowns them
POLL_SHARE = 0.03  # of the time waited so far: nobody notices 3 %
LINES_PER_STREAM = 1000
LOG_POLL_SECONDS = 2.0
LOG_TAIL_LINES = 1000  # which the cause of a failure is looked for in
TIME_LIMIT_STATUSES = frozenset({"MaxRuntimeExceeded", "MaxWaitTimeExceeded"})


@dataclass(frozen=True)
class JobKind:
    """How one kind of job is described, stopped and listed: member names of the API."""

    title: str
    noun: str
    """The API's word for it, as in DescribeTrainingJob."""
    name_member: str
    status_member: str
    log_group: str
    """`{name}` stands for the job's."""
    good: frozenset[str] = frozenset({"Completed"})
    bad: frozenset[str] = frozenset({"Failed", "Stopped"})
    running: str = "InProgress"

    def describe(self, aws: Aws, name: str) -> dict[str, Any]:
        """The description of one job."""
        return aws.call("sagemaker", f"Describe{self.noun}", **{self.name_member: name})

    def stop_call(self, name: str) -> ApiCall:
        """The request that ends it."""
        verb = "Delete" if self.noun == "Endpoint" else "Stop"
        return ApiCall("sagemaker", f"{verb}{self.noun}", {self.name_member: name})

    def log_streams(self, name: str) -> tuple[str, str]:
        """Log group and the prefix of the job's streams in it."""
        shared_group = "{name}" not in self.log_group
        return self.log_group.format(name=name), f"{name}/" if shared_group else ""


TRAINING = JobKind("training job", "TrainingJob", "TrainingJobName", "TrainingJobStatus", "/aws/sagemaker/TrainingJobs")
TRANSFORM = JobKind(
    "transform job", "TransformJob", "TransformJobName", "TransformJobStatus", "/aws/sagemaker/TransformJobs"
)
ENDPOINT = JobKind(
    "endpoint",
    "Endpoint",
    "EndpointName",
    "EndpointStatus",
    "/aws/sagemaker/Endpoints/{name}",
    good=frozenset({"InService"}),
    bad=frozenset({"Failed", "OutOfService", "UpdateRollbackFailed"}),
)
KINDS = (TRAINING, TRANSFORM, ENDPOINT)


@dataclass(frozen=True)
class LogLine:
    """One line a container wrote."""

    timestamp: int
    """Milliseconds since 1970."""
    stream: str
    message: str

    @property
    def host(self) -> str:
        """`algo-1` of the stream `job/algo-1-1700000000`."""
        tail = self.stream.rpartition("/")[2]
        return "-".join(tail.split("-")[:2])

    @property
    def text(self) -> str:
        """The message after its host's name, unless it names the host and its rank itself."""
        return self.message if self.message.startswith(f"[{self.host} ") else f"[{self.host}] {self.message}"


def by_time(lines: list[LogLine]) -> list[LogLine]:
    """Lines of several streams merged; those of one stream with the same time stay in the order they were written."""
    return sorted(lines, key=lambda line: (line.timestamp, line.stream))


@dataclass
class LogFollower:
    """Reads what is new in all log streams of a job, merged by time."""

    aws: Aws
    group: str
    prefix: str
    since: int = 0
    """Milliseconds since 1970; an endpoint's name lives longer than its containers."""
    tail: list[LogLine] = field(default_factory=list)
    _tokens: dict[str, str] = field(default_factory=dict)

    def read(self) -> list[LogLine]:
        """Lines since the last call, oldest first."""
        names = stream_names(self.aws, self.group, self.prefix)
        lines = by_time([line for stream in names for line in self._new_lines(stream)])
        self.tail = [*self.tail, *lines][-LOG_TAIL_LINES:]
        return lines

    def _new_lines(self, stream: str) -> Iterator[LogLine]:
        while True:
            token = {"nextToken": self._tokens[stream]} if stream in self._tokens else {}
            reply = self.aws.call(
                "logs",
                "GetLogEvents",
                logGroupName=self.group,
                logStreamName=stream,
                startFromHead=True,
                startTime=self.since,
                **token,
            )
            for event in reply["events"]:
                yield LogLine(event["timestamp"], stream, event["message"].rstrip("\n"))
            before, self._tokens[stream] = self._tokens.get(stream), reply["nextForwardToken"]
            if not reply["events"] or before == reply["nextForwardToken"]:
                return


def stream_names(aws: Aws, group: str, prefix: str) -> list[str]:
    """Log streams of a group; none where nothing has been written yet."""
    wanted: dict[str, str] = {"logStreamNamePrefix": prefix} if prefix else {}
    try:
        pages = aws.client("logs").get_paginator("describe_log_streams").paginate(logGroupName=group, **wanted)
        return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            return []
        with refusals("DescribeLogStreams"):
            raise


def last_lines(aws: Aws, kind: JobKind, name: str, since: datetime) -> list[LogLine]:
    """The end of every log stream of a job, merged by time.

    Args:
        aws: where it is.
        kind: of the job.
        name: of the job.
        since: when it was created; an endpoint's name, and its log, live longer than the endpoint.
    """
    group, prefix = kind.log_streams(name)
    lines: list[LogLine] = []
    for stream in stream_names(aws, group, prefix):
        reply = aws.call(
            "logs",
            "GetLogEvents",
            logGroupName=group,
            logStreamName=stream,
            startFromHead=False,
            startTime=int(since.timestamp() * 1000),
            limit=LINES_PER_STREAM,
        )
        lines += [LogLine(event["timestamp"], stream, event["message"].rstrip("\n")) for event in reply["events"]]
    return by_time(lines)


def follow(
    aws: Aws,
    kind: JobKind,
    name: str,
    timeout_seconds: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Show statuses and log lines until the job has ended well.

    Returns:
        Its last description.

    Raises:
        JobFailed: it ended otherwise; the message holds the reason, the cause where it is a known one, and what to do.
        JobStopped: it was stopped on request.
        TimedOut: it ran into its own time limit, or this wait did.
        Detached: the user pressed Ctrl-C; the job goes on.
    """
    follower = LogFollower(aws, *kind.log_streams(name))
    watcher = StatusWatcher(kind)
    started = time.monotonic()
    if kind is ENDPOINT:
        description = kind.describe(aws, name)
        if description[kind.status_member] in kind.good:  # what it has logged since then is of other days
            watcher.show(description)
            return description
        follower.since = int(description["LastModifiedTime"].timestamp() * 1000)
    try:
        while True:
            description = kind.describe(aws, name)
            show_lines(follower.read())
            watcher.show(description)
            status = description[kind.status_member]
            if status in kind.good:
                return description
            if status in kind.bad:
                show_lines(follower.read())  # CloudWatch is a little late
                raise _failure(kind, name, description, follower)
            waited = time.monotonic() - started
            if timeout_seconds is not None and waited > timeout_seconds:
                raise TimedOut(f"{kind.title} {name} is still {status} after {timeout_seconds:.0f} s; it goes on")
            sleep(min(max(waited * POLL_SHARE, FIRST_POLL_SECONDS), LAST_POLL_SECONDS))
    except KeyboardInterrupt as error:
        verb = "delete" if kind is ENDPOINT else "stop"
        raise Detached(
            f"no longer watching {name}; it goes on. "
            f"attach again: python -m launcher attach {name}{aws.flags}   "
            f"end it: python -m launcher {verb} {name}{aws.flags}"
        ) from error


def show_lines(lines: list[LogLine]) -> None:
    """Log lines of the containers, each after its host's name."""
    for line in lines:
        container_logger.info("%s", line.text)


def follow_log(follower: LogFollower, sleep: Callable[[float], None] = time.sleep) -> NoReturn:
    """Show what is new until Ctrl-C: the log of an endpoint has no end."""
    while True:
        show_lines(follower.read())
        sleep(LOG_POLL_SECONDS)


@dataclass
class StatusWatcher:
    """Tells each status once, and now and then how far the metrics are."""

    kind: JobKind
    _last: str = ""
    _metrics: str = ""
    _metrics_told: float = field(default_factory=time.monotonic)

    def show(self, description: dict[str, Any]) -> None:
        """One line when the status differs from the last one told."""
        status = description[self.kind.status_member]
        secondary = description.get("SecondaryStatus", status)
        transitions = description.get("SecondaryStatusTransitions") or [{}]
        message = transitions[-1].get("StatusMessage", "")
        text = " · ".join(dict.fromkeys(filter(None, (status, secondary, message, *rollout_states(description)))))
        if text != self._last:
            logger.info("-> %s", text)
            self._last = text
        metrics = metrics_text(description)
        if metrics != self._metrics and time.monotonic() - self._metrics_told >= METRICS_SECONDS:
            logger.info("   %s", metrics)
            self._metrics, self._metrics_told = metrics, time.monotonic()


def metrics_text(description: dict[str, Any]) -> str:
    """The newest value of each metric of a training job: `train:loss 0.47, validation:accuracy 0.9`."""
    found = description.get("FinalMetricDataList", [])
    return ", ".join(f"{item['MetricName']} {item['Value']:.4g}" for item in found)


def rollout_states(description: dict[str, Any]) -> list[str]:
    """What an endpoint's update is doing: `Baking: 10% of the traffic`."""
    variants = description.get("PendingDeploymentSummary", {}).get("ProductionVariants", [])
    return [
        ": ".join(filter(None, (item["Status"], item.get("StatusMessage", ""))))
        for variant in variants
        for item in variant.get("VariantStatus", [])
    ]


def _failure(kind: JobKind, name: str, description: dict[str, Any], follower: LogFollower) -> Exception:
    status = description[kind.status_member]
    secondary = description.get("SecondaryStatus", status)
    reason = description.get("FailureReason") or "no reason given"
    if status == "Stopped" and secondary in TIME_LIMIT_STATUSES:
        return TimedOut(
            f"{kind.title} {name} ran into its time limit ({secondary}); what it saved is kept. "
            "raise training.max_runtime, and set training.checkpoints to continue from there"
        )
    if status == "Stopped":
        return JobStopped(f"{kind.title} {name} was stopped on request, before it had finished")
    found = explain(name, status, description, [line.text for line in follower.tail], follower.aws.flags)
    return JobFailed("\n".join([f"{kind.title} {name} {status}: {reason}", *found.advice()]))


def find_kind(aws: Aws, name: str) -> JobKind:
    """Which kind of job has this name.

    Raises:
        AwsRefused: there is none.
    """
    for kind in KINDS:
        try:
            kind.describe(aws, name)
        except AwsRefused as error:
            cause = error.__cause__
            code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""
            if code not in {"ValidationException", "ResourceNotFound", "ResourceNotFoundException"}:
                raise
        else:
            return kind
    raise AwsRefused(
        f"no training job, transform job or endpoint is named {name!r}; `python -m launcher jobs` lists them"
    )
