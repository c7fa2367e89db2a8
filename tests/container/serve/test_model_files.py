"""Models without user code: each format is recognised by its content, and what cannot be served says why."""

import argparse
import io
import json
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from container.model import ModelFormatError, build_network
from container.serve.causes import classify
from container.serve.load import place_of
from container.serve.model_files import Format, ModelFileError, find_model_file, identify
from container.serve.plan import Machine, plan_server
from container.serve.predictor import load_predictor

JSON = {"Content-Type": "application/json"}
ROWS = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
SIGNATURE = {"architecture": "convnet", "classes": ["a", "b"], "channels": 1, "height": 8, "width": 8}
SIGNATURE |= {"mean": [0.5], "std": [0.25]}
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")


class Two(nn.Module):
    def forward(self, one, other):
        return one + other


class Named(nn.Module):
    def forward(self, data):
        return {"sum": data.sum(1), "parts": (data, [data * 2])}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def exported(module, *inputs, dynamic=True):
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs) if dynamic else None
    return torch.export.export(module, inputs, dynamic_shapes=shapes)


def save(path, kind, module):
    if kind == "script":
        torch.jit.save(torch.jit.script(module), path)
    elif kind == "trace":
        torch.jit.save(torch.jit.trace(module, ROWS), path)
    elif kind == "export":
        torch.export.save(exported(module, ROWS), path)
    elif kind == "module":
        torch.save(module, path)
    elif kind == "state_dict":
        torch.save(module.state_dict(), path)
    return path


def load(model_dir, **environ):
    plan = plan_server(Machine(1, 8 * 1024**3, 0, True), environ, 0)
    return load_predictor(model_dir, environ, place_of(plan, "cpu"))


def failure(model_dir, **environ):
    """The cause, the message and the fix of a model directory that cannot be served."""
    with pytest.raises((ModelFileError, ModelFormatError)) as raised:
        load(model_dir, **environ)
    cause, fix = classify(raised.value)
    return cause, str(raised.value), fix


@pytest.mark.parametrize(("kind", "name"), [("script", "model.pt"), ("trace", "net.ts"), ("export", "net.pt2")])
def test_a_program_answers_as_the_module_it_was_made_of(open_door, tmp_path, kind, name):
    module = network()
    save(tmp_path / name, kind, module)
    door = open_door(tmp_path)
    answer = door.request("POST", "/invocations", json.dumps(ROWS.tolist()).encode(), JSON)
    assert answer.status == 200
    np.testing.assert_allclose(json.loads(answer.body), module(ROWS).detach().numpy(), rtol=1e-5)
    refused = door.request("POST", "/invocations", b"[[1, 2, 3]]", JSON)
    assert refused.status == 400
    assert b"the model does not take float32 [1, 3]" in refused.body


def test_a_program_exported_for_one_batch_size_answers_requests_one_by_one(tmp_path):
    torch.export.save(exported(network(), ROWS[:1], dynamic=False), tmp_path / "net.pt2")
    defaults = load(tmp_path).defaults
    singles = [ROWS[:1].numpy(), ROWS[1:].numpy()]
    for _ in range(2):
        together = defaults.predict(singles)
        np.testing.assert_allclose(np.concatenate(together), network()(ROWS).detach().numpy(), rtol=1e-5)
    assert defaults.batch_key(singles[0]) is None


def test_an_exported_programs_own_input_is_its_warm_up_request(tmp_path):
    save(tmp_path / "net.pt2", "export", network())
    body, content_type = load(tmp_path).warm_up()
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), ROWS.numpy())
    assert content_type == "application/x-npy"


def test_a_dictionary_of_tensors_is_answered_as_json(open_door, tmp_path):
    torch.export.save(exported(Named(), ROWS), tmp_path / "net.pt2")
    answer = open_door(tmp_path).request("POST", "/invocations", b"[[1, 2, 3, 4]]", JSON)
    assert json.loads(answer.body) == {"sum": [10.0], "parts": [[[1, 2, 3, 4]], [[[2, 4, 6, 8]]]]}


