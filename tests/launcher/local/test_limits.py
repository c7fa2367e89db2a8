"""Limits of minutes and hours, reached in milliseconds: the parts that hold them, without a server."""

import threading
import time
from collections import deque
from types import SimpleNamespace

import pytest

from container.contract import OptMl
from launcher.local.async_inference import AsyncQueue, AsyncRequest, QueueHost
from launcher.local.endpoint_metrics import EndpointMetrics
from launcher.local.errors import JobFailed, ModelNotReady, ServiceUnavailable
from launcher.local.multi_model import MultiModels
from launcher.local.runtime_api import events
from launcher.local.served_container import Reply, StreamedReply
from launcher.local.serving import ModelServer


class Bucket:
    """Objects in a dict."""

    def __init__(self, **objects):
        self.objects = objects

    def write(self, bucket, key, body, content_type=None):
        self.objects[key] = body

    def read(self, bucket, key):
        return self.objects[key]


def async_request(**changes):
    members = {
        "inference_id": "id",
        "input_uri": "",
        "headers": {},
        "output_uri": "s3://b/good",
        "failure_uri": "s3://b/bad",
        "timeout_seconds": 1,
        "expires": time.time() + 60,
    }
    return AsyncRequest(**(members | changes))


@pytest.fixture
def async_queue(tmp_path):
    """A queue over a bucket and a function in a model's place; it is ended by the test."""

    def make(buckets, invoke, instances=1, **output):
        host = QueueHost("e", buckets, EndpointMetrics("us-east-1"), invoke, lambda: instances)
        return AsyncQueue(host, tmp_path / "async", {"OutputConfig": output})

    return make


def ended_when(queue, condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    queue.end(fail=False)
    queue.join()


def test_an_async_request_over_its_time_to_live_fails(async_queue):
    buckets = Bucket()
    queue = async_queue(buckets, lambda invocation: pytest.fail("it must not be run"), instances=0)
    queue.submit(async_request(expires=time.time() - 1), b"body")
    ended_when(queue, lambda: "bad" in buckets.objects)
    assert b"longer in the queue than its RequestTTLSeconds" in buckets.objects["bad"]


def test_an_async_request_waits_while_the_instance_is_replaced(async_queue, tmp_path):
    buckets, replies = (
        Bucket(),
        deque([ServiceUnavailable("being replaced"), Reply(200, {"Content-Length": "2"}, b"ok")]),
    )

    def invoke(invocation):
        reply = replies.popleft()
        if isinstance(reply, Exception):
            raise reply
        return reply

    queue = async_queue(buckets, invoke)
    queue.submit(async_request(), b"body")
    ended_when(queue, lambda: buckets.objects)
    assert list((tmp_path / "async").iterdir()) == []
    assert buckets.objects == {"good": b"ok"}


def test_an_async_failure_without_a_failure_path_is_only_logged(async_queue, caplog):
    queue = async_queue(Bucket(), lambda invocation: 1 / 0)
    queue.submit(async_request(failure_uri=""), b"body")
    ended_when(queue, lambda: "ZeroDivisionError" in caplog.text)
    assert "ZeroDivisionError: division by zero" in caplog.text


def test_a_model_that_loads_longer_than_an_invocation_may_take_is_not_ready(tmp_path):
    finish = threading.Event()
    opt_ml = OptMl(tmp_path)

    def request(method, path, *_, **__):
        finish.wait(10)
        return Reply(200, {}, b"ok")

    served = SimpleNamespace(
        request=request,
        container=SimpleNamespace(spec=SimpleNamespace(opt_ml=opt_ml)),
        log=SimpleNamespace(arn="arn"),
    )
    runtime = SimpleNamespace(seen_path=lambda tree, path: path)
    models = MultiModels(Bucket(), runtime, served, {"ModelDataUrl": "s3://b/models/"})
    from launcher.local.multi_model import model_name

    (opt_ml.models / model_name("m.tar.gz") / "model").mkdir(parents=True)  # as if it was fetched before
    with pytest.raises(ModelNotReady, match="Model m.tar.gz is still loading after 0.01 s"):
        models.invoke("m.tar.gz", b"", {}, 0.01)
    finish.set()  # the loading goes on
    assert models.invoke("m.tar.gz", b"", {}, 10).body == b"ok"


def test_a_stream_over_its_time_ends_in_a_stream_error():
    frames = list(events(StreamedReply(200, {}, iter([b"a", b"b"])), time.monotonic() - 1))
    assert len(frames) == 1
    assert b"ModelInvocationTimeExceeded" in frames[0]


def model_server(*containers):
    server = ModelServer.__new__(ModelServer)
    server.containers = list(containers)
    return server


def served(exit_code=None, is_healthy=False, line="last words"):
    return SimpleNamespace(
        container=SimpleNamespace(exit_code=exit_code), is_healthy=lambda: is_healthy, last_error_line=lambda: line
    )


def test_a_container_that_never_pings_is_given_up_with_its_last_line():
    with pytest.raises(JobFailed, match=r"it was not ready after 0\.2 s: last words"):
        model_server(served()).wait_until_ready(0.2, lambda: False)


def test_a_cancelled_start_ends_at_once():
    with pytest.raises(JobFailed, match="the start was cancelled"):
        model_server(served()).wait_until_ready(60, lambda: True)


def test_a_ping_must_be_good_twice_in_a_row():
    pings = deque([True, False, True, True])
    healthy = SimpleNamespace(container=SimpleNamespace(exit_code=None), is_healthy=pings.popleft)
    model_server(healthy).wait_until_ready(60, lambda: False)
    assert not pings
