"""Requests go from the event loop to the compute threads and back, and no slow one holds the loop."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from container.serve.call import Call
from container.serve.exchange import DeadlineExceeded, Request, Response
from container.serve.front import Front


class Waiter:
    def __init__(self, front):
        self.call = Call(Request("POST", "/invocations"), lambda response: front.deliver(self, response))
        self.taken = asyncio.get_running_loop().create_future()

    def take(self, response):
        self.taken.set_result(response.body)


class Service:
    """Answers each call on one thread, once `go` is set."""

    def __init__(self, compute_threads=1, timeout=60.0):
        self.plan = SimpleNamespace(compute_threads=compute_threads, request_timeout_seconds=timeout)
        self.go = threading.Event()
        self.go.set()
        self.counted = []
        self.threads = []
        self.quick = set()

    def answer_at_once(self, turn):
        for call, model in turn:
            if model in self.quick:
                call.answer(Response(200, model.encode()))
            elif model == "breaks":
                raise ZeroDivisionError
        return [(call, model) for call, model in turn if model not in self.quick]

    def submit(self, call, model):
        def work():
            assert self.go.wait(10)
            call.answer(Response(200, (model or "one").encode()))

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def answered(self, call, response):
        self.counted.append(response.status)

    def age(self, call):
        return self.plan.request_timeout_seconds + 1 if self.plan.request_timeout_seconds < 1 else 0.0

    def deadline_exceeded(self, call):
        return DeadlineExceeded("late")


def run(service, drive):
    """Drive a front on a loop; returns what `drive` returned and how often another thread woke the loop."""
    woken = []

    async def main():
        loop = asyncio.get_running_loop()
        front = Front(service, loop)
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *arguments: (woken.append(arguments[0]), wake(*arguments))[1]
        return await asyncio.wait_for(drive(front), 10)

    result = asyncio.run(main())
    for thread in service.threads:
        thread.join(10)
    return result, len(woken)


def submit(front, *models):
    waiters = [Waiter(front) for _ in models]
    for waiter, model in zip(waiters, models, strict=True):
        front.submit(waiter, model)
    return waiters


def bodies(waiters):
    return asyncio.gather(*(waiter.taken for waiter in waiters))


def test_all_that_one_turn_asked_of_a_quick_model_is_answered_without_waking_the_loop():
    service = Service()

    async def drive(front):
        return await bodies(submit(front, "a", "b", None))

    # A busy machine may take longer than the loop's patience: it is woken then.
    attempts = [run(service, drive) for _ in range(20)]
    assert all(answers == [b"a", b"b", b"one"] for answers, _ in attempts)
    assert 0 in [woken for _, woken in attempts]
    assert service.counted == [200] * 60


def test_what_is_answered_at_once_does_not_wait_for_the_rest_of_its_turn():
    service = Service(compute_threads=2)  # the loop is woken for what a thread answers
    service.quick = {"a", "b"}
    service.go.clear()

    async def drive(front):
        a, slow, b = submit(front, "a", "slow", "b")
        answers = await bodies([a, b])
        assert not slow.taken.done()
        service.go.set()
        return answers + await bodies([slow])

    (answers, woken) = run(service, drive)
    assert answers == [b"a", b"b", b"slow"]
    assert woken == 1


def test_a_mistake_of_the_servers_own_costs_no_request_of_the_turn_its_answer():
    service = Service()
    service.quick = {"a", "b"}

    async def drive(front):
        return await bodies(submit(front, "a", "breaks", "b"))

    answers, _ = run(service, drive)
    assert answers == [b"a", b"breaks", b"b"]
    assert service.counted == [200] * 3


def test_a_slow_answer_does_not_hold_the_loop():
    service = Service()
    service.go.clear()

    async def drive(front):
        waiters = submit(front, "a", "b")
        asyncio.get_running_loop().call_later(0.05, service.go.set)  # never, if the loop waited for the answers
        return await bodies(waiters)

    answers, woken = run(service, drive)
    assert answers == [b"a", b"b"]
    assert woken >= 1


@pytest.mark.parametrize("compute_threads", [1, 2])
def test_after_a_wait_in_vain_and_with_several_compute_threads_the_loop_is_woken(compute_threads):
    service = Service(compute_threads)

    async def drive(front):
        if compute_threads == 1:
            service.go.clear()
            waiters = submit(front, "slow")
            asyncio.get_running_loop().call_later(0.02, service.go.set)
            await bodies(waiters)
            front._wait_again += 60  # however slow this machine is, the pause is not over
        held = []
        front._wait = held.append
        answers = await bodies(submit(front, "a", "b"))
        return answers, held

    (answers, held), woken = run(service, drive)
    assert answers == [b"a", b"b"]
    assert held == []
    assert woken >= 1


def test_an_answer_that_nobody_waits_for_any_more_is_dropped_and_not_counted():
    service = Service()
    service.go.clear()

    async def drive(front):
        gone, stays = submit(front, "gone", "stays")
        call = gone.call
        await asyncio.sleep(0)
        front.forget(gone)
        service.go.set()
        body = await stays.taken
        return call.cancelled, gone.taken.done(), body

    assert run(service, drive)[0] == (True, False, b"stays")
    assert service.counted == [200]


def test_what_is_past_its_deadline_is_answered_and_cancelled():
    service = Service(timeout=0.01)
    service.go.clear()

    async def drive(front):
        (waiter,) = submit(front, "late")
        body = await waiter.taken
        service.go.set()
        return body, waiter.call.cancelled

    (body, cancelled), _ = run(service, drive)
    assert b"late" in body
    assert cancelled
    assert service.counted == [504]
