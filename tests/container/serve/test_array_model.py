"""What a module that `model_fn` returned is given, and who is told when it does not fit."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from container.serve.array_model import ArrayModel
from container.serve.batch_size import rows_at_once
from container.serve.exchange import BadRequest

JSON = {"Content-Type": "application/json"}
LINEAR = "import torch\ndef model_fn(model_dir): return torch.nn.Linear(4, 2)"


class Calls(nn.Module):
    """A user's own network: a parameter [4] and a function of it and the input."""

    def __init__(self, forward):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.function = forward

    def forward(self, data):
        return self.function(data, self.weight)


class HasEmbeddingBehind(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.tokens = nn.Embedding(9, 3)

    def forward(self, data):
        return self.head(self.tokens(data))


def predict(module, array):
    return ArrayModel(module, "cpu", "application/json").predict([array])[0]


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def test_whole_numbers_are_answered_like_the_same_numbers_with_a_point(open_door, user_model):
    door = open_door(user_model(LINEAR))
    rows = [json.dumps(rows).encode() for rows in ([[1, 2, 3, 4]], [[1.0, 2, 3, 4]])]
    whole, pointed = (door.request("POST", "/invocations", row, JSON) for row in rows)
    text = door.request("POST", "/invocations", b"1,2,3,4", {"Content-Type": "text/csv"})
    assert whole.status == 200
    assert whole.body == pointed.body == text.body


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_become_the_dtype_of_the_modules_first_floating_parameter(dtype):
    module = Calls(lambda data, weight: torch.tensor(data.dtype == weight.dtype)).to(dtype)
    module.register_parameter("counts", nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False))
    for given in (np.int64, np.uint8, np.float16, np.float64):
        assert predict(module, zeros(1, 4, dtype=given))


@pytest.mark.parametrize(
    "module",
    [
        nn.Embedding(9, 3),
        nn.Sequential(nn.EmbeddingBag(9, 3), nn.Linear(3, 2)),
        torch.jit.script(nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 2))),
        HasEmbeddingBehind(),
        nn.Flatten(),
    ],
)
def test_integers_stay_what_they_are_for_an_embedding_and_where_nothing_is_floating(module):
    assert len(predict(module, np.array([[1, 8]]))) == 1


def test_a_tensor_from_the_users_input_fn_keeps_its_dtype(open_door, user_model):
    model = user_model("""
        import json, torch
        def model_fn(model_dir): return torch.nn.Identity()
        def input_fn(data, content_type): return torch.tensor(json.loads(data))
    """)
    assert open_door(model).request("POST", "/invocations", b"[1, 2]", JSON).body == b"[1,2]"


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">f2"])
def test_numbers_of_the_other_byte_order_are_the_same_numbers(dtype):
    assert predict(nn.ReLU(), np.array([[1, 300]], dtype)).tolist() == [[1, 300]]


def test_a_row_of_the_wrong_width_is_400_with_torchs_own_words(open_door, user_model, caplog):
    answer = open_door(user_model(LINEAR)).request("POST", "/invocations", b"[[1, 2]]", JSON)
    assert answer.status == 400
    message = "the model does not take float32 [1, 2]: mat1 and mat2 shapes cannot be multiplied (1x2 and 4x2)"
    assert json.loads(answer.body) == {"error": message}
    assert "Traceback" in caplog.text  # a network that does not fit itself is found there


