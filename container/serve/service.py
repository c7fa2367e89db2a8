"""The core: a request value in, a response value out, whichever door it came through."""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from container import contract
from container.serve import tracing
from container.serve.ahead import Ahead
from container.serve.batcher import Batcher
from container.serve.call import Call
from container.serve.causes import classify
from container.serve.exchange import (
    BodyTooLarge,
    DeadlineExceeded,
    HandlerFailed,
    NotFound,
    OutOfMemory,
    Request,
    Response,
    ServeError,
    Unavailable,
    json_response,
)
from container.serve.failures import describe_request
from container.serve.health import Health, State
from container.serve.metrics import INVOKE_MODEL_ROUTE, Metrics
from container.serve.plan import ServerPlan
from container.serve.quick import TURN_SECONDS
from container.serve.registry import Registry
from container.serve.spool import Spool

if TYPE_CHECKING:  # it imports torch, and the server answers before that is done
    from container.serve.predictor import Predictor

logger = logging.getLogger(__name__)

Done = Callable[[Response], None]

FULL_PAYLOAD_SECONDS = 300  # half of the time that a transform job gives a request unless it says otherwise
DIGIT_AND_COMMA_BYTES = 2  # a value in CSV takes no less


class Service:
    """Answers requests with the model it was given; until then it says that it is loading."""

    def __init__(
        self, plan: ServerPlan, health: Health, registry: Registry | None = None, metrics: Metrics | None = None
    ) -> None:
        self.plan = plan
        self.metrics = metrics
        """Where answers are counted: the doors' business, once for each; None: nowhere."""
        self.health = health
        self.registry = registry
        """The models of a multi-model endpoint; None: one model, at /invocations."""
        self._predictor: Predictor | None = None
        self._batcher = Batcher(
            self._compute, plan.compute_threads, plan.max_batch_size, plan.max_queue, plan.torch_threads
        )
        self._ahead = (
            Ahead(plan.decode_threads, self._make_ready, self._batcher.submit, plan.max_queue)
            if plan.decode_threads
            else None
        )
        self._computes_at_once = plan.torch_threads == 1 and not plan.decode_threads
        self._errors = itertools.count(1)

    # -- life

    def serve(self, predictor: "Predictor") -> None:
        """Begin to answer with this model, after one request has gone all the way through it.

        Raises:
            RuntimeError: the warm-up request was not answered with 200.
        """
        self._predictor = predictor
        self._batcher.start()
        warm_up = predictor.warm_up()
        if warm_up is None:
            return
        body, content_type = warm_up
        request = Request("POST", contract.INVOCATIONS_PATH, {"content-type": content_type}, body)
        _, response = self._wait(request, lambda call: self._submit(call, None))  # its size is not the caller's fault
        if response.status != 200:
            raise RuntimeError(f"the warm-up request was answered with {response.status}: {response.body!r}")

    def serve_registry(self) -> None:
        """Begin to answer for the models that the platform will load."""
        self._batcher.start()

    def limit_batch(self, size: int) -> None:
        """Let at most so many requests share a batch, where that is less than the plan's."""
        self._batcher.limit(size)

    def wait_for_quiet(self, seconds: float) -> None:
        """Until this process has had nothing to compute for so long."""
        while self._batcher.quiet_seconds() < seconds or (self._ahead and self._ahead.waiting()):
            time.sleep(seconds / 10)

    def stop(self) -> None:
        """Let the compute threads end after what waits."""
        if self._ahead:
            self._ahead.stop()
        self._batcher.stop()

    def ping(self) -> Response:
        """200 and nothing else once every process answers, else 503 and why. Touches no model."""
        if self.health.state() is State.READY and not self._batcher.alive():
            return json_response(503, {"state": "failed", "error": "a compute thread of this process has ended"})
        return self.health.response()

    def execution_parameters(self) -> Response:
        """How batch transform should call: as many at once as run at once, and whole batches of records.

        The payload stays at the platform's default, which a file that is not split must fit into. A model so slow that
        a payload full of its records would take too long is sent one record at a time.
        """
        concurrent = self.plan.processes * self.plan.compute_threads
        payload = contract.DEFAULT_MAX_PAYLOAD_IN_MB
        slow = self._seconds_for(payload * 1024**2) > FULL_PAYLOAD_SECONDS
        return json_response(
            200,
            {
                "MaxConcurrentTransforms": min(concurrent, 100 // payload),  # the product may not pass 100
                "BatchStrategy": "SINGLE_RECORD" if slow else "MULTI_RECORD",
                "MaxPayloadInMB": payload,
            },
        )

    def _seconds_for(self, payload_bytes: int) -> float:
        """How long the model would take for text full of its records, as the quicker of two that it is asked takes now.

        0.0 where only the model's author knows what a record looks like.
        """
        warm_up = self._predictor.warm_up() if self._predictor else None
        if self._predictor is None or warm_up is None:
            return 0.0
        body, content_type = warm_up
        request = Request("POST", contract.INVOCATIONS_PATH, {"content-type": content_type}, body)
        calls = [self._wait(request, lambda call: self._submit(call, None))[0] for _ in range(2)]
        seconds = min(max(0.0, call.predicted - call.decoded) for call in calls)
        return payload_bytes / (DIGIT_AND_COMMA_BYTES * self._predictor.defaults.interface().values) * seconds

    # -- invocations

    def invoke(self, request: Request, model: str | None = None, spool: Spool | None = None) -> Response:
        """Answer a request, waiting for it; of the model of that name in multi-model mode, with its body in `spool`."""

        def submit(call: Call) -> None:
            call.spool = spool
            self.submit(call, model)

        call, response = self._wait(request, submit)
        self.answered(call, response)
        return response

    def answered(self, call: Call, response: Response) -> None:
        """Count an answer; each door calls it once, where the answer leaves the core."""
        if self.metrics is not None:
            path = call.request.path
            route = path if path == contract.INVOCATIONS_PATH else INVOKE_MODEL_ROUTE
            self.metrics.answered(call, response.status, route)

    def _wait(self, request: Request, submit: Callable[[Call], None]) -> tuple[Call, Response]:
        answered = threading.Event()
        answers: list[Response] = []

        def done(response: Response) -> None:
            answers.append(response)
            answered.set()

        call = Call(request, done)
        submit(call)
        if not answered.wait(self.plan.request_timeout_seconds):
            call.cancel()
            return call, self.deadline_exceeded(call).response()
        return call, answers[0]

    def submit(self, call: Call, model: str | None = None) -> None:
        """Have a request answered through `call.done`, on this or another thread, exactly once."""
        if len(call.request.body) > self.plan.max_request_bytes:
            call.answer(self.too_large(len(call.request.body)).response())
        else:
            self._submit(call, model)

    def _submit(self, call: Call, model: str | None) -> None:
        try:
            if call.predictor is None:
                self._give_predictor(call, model)
            (self._ahead if self._ahead and call.spool is None else self._batcher).submit(call)
        except ServeError as error:
            call.answer(error.response())

    def _give_predictor(self, call: Call, model: str | None) -> None:
        if model is not None and self.registry is not None:
            call.predictor, call.release = self.registry.borrow(model)
        elif self.registry is not None:
            raise NotFound("this endpoint serves many models, each at POST /models/<name>/invoke")
        elif self._predictor is None:
            raise Unavailable("the model is still loading")
        else:
            call.predictor = self._predictor

    def answer_at_once(self, turn: list[tuple[Call, str | None]]) -> list[tuple[Call, str | None]]:
        """Answer on this thread what is known to be quick; returns the rest, which is to be submitted.

        Only while no compute thread has anything to do: two threads would get in each other's way.
        """
        if not self._computes_at_once or not self._is_ever_quick() or not self._batcher.idle():
            return turn
        quick, rest = [], []
        for call, model in turn:
            if self._is_read_quickly(call, model):
                quick.append(call)
            else:
                rest.append((call, model))
        if quick:
            with self._batcher.as_compute_thread():
                rest += [(call, None) for call in self._answer_what_is_quick(quick)]
            tracing.enter(None)
        return rest

    def _is_ever_quick(self) -> bool:
        """Whether any model may be: of a single one that is known beforehand."""
        return self.registry is not None or (self._predictor is not None and self._predictor.quick is not None)

    def _is_read_quickly(self, call: Call, model: str | None) -> bool:
        try:
            self._give_predictor(call, model)
        except ServeError:  # which `submit` answers with
            return False
        quick = _predictor_of(call).quick
        return quick is not None and quick.may_read(call)

    def _answer_what_is_quick(self, calls: Sequence[Call]) -> list[Call]:
        """Returns those that are not quick after all, or for which there was no time."""
        until = time.monotonic() + TURN_SECONDS
        left, ready = [], []
        for call in calls:
            if time.monotonic() > until:
                left.append(call)
            elif self._make_ready(call):
                ready.append(call)
        for group in _groups(ready):
            quick = _predictor_of(group[0]).quick
            if quick is not None and quick.knows(group[0].key, _rows(group)) and time.monotonic() < until:
                self._predict(group)
            else:
                left += group
        return left

    def waiting(self) -> int:
        """Requests that no thread has taken yet."""
        return self._batcher.waiting() + (self._ahead.waiting() if self._ahead else 0)

    def predictors(self) -> "list[Predictor]":
        """The models that can be invoked."""
        if self.registry is not None:
            return self.registry.predictors()
        return [] if self._predictor is None else [self._predictor]

    def should_wait(self) -> bool:
        """Whether this process should not take requests yet: it still loads, and another one answers already."""
        return self._predictor is None and self.health.any_ready()

    def age(self, call: Call) -> float:
        """Seconds since a call arrived."""
        return time.monotonic() - call.arrived

    def deadline_exceeded(self, call: Call) -> DeadlineExceeded:
        """The answer to a call that took too long, with where the time went."""
        age = self.age(call)
        queued = call.started - call.arrived if call.started else age
        return DeadlineExceeded(
            f"no answer within {self.plan.request_timeout_seconds:g} s",
            queue_seconds=round(queued, 3),
            compute_seconds=round(age - queued, 3),
        )

    def too_large(self, length: int) -> BodyTooLarge:
        return BodyTooLarge(f"the body has {length} bytes, this server takes {self.plan.max_request_bytes}")

    def _compute(self, calls: Sequence[Call]) -> None:
        ready, large = [], []
        for call in calls:
            if call.cancelled:
                call.release()
            elif call.spool is not None:
                large.append(call)
            elif call.decoded or self._make_ready(call):
                ready.append(call)
        for group in _groups(ready):
            self._predict(group)
        for call in large:  # one after the other: memory may not hold two
            self._compute_large(call)
        tracing.enter(None)

    def _compute_large(self, call: Call) -> None:
        if self._make_ready(call):
            self._predict([call])
        if call.answered:
            call.let_go_of_body()

    def _make_ready(self, call: Call) -> bool:
        """Decode a call; False where that failed and the call has its answer, or nobody waits for one."""
        call.started = time.monotonic()
        if call.cancelled:
            call.release()
            return False
        return self._attempt(call, self._decode)

    def _decode(self, call: Call) -> None:
        predictor = _predictor_of(call)
        if call.spool is not None:
            call.load_body()
        call.data = predictor.decode(call)
        call.key = predictor.batch_key(call.data)
        call.decoded = time.monotonic()

    def _predict(self, group: list[Call]) -> None:
        if self.metrics is not None:
            self.metrics.batch(len(group))
        if len(group) > 1:
            began = time.monotonic()
            try:
                predictions = list(zip(group, _predictor_of(group[0]).predict(group), strict=True))
            except BaseException as error:  # which request is at fault shows when each is tried alone
                logger.warning("a batch of %d failed (%s); trying its requests one by one", len(group), error)
            else:
                predicted = _predicted(group, began)
                for call, prediction in predictions:
                    call.predicted = predicted
                    self._finish(call, prediction)
                return
        for call in group:
            self._attempt(call, self._predict_alone)

    def _predict_alone(self, call: Call) -> None:
        began = time.monotonic()
        prediction = _predictor_of(call).predict([call])[0]
        call.predicted = _predicted([call], began)
        if self._ahead:
            self._finish(call, prediction)
        else:
            self._encode(call, prediction)

    def _finish(self, call: Call, prediction: Any) -> None:
        if self._ahead:
            self._ahead.run(self._attempt, call, self._encode, prediction)
        else:
            self._attempt(call, self._encode, prediction)

    def _encode(self, call: Call, prediction: Any) -> None:
        call.answer(_predictor_of(call).encode(prediction, call))

    def _attempt(self, call: Call, step: Callable[..., None], *arguments: Any) -> bool:
        """Run one step of one call; what goes wrong is its answer and nobody else's. Returns whether nothing did."""
        tracing.enter(call.request.headers)
        try:
            step(call, *arguments)
        except HandlerFailed as error:
            call.answer(self._failed(call, error, str(error)))
        except ServeError as error:
            call.answer(error.response())
        except BaseException as error:  # sys.exit, or asyncio's CancelledError: it ends its request, not the thread
            call.answer(self._failed(call, error, "the handler failed; the log has the reason under this id"))
        else:
            return True
        return False

    def _failed(self, call: Call, error: BaseException, message: str) -> Response:
        if self.plan.multi_model and classify(error)[0] == "out-of-memory":
            return OutOfMemory("memory ran out in the invocation").response()
        identity = f"{os.getpid()}-{next(self._errors)}-{int(time.time())}"
        logger.error("request failed id=%s %s", identity, describe_request(error), exc_info=error)
        return HandlerFailed(message, id=identity).response()


def _predictor_of(call: Call) -> "Predictor":
    assert call.predictor is not None
    return call.predictor


def _groups(calls: Sequence[Call]) -> Iterable[list[Call]]:
    """What may share a batch, together."""
    groups: dict[Hashable, list[Call]] = {}
    for call in calls:
        groups.setdefault(call if call.key is None else (call.predictor, call.key), []).append(call)
    return groups.values()


def _rows(group: Sequence[Call]) -> int:
    """How many rows a batch has; data without a batch key counts for one."""
    return 1 if group[0].key is None else sum(len(call.data) for call in group)


def _predicted(group: Sequence[Call], began: float) -> float:
    """Now, after a prediction that the model's `Quick` learns from."""
    now = time.monotonic()
    if (quick := _predictor_of(group[0]).quick) is not None:
        quick.saw(group[0].key, _rows(group), now - began)
    return now
