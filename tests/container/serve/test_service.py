"""The core itself, without a door."""

import threading
import time

import pytest

from container.serve.exchange import Request
from container.serve.health import Health
from container.serve.load import place_of
from container.serve.plan import Machine, plan_server
from container.serve.predictor import load_predictor
from container.serve.service import Service

MACHINE = Machine(cores=1, memory_bytes=8 * 1024**3, gpus=0, shm_writable=True)
GATED = """
    import asyncio, pathlib, time
    import torch

    class Gated(torch.nn.Module):
        def forward(self, rows):
            pathlib.Path(GATE + ".reached").touch()
            while not pathlib.Path(GATE).exists():
                time.sleep(0.01)
            if len(rows) > 1:
                ENDS
            return rows

    def model_fn(model_dir):
        return Gated()
"""


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("ends", ["raise SystemExit", "raise asyncio.CancelledError", "raise ValueError"])
def test_whatever_ends_a_batch_its_requests_are_tried_alone_and_the_compute_thread_goes_on(user_model, tmp_path, ends):
    gate = tmp_path / "gate"
    model = user_model(GATED.replace("GATE", repr(str(gate))).replace("ENDS", ends))
    plan = plan_server(MACHINE, {}, 0)
    service = Service(plan, Health(1))
    service.serve(load_predictor(model, {}, place_of(plan, "cpu")))
    request = Request("POST", "/invocations", {"content-type": "application/json"}, b"[[1.5]]")
    answers = []
    clients = [threading.Thread(target=lambda: answers.append(service.invoke(request))) for _ in range(3)]
    try:
        clients[0].start()
        until(gate.with_name("gate.reached").exists)
        for client in clients[1:]:
            client.start()
        until(lambda: service.waiting() == 2)  # one computes, the others are the next batch
    finally:
        gate.touch()
    for client in clients:
        client.join(30)
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"[[1.5]]")] * 3
    service.stop()
