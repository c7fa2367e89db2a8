"""`explain`: why a job or endpoint failed, from its status, its reason and its log; with the lines that show it."""

import re
from dataclasses import dataclass, replace
from typing import Any

from launcher.causes import CAUSES, STOPPED, Cause

EVIDENCE_LINES = 5
VAGUE = frozenset({"memory", "exception", "ping", "handler"})  # exit codes, statuses: they say less than the log does
RAISED = CAUSES[-1]
OWN_WORDS = re.compile(r"serve cannot start \[(?P<code>[\w-]+)\]:? ?.*?; fix: (?P<fix>.*)")


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

    def advice(self) -> list[str]:
        """The cause and the fix for somebody who has just read the reason and the log."""
        if self.cause is None:
            return []
        shown = [line for line in self.evidence if line not in self.reason][:1]
        return [
            f"cause: {self.cause.title} ({self.cause.code})",
            *(f"  {line}" for line in shown),
            f"fix: {self.cause.fix}",
        ]


def explain(name: str, status: str, description: dict[str, Any], written: list[str], flags: str = "") -> Explanation:
    """The likeliest cause of a failure: SageMaker's own words weigh more than a line of the log.

    Args:
        name: of the job or endpoint.
        status: of it.
        description: its Describe reply.
        written: the last lines of its log, oldest first.
        flags: options that the commands in the fix need, such as ` --local`.
    """
    reason = description.get("FailureReason", "")
    told = [reason, *_statuses(description)]
    found = [(cause, _evidence(cause, told)) for cause in CAUSES if _evidence(cause, told)]
    if status == "Stopped" and not found:
        return Explanation(name, status, reason, STOPPED, tuple(_evidence(STOPPED, told)[:1]), ())
    vague = not found or found[0][0].code in VAGUE
    if own := _own_words([*written, *told] if vague else told):
        return Explanation(name, status, reason, own[0], (own[1],), ())
    if vague:
        found += [(cause, _evidence(cause, written)) for cause in CAUSES if _evidence(cause, written)]
        found.sort(key=lambda pair: CAUSES.index(pair[0]))
    if not found:
        return Explanation(name, status, reason, None, tuple(written[-EVIDENCE_LINES:]), ())
    cause, evidence = found[0]
    more = [line for line in (*_raised(cause, reason, written), *_evidence(cause, written)) if line not in evidence]
    also = tuple(
        dict.fromkeys(other.title for other, _ in found[1:] if other is not cause and other.code != "exception")
    )
    cause = replace(cause, fix=_with_name(cause.fix, name, flags))
    return Explanation(name, status, reason, cause, tuple([*evidence, *more][:EVIDENCE_LINES]), also)


def _raised(cause: Cause, reason: str, written: list[str]) -> list[str]:
    """What the user's code raised, where that is what the reason is about: answers 500, or an alarm on errors."""
    if cause.code == "handler":
        return _evidence(RAISED, written)
    if cause.code == "alarm" and "errors" in reason:
        return _evidence(RAISED, written)[-1:]  # earlier ones may be of an earlier update
    return []


def _own_words(lines: list[str]) -> tuple[Cause, str] | None:
    """Our serving container says itself why it cannot start: its last such words, as a cause and its evidence."""
    for line in reversed(lines):
        if match := OWN_WORDS.search(line):
            return Cause(match["code"], "the serving container could not start", "", match["fix"]), match[0]
    return None


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
