"""The user's functions: found, imported, and their signatures settled once, before the first request.

The names and arguments are those of AWS's inference toolkits: `model_fn(model_dir)`, `input_fn(data, content_type)`,
`predict_fn(data, model)`, `output_fn(prediction, accept)`, or `transform_fn(model, data, content_type, accept)` in
place of the last three; each may take `context` as well. `pre_model_fn(model_dir)` and
`model_warmup_fn(model_dir, model)` run around loading. `bidirectional_stream_fn(messages, model)` is ours: it answers
the messages of a WebSocket as it reads them.
"""

import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from werkzeug.datastructures import Headers

from container import contract
from container.serve.modules import MODULE_PREFIX, PrivateModules
from container.serve.sessions import Session
from container.serve.tracing import Trace, trace_of

logger = logging.getLogger(__name__)

DEFAULT_PROGRAM = "inference.py"
ARGUMENTS = {
    "pre_model_fn": ("model_dir",),
    "model_fn": ("model_dir",),
    "model_warmup_fn": ("model_dir", "model"),
    "input_fn": ("data", "content_type"),
    "predict_fn": ("data", "model"),
    "output_fn": ("prediction", "accept"),
    "transform_fn": ("model", "data", "content_type", "accept"),
    "bidirectional_stream_fn": ("messages", "model"),
}


class HandlerError(Exception):
    """The user's code cannot serve: found before the first request."""


class Context:
    """What a handler function that takes `context` sees of its request, and where it puts response headers."""

    def __init__(self, headers: Mapping[str, str], model_dir: str, device: str, session: Session | None = None) -> None:
        self.session = session
        """The conversation this request belongs to, with a directory for the handler; None outside of one."""
        self.session_closed = False
        self.headers = headers
        """Of the request; names in lower case."""
        self.model_dir = model_dir
        self.device = device
        """Where the model belongs: `cpu` or `cuda:N`."""
        self.response_headers: dict[str, str] = {}
        self.response_status = 200
        self.stream = False
        """Set it to have an iterator sent piece by piece; otherwise it is collected first."""

    @property
    def custom_attributes(self) -> str:
        return self.headers.get(contract.CUSTOM_ATTRIBUTES_HEADER.lower(), "")

    @property
    def inference_id(self) -> str:
        return self.headers.get(contract.INFERENCE_ID_HEADER.lower(), "")

    @property
    def trace(self) -> Trace:
        """The caller's trace: `traceparent`, `amzn_trace_id`, `trace_id`; empty texts where it sent none."""
        return trace_of(self.headers)

    def close_session(self) -> None:
        """End the session with this request; its directory goes with it."""
        self.session_closed = True

    def set_response_header(self, *name_and_value: Any) -> None:
        """Send a header with the answer; `X-Amzn-SageMaker-Custom-Attributes` reaches the caller.

        Args:
            name_and_value: two texts; AWS's toolkits have the request's index before them.
        """
        name, value = name_and_value[-2:]
        self.response_headers[name] = value

    # What follows is what code written for AWS's toolkits asks its context for; an index counts requests in a batch.

    @property
    def system_properties(self) -> dict[str, Any]:
        return {
            "model_dir": self.model_dir,
            "gpu_id": int(self.device[5:]) if self.device.startswith("cuda:") else None,
            "batch_size": 1,
        }

    @property
    def request_processor(self) -> list["Context"]:
        return [self]

    def get_request_properties(self) -> Mapping[str, str]:
        """The request's headers, whatever the case of their names."""
        return Headers(list(self.headers.items()))  # type: ignore[return-value]  # a mapping in all but name

    def get_request_property(self, name: str) -> str | None:
        return self.headers.get(name.lower())

    def get_all_request_header(self, index: int) -> Mapping[str, str]:
        return self.get_request_properties()

    def get_request_header(self, index: int, name: str) -> str | None:
        return self.headers.get(name.lower())

    def set_response_content_type(self, index: int, value: str) -> None:
        self.response_headers["Content-Type"] = value

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.response_status = code


Handler = Callable[..., Any]
"""A user's function that takes the context last, whether the user wrote it so or not."""


@dataclass(frozen=True)
class UserFunctions:
    """Which of the functions the user wrote."""

    pre_model_fn: Handler | None = None
    model_fn: Handler | None = None
    model_warmup_fn: Handler | None = None
    input_fn: Handler | None = None
    predict_fn: Handler | None = None
    output_fn: Handler | None = None
    transform_fn: Handler | None = None
    bidirectional_stream_fn: Handler | None = None

    @property
    def predicts(self) -> bool:
        """Whether the user's own code does with the model what is to be done."""
        return bool(self.predict_fn or self.transform_fn or self.bidirectional_stream_fn)

    def names(self) -> list[str]:
        return [field.name for field in fields(self) if getattr(self, field.name)]


