"""The model behind the server: how a request becomes its input, the input a prediction, the prediction an answer.

Each of the three steps is the user's function where there is one, else the default of the model at hand: the built-in
image classifier's, or the plain array formats for whatever `model_fn` returned.
"""

import functools
import logging
import math
import sys
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from container import contract
from container.serve import codec
from container.serve.answers import answer
from container.serve.array_model import ArrayModel, how_to_ask
from container.serve.call import Call
from container.serve.exchange import HandlerFailed, NotFound, Request, Response
from container.serve.handlers import (
    Context,
    HandlerError,
    UserFunctions,
    find_program,
    load_functions,
)
from container.serve.interface import Interface
from container.serve.lines import NO_RECORDS
from container.serve.model_files import ModelFile, ModelFileError, find_model_file, misplaced_code, nothing_to_serve
from container.serve.modules import PrivateModules
from container.serve.plan import QUICK_HANDLERS, RECORD_PLACEHOLDERS, is_true
from container.serve.quick import Quick
from container.serve.sessions import SessionStore, closed_headers, opened_headers
from container.serve.vision import import_torchvision

logger = logging.getLogger(__name__)

SESSION_HEADER = contract.SESSION_ID_HEADER.lower()
UTF8_TYPES = (codec.JSON, codec.CSV)  # handed to input_fn as text, everything else as bytes: as AWS's toolkits do


class Model(Protocol):
    """What stands behind the user's functions, or alone: the three default steps."""

    default_accept: str
    device: str
    model: Any

    @property
    def only_torch(self) -> bool:
        """Whether a prediction runs no code but torch's own, so that it never waits for anything."""

    def decode(self, call: Call) -> Any: ...

    def batch_key(self, data: Any) -> Hashable:
        """Inputs of equal key may share a batch; None never does."""

    def predict(self, batch: Sequence[Any]) -> list[Any]: ...

    def encode(self, prediction: Any, call: Call) -> tuple[bytes, str]: ...

    def interface(self) -> Interface: ...

    def warm_up(self) -> tuple[bytes, str] | None: ...

    def tune(self, keep_loaded: bool, within: float) -> str: ...

    def examples(self, count: int) -> list[Any]:
        """So many inputs to measure with, none like another; none where only the user knows what one looks like."""

    def predict_alone(self) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a model runs and what it shares with the others."""

    device: str
    """`cpu` or `cuda:N`."""
    default_accept: str
    """The answer's media type where the caller names none."""
    torch_threads: int
    sessions: SessionStore
    quick_seconds: float
    """A prediction that takes no longer may be made where its request was read."""
    modules: PrivateModules | None = None
    """Where the user's files are imported to, where other models of this process have theirs."""


