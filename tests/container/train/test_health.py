"""Health rules: one line of evidence, and the job ends where a rule says so."""

import math
import time

import pytest

from container.train.health import Health, UnhealthyTraining
from container.train.hyperparameters import HyperparameterError
from container.train.settings import Settings


def test_a_loss_that_is_not_a_number_stops_by_default():
    with Health() as health:
        for loss in (1.0, 0.5):
            health.step()
            health.loss(loss)
        with pytest.raises(UnhealthyTraining, match="nan: the loss is nan after 2 steps"):
            health.loss(math.nan)


def test_ten_times_almost_nothing_is_no_explosion(caplog):
    with Health() as health:
        for value in (6.0e-16, 7.859e-15, 0.009):
            health.loss(value)
        assert caplog.text == ""
        health.loss(0.011)
    assert "exploding" in caplog.text


def test_an_exploding_loss_is_said_once(caplog):
    with Health() as health:
        for loss in (1.0, 0.5, 6.0, 7.0):
            health.step()
            health.loss(loss)
    assert [r.getMessage() for r in caplog.records] == [
        "health rule exploding (warn): the loss is 6 after 3 steps; it has been 0.5"
    ]


def test_a_rule_that_is_off_says_nothing(caplog):
    with Health({"nan": "off"}) as health:
        health.loss(math.inf)
    assert not caplog.records


def test_a_stalled_step_shows_where_it_stands(caplog, capsys):
    def waits_for_a_peer():
        time.sleep(0.6)

    with Health(stall_seconds=0.2) as health:
        health.step()
        waits_for_a_peer()
    assert "health rule stalled (warn): no step for 0 s, 1 before" in caplog.text
    assert "in waits_for_a_peer" in capsys.readouterr().err


def test_waiting_for_data_is_judged_at_the_end(caplog, monkeypatch):
    monkeypatch.setattr("container.train.health.STARVING_SECONDS", 0.0)
    with Health() as health:
        time.sleep(0.05)
        health.step(waited_seconds=0.04)
    assert "went into waiting for data" in caplog.text


def test_unknown_rules_and_actions_are_errors():
    with pytest.raises(ValueError, match="rules are nan, exploding"):
        Health({"nam": "stop"})
    with pytest.raises(HyperparameterError, match="health='nan=explode'"):
        Settings.from_hyperparameters({"health": "nan=explode"})
    assert Settings.from_hyperparameters({"health": "nan=warn, stalled=off"}).health_rules == {
        "nan": "warn",
        "stalled": "off",
    }


def test_a_rule_set_to_stop_ends_a_stalled_job_with_its_stacks(training_job):
    script = """
import time
from container.train import Health
def waits_for_a_peer():
    time.sleep(60)
with Health({"stalled": "stop"}, stall_seconds=0.5) as health:
    waits_for_a_peer()
"""
    job = training_job(script=script)
    assert job.run() == {"algo-1": 1}, job.log()
    assert job.failure().startswith("UnhealthyTraining: stalled: no step for")
    assert "(train.py:5, rank 0 on algo-1)" in job.failure()
    assert "in waits_for_a_peer" in (job.opt_ml().output_data / "errors" / "algo-1-rank-0.txt").read_text()