@pytest.mark.parametrize(
    ("module", "array", "words"),
    [
        (nn.Linear(4, 2), zeros(1, 4, dtype=bool), "got Bool and Float"),
        (nn.Conv2d(1, 2, 3), zeros(1, 3, 8, 8), "got 3 channels instead"),
        (nn.Flatten(), zeros(), "Dimension out of range"),
        (nn.Embedding(9, 3), np.array([[9]]), "index out of range in self"),
        (nn.GRU(4, 2), zeros(1, 4, dtype=bool), "does not match weight dtype"),
        (nn.PixelShuffle(2), zeros(1, 3, 8, 8), "divisible by the square of upscale_factor"),
        (nn.TransformerEncoderLayer(4, 2, 8), zeros(4), "received 1-D query tensor"),
        (nn.Upsample(scale_factor=2), zeros(1), r"Only 3D, 4D and 5D input"),
        (nn.Linear(4, 2), zeros(), "need to be at least 1D"),
        (nn.Conv2d(1, 2, 3), zeros(8), "got input of size"),
        (nn.Conv2d(1, 2, 3), zeros(1, 1, 2, 2), "Kernel size"),
        (nn.Conv2d(1, 2, 3), zeros(1, 1, 8, 8, dtype=bool), "should be the same"),
        (nn.LayerNorm(4), zeros(1, 2), "got input of size"),
        (nn.BatchNorm1d(4), zeros(1, 2), "running_mean"),
        (nn.LSTM(4, 2), zeros(1, 1, 2), "Expected 4, got 2"),
        (nn.Embedding(9, 3), zeros(1, 2), "got torch.FloatTensor"),
        (nn.Unflatten(1, (2, 2)), zeros(1, 3), "multiply up"),
        (nn.MaxPool2d(3), zeros(3), "expected for input"),
        (nn.MaxPool2d(3), zeros(1, 1, 2, 2), "too small"),
        (nn.PReLU(4), zeros(1, 3), "channel size = 3"),
        (torch.jit.script(nn.Linear(4, 2)), zeros(1, 2), "(1x2 and 4x2)"),
        (Calls(lambda data, weight: data + weight), zeros(1, 3), "must match the size"),
        (Calls(lambda data, weight: data @ weight), zeros(1, 3), "size mismatch"),
        (Calls(lambda data, weight: data.view(1, 4)), zeros(1, 3), "invalid for input of size 3"),
        (Calls(lambda data, weight: data.permute(0, 2, 1)), zeros(1, 3), "number of dimensions"),
        (Calls(lambda data, weight: torch.stack([data, weight])), zeros(3), "equal size"),
        (Calls(lambda data, weight: torch.bmm(data, data)), zeros(1, 3), "must be a 3D tensor"),
    ],
)
def test_an_input_that_torch_refuses_for_its_shape_or_dtype_is_the_callers_fault(module, array, words):
    with pytest.raises(BadRequest) as refused:
        predict(module, array)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "code",
    [
        f"{LINEAR}\ndef predict_fn(data, model): return model(data)",
        """
        import torch
        class Net(torch.nn.Module):
            def forward(self, data): raise RuntimeError("the tokenizer is gone")
        def model_fn(model_dir): return Net()
        """,
        """
        import torch
        class Net(torch.nn.Module):
            def forward(self, data): raise ValueError("expected 4, got 2")
        def model_fn(model_dir): return Net()
        """,
        "def model_fn(d):\n  def model(data): raise RuntimeError('expected 4, got 2')\n  return model",
    ],
)
def test_what_the_users_own_code_raises_stays_a_500(open_door, user_model, code):
    answer = open_door(user_model(code)).request("POST", "/invocations", b"[[1.0, 2.0]]", JSON)
    assert answer.status == 500
    assert "log has the reason" in json.loads(answer.body)["error"]


def test_very_many_rows_are_computed_in_parts_once_rows_were_seen_not_to_mix():
    shown = []

    def forward(data, weight):
        shown.append(len(data))
        return data * weight

    model = ArrayModel(Calls(forward), "cpu", "application/json")
    most = rows_at_once(4 * 4)
    rows = np.random.default_rng(0).random((most + 3, 4)).astype(np.float32)
    model.predict([rows])
    assert shown == [most + 3]
    model.predict([rows[:2], rows[2:5]])
    shown.clear()
    np.testing.assert_array_equal(model.predict([rows])[0], rows)
    assert shown == [most, 3]
