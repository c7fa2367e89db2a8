"""`launcher check` as a user types it: options, exit status, lines, JSON and JUnit."""

import json
import shutil
import sys
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner

from launcher.check import command, report
from launcher.check.process_target import ProcessTarget
from launcher.check.suite import FAILED, NOT_JUDGED, PASSED, Result
from launcher.check.table import CHECKS, GROUPS, roles_of, select
from launcher.errors import ConfigError


@pytest.fixture
def check(monkeypatch, tmp_path, materials):
    """Runs the verb on the fake container, with materials that a user would name."""
    (tmp_path / "request.json").write_text('{"a": 1}')
    given = ["--model", str(materials.model), "--request", str(tmp_path / "request.json")]

    def run(*arguments: str, faults: tuple[str, ...] = (), defaults: bool = True):
        fake = str(tmp_path / "fake_container.py")
        shutil.copy(__file__.replace("test_command.py", "fake_container.py"), fake)
        words = [word for fault in faults for word in ("--fault", fault)]
        target = ProcessTarget((sys.executable, fake, *words))
        monkeypatch.setattr(command, "open_target", lambda image: target)
        group = click.Group()
        group.add_command(command.check)
        return CliRunner().invoke(group, ["check", *(given if defaults else ()), *arguments])

    return run


def test_it_exits_with_0_when_everything_passes(check):
    done = check("--role", "serve", "--only", "batch")
    assert done.exit_code == 0, done.output
    assert "1 passed, 0 failed, 2 not judged; 0 broken M" in done.output  # the request is not of lines
    assert done.stdout.count("C131 ") == 1  # each result as it comes, and not again
    assert done.stderr == ""


def test_it_exits_with_5_when_the_contract_is_broken(check):
    done = check("--role", "serve", "--only", "limits", "--json", faults=("limit-of-1-mb",))
    assert done.exit_code == 5
    checks = {one["check"]: one for one in json.loads(done.stdout)["checks"]}
    assert "C97      M failed" in done.stderr
    assert checks["C97"]["outcome"] == FAILED
    assert checks["C97"]["level"] == "M"
    assert checks["C85"]["outcome"] == PASSED


def test_a_broken_should_counts_only_when_asked(check):
    options = ("--role", "serve", "--only", "batch")
    assert check(*options, faults=("parameters-as-text",)).exit_code == 0
    assert check(*options, "--strict", faults=("parameters-as-text",)).exit_code == 5


def test_junit_counts_what_was_run(check, tmp_path):
    done = check("--role", "serve", "--only", "batch,mme", "--junit", str(tmp_path / "junit.xml"))
    assert done.exit_code == 0, done.output
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert suite.get("tests") == str(len(cases)) == "8"
    assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
    assert suite.get("failures") == str(len(suite.findall("testcase/failure")))


def result(outcome: str, message: str = "") -> Result:
    return Result(CHECKS[0], outcome, message, 0.5)


def test_junit_holds_failures_and_skips_and_no_control_characters():
    results = [result(PASSED), result(FAILED, 'saw \x00 <b> & "\x1b[31m'), result(NOT_JUDGED, "no GPU")]
    suite = ElementTree.fromstring(report.as_junit("image:1", results)).find("testsuite")
    assert suite is not None
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped", "time")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
        "time": "1.500",
    }
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == 'saw \ufffd <b> & "\ufffd[31m'
    assert failure.get("type") == "M"


def test_what_was_seen_stands_below_its_check_and_each_reason_once_in_the_end():
    results = [result(FAILED, "saw 404"), result(NOT_JUDGED, "no GPU"), result(NOT_JUDGED, "no GPU")]
    told = [click.unstyle(report.line(one)) for one in results]
    assert told[0].splitlines()[1].strip() == "saw 404"
    assert told[1] == f"C1       M not judged   0.5 s  {CHECKS[0].title}"
    assert report.ending(results).splitlines() == [
        "not judged C1 C1: no GPU",
        "0 passed, 1 failed, 2 not judged; 1 broken M (the platform's contract)",
    ]


def test_the_groups_are_those_of_the_help():
    (only,) = [one for one in command.check.params if one.name == "only"]
    assert isinstance(only, click.Option)
    assert set(str(only.help).rstrip(".").split(", ")) == set(GROUPS)


def test_a_group_holds_the_checks_of_its_role_and_those_across_roles():
    stop = [check.number for check in select(("stop",), ("train", "serve"))]
    assert stop == ["C11", "C51", "C52", "C54", "C101"]
    assert [check.number for check in select(("stop",), ("serve",))] == ["C11", "C101"]
    assert {check.role for check in select((), ("train",))} == {"image", "train"}


def test_groups_tell_what_an_image_can_do():
    assert roles_of(("train", "image")) == ("train",)
    assert roles_of(("batch",)) == ("serve",)
    assert roles_of(("stop", "limits", "image")) == ()


def test_numbers_are_unique_and_levels_are_must_or_should():
    assert len({check.number for check in CHECKS}) == len(CHECKS)
    assert {check.level for check in CHECKS} == {"M", "S"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--only", "train,serving"), "'serving' is no group"),
        (("--only", "train", "--role", "serve"), "fits an image that can serve"),
        (("--hyperparameter", "epochs"), "'epochs' is not NAME=VALUE"),
        (("--train-data", ".", "--train-data", "."), "2 --train-data and 0 --channel"),
        (("--channel", "train"), "0 --train-data and 1 --channel"),
    ],
)
def test_a_wrong_option_is_a_mistake_of_the_caller(check, options, said):
    done = check(*options)
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)


def test_options_become_materials(tmp_path):
    (tmp_path / "body").write_bytes(b"1,2")
    options = {
        "channel": ("train", "test"),
        "train_data": (tmp_path, tmp_path),
        "request_file": tmp_path / "body",
        "slow_request": tmp_path / "body",
        "content_type": "text/csv",
        "model": tmp_path,
        "out_of_memory_model": None,
        "hyperparameter": ("a=1", "b=x=y"),
        "long_hyperparameter": ("a=100",),
    }
    materials = command.read_materials(options, multi_model=False)
    assert materials.request is not None
    assert (materials.request.body, materials.request.content_type) == (b"1,2", "text/csv")
    assert dict(materials.channels) == {"train": tmp_path, "test": tmp_path}
    assert dict(materials.hyperparameters) == {"a": "1", "b": "x=y"}
    assert dict(materials.long_hyperparameters) == {"a": "100"}


def test_a_checks_failure_does_not_stop_the_next(judge):
    results = judge("C89", "C131", faults=("get-ping-only",))
    assert [one.outcome for one in results.values()] == [FAILED, PASSED]


def test_our_own_code_is_checked_as_processes():
    done = CliRunner().invoke(command.check, ["--role", "serve", "--only", "batch"])
    assert done.exit_code == 0, done.output
    assert "3 passed, 0 failed, 0 not judged" in done.output
