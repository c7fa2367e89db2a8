import threading
import time

import pytest
import torch

from container.serve.batcher import QUIET_BATCHES, Batcher, Cores
from container.serve.call import Call
from container.serve.exchange import Request, Unavailable


class Recorder:
    """Stands for the model: records each batch and holds the first until it is let go."""

    def __init__(self):
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, calls):
        self.batches.append(len(calls))
        self.entered.release()
        assert self.go.acquire(timeout=10)
        for call in calls:
            call.done(None)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def make_batcher(recorder):
    batchers = []

    def make(threads=1, max_batch_size=8, max_queue=100):
        batchers.append(Batcher(recorder, threads, max_batch_size, max_queue))
        batchers[-1].start()
        return batchers[-1]

    yield make
    for batcher in batchers:
        batcher.stop()
        recorder.go.release(100)


def submit(batcher, count):
    answered = threading.Semaphore(0)
    for _ in range(count):
        batcher.submit(Call(Request("POST", "/invocations"), lambda response: answered.release()))
    return answered


def test_a_lone_request_is_a_batch_of_one_at_once(make_batcher, recorder):
    submit(make_batcher(), 1)
    assert recorder.entered.acquire(timeout=5)
    assert recorder.batches == [1]


def test_what_arrives_while_the_model_is_busy_is_the_next_batch(make_batcher, recorder):
    batcher = make_batcher()
    submit(batcher, 1)
    assert recorder.entered.acquire(timeout=5)
    submit(batcher, 5)
    recorder.go.release()
    assert recorder.entered.acquire(timeout=5)
    assert recorder.batches == [1, 5]


def test_a_batch_is_never_larger_than_its_limit(make_batcher, recorder):
    batcher = make_batcher(max_batch_size=3)
    submit(batcher, 1)
    assert recorder.entered.acquire(timeout=5)
    answered = submit(batcher, 7)
    recorder.go.release(100)
    assert all(answered.acquire(timeout=5) for _ in range(7))
    assert max(recorder.batches) == 3


def test_waiting_requests_are_shared_among_the_threads_instead_of_batched_on_one(make_batcher, recorder):
    batcher = make_batcher(threads=2)
    submit(batcher, 2)
    assert recorder.entered.acquire(timeout=5)
    assert recorder.entered.acquire(timeout=5)
    answered = submit(batcher, 4)
    recorder.go.release(100)
    assert all(answered.acquire(timeout=5) for _ in range(4))
    assert max(recorder.batches) <= 2


def test_a_full_queue_refuses_the_next_request_with_retry_after(make_batcher, recorder):
    batcher = make_batcher(max_queue=2)
    submit(batcher, 1)
    assert recorder.entered.acquire(timeout=5)
    submit(batcher, 2)
    with pytest.raises(Unavailable, match="2 requests wait already") as raised:
        submit(batcher, 1)
    response = raised.value.response()
    assert response.status == 503
    assert ("Retry-After", "1") in response.headers


def test_a_stopped_batcher_answers_what_waits_and_ends_its_threads(make_batcher, recorder):
    batcher = make_batcher(threads=2)
    assert batcher.alive()
    answered = submit(batcher, 3)
    batcher.stop()
    recorder.go.release(100)
    assert all(answered.acquire(timeout=5) for _ in range(3))
    for thread in (*batcher._threads, batcher._wide_thread):
        thread.join(5)
    assert not batcher.alive()


def test_a_batch_takes_its_share_of_the_cores_and_a_lone_one_in_quiet_times_all():
    cores = Cores(threads=4, torch_threads=1)
    widths = []
    for _ in range(QUIET_BATCHES + 1):
        widths.append(cores.take(alone=True))
        cores.give(widths[-1])
    assert widths == [1] * QUIET_BATCHES + [4]
    assert cores.take(alone=False) == 1
    assert [cores.take(alone=True) for _ in range(3)] == [1, 1, 1]


def test_behind_a_long_batch_that_uses_every_core_others_begin_after_a_moment():
    cores = Cores(threads=3, torch_threads=1, patience=0.01)
    for _ in range(QUIET_BATCHES):
        cores.give(cores.take(alone=True))
    assert cores.take(alone=True) == 3
    assert cores.take(alone=True) == 1
    assert cores.take(alone=True) == 1
    for width in (3, 1, 1):
        cores.give(width)
    assert [cores.take(alone=False) for _ in range(3)] == [1, 1, 1]


def test_never_more_cores_are_used_than_there_are():
    cores = Cores(threads=2, torch_threads=1, patience=30)
    in_use, most, lock = [0], [0], threading.Lock()

    def work():
        for _ in range(200):
            width = cores.take(alone=True)
            with lock:
                in_use[0] += width
                most[0] = max(most[0], in_use[0])
            with lock:
                in_use[0] -= width
            cores.give(width)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most[0] <= 2


def test_batches_that_use_every_core_run_on_one_thread_and_the_others_never_use_several():
    seen = {}

    def compute(calls):
        seen.setdefault(threading.current_thread().name, set()).add(torch.get_num_threads())
        for call in calls:
            call.done(None)

    before = torch.get_num_threads()
    batcher = Batcher(compute, 3, 8, 100)
    batcher.start()
    for _ in range(QUIET_BATCHES + 20):
        assert submit(batcher, 1).acquire(timeout=10)
        while batcher.quiet_seconds() == 0:  # else the next is not alone
            pass
    batcher.stop()
    for thread in (*batcher._threads, batcher._wide_thread):
        thread.join(10)
    torch.set_num_threads(before)
    assert seen.pop("compute-wide") == {3}
    assert set().union(*seen.values()) == {1}


def test_a_share_of_several_cores_is_never_widened():
    cores = Cores(threads=2, torch_threads=2)
    for _ in range(QUIET_BATCHES + 3):
        width = cores.take(alone=True)
        assert width == 2
        cores.give(width)


def test_a_batcher_is_quiet_from_the_end_of_its_last_batch_on():
    begun, go = threading.Event(), threading.Event()

    def compute(calls):
        begun.set()
        go.wait(10)

    batcher = Batcher(compute, 2, 8, 100)
    batcher.start()
    before = time.monotonic()
    while batcher.quiet_seconds() == 0:
        assert time.monotonic() < before + 10
    batcher.submit(Call(Request("POST", "/invocations", {}, b""), lambda response: None))
    assert begun.wait(10)
    assert batcher.quiet_seconds() == 0
    go.set()
    while batcher.quiet_seconds() == 0:
        assert time.monotonic() < before + 20
    assert batcher.quiet_seconds() < 20
    batcher.stop()
