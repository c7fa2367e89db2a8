"""Results as lines, as JSON and as JUnit XML."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import click

from launcher.check.suite import FAILED, NOT_JUDGED, PASSED, Result

COLORS = {PASSED: "green", FAILED: "red", NOT_JUDGED: "yellow"}
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def line(result: Result) -> str:
    """One result as one line; what was seen of a failed one stands below."""
    check = result.check
    outcome = click.style(f"{result.outcome:<10}", fg=COLORS[result.outcome])
    text = f"{check.number:<8} {check.level} {outcome} {result.seconds:5.1f} s  {check.title}"
    return f"{text}\n         {result.message}" if result.failed else text


def ending(results: Sequence[Result]) -> str:
    """Why something was not judged, once per reason; how many of each outcome, and how many broken M."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result.outcome == NOT_JUDGED:
            reasons.setdefault(result.message, []).append(result.check.number)
    lines = [f"not judged {' '.join(numbers)}: {reason}" for reason, numbers in reasons.items()]
    counts = Counter(result.outcome for result in results)
    musts = sum(result.breaks_the_contract for result in results)
    shown = ", ".join(f"{counts[outcome]} {outcome}" for outcome in COLORS)
    return "\n".join([*lines, f"{shown}; {musts} broken M" + (" (the platform's contract)" if musts else "")])


def as_json(target: str, results: Sequence[Result]) -> dict[str, Any]:
    """Everything that the lines show."""
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