def pixels(door):
    answer = door.request("POST", "/invocations", json.dumps(np.full((1, 8, 8), 7).tolist()).encode(), JSON)
    assert answer.status == 200, answer.body
    (record,) = json.loads(answer.body)
    assert record["label"] in ("a", "b")
    return record["probabilities"]


def test_weights_or_a_program_with_a_signature_answer_alike(open_door, tmp_path):
    torch.manual_seed(0)
    convnet = build_network("convnet", 2, (1, 8, 8)).eval()
    weights = convnet.state_dict()
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    averaged = {"model": {}, "model_ema": {"n_averaged": torch.tensor(9)} | wrapped["state_dict"]}
    image = torch.zeros(2, 1, 8, 8)
    writers = {
        "net.safetensors": lambda path: save_file(weights, path),
        "model.safetensors": lambda path: save_file(weights, path),
        "net.pth": lambda path: torch.save(weights, path),
        "checkpoint.ckpt": lambda path: torch.save(wrapped, path),
        "compiled.pt": lambda path: torch.save(compiled, path),
        "reference.pth": lambda path: torch.save(averaged | {"args": argparse.Namespace(lr=1)}, path),
        "legacy.bin": lambda path: torch.save(weights, path, _use_new_zipfile_serialization=False),
        "net.pt": lambda path: torch.jit.save(torch.jit.trace(convnet, image), path),
        "net.pt2": lambda path: torch.export.save(exported(convnet, image), path),
    }
    answers = []
    for name, write in writers.items():
        directory = tmp_path / name
        directory.mkdir()
        (directory / "model.json").write_text(json.dumps(SIGNATURE))
        write(directory / name)
        answers.append(pixels(open_door(directory)))
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], rtol=1e-4)


def test_a_program_exported_for_one_image_answers_several(open_door, tmp_path):
    convnet = build_network("convnet", 2, (1, 8, 8)).eval()
    (tmp_path / "model.json").write_text(json.dumps(SIGNATURE))
    torch.export.save(exported(convnet, torch.zeros(1, 1, 8, 8), dynamic=False), tmp_path / "net.pt2")
    door = open_door(tmp_path)
    answer = door.request("POST", "/invocations", json.dumps(np.ones((3, 64)).tolist()).encode(), JSON)
    assert len(json.loads(answer.body)) == 3


def test_a_signature_written_by_hand_needs_classes_and_size_only(tmp_path):
    (tmp_path / "model.json").write_text('{"architecture": "resnet18", "classes": ["a"], "height": 9, "width": 9}')
    torch.save(build_network("resnet18", 1, (3, 9, 9)).state_dict(), tmp_path / "net.pth")
    signature = load(tmp_path).defaults.signature
    assert signature.mean == (0.485, 0.456, 0.406)
    assert signature.image_shape == (3, 9, 9)


def test_weights_of_another_network_are_named(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(SIGNATURE))
    save(tmp_path / "net.pth", "state_dict", network())
    cause, message, fix = failure(tmp_path)
    assert cause == "wrong-architecture"
    assert "does not fit 'convnet' of model.json" in message
    assert "another network" in fix


@pytest.mark.parametrize("kind", ["state_dict", "safetensors"])
def test_weights_alone_say_what_is_missing(tmp_path, kind):
    if kind == "safetensors":
        save_file(network().state_dict(), tmp_path / "net.safetensors")
    else:
        save(tmp_path / "net.pt", kind, network())
    cause, message, fix = failure(tmp_path)
    assert cause == "no-signature"
    assert "nothing says of which network" in message
    assert '"architecture"' in fix


def test_a_pickled_module_needs_the_switch(tmp_path, open_door):
    module = network()
    save(tmp_path / "net.pt", "module", module)
    cause, message, fix = failure(tmp_path)
    assert cause == "pickled-model"
    assert "torch.nn.modules.container.Sequential" in message
    assert "SLIPWAY_ALLOW_PICKLE=true" in fix
    answer = open_door(tmp_path, {"SLIPWAY_ALLOW_PICKLE": "true"}).request("POST", "/invocations", b"[[1,2,3,4]]", JSON)
    np.testing.assert_allclose(json.loads(answer.body), module(ROWS[:1]).detach().numpy(), rtol=1e-5)


