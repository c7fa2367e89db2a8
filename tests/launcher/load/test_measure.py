"""Many requests, measured."""

import json
import math

import pytest

from launcher import cli, invoke
from launcher.errors import JobFailed
from launcher.load import measure

REQUEST = invoke.Request("digits", b"[1]", "application/json")
BAD = {"Error": {"Code": "ValidationError", "Message": "no"}}


def test_percentiles_are_those_of_the_answered():
    found = measure.summary([0.001 * n for n in range(1, 101)], 101, elapsed=10.0)
    assert (found.requests, found.requests_per_second) == (101, 10)
    assert found.p50_ms == pytest.approx(50.5)
    assert found.p99_ms == pytest.approx(99.01)
    assert found.max_ms == pytest.approx(100)
    assert measure.summary([0.5], 1, elapsed=1.0).p99_ms == 500


def test_a_histogram_has_every_answer_once_and_bins_that_meet():
    seconds = [0.001 * 1.1**n for n in range(60)]
    bins = measure.histogram(seconds)
    assert sum(item.count for item in bins) == 60
    assert all(one.to_ms == pytest.approx(other.from_ms) for one, other in zip(bins, bins[1:], strict=False))
    assert math.isclose(bins[0].from_ms, 1.0)
    assert math.isclose(bins[-1].to_ms, 1000 * seconds[-1])
    assert [item.count for item in measure.histogram([0.002, 0.002])] == [2]


def test_the_fullest_bin_is_the_widest_bar():
    bins = measure.histogram([0.001] * 90 + [0.1] * 9 + [0.01])
    bars = [line.count("#") for line in measure.histogram_lines(bins)]
    assert max(bars) == bars[0] == measure.BAR_WIDTH
    assert bars[-1] == 4
    assert 1 in bars  # a single answer can be seen


def test_nothing_answered_says_why(aws, canned):
    canned("InvokeEndpoint", BAD, service="sagemaker-runtime")
    with pytest.raises(JobFailed, match="none of 3 requests was answered: InvokeEndpoint was refused: ValidationError"):
        measure.measure(aws, REQUEST, repeat=3, concurrency=2)


class Body:
    @staticmethod
    def read():
        return b"[7]"


@pytest.fixture
def verb(aws, canned, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.aws.Aws", lambda region, *_: aws)
    (tmp_path / "row.json").write_text("[1]")
    canned("DescribeEndpoint", {"ProductionVariants": [{"VariantName": "main"}]})
    canned("InvokeEndpoint", BAD, {"Body": Body}, service="sagemaker-runtime")
    return lambda *arguments: cli.main(["invoke", "row.json", *arguments])


def test_the_verb_draws_the_distribution_and_counts_errors(verb, capsys):
    assert verb("--repeat", "20", "--concurrency", "2") == 0
    printed = capsys.readouterr().out
    assert "-> 20 requests, 1 errors" in printed
    assert "errors: 1 x ValidationError; the first: InvokeEndpoint was refused: ValidationError: no" in printed
    assert "####" in printed


def test_the_verbs_measurement_as_json(verb, capsys):
    assert verb("--repeat", "5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["errors"]) == (5, {"ValidationError": 1})
    assert sum(item["count"] for item in found["histogram"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeat", "2", "--stream"], "--stream prints one answer and --repeat measures many"),
        (["--concurrency", "4"], "--concurrency 4 needs --repeat of at least as many"),
    ],
)
def test_options_that_do_not_go_together_are_refused(verb, arguments, message, capsys):
    assert verb(*arguments) == 2
    assert message in capsys.readouterr().err
