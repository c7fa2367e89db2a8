"""What is known to be quick is predicted where it was read; nothing else is."""

import io
import json
import threading
import time

import numpy as np
import pytest
import torch

from container.serve.array_model import ArrayModel
from container.serve.call import Call
from container.serve.exchange import Request
from container.serve.health import Health
from container.serve.load import place_of
from container.serve.plan import QUICK_HANDLERS, Machine, plan_server
from container.serve.predictor import load_predictor
from container.serve.quick import (
    BODY_BYTES,
    MAX_SHAPES,
    QUICK_BESIDE_OTHERS_SECONDS,
    QUICK_SECONDS,
    SLOW_SECONDS,
    Quick,
)
from container.serve.service import Service

ONE_CORE = Machine(cores=1, memory_bytes=8 * 1024**3, gpus=0, shm_writable=True)
JSON = "application/json"
LAYERS = """
    import torch

    def model_fn(model_dir):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
"""
WHERE = """
    import threading

    def model_fn(model_dir):
        return None

    def predict_fn(data, model):
        return threading.current_thread().name
"""
ROW = b"[[1.0, 2.0, 3.0, 4.0]]"


def call_of(body=ROW, kind=JSON, done=lambda response: None):
    return Call(Request("POST", "/invocations", {"content-type": kind}, body), done)


class Asked:
    """A call, its answer, and the thread that gave it."""

    def __init__(self, body=ROW, kind=JSON):
        self.call = call_of(body, kind, self._take)
        self.answered = threading.Event()

    def _take(self, response):
        self.response, self.thread = response, threading.current_thread()
        self.answered.set()

    @property
    def here(self):
        return self.answered.is_set() and self.thread is threading.current_thread()


@pytest.fixture
def serve():
    """Opens a service over a model directory."""
    opened = []

    def open_service(model, machine=ONE_CORE, **environ):
        plan = plan_server(machine, environ, 0)
        service = Service(plan, Health(1))
        service.serve(load_predictor(model, environ, place_of(plan, "cpu")))
        opened.append(service)
        return service

    yield open_service
    for service in opened:
        service.stop()


def ask(service, *bodies, kind=JSON):
    """As the event loop does for what one turn has read."""
    asked = [Asked(body, kind) for body in bodies]
    for call, model in service.answer_at_once([(one.call, None) for one in asked]):
        service.submit(call, model)
    for one in asked:
        assert one.answered.wait(30)
    return asked