def test_a_pickled_module_finds_its_class_in_code(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "pickled_net.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, data):\n        return data * 2\n"
    )
    scope = {"__name__": "pickled_net"}
    exec((tmp_path / "code" / "pickled_net.py").read_text(), scope)
    buffer = io.BytesIO()
    module = scope["Net"]()
    monkeypatch.setitem(sys.modules, "pickled_net", types.SimpleNamespace(Net=scope["Net"]))
    torch.save(module, buffer)
    monkeypatch.delitem(sys.modules, "pickled_net")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.pt").write_bytes(buffer.getvalue())
    predictor = load(tmp_path, SLIPWAY_ALLOW_PICKLE="1")
    assert predictor.defaults.predict([ROWS.numpy()])[0].tolist() == (ROWS * 2).tolist()


def test_an_exported_program_with_pickled_objects_needs_the_switch(tmp_path):
    path = save(tmp_path / "net.pt2", "export", network())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/data/constants/opaque_obj_0", b"any pickle")
    cause, message, fix = failure(tmp_path)
    assert cause == "pickled-model"
    assert "run any code" in message
    assert "SLIPWAY_ALLOW_PICKLE=true" in fix


def test_several_models_are_listed_with_how_to_choose(tmp_path):
    save(tmp_path / "one.pt", "script", network())
    save(tmp_path / "two.pt2", "export", network())
    cause, message, fix = failure(tmp_path)
    assert cause == "several-models"
    assert "one.pt, two.pt2" in message
    assert "SLIPWAY_MODEL_FILE=one.pt" in fix
    assert find_model_file(tmp_path, {"SLIPWAY_MODEL_FILE": "two.pt2"}).format is Format.EXPORTED
    assert failure(tmp_path, SLIPWAY_MODEL_FILE="three.pt")[0] == "missing-file"


def test_the_built_in_artifact_is_served_whatever_lies_beside_it(artifact, tmp_path):
    for path in artifact.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save(tmp_path / "best.pt", "state_dict", network())
    assert load(tmp_path).defaults.signature.classes[0] == "a"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.pt", b"", "neither TorchScript"),
        ("net.pt", b"<html>not found</html>", "neither TorchScript"),
        ("net.pt2", b"PK\3\4 cut off", "is damaged: File is not a zip file"),
        ("net.pt", b"\x80\x02 no pickle", "pickled object|cannot be read"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    ],
)
def test_what_is_no_model_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert any(part in failure(tmp_path)[1] for part in message.split("|"))


def test_an_archive_that_is_no_model_is_said(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("data/aotinductor/model/x.so", b"compiled")
    assert "packages of compiled code are not served" in failure(tmp_path)[2]


@pytest.mark.parametrize("kind", ["script", "export", "state_dict"])
def test_a_file_damaged_inside_is_said(tmp_path, kind):
    (tmp_path / "model.json").write_text(json.dumps(SIGNATURE))
    path = save(tmp_path / "net.pt", kind, network())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"\x00damage" if name.endswith((".pkl", ".json")) else content)
    cause, message, fix = failure(tmp_path)
    assert cause in ("bad-model", "pickled-model")
    assert str(path) in message


@pytest.mark.parametrize("kind", ["script", "export"])
def test_a_program_of_two_inputs_needs_a_predict_fn(tmp_path, kind):
    if kind == "script":
        torch.jit.save(torch.jit.script(Two()), tmp_path / "net.pt")
    else:
        torch.export.save(exported(Two(), ROWS, ROWS), tmp_path / "net.pt")
    assert "takes 2 inputs (one, other)" in failure(tmp_path)[1]
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text("def predict_fn(data, model): return model(data, data)")
    predictor = load(tmp_path)
    assert predictor.functions.predict_fn(ROWS, predictor.model, None).tolist() == (ROWS * 2).tolist()


