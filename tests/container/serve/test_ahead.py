"""Beside a GPU other threads decode the next requests and encode the last answers; here beside a CPU, as asked."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from container.serve.ahead import Ahead
from container.serve.call import Call
from container.serve.exchange import Request, Unavailable
from container.serve.plan import Machine, plan_server

JSON = {"content-type": "application/json"}
IMAGE = [[0] * 8] * 8
GATED = """
import threading
GATE, INSIDE = threading.Event(), threading.Semaphore(0)

def model_fn(model_dir):
    return lambda array: array

def input_fn(body, content_type):
    value = body if isinstance(body, str) else body.decode()
    if value == '"open"':
        INSIDE.acquire(timeout=10) and GATE.set()
        return {"opened": GATE.is_set()}
    return value

def predict_fn(data, model):
    if data == '"wait"':
        INSIDE.release()
        return {"opened": GATE.wait(10)}
    return data
"""


def test_on_a_gpu_the_other_cores_decode_and_on_a_cpu_none():
    machine = Machine(cores=16, memory_bytes=64 * 1024**3, gpus=1, shm_writable=True)
    assert plan_server(machine, {}, 0).decode_threads == 15
    assert plan_server(replace(machine, gpus=4), {}, 0).decode_threads == 3
    assert plan_server(replace(machine, cores=1), {}, 0).decode_threads == 1
    assert plan_server(replace(machine, cores=96), {}, 0).decode_threads == 16
    assert plan_server(replace(machine, gpus=0), {}, 0).decode_threads == 0
    assert plan_server(replace(machine, gpus=0), {"SLIPWAY_DECODE_THREADS": "3"}, 0).decode_threads == 3


def test_many_at_once_each_get_their_own_answer_and_bad_ones_fail_alone(open_door, artifact):
    plain = open_door(artifact)
    door = open_door(artifact, {"SLIPWAY_DECODE_THREADS": "3"})
    good = [json.dumps({"instances": [(np.full((8, 8), value)).tolist()]}).encode() for value in range(20)]
    bodies = [body for pair in zip(good, [b"{", b'{"instances": [[1]]}'] * 10, strict=True) for body in pair]

    def ask(body):
        return door.request("POST", "/invocations", body, JSON)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, bodies))
    assert [answer.status for answer in answers] == [200, 400] * 20
    for body, answer in zip(good, answers[::2], strict=True):
        expected = json.loads(plain.request("POST", "/invocations", body, JSON).body)["predictions"][0]
        got = json.loads(answer.body)["predictions"][0]
        assert got["label"] == expected["label"]
        assert got["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_the_next_request_is_decoded_while_one_is_predicted(open_door, user_model):
    """The second one's `input_fn` lets the first one's prediction end: on one thread they would wait for each other."""
    door = open_door(user_model(GATED), {"SLIPWAY_DECODE_THREADS": "2"})
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(door.request, "POST", "/invocations", b'"wait"', JSON)
        second = pool.submit(door.request, "POST", "/invocations", b'"open"', JSON)
        assert json.loads(first.result(30).body) == {"opened": True}
        assert json.loads(second.result(30).body) == {"opened": True}


@pytest.fixture
def make_ahead():
    made = []

    def make(decode=lambda call: True, queue=lambda call: None, bound=10):
        made.append(Ahead(1, decode, queue, bound))
        return made[-1]

    yield make
    for ahead in made:
        ahead.stop()


def call(answers):
    return Call(Request("POST", "/invocations"), answers.append)


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_as_many_wait_as_may_wait(make_ahead):
    go = threading.Event()
    ahead = make_ahead(decode=lambda call: go.wait(10), bound=2)
    queued = []
    ahead._queue = queued.append
    ahead.submit(call([]))
    ahead.submit(call([]))
    with pytest.raises(Unavailable, match="2 requests wait already"):
        ahead.submit(call([]))
    assert ahead.waiting() == 2
    go.set()
    until(lambda: ahead.waiting() == 0)
    assert len(queued) == 2


def test_where_the_queue_for_the_device_is_full_the_caller_is_told(make_ahead):
    def full(call):
        raise Unavailable("7 requests wait already; try again")

    answers = []
    make_ahead(queue=full).submit(call(answers))
    until(lambda: answers)
    assert answers[0].status == 503


def test_what_nobody_waits_for_is_neither_decoded_nor_queued(make_ahead):
    happened = []
    ahead = make_ahead(decode=happened.append, queue=happened.append)
    gone = call([])
    gone.cancelled = True
    gone.release = lambda: happened.append("released")
    ahead.submit(gone)
    until(lambda: ahead.waiting() == 0)
    assert happened == ["released"]


def test_after_the_end_of_its_threads_an_answer_is_still_encoded(make_ahead):
    ahead = make_ahead()
    ahead.stop()
    encoded = []
    ahead.run(encoded.append, 1)
    assert encoded == [1]