def ask_until_quick(service, *bodies, kind=JSON):
    """A busy machine may need several tries to see that something is quick."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        asked = ask(service, *bodies, kind=kind)
        if all(one.here for one in asked):
            return asked
    raise AssertionError("never answered at once")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_a_quick_model_of_torchs_layers_answers_on_the_thread_that_read_the_request(user_model, serve):
    service = serve(user_model(LAYERS))
    (first,) = ask(service, ROW)
    assert not first.here, "nothing is known of it yet"
    (later,) = ask_until_quick(service, ROW)
    assert later.response == first.response
    assert later.response.status == 200


def test_requests_of_one_turn_share_a_batch_and_a_bad_one_fails_alone(user_model, serve):
    service = serve(user_model(LAYERS))
    alone = json.loads(ask(service, ROW)[0].response.body)
    ask_until_quick(service, ROW)
    one, bad, wrong, other = ask(service, ROW, b"[[", b"[[1.0]]", ROW)
    assert (bad.response.status, wrong.response.status) == (400, 400)
    for answer in (one, other):
        np.testing.assert_allclose(json.loads(answer.response.body), alone, rtol=1e-5)
    both = ask_until_quick(service, ROW, ROW)
    np.testing.assert_allclose([json.loads(answer.response.body) for answer in both], [alone, alone], rtol=1e-5)


def test_more_rows_than_were_seen_to_be_quick_go_to_the_compute_thread(user_model, serve):
    service = serve(user_model(LAYERS))
    ask_until_quick(service, ROW)
    (many,) = ask(service, npy(np.ones((100, 4), np.float32)), kind="application/x-npy")
    assert not many.here
    (other_shape,) = ask(service, b"[[1.0, 2.0]]")
    assert not other_shape.here
    assert other_shape.response.status == 400


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[[" + b" " * BODY_BYTES + b"1.0, 2.0, 3.0, 4.0]]", JSON),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),  # a few bytes may unfold to a hundred megapixels
        (b"", "application/x-recordio-protobuf"),
    ],
    ids=["large", "image", "records"],
)
def test_what_may_take_long_to_read_is_read_on_the_compute_thread(user_model, serve, body, kind):
    service = serve(user_model(LAYERS))
    ask_until_quick(service, ROW)
    (asked,) = ask(service, body, kind=kind)
    assert not asked.here


def test_while_the_compute_thread_is_busy_it_is_not_joined_by_another(user_model, serve):
    service = serve(user_model(LAYERS))
    ask_until_quick(service, ROW)
    service._batcher._computing[0] = [call_of()]
    turn = [(call_of(), None)]
    assert service.answer_at_once(turn) == turn


def test_beside_other_compute_threads_only_what_is_quicker_than_a_change_of_threads_counts():
    several = plan_server(ONE_CORE, {"SLIPWAY_COMPUTE_THREADS": "2"}, 0)
    one = plan_server(ONE_CORE, {}, 0)
    assert place_of(several, "cpu").quick_seconds == QUICK_BESIDE_OTHERS_SECONDS < place_of(one, "cpu").quick_seconds
    quick = Quick(seconds=QUICK_BESIDE_OTHERS_SECONDS)
    quick.saw("shape", 1, 1.1 * QUICK_BESIDE_OTHERS_SECONDS)
    assert not quick.knows("shape", 1)
    quick.saw("shape", 1, QUICK_BESIDE_OTHERS_SECONDS)
    assert quick.knows("shape", 1)


def test_each_of_many_models_is_known_for_itself_and_let_go_of_after_each_answer(open_models):
    service = open_models.open(lambda service: service)
    for name in "ab":
        load = Request("POST", "/models", {}, open_models.write(name, LAYERS))
        assert service.registry.load(load).status == 200

    def ask(*names):
        asked = [(Asked(), name) for name in names]
        for call, model in service.answer_at_once([(one.call, name) for one, name in asked]):
            service.submit(call, model)
        assert all(one.answered.wait(30) for one, _ in asked)
        return [one for one, _ in asked]

    deadline = time.monotonic() + 30
    while not ask("a")[0].here:
        assert time.monotonic() < deadline, "never answered at once"
    a, b, unknown = ask("a", "b", "c")
    assert (a.here, b.here) == (True, False), "nothing is known of b"
    assert [one.response.status for one in (a, b, unknown)] == [200, 200, 404]
    for name in "ab":
        assert service.registry.unload(name).status == 200, "it would wait for a call that is never given back"
    assert [one.response.status for one in ask("a", "b")] == [404, 404]


def test_the_users_functions_run_on_the_compute_thread_unless_they_are_said_never_to_wait(user_model, serve):
    model = user_model(WHERE)
    service = serve(model)
    assert {ask(service, b"[1]")[0].response.body for _ in range(20)} == {b"compute-0"}
    trusting = serve(model, **{QUICK_HANDLERS: "true"})
    (asked,) = ask_until_quick(trusting, b"[1]")
    assert asked.response.body == b"MainThread"


def test_the_time_budget_of_a_turn_bounds_what_it_computes(user_model, serve, monkeypatch):
    service = serve(user_model(LAYERS))
    ask_until_quick(service, ROW)
    monkeypatch.setattr("container.serve.service.TURN_SECONDS", -1.0)
    assert not ask(service, ROW)[0].here


def test_a_shape_that_is_slow_twice_in_a_row_is_forgotten_until_it_is_quick_again():
    quick = Quick()
    quick.saw("shape", 2, QUICK_SECONDS / 2)
    quick.saw("shape", 1, 2 * SLOW_SECONDS)
    assert quick.knows("shape", 2), "once may be the machine's fault"
    quick.saw("shape", 1, QUICK_SECONDS / 2)
    quick.saw("shape", 1, 2 * SLOW_SECONDS)
    assert quick.knows("shape", 2)
    quick.saw("shape", 1, 2 * SLOW_SECONDS)
    assert not quick.knows("shape", 1)
    quick.saw("shape", 1, QUICK_SECONDS / 2)
    assert quick.knows("shape", 1)
    assert not quick.knows("shape", 2)


def test_what_was_never_promised_quick_may_be_slow_and_callers_cannot_fill_the_memory():
    quick = Quick()
    quick.saw("shape", 1, QUICK_SECONDS / 2)
    for _ in range(2):
        quick.saw("shape", 1000, 2 * SLOW_SECONDS)
    assert quick.knows("shape", 1)
    for number in range(10 * MAX_SHAPES):
        quick.saw(number, 1, QUICK_SECONDS / 2)
    assert sum(quick.knows(number, 1) for number in range(10 * MAX_SHAPES)) == MAX_SHAPES - 1
    quick.saw(None, 1, QUICK_SECONDS / 2)
    assert not quick.knows(None, 1), "data that shares no batch says nothing about other data"


class Users(torch.nn.Module):
    def forward(self, rows):
        return rows + 1


class Looping(torch.nn.Module):
    def forward(self, rows):
        rounds = 0
        while bool(rows.sum() > rounds):
            rounds += 1
        return rows + rounds


def hooked():
    module = torch.nn.Sequential(torch.nn.Linear(4, 3))
    module[0].register_forward_hook(lambda *_: None)
    return module


def patched():
    module = torch.nn.Linear(4, 3)
    module.forward = lambda rows: rows
    return module


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "only_torch"),
    [
        (lambda: torch.nn.Sequential(torch.nn.Linear(4, 3)), True),
        (lambda: torch.jit.script(torch.nn.Linear(4, 3)), True),
        (lambda: torch.jit.trace(Users(), torch.ones(1, 4)), True),
        (lambda: torch.export.export(Users(), (torch.ones(1, 4),)).module(), True),
        (Users, False),
        (lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), Users()), False),
        (lambda: torch.jit.script(Looping()), False),
        (hooked, False),
        (patched, False),
        (lambda: lambda rows: rows, False),
    ],
    ids=["layers", "script", "traced", "exported", "users", "mixed", "looping", "hooked", "patched", "function"],
)
def test_only_code_of_torch_counts_as_code_that_never_waits(make, only_torch):
    assert ArrayModel(make(), "cpu", JSON).only_torch is only_torch