def test_a_predict_fn_may_read_the_weights_itself(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text("def predict_fn(data, model): return model is None")
    save(tmp_path / "one.pt", "state_dict", network())
    assert load(tmp_path).model is None
    save(tmp_path / "two.pt", "state_dict", network())
    assert load(tmp_path).model is None


def test_an_archive_or_a_folder_in_the_model_directory_is_pointed_at(tmp_path):
    assert "it is empty" in failure(tmp_path)[1]
    (tmp_path / "model").mkdir()
    save(tmp_path / "model" / "net.pt", "script", network())
    assert "pack what lies in model/" in failure(tmp_path)[2]
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "model" / "net.pt", "net.pt")
    assert "model.tar.gz lies inside of model.tar.gz" in failure(tmp_path)[2]


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("inference.py", "inference.py lies beside the model: put it into code/, where it is looked for"),
        ("code/predict.py", "code/ holds predict.py and no inference.py: name the one with your functions so, or set"),
        ("code/code/inference.py", "code/code/inference.py lies one folder too deep: put it right into code/"),
        ("code.zip", "code.zip is not unpacked: put its files into code/"),
    ],
)
def test_code_that_lies_where_it_is_not_looked_for_is_pointed_at(tmp_path, caplog, place, advice):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("def predict_fn(data, model): return 1")
    assert failure(tmp_path)[2].startswith(advice)
    save(tmp_path / "net.pt", "state_dict", network())
    assert failure(tmp_path)[2].startswith(advice)
    save(tmp_path / "net.pt", "script", network())
    load(tmp_path)
    assert f"the model is served without code of yours: {advice}" in caplog.text


class MakesTensors(nn.Module):
    def forward(self, data):
        return data + torch.zeros(4, device=data.device)


class MakesTensorsWhereItIs(nn.Module):
    def forward(self, data):
        if data.is_cuda:
            return data + torch.zeros(4, device=torch.device("cuda:0"))
        return data


def test_a_program_that_was_traced_on_a_gpu_is_refused_where_there_is_none(tmp_path):
    """What a trace on a GPU leaves: the device as a constant; written into a trace that was made here."""
    save(tmp_path / "here.ts", "trace", MakesTensors())
    load(tmp_path)
    with zipfile.ZipFile(tmp_path / "here.ts") as source, zipfile.ZipFile(tmp_path / "gpu.ts", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b'torch.device("cpu")', b'torch.device("cuda:0")'))
    cause, message, fix = failure(tmp_path, SLIPWAY_MODEL_FILE="gpu.ts")
    assert cause == "needs-gpu"
    assert 'was made for a GPU: its code holds torch.device("cuda:0")' in message
    assert "on the CPU" in fix
    save(tmp_path / "both.ts", "script", MakesTensorsWhereItIs())
    assert load(tmp_path, SLIPWAY_MODEL_FILE="both.ts").model(ROWS).tolist() == ROWS.tolist()


def test_what_macos_packs_beside_each_file_is_no_model(tmp_path):
    save(tmp_path / "net.pt", "script", network())
    for name in ("._net.pt", ".DS_Store", "._code"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    load(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "net.pt").rename(tmp_path / "model" / "net.pt")
    (tmp_path / "README.md").touch()
    assert failure(tmp_path)[2] == "pack what lies in model/, without that folder around it"


def test_a_signature_without_a_model_is_said(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(SIGNATURE))
    cause, message, _ = failure(tmp_path)
    assert cause == "missing-file"
    assert "weights that are not there" in message


def test_a_program_is_told_from_weights_by_its_content(tmp_path):
    kinds = {"script": Format.TORCHSCRIPT, "export": Format.EXPORTED, "module": Format.PICKLED}
    for kind, expected in (kinds | {"state_dict": Format.PICKLED}).items():
        assert identify(save(tmp_path / "any.pt", kind, network())) is expected
