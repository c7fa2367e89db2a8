"""The default steps for whatever `model_fn` returned: arrays in, the model called, arrays out."""

import functools
import logging
import re
import sys
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from container.serve import codec, lines
from container.serve.batch_size import ROWS_AT_ONCE, agree, rows_at_once
from container.serve.call import Call
from container.serve.exchange import BadRequest
from container.serve.interface import Interface

logger = logging.getLogger(__name__)

TORCHS = ("torch", "torchvision", "_operator")
REFUSALS = (RuntimeError, AssertionError, IndexError, ValueError)  # torch's layers raise any of them
THE_MACHINES = re.compile(r"CUDA|cuDNN|CUBLAS|CUFFT|alloc|out of memory")  # errors that are no fault of an input
EMBEDDINGS = ("Embedding", "EmbeddingBag")
# How torch words that an input does not fit: a shape, a number of dimensions, a dtype.
DOES_NOT_FIT = re.compile(
    r"shapes cannot be multiplied|must have the same dtype|should be the same|could not infer output dtype"
    r"|is invalid for input of size|must match|[Mm]ismatch|must be equal to input_size|number of dimensions"
    r"|padded input size|input size: |to be equal size|must be a \d+D tensor|expected for input"
    r"|[Dd]imension out of range|index out of range in self|not implemented for '\w+'"
    r"|multiply up to the size of dim|running_mean should contain|Guard failed|[Ee]xpected .*\b(?:got|found)\b"
)


class ArrayModel:
    """Whatever `model_fn` returned, fed with arrays: a torch module, or anything that can be called."""

    def __init__(
        self,
        model: Any,
        device: str,
        default_accept: str,
        example: np.ndarray | None = None,
        placeholders: bool = False,
    ) -> None:
        self.is_module = _is_module(model)
        self.model = _ready(model, device) if self.is_module else model
        self._ask = how_to_ask(model)
        self.example = example
        """An input the model is known to take; None: only its author knows one."""
        self.placeholders = placeholders
        """Whether a bad line of CSV or JSON Lines gets a placeholder instead of failing the whole request."""
        self.device = device
        self.floating = _floating_dtype(self.model) if self.is_module else None
        """The torch dtype that numbers are turned into, numpy's float64 for one; None: they stay as they came."""
        self.default_accept = default_accept
        self.batches = True
        """Whether requests may be put together at all."""
        self._batches: dict[Hashable, bool] = {}
        """Per key whether a batch was seen to give the same rows as single requests; absent: not tried yet."""

    @functools.cached_property
    def only_torch(self) -> bool:
        """Whether the module consists of torch's own layers, or is a program of torch's operators without loops."""
        return self.is_module and _runs_only_torch(self.model)

    def decode(self, call: Call) -> Any:
        kind = codec.media_type(call.request.headers.get("content-type"))
        if self.placeholders and kind in lines.TYPES:
            return lines.decode_records(call, kind)
        return codec.decode_array(call.request.body, kind)

    def batch_key(self, data: Any) -> Hashable:
        """Arrays of equal row shape and dtype, until a batch of them was seen to change an answer."""
        if not self.batches or not self.is_module or not isinstance(data, np.ndarray) or data.ndim < 2:
            return None
        key = (data.dtype.str, data.shape[1:])
        return key if self._batches.get(key, True) else None

    def predict(self, batch: Sequence[Any]) -> list[Any]:
        if len(batch) == 1:
            return [self._predict_in_parts(batch[0])]
        key = self.batch_key(batch[0])
        try:
            together = self._predict_rows(batch)
        except BadRequest:  # a module that was traced or exported for one batch size
            self._batches[key] = False
            return [self._predict(data) for data in batch]
        if self._batches.get(key):
            return together
        # The first batch of its kind is computed both ways: a module may mix rows (a sequence without a batch axis).
        alone = [self._predict(data) for data in batch]
        self._batches[key] = all(agree(one, other) for one, other in zip(together, alone, strict=True))
        return alone

    def _predict_in_parts(self, data: Any) -> Any:
        """The model's answer to one input; to many rows part by part, where rows were seen not to mix."""
        if not isinstance(data, np.ndarray) or data.ndim < 2 or len(data) <= ROWS_AT_ONCE:
            return self._predict(data)
        key, most = self.batch_key(data), rows_at_once(data[:1].nbytes)
        if key is None or not self._batches.get(key) or len(data) <= most:
            return self._predict(data)
        return np.concatenate([self._predict(data[start : start + most]) for start in range(0, len(data), most)])

    def _predict_rows(self, batch: Sequence[np.ndarray]) -> list[Any]:
        rows = self._predict(np.concatenate(batch))
        ends = np.cumsum([len(data) for data in batch])
        if not isinstance(rows, np.ndarray) or len(rows) != ends[-1]:
            return [None] * len(batch)
        return np.split(rows, ends[:-1])

    def _predict(self, data: Any) -> Any:
        """The model's answer to one input.

        Raises:
            BadRequest: a torch module was given no array of numbers, or one whose shape or dtype torch refuses.
        """
        if not self.is_module:
            return self._ask(data)
        torch = sys.modules["torch"]
        with torch.inference_mode():
            tensor = self.tensor(data)
            try:
                return _to_numpy(self.model(tensor))
            except REFUSALS as error:
                if (reason := _unfit(error, self.only_torch)) is None:
                    raise
                # The model's author may have to look as well: every input fails where the network does not fit itself.
                logger.warning("the model does not take %s", _named(tensor), exc_info=error)
                raise BadRequest(f"the model does not take {_named(tensor)}: {reason}") from None

    def input_of_predict_fn(self, data: Any) -> Any:
        """What a `predict_fn` gets: for a module a tensor on its device, as in AWS's PyTorch toolkit."""
        return self.tensor(data) if self.is_module and isinstance(data, np.ndarray) else data

    def tensor(self, data: Any) -> Any:
        """The input as the module takes it; a tensor from the user's own `input_fn` keeps its dtype."""
        if _is_tensor(data):
            return data.to(self.device)
        array = _writable(data)
        dtype = self.floating if array.dtype.kind in "iuf" else None
        return sys.modules["torch"].from_numpy(array).to(self.device, dtype)

    def encode(self, prediction: Any, call: Call) -> tuple[bytes, str]:
        kind = codec.negotiate(call.request.headers.get("accept"), codec.ANSWER_TYPES, self.default_accept)
        if call.bad:
            return lines.encode_with_placeholders(_to_numpy(prediction), call, kind), kind
        return codec.encode_prediction(_to_numpy(prediction), kind), kind

    def interface(self) -> Interface:
        return Interface(example=self.example)

    def warm_up(self) -> tuple[bytes, str] | None:
        """The example as a request this model must be able to answer."""
        return None if self.example is None else (codec.encode_npy(self.example), codec.NPY)

    def tune(self, keep_loaded: bool, within: float) -> str:
        return ""  # a user's module may do things that tracing does not see

    def examples(self, count: int) -> list[Any]:
        """Inputs like the example, none like another: only so does it show that an answer depends on its neighbours."""
        if self.example is None:
            return []
        generator = np.random.default_rng(0)
        if np.issubdtype(self.example.dtype, np.floating):
            noise = generator.random((count, *self.example.shape))
            return [(self.example + part).astype(self.example.dtype) for part in noise]
        return [generator.permuted(self.example.ravel()).reshape(self.example.shape) for _ in range(count)]

    def predict_alone(self) -> None:
        """Never put requests together from now on."""
        self.batches = False