class Predictor:
    """A loaded model and the user's functions over it, as the three steps the core runs."""

    def __init__(
        self,
        model: Any,
        defaults: Model,
        functions: UserFunctions,
        context_of: Callable[[Request], Context],
        sessions: SessionStore,
        quick: Quick,
    ) -> None:
        self._sessions = sessions
        self.model = model
        self.defaults = defaults
        self.functions = functions
        self._context_of = context_of
        self._tuned = False
        self._answers_itself = bool(
            functions.input_fn or functions.predict_fn or functions.output_fn or functions.transform_fn
        )
        """Whether the user's functions take part in a request, and not only in loading the model."""
        closed = quick.trusted or (defaults.only_torch and not self._answers_itself)
        self.quick = quick if closed and defaults.device == "cpu" else None
        """Which inputs may be predicted on the event loop; None: none."""

    @functools.cached_property
    def memory_bytes(self) -> int:
        """Parameters and buffers of a torch module; 0 for a model of any other kind."""
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(self.model, torch.nn.Module):
            return 0
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    def decode(self, call: Call) -> Any:
        """The request's data: `input_fn`'s, or the default's."""
        functions = self.functions
        if self._answers_itself or (functions is not NO_FUNCTIONS and SESSION_HEADER in call.request.headers):
            call.context = self._context_of(call.request)
        if functions.transform_fn:
            return self._text_or_bytes(call)
        if functions.input_fn:
            return functions.input_fn(*self._text_or_bytes(call), call.context)
        data = self.defaults.decode(call)
        if functions.predict_fn and isinstance(self.defaults, ArrayModel):
            return self.defaults.input_of_predict_fn(data)
        return data

    def _text_or_bytes(self, call: Call) -> tuple[Any, str]:
        kind = codec.sent_type(call.request.headers.get("content-type"))  # not an alias's other name: code compares it
        body = call.request.body
        return (codec.decode_text(body) if kind in UTF8_TYPES else body), kind

    def batch_key(self, data: Any) -> Hashable:
        """What may share a batch; a user's own `predict_fn` gets one request at a time."""
        if self.functions.predict_fn or self.functions.transform_fn or data is NO_RECORDS:
            return None
        return self.defaults.batch_key(data)

    def predict(self, calls: Sequence[Call]) -> list[Any]:
        """Predictions for calls that share a batch key, in their order."""
        call, functions = calls[0], self.functions
        if functions.transform_fn:
            data, kind = call.data
            return [functions.transform_fn(self.model, data, kind, self._accept(call), call.context)]
        if call.data is NO_RECORDS:
            return [NO_RECORDS]
        if functions.predict_fn:
            return [functions.predict_fn(call.data, self.model, call.context)]
        if self.converses and self.model is None:
            raise NotFound(f"this model takes bidirectional streams alone, at {contract.BIDIRECTIONAL_STREAM_PATH}")
        return self.defaults.predict([call.data for call in calls])

    def encode(self, prediction: Any, call: Call) -> Response:
        """The answer with the headers the handlers set."""
        functions = self.functions
        if call.context is None and not isinstance(prediction, Iterator):
            body, content_type = self.defaults.encode(prediction, call)
            return Response(200, body, content_type)
        kind = self._accept(call)
        if functions.output_fn:
            prediction = functions.output_fn(prediction, kind, call.context)
        elif not functions.transform_fn and not isinstance(prediction, Iterator):
            prediction, kind = self.defaults.encode(prediction, call)
        if isinstance(prediction, Response):
            return prediction
        if isinstance(prediction, tuple) and len(prediction) == 2 and isinstance(prediction[1], str):
            prediction, kind = prediction
        return answer(prediction, kind, call, self._session_headers(call))

    @property
    def converses(self) -> bool:
        """Whether the model takes bidirectional streams."""
        return self.functions.bidirectional_stream_fn is not None

    def converse(self, request: Request, messages: Any) -> Iterator[Any] | AsyncIterator[Any]:
        """The user's answers to a bidirectional stream, as they come.

        Raises:
            BadRequest: the request names a session that is unknown.
            HandlerFailed: the user's function returns something else.
        """
        assert self.functions.bidirectional_stream_fn is not None
        answers = self.functions.bidirectional_stream_fn(messages, self.model, self._context_of(request))
        if not isinstance(answers, Iterator | AsyncIterator):
            raise HandlerFailed(f"bidirectional_stream_fn returned {type(answers).__name__}; it must yield its answers")
        return answers

    def _session_headers(self, call: Call) -> dict[str, str]:
        """What tells the platform that this call opened or closed a session; the closed one is forgotten here."""
        context = call.context
        if context is None or context.session is None:
            return {}
        if context.session_closed:
            self._sessions.close(context.session)
            return closed_headers(context.session)
        return opened_headers(context.session) if context.session.is_new else {}

    def warm_up(self) -> tuple[bytes, str] | None:
        """Body and content type of a request that must succeed; None where only the user knows what one looks like."""
        return None if self.functions.names() else self.defaults.warm_up()

    def tune(self, within: float = math.inf) -> str:
        """Make the default model faster where that can be measured, once; returns what was done, for the log.

        Args:
            within: about how many seconds it may take; a model that needs more is left for another time.
        """
        if self._tuned:
            return ""
        keep = bool(self.functions.names())
        _ = self.memory_bytes  # counted while the network is there
        done = self.defaults.tune(keep, within)
        self._tuned = bool(done)
        if not keep:
            self.model = self.defaults.model
        return done

    def _accept(self, call: Call) -> str:
        """The one media type a handler is asked for."""
        best = codec.preferences(call.request.headers.get("accept"))
        return self.defaults.default_accept if not best or best[0] == "*/*" else best[0]


