import json
import os

import pytest

from container.serve import health as rules
from container.serve.health import STUCK_SECONDS, Health, State


def test_c86_ping_is_200_only_when_every_process_is_ready():
    starting = Health(2)
    first, second = starting.claim(), starting.claim()
    starting.mark(first, State.READY)
    body = json.loads(starting.response().body)
    assert (starting.response().status, body["ready_processes"], body["processes"]) == (503, 1, 2)
    starting.mark(second, State.READY)
    assert (starting.response().status, starting.response().body) == (200, b"")


@pytest.fixture
def started():
    """A server of two processes that have both answered."""
    health = Health(2)
    for slot in (health.claim(), health.claim()):
        health.mark(slot, State.READY)
    health.observe()
    return health


def test_c103_ping_stays_200_while_a_dead_process_is_replaced_in_time_and_another_answers(started, monkeypatch):
    assert started.leave(0) is State.READY
    assert started.response().status == 200
    assert started.claim() == 0
    assert started.response().status == 200
    assert not started.is_complete()
    monkeypatch.setattr(rules, "REPLACEMENT_SECONDS", 0)
    monkeypatch.setattr(rules, "REPLACEMENT_STARTS", 0)
    assert started.response().status == 503
    assert json.loads(started.response().body)["state"] == "loading"
    started.mark(0, State.READY)
    assert started.response().status == 200


def test_a_second_death_has_its_own_time(started, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(rules.time, "monotonic", lambda: clock[0])
    for _ in range(3):
        started.leave(0)
        clock[0] += 40
        assert started.response().status == 200
        started.mark(started.claim(), State.READY)
        started.observe()
        clock[0] += 40
    started.leave(0)
    clock[0] += 61
    body = json.loads(started.response().body)
    assert (body["state"], body["elapsed_seconds"], body["ready_processes"]) == ("absent", 61, 1)


def test_a_server_that_started_slowly_may_take_three_times_as_long_to_replace_a_process(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(rules.time, "monotonic", lambda: clock[0])
    slow = Health(2)
    first, second = slow.claim(), slow.claim()
    clock[0] = 100
    slow.mark(first, State.READY)
    slow.mark(second, State.READY)
    slow.observe()
    slow.leave(first)
    clock[0] += 299
    assert slow.response().status == 200
    clock[0] += 2
    assert slow.response().status == 503


def test_c103_ping_is_503_when_no_process_answers_any_more(started):
    started.leave(0)
    started.leave(1)
    assert json.loads(started.response().body)["state"] == "absent"


def test_before_every_process_has_answered_once_a_death_is_503():
    starting = Health(2)
    first, second = starting.claim(), starting.claim()
    starting.mark(first, State.READY)
    starting.observe()
    starting.leave(second)
    assert starting.response().status == 503
    assert not starting.started


def test_ping_is_503_while_a_process_is_stuck(started):
    assert started.hear(1, 1.0) is None
    assert started.hear(1, STUCK_SECONDS + 1.0) is State.STUCK
    assert started.hear(1, STUCK_SECONDS + 2.0) is None
    body = json.loads(started.response().body)
    assert (body["state"], body["ready_processes"]) == ("stuck", 1)
    assert started.hear(1, 0.5) is State.READY
    assert started.response().status == 200
    loading = Health(1)
    loading.claim()
    assert loading.hear(0, 1000.0) is None, "what loads may be as silent as it likes"


def test_a_reload_has_room_for_the_new_processes_beside_the_old():
    health = Health(2)
    assert len({health.claim() for _ in range(4)}) == 4
    with pytest.raises(ValueError, match="not found"):
        health.claim()


def test_another_process_sees_what_one_marks():
    health = Health(1)
    slot = health.claim()
    child = os.fork()
    if child == 0:
        health.mark(slot, State.READY)
        health.fail("why: é")
        os._exit(0)
    os.waitpid(child, 0)
    assert health.state() is State.READY
    assert health.failure() == "why: é"


def test_ping_says_why_a_model_could_not_be_loaded():
    health = Health(1)
    slot = health.claim()
    assert "error" not in json.loads(health.response().body)
    health.fail("serve cannot start [missing-file] …")
    health.mark(slot, State.FAILED)
    body = json.loads(health.response().body)
    assert (body["state"], body["error"]) == ("failed", "serve cannot start [missing-file] …")


def test_the_first_failure_stands_and_fits():
    health = Health(1)
    assert health.failure() == ""
    health.fail("é" * 5000)
    health.fail("second")
    assert set(health.failure()) == {"é"}