def how_to_ask(model: Any) -> Any:
    """The model itself, or its method `predict`, as in AWS's scikit-learn toolkit; None where it has neither.

    XGBoost's Booster takes arrays by another name.
    """
    if callable(model):
        return model
    return getattr(model, "inplace_predict", None) or getattr(model, "predict", None)


def _ready(module: Any, device: str) -> Any:
    module = module.to(device)
    try:
        return module.eval()
    except NotImplementedError:  # a torch.export program: it stays in the mode it was exported in
        return module


def _floating_dtype(model: Any) -> Any:
    """The dtype of the module's first floating parameter; None without one, or where an embedding takes indices."""
    torch = sys.modules["torch"]
    for module in model.modules():
        kind = module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__
        if kind in EMBEDDINGS or isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
            return None
    return next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)


def _runs_only_torch(model: Any) -> bool:
    torch = sys.modules["torch"]
    if isinstance(model, torch.jit.ScriptModule):  # a loop may end after one round or a thousand
        graph = model.inlined_graph
        return not any(graph.findAllNodes(node, recurse=True) for node in ("prim::Loop", "prim::PythonOp"))
    for module in model.modules():
        code = [type(module), *module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if "forward" in vars(module):
            code.append(module.forward)
        if isinstance(module, torch.fx.GraphModule):  # also an exported program
            code += [node.target for node in module.graph.nodes if node.op == "call_function"]
        if not all(getattr(part, "__module__", "").partition(".")[0] in TORCHS for part in code):
            return False
    return True


def _unfit(error: Exception, only_torch: bool) -> str | None:
    """Torch's words where it refuses a shape or a dtype; TorchScript has them at the end of a trace of its own.

    Where no code but torch's own took part, what it raises is about the input, in words that nobody could list.
    """
    lines = str(error).splitlines()
    line = next((line for line in reversed(lines) if DOES_NOT_FIT.search(line)), None)
    if isinstance(error, ValueError):  # where others' code takes part it is more often theirs
        line = None
    if line is None and only_torch and not THE_MACHINES.search(str(error)):
        line = next((line for line in reversed(lines) if line.strip()), type(error).__name__)
    return line.removeprefix("RuntimeError: ") if line else None


def _named(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _is_module(value: Any) -> bool:
    """Whether `value` is a torch module: only possible where somebody imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _to_numpy(value: Any) -> Any:
    """Tensors as arrays, also those in dictionaries, lists and tuples that a module returns."""
    torch = sys.modules.get("torch")
    return value if torch is None else _arrays(value, torch.Tensor)


def _arrays(value: Any, tensor: Any) -> Any:
    if isinstance(value, tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {name: _arrays(part, tensor) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_arrays(part, tensor) for part in value]
    return value


def _writable(data: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise BadRequest(f"the model takes an array of numbers, got {type(data).__name__}")
    if not data.dtype.isnative:  # npy from a machine, or a program, of the other byte order
        return data.astype(data.dtype.newbyteorder("="))
    return data if data.flags.writeable and data.flags.c_contiguous else data.copy()