def find_program(model_dir: Path, environ: Mapping[str, str]) -> Path | None:
    """The user's file, or None where there is none.

    Looked for in `SAGEMAKER_SUBMIT_DIRECTORY` (a local one), `code/` of the model directory, and the image's own code
    directory; its name is `SAGEMAKER_PROGRAM` or `inference.py`. SDK v2 sends both variables empty: that is unset.

    Raises:
        HandlerError: `SAGEMAKER_PROGRAM` names a file that is nowhere.
    """
    program = environ.get(contract.PROGRAM)
    submitted = (environ.get(contract.SUBMIT_DIRECTORY) or "").removeprefix("file://")
    directories = [model_dir / "code", contract.IMAGE_CODE_DIR]
    if submitted.startswith("/"):
        directories.insert(0, Path(submitted))
    for directory in directories:
        path = directory / (program or DEFAULT_PROGRAM)
        if path.is_file():
            return path
    if program:
        looked = ", ".join(map(str, directories))
        raise HandlerError(f"{contract.PROGRAM}={program!r} is in none of: {looked}")
    return None


def load_functions(path: Path, modules: PrivateModules | None = None) -> UserFunctions:
    """Import the user's file, as one of `modules` where there are several models, and settle each signature.

    Raises:
        HandlerError: none of the functions is there, `transform_fn` stands beside one it replaces, or a signature
            does not fit.
        Exception: whatever the file raises while it is imported.
    """
    try:
        module = modules.load(path) if modules else _import(path)
    except SyntaxError as error:
        error.filename = error.filename or str(path)  # Python does not say where a zero byte is
        raise
    functions = {
        name: _with_context(getattr(module, name), name, path)
        for name in ARGUMENTS
        if getattr(module, name, None) is not None
    }
    if not functions:
        raise HandlerError(f"{path} defines none of {', '.join(ARGUMENTS)}")
    clash = [name for name in ("input_fn", "predict_fn", "output_fn") if name in functions]
    if "transform_fn" in functions and clash:
        raise HandlerError(f"{path} defines transform_fn and {', '.join(clash)}; transform_fn replaces them: keep one")
    return UserFunctions(**functions)


def _import(path: Path) -> ModuleType:
    directory = str(path.parent)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HandlerError(f"{path} is no Python file: give it a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    spec.loader.exec_module(module)
    return module


def _module_name(path: Path) -> str:
    """The file's own name, by which pickles and spawned processes import it, unless a package has that name."""
    packages = [directory for directory in sys.path if "-packages" in directory]
    taken = path.stem in (*sys.stdlib_module_names, "container") or PathFinder.find_spec(path.stem, packages)
    return MODULE_PREFIX + path.stem if taken else path.stem


def _with_context(function: Any, name: str, path: Path) -> Handler:
    """The function as one that takes the context last."""
    names = ARGUMENTS[name]
    if not callable(function):
        raise HandlerError(f"{path}: {name} is no function")
    signature = inspect.signature(function)
    where = f"{path}:{inspect.unwrap(function).__code__.co_firstlineno}" if inspect.isfunction(function) else str(path)
    if inspect.iscoroutinefunction(function):
        raise HandlerError(f"{where}: {name} is async; write a plain function, it runs in a thread of its own")
    context = signature.parameters.get("context")
    if context is not None and context.kind is inspect.Parameter.KEYWORD_ONLY:
        _bind(signature, where, name, names, ("context",))
        return lambda *arguments: function(*arguments[:-1], context=arguments[-1])
    required = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if context is not None or len(required) == len(names) + 1:
        _bind(signature, where, name, (*names, "context"))
        return function
    _bind(signature, where, name, names)
    return lambda *arguments: function(*arguments[:-1])


def _bind(
    signature: inspect.Signature, where: str, name: str, names: tuple[str, ...], keywords: tuple[str, ...] = ()
) -> None:
    try:
        signature.bind(*names, **dict.fromkeys(keywords))
    except TypeError:
        expected = ", ".join(ARGUMENTS[name])
        raise HandlerError(
            f"{where}: {name}{signature} does not fit; write {name}({expected}) or {name}({expected}, context)"
        ) from None
