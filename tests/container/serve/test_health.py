import json
import os

import pytest

from container.serve.health import Health, State


def test_c86_ping_is_200_only_when_every_process_is_ready():
    health = Health(2)
    first, second = health.claim(), health.claim()
    health.mark(first, State.READY)
    body = json.loads(health.response().body)
    assert (health.response().status, body["ready_processes"], body["processes"]) == (503, 1, 2)
    health.mark(second, State.READY)
    assert (health.response().status, health.response().body) == (200, b"")


def test_c103_ping_is_503_while_a_dead_process_is_missing():
    health = Health(1)
    slot = health.claim()
    health.mark(slot, State.READY)
    assert health.leave(slot) is State.READY
    assert json.loads(health.response().body)["state"] == "absent"
    assert health.claim() == slot


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


def test_the_first_failure_stands_and_fits():
    health = Health(1)
    assert health.failure() == ""
    health.fail("é" * 5000)
    health.fail("second")
    assert set(health.failure()) == {"é"}
