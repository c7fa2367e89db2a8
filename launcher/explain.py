"""`explain`: why a job or endpoint failed, from its status, its reason and its log; with the lines that show it."""

import re
from dataclasses import dataclass, replace
from typing import Any

from launcher.aws import Aws
from launcher.causes import CAUSES, STOPPED, Cause
from launcher.run import JobKind, LogLine, by_time, stream_names

EVIDENCE_LINES = 5
LINES_PER_STREAM = 1000


@dataclass(frozen=True)
class Explanation:
    """What is known of a failure."""

    name: str
    status: str
    reason: str
    cause: Cause | None
    evidence: tuple[str, ...]
    also: tuple[str, ...]
    """Titles of other causes that show, too."""

    def lines(self) -> list[str]:
        """For a person."""
        text = [f"{self.name} is {self.status}" + (f": {self.reason}" if self.reason else "")]
        if self.cause is None:
            return [*text, "no known cause shows; the log's last lines:", *self.evidence]
        text += [f"cause: {self.cause.title} ({self.cause.code})", *(f"  {line}" for line in self.evidence)]
        text.append(f"fix: {self.cause.fix}")
        return text + [f"also seen: {title}" for title in self.also]


def explain(kind: JobKind, description: dict[str, Any], log: list[LogLine], flags: str = "") -> Explanation:
    """The likeliest cause of a failure: SageMaker's own words weigh more than a line of the log.

    Args:
        kind: of the job.
        description: its Describe reply.
        log: its last lines, oldest first.
        flags: options that the commands in the fix need, such as ` --local`.
    """
    status = description[kind.status_member]
    reason = description.get("FailureReason", "")
    told = [reason, *_statuses(description)]
    written = [line.text for line in log]
    name = description[kind.name_member]
    found = [(cause, _evidence(cause, told)) for cause in CAUSES if _evidence(cause, told)]
    if status == "Stopped" and not found:
        return Explanation(name, status, reason, STOPPED, tuple(_evidence(STOPPED, told)[:1]), ())
    if not found or found[0][0].code in {"memory", "exception"}:  # an exit code says less than the log does
        found += [(cause, _evidence(cause, written)) for cause in CAUSES if _evidence(cause, written)]
        found.sort(key=lambda pair: CAUSES.index(pair[0]))
    if not found:
        return Explanation(name, status, reason, None, tuple(written[-EVIDENCE_LINES:]), ())
    cause, evidence = found[0]
    more = [line for line in _evidence(cause, written) if line not in evidence]
    also = tuple(
        dict.fromkeys(other.title for other, _ in found[1:] if other is not cause and other.code != "exception")
    )
    cause = replace(cause, fix=_with_name(cause.fix, name, flags))
    return Explanation(name, status, reason, cause, tuple([*evidence, *more][:EVIDENCE_LINES]), also)


def _with_name(fix: str, name: str, flags: str) -> str:
    """The fix with commands to copy."""
    commands = r"`(python -m launcher (?:logs|invoke)[^`]*)`"
    return re.sub(commands, lambda match: f"`{match[1].replace('NAME', name)}{flags}`", fix)


def _statuses(description: dict[str, Any]) -> list[str]:
    transitions = description.get("SecondaryStatusTransitions", [])
    steps = [f"{step.get('Status', '')}: {step.get('StatusMessage', '')}" for step in transitions]
    return [*steps, description.get("SecondaryStatus", "")]


def _evidence(cause: Cause, lines: list[str]) -> list[str]:
    return [line for line in lines if re.search(cause.pattern, line, re.IGNORECASE)]


def last_lines(aws: Aws, kind: JobKind, name: str) -> list[LogLine]:
    """The end of every log stream of a job, merged by time."""
    group, prefix = kind.log_streams(name)
    lines: list[LogLine] = []
    for stream in stream_names(aws, group, prefix):
        reply = aws.call(
            "logs",
            "GetLogEvents",
            logGroupName=group,
            logStreamName=stream,
            startFromHead=False,
            limit=LINES_PER_STREAM,
        )
        lines += [LogLine(event["timestamp"], stream, event["message"].rstrip("\n")) for event in reply["events"]]
    return by_time(lines)