NO_FUNCTIONS = UserFunctions()


def load_predictor(model_dir: Path, environ: Mapping[str, str], place: Place) -> Predictor:
    """The model in `model_dir` with the user's functions, where there are any.

    Raises:
        HandlerError: the user's file does not fit.
        ModelFileError: there is nothing to serve, several models, or a damaged one.
        ModelFormatError: the signature is none, or the weights do not fit it.
        Exception: whatever the user's code raises.
    """
    device, default_accept = place.device, place.default_accept

    def context_of(request: Request) -> Context:
        session_id = request.headers.get(SESSION_HEADER)
        session = place.sessions.find(session_id) if session_id else None
        return Context(request.headers, str(model_dir), device, session)

    program = find_program(model_dir, environ)
    functions = load_functions(program, place.modules) if program else NO_FUNCTIONS
    found = None if functions.model_fn else _find_model_file(model_dir, environ, functions)
    if found:
        import_torchvision()
        from container.serve import model_loader  # imports torch: a model without it starts in half a second
    limit_torch(place.torch_threads)
    load_context = Context({}, str(model_dir), device)
    if functions.pre_model_fn:
        functions.pre_model_fn(str(model_dir), load_context)
    # An output_fn of the user's writes the whole answer: nothing can be put between its records.
    placeholders = is_true(environ, RECORD_PLACEHOLDERS) and not functions.output_fn
    defaults: Any = None
    if functions.model_fn:
        made = functions.model_fn(str(model_dir), load_context)
        defaults = ArrayModel(made, device, default_accept, placeholders=placeholders)
        _check_default_predict(functions, defaults.model, program)
    elif found:
        defaults = model_loader.load_defaults(found, device, default_accept, placeholders, environ)
        logger.info("the model is %s, %s", found.path.name, found.format.value)
        if not functions.predicts:
            model_loader.check_takes_one_input(defaults.model, found.path)
    else:
        defaults = ArrayModel(None, device, default_accept, placeholders=placeholders)
    model = defaults.model
    if functions.model_warmup_fn:
        functions.model_warmup_fn(str(model_dir), model, load_context)
    quick = Quick(is_true(environ, QUICK_HANDLERS), place.quick_seconds)
    return Predictor(model, defaults, functions, context_of, place.sessions, quick)


def _find_model_file(model_dir: Path, environ: Mapping[str, str], functions: UserFunctions) -> ModelFile | None:
    """The model file to load; functions of the user's that predict may do without one, or read it themselves."""
    if not functions.predicts:
        found = find_model_file(model_dir, environ)
        if found is None:
            raise nothing_to_serve(model_dir)
        if functions is NO_FUNCTIONS and (advice := misplaced_code(model_dir)):
            logger.warning("the model is served without code of yours: %s", advice)
        return found
    try:
        found = find_model_file(model_dir, environ)
    except ModelFileError as error:
        logger.info("predict_fn gets no model: %s", error)
        return None
    return found if found and found.is_complete(environ) else None


def limit_torch(threads: int) -> None:
    """Give torch its share of the cores before it computes, where somebody imported it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _check_default_predict(functions: UserFunctions, model: Any, program: Path | None) -> None:
    if functions.predicts or how_to_ask(model) is not None:
        return
    if model is None:
        raise HandlerError(f"{program}: model_fn returned None: end it with `return model`, or write predict_fn")
    kind = type(model).__name__
    raise HandlerError(f"{program}: model_fn returned {kind}, which cannot be called nor has predict; write predict_fn")
