"""Results as a table, as JSON and as JUnit XML."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from launcher.check.suite import FAILED, NOT_JUDGED, PASSED, Result

STYLES = {PASSED: "green", FAILED: "bold red", NOT_JUDGED: "yellow"}
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def print_table(console: Console, target: str, results: Sequence[Result]) -> None:
    """Every check in one line; below, what was seen, and why something was not judged, once per reason."""
    table = Table(title=f"{target} against the SageMaker container contract", title_justify="left")
    for name in ("check", "level", "role", "title", "outcome"):
        table.add_column(name, no_wrap=name != "title")
    for result in results:
        check, style = result.check, STYLES[result.outcome]
        table.add_row(check.number, check.level, check.role, check.title, f"[{style}]{result.outcome}[/]")
    console.print(table)
    for outcome in (FAILED, NOT_JUDGED):
        for reason, numbers in _by_reason(results, outcome).items():
            console.print(f"[{STYLES[outcome]}]{outcome}[/] {' '.join(numbers)}: {_plain(reason)}")


def _by_reason(results: Sequence[Result], outcome: str) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result.outcome == outcome:
            reasons.setdefault(result.message, []).append(result.check.number)
    return reasons


def _plain(text: str) -> str:
    """Rich would read `[...]` in a log line as a style."""
    return text.replace("[", r"\[")


def line(result: Result) -> str:
    """One result as one line, for following along."""
    text = f"{result.check.number:<8} {result.outcome:<10} {result.seconds:5.1f} s  {result.check.title}"
    return f"{text}: {result.message}" if result.message else text


def summary(results: Sequence[Result]) -> str:
    """How many of each outcome, and how many broken M."""
    counts = Counter(result.outcome for result in results)
    musts = sum(result.breaks_the_contract for result in results)
    shown = ", ".join(f"{counts[outcome]} {outcome}" for outcome in STYLES)
    return f"{shown}; {musts} broken M" + (" (the platform's contract)" if musts else "")


def as_json(target: str, results: Sequence[Result]) -> dict[str, Any]:
    """Everything the table shows, and the seconds."""
    return {
        "target": target,
        "checks": [
            {
                "check": result.check.number,
                "level": result.check.level,
                "role": result.check.role,
                "title": result.check.title,
                "outcome": result.outcome,
                "message": result.message,
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
    }


def as_junit(target: str, results: Sequence[Result]) -> bytes:
    """A `testsuite` in the form that CI systems read; what was not judged is skipped."""
    counts = Counter(result.outcome for result in results)
    suite = ElementTree.Element(
        "testsuite",
        name=f"launcher check {target}",
        tests=str(len(results)),
        failures=str(counts[FAILED]),
        skipped=str(counts[NOT_JUDGED]),
        errors="0",
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"contract.{result.check.role}",
            name=f"{result.check.number} {result.check.level}: {result.check.title}",
            time=f"{result.seconds:.3f}",
        )
        message = NOT_IN_XML.sub("\ufffd", result.message)
        if result.outcome == FAILED:
            ElementTree.SubElement(case, "failure", message=message, type=result.check.level).text = message
        elif result.outcome == NOT_JUDGED:
            ElementTree.SubElement(case, "skipped", message=message)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
