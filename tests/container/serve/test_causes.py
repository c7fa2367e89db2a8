"""Every exception is made as users meet it: by torch, pickle, Python and the operating system themselves."""

import errno
import os
import pickle
import signal
import sys
import threading
import types
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from container.model import build_network
from container.serve.causes import CAUSES, classify
from container.serve.failures import describe

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"


def raised(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def network():
    return nn.Sequential(nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
            "begins with 'module.', which Data",
        ),
        (lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()}, "begins with '_orig_mod.'"),
        (lambda state: {name.removeprefix("0."): tensor for name, tensor in state.items()}, "names begin with '0.'"),
        (lambda state: {"epoch": 3, "state_dict": state}, "load the part 'state_dict' of it"),
        (lambda state: {**state, "0.bias": torch.ones(7)}, "belong to another network"),
    ],
)
def test_weights_that_do_not_fit_say_why_where_their_names_tell(change, words):
    cause, fix = classify(raised(network().load_state_dict, change(network().state_dict())))
    assert cause == "wrong-architecture"
    assert words in fix


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.pkl"])
@pytest.mark.parametrize("content", [LFS, b""])
def test_a_file_that_is_a_pointer_or_empty_is_named_whatever_its_reader_says(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    if name.endswith(".pth"):
        error = raised(torch.load, path)
    elif name.endswith(".pkl"):
        error = raised(pickle.loads, path.read_bytes())
    else:
        from safetensors.torch import load_file

        error = raised(load_file, path)
    cause, fix = classify(error, tmp_path)
    assert cause == "bad-model"
    assert f"{path} is {'a Git LFS pointer' if content else 'empty'}" in fix


def test_a_pointer_does_not_hide_another_reason(tmp_path):
    (tmp_path / "weights.pth").write_bytes(LFS)
    assert classify(ModuleNotFoundError("No module named 'x'", name="x"), tmp_path)[0] == "missing-dependency"


def rewrite(path, old, new):
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_file_of_another_torch_is_told_from_one_that_pickles_a_class(tmp_path, weights_only):
    path = tmp_path / "net.pth"
    torch.save(network().state_dict(), path)
    rewrite(path, b"_rebuild_tensor_v2", b"_rebuild_tensor_v9")
    cause, fix = classify(raised(torch.load, path, weights_only=weights_only))
    assert cause == "wrong-version"
    assert "another version of torch" in fix
    torch.save(network(), path)
    line = describe(raised(torch.load, path))
    assert "[pickled-model]" in line
    assert "GLOBAL torch.nn.modules.container.Sequential was not an allowed global" in line
    assert "Please" not in line


def test_a_class_of_the_script_that_pickled_it_is_said_to_be_defined_again():
    error = raised(pickle.loads, b"c__main__\nSlipwayAbsent\n.")
    cause, fix = classify(AttributeError(str(error).replace(repr(sys.modules["__main__"])[8:-1], "'__main__'")))
    assert cause == "missing-class"
    assert "`import __main__; __main__.SlipwayAbsent = SlipwayAbsent`" in fix


@pytest.mark.parametrize(
    "pickled", [b"cnumpy.absent_part\nX\n.", b"cnumpy\nabsent_name\n."], ids=["a module", "a name in a module"]
)
def test_a_pickle_of_another_version_of_a_package_is_said_to_be_one(pickled):
    assert classify(raised(pickle.loads, pickled))[0] == "wrong-version"


def test_a_module_that_a_package_of_the_users_own_lacks_is_missing():
    sys.modules["slipway_own_package"] = types.ModuleType("slipway_own_package")
    try:
        error = raised(__import__, "slipway_own_package.part")
    finally:
        del sys.modules["slipway_own_package"]
    assert classify(error)[0] == "missing-dependency"


def test_a_variable_that_nobody_set_is_named():
    assert classify(raised(os.environ.__getitem__, "SLIPWAY_ABSENT")) == (
        "bad-setting",
        "set SLIPWAY_ABSENT in the model's Environment",
    )
    assert classify(raised({}.__getitem__, "SLIPWAY_ABSENT"))[0] == "handler-error"


@pytest.mark.parametrize(
    ("torchvision", "expected"),
    [(True, ("wrong-architecture", "in model.json")), (False, ("missing-dependency", "no t"))],
)
def test_an_architecture_that_the_image_cannot_build_is_told_from_a_wrong_name(monkeypatch, torchvision, expected):
    if not torchvision:
        monkeypatch.setattr("container.model.torchvision", None)
    cause, fix = classify(raised(build_network, "resnet-18" if torchvision else "resnet18", 2, (3, 8, 8)))
    assert cause == expected[0]
    assert expected[1] in fix


def test_a_server_of_the_users_own_is_told_that_there_is_one():
    cause, fix = classify(OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))
    assert cause == "bad-handler"
    assert "no server of its own" in fix


def test_a_signal_handler_in_a_thread_is_told_who_handles_signals():
    errors = []
    thread = threading.Thread(target=lambda: errors.append(raised(signal.signal, signal.SIGUSR1, signal.SIG_DFL)))
    thread.start()
    thread.join()
    assert "leave signals alone" in classify(errors[0])[1]


def test_a_file_that_lies_elsewhere_in_the_model_is_found(tmp_path):
    (tmp_path / "code" / "data").mkdir(parents=True)
    (tmp_path / "code" / "data" / "labels.txt").touch()
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "net.pth").touch()
    fixes = {
        "labels.txt": "it is code/data/labels.txt of the model: "
        "os.path.join(os.path.dirname(__file__), 'data/labels.txt')",
        "/opt/ml/model/net.pth": "it is nested/net.pth of the model: os.path.join(model_dir, 'nested/net.pth')",
        "absent.pth": CAUSES["missing-file"],
        str(tmp_path / "absent.pth"): "put the file into model.tar.gz, which holds code, nested",
    }
    for name, fix in fixes.items():
        assert classify(raised(open, name), tmp_path) == ("missing-file", fix)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("Unable to locate credentials", "aws-access"),
        ("An error occurred (403) when calling the HeadObject operation: Forbidden", "aws-access"),
        ("An error occurred (AccessDeniedException) when calling the GetParameter operation: x", "aws-access"),
        ("We couldn't connect to 'https://huggingface.co' to load the files", "no-network"),
        ("[Errno -3] Temporary failure in name resolution", "no-network"),
    ],
)
def test_what_aws_and_hub_clients_raise_has_a_class(message, cause):
    from botocore.exceptions import NoCredentialsError

    error = NoCredentialsError() if cause == "aws-access" and "credentials" in message else OSError(message)
    assert message in str(error)
    assert classify(error)[0] == cause


def bare_assertion():
    assert save_file is None


def test_a_bare_assertion_is_told_with_its_line():
    assert "AssertionError: assert save_file is None" in describe(raised(bare_assertion)).replace("\n", " ")
