"""What a check found, as a value: one line for a person, one object for a script. Standard library only."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skip"]
MARKS: dict[Status, str] = {"ok": "ok  ", "warn": "warn", "fail": "FAIL", "skip": "skip"}


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    status: Status
    """`skip`: it could not be checked, and `detail` says why."""
    detail: str
    fix: str = ""
    """What to do, as a command where there is one; empty where nothing is to be done."""
    identity: str = ""
    """Who lacks something: the caller or the execution role, with its ARN."""


def lines(findings: Iterable[Finding]) -> list[str]:
    """One line per finding, its fix below it."""
    found = list(findings)
    width = max((len(item.check) for item in found), default=0)
    text = []
    for item in found:
        who = f"{item.identity}: " if item.identity else ""
        text.append(f"{MARKS[item.status]}  {item.check:<{width}}  {who}{' '.join(item.detail.split())}")
        if item.fix:
            text.append(f"      {'':<{width}}  fix: {item.fix}")
    return text


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Those that failed."""
    return [item for item in findings if item.status == "fail"]
