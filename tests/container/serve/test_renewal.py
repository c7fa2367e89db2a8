"""Processes that grow are replaced one at a time, under load, and no request fails."""

import http.client
import json
import re
import signal
import threading
import time

import pytest

from container.serve import memory
from container.serve.health import Health, State
from container.serve.renewal import Renewal

JSON = {"Content-Type": "application/json"}
LEAK = """
    import os
    leaked = []
    def predict_fn(data, model):
        leaked.append(b"x" * 1_000_000)
        return [data, os.getpid()]
"""


class Load:
    """Clients in a closed loop, each on its own connection as long as the server keeps it."""

    def __init__(self, server, clients):
        self.server = server
        self.answered = 0
        self.wrong = []
        self.pids = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, number):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        step = 0
        while not self._stop.is_set():
            step += 1
            try:
                connection.request("POST", "/invocations", json.dumps([number, step]), JSON)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                connection.close()
                continue
            if answer.status != 200 or json.loads(body)[0] != [number, step]:
                self.wrong.append((answer.status, body))
                continue
            self.answered += 1
            self.pids.add(json.loads(body)[1])
            time.sleep(0.01)

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_process_that_leaks_is_replaced_under_load_without_a_failed_request(start_server, user_model, processes):
    server = start_server(
        user_model(LEAK),
        SAGEMAKER_MODEL_SERVER_WORKERS=processes,
        SLIPWAY_MAX_PROCESS_MEMORY_BYTES="200000000",
    ).wait_ready()
    first = set(server.workers())
    load = Load(server, clients=4)
    pings = set()
    deadline = time.monotonic() + 90
    try:
        while server.log.read_text().count("and was replaced") < 3:
            pings.add(server.ping())
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.05)
    finally:
        load.stop()
    assert load.wrong == []
    assert load.answered > 300
    assert pings == {200}
    assert len(load.pids - first) >= 2
    steps = re.findall(
        r"(it is replaced once another one is ready|has ended, and was replaced)", server.log.read_text()
    )
    assert steps[:6] == ["it is replaced once another one is ready", "has ended, and was replaced"] * 3


def test_a_replacement_that_cannot_load_leaves_the_old_process_serving(start_server, user_model, tmp_path):
    mark = tmp_path / "mark"
    code = f"""
        import pathlib
        if pathlib.Path({str(mark)!r}).exists():
            raise MemoryError("no room for a second one")
        leaked = []
        def predict_fn(data, model):
            leaked.append(b"x" * data)
            return len(leaked)
    """
    server = start_server(
        user_model(code), SAGEMAKER_MODEL_SERVER_WORKERS="1", SLIPWAY_MAX_PROCESS_MEMORY_BYTES="150000000"
    ).wait_ready()
    workers = server.workers()
    mark.touch()
    assert server.request("POST", "/invocations", b"1", JSON).body == b"1"
    time.sleep(2.5)  # the master has seen what a fresh one holds
    assert server.request("POST", "/invocations", b"200000000", JSON).body == b"2"
    deadline = time.monotonic() + 60
    while "its replacement ended" not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.1)
    assert "[out-of-memory]" in server.log.read_text()
    assert server.request("POST", "/invocations", b"1", JSON).body == b"3"
    assert server.workers() == workers
    assert server.ping() == 200
    server.stop()
    assert server.process.returncode == 0


VERSIONED = """
    import os, pathlib
    def model_fn(model_dir):
        return int((pathlib.Path(model_dir) / "version").read_text())
    def predict_fn(data, model):
        return [data, f"{model} {os.getpid()}"]
"""


def test_on_sighup_processes_load_what_lies_there_now_one_after_another_and_no_request_fails(start_server, user_model):
    model_dir = user_model(VERSIONED)
    (model_dir / "version").write_text("1")
    server = start_server(model_dir, SAGEMAKER_MODEL_SERVER_WORKERS="2").wait_ready()
    first = server.workers()
    (model_dir / "version").write_text("2")
    load, pings = Load(server, clients=4), set()
    try:
        server.process.send_signal(signal.SIGTTIN)  # no more processes than the plan says
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while server.log.read_text().count("and was replaced") < 2:
            assert len(server.workers()) <= 3
            pings.add(server.ping())
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.05)
        assert not set(server.workers()) & set(first)
        assert versions(ask(server, 20)) == {"2"}
    finally:
        load.stop()
    assert load.wrong == []
    assert versions(load.pids) == {"1", "2"}
    assert pings == {200}

    (model_dir / "version").write_text("none")
    second = server.workers()
    server.process.send_signal(signal.SIGHUP)
    while "its replacement ended" not in server.log.read_text():
        assert time.monotonic() < deadline + 60, server.log.read_text()
        time.sleep(0.05)
    assert server.workers() == second
    assert versions(ask(server, 20)) == {"2"}
    assert server.ping() == 200


def ask(server, count):
    return [json.loads(server.request("POST", "/invocations", b"0", JSON).body)[1] for _ in range(count)]


def versions(answers):
    return {answer.split()[0] for answer in answers}


def test_models_that_the_platform_has_loaded_outlive_sighup(caplog):
    watch = Renewal(Health(1), None)
    watch.renew([7])
    watch.look(None)
    assert "the models that it has loaded would be gone" in caplog.text


def test_where_memory_does_not_hold_two_the_old_process_ends_first_and_requests_wait():
    """Seen from its log line: the machine that runs this test has memory for two."""

    class Worker:
        def __init__(self, slot):
            self.slot = slot

    class Arbiter:
        num_workers = 1
        killed = spawned = ()

        def kill_worker(self, pid, signal):
            self.killed = (*self.killed, pid)

        def spawn_worker(self):
            raise AssertionError("no second one beside it")

    health = Health(1)
    arbiter = Arbiter()
    arbiter.WORKERS = {7: Worker(health.claim())}
    health.mark(0, State.READY)
    held = {7: 100}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "held", held.__getitem__)
        patch.setattr(memory, "available", lambda: 110)
        watch = Renewal(health, 150)
        watch.look(arbiter)
        assert arbiter.killed == ()
        held[7] = 160
        watch.look(arbiter)
        watch.look(arbiter)  # it is on its way
        assert arbiter.killed == (7,)
        assert not watch.exited(arbiter, 7)
        health.leave(0)
        arbiter.WORKERS = {8: Worker(health.claim())}
        held[8] = 1000
        watch.look(arbiter)  # still loading
        health.mark(0, State.READY)
        watch.look(arbiter)  # larger than the bound from the first: no leak
        held[8] = 1100
        watch.look(arbiter)
        assert arbiter.killed == (7,)
        held[8] = 1300
        watch.look(arbiter)
        assert arbiter.killed == (7, 8)
    assert watch.exited(arbiter, 99) is False
