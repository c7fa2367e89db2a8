"""Where training starts: trained weights of many makes, with a new last layer where the classes differ."""

import argparse
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from container.model import ModelSignature, build_network, load_model, save_model
from container.train.data import DataError
from container.train.environment import read_environment
from container.train.transfer import IMAGENET_MEAN, find_start, read_artifact, read_weights

SIGNATURE = ModelSignature("resnet18", ("a", "b"), 3, 64, 64, (0.5,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(3)
    return build_network("resnet18", 5, (3, 64, 64))


def wrapped(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


FORMS = {
    "the state dict": ("resnet18-f37072fd.pth", lambda tensors: tensors),
    "torchvision's reference scripts": (
        "resnet18.pth",
        lambda tensors: {"model": wrapped(tensors, "module."), "args": argparse.Namespace(lr=1), "epoch": 3},
    ),
    "an averaged model": (
        "resnet18.pt",
        lambda tensors: {
            "model": {"other.weight": torch.zeros(1)},
            "model_ema": {"n_averaged": torch.tensor(7), **wrapped(tensors, "module.")},
        },
    ),
    "Lightning": ("resnet18-v1.bin", lambda tensors: {"state_dict": wrapped(tensors, "model.")}),
    "torch.compile": ("resnet18.pt", lambda tensors: wrapped(tensors, "_orig_mod.")),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_file_of_any_usual_make_is_read(form, trained, tmp_path):
    name, make = FORMS[form]
    torch.save(make(trained.state_dict()), tmp_path / name)
    start = read_weights(tmp_path, "")
    network = build_network("resnet18", 5, (3, 64, 64))
    assert start.architecture == "resnet18"
    assert start.load_into(network) == f"122 of 122 tensors come from channel 'weights' ({name})"
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in network.state_dict().items())


def test_a_head_of_other_classes_is_new_and_the_log_names_it(trained, tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in trained.state_dict().items()}
    save_file(tensors | {"aux.weight": torch.zeros(1)}, tmp_path / "anything.safetensors")
    start = read_weights(tmp_path, "resnet18")
    network = build_network("resnet18", 2, (3, 64, 64))
    assert start.load_into(network) == (
        "120 of 122 tensors come from channel 'weights' (anything.safetensors); "
        "new: fc.weight [2, 512] for [5, 512], fc.bias [2] for [5]; not used: aux.weight"
    )
    assert torch.equal(network.conv1.weight, trained.conv1.weight)


def test_images_come_in_as_the_weights_know_them(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "resnet18.pth")
    grey = ModelSignature("resnet18", ("a", "b"), 1, 28, 28, (0.1,), (0.3,))
    start = read_weights(tmp_path, "")
    adapted = start.adapt(grey, image_size=0)
    assert (adapted.image_shape, adapted.mean) == ((3, 224, 224), IMAGENET_MEAN)
    assert start.adapt(grey, image_size=28).image_shape == (3, 28, 28)
    assert build_network("resnet18", 2, adapted.image_shape)(torch.zeros(1, 3, 64, 64)).shape == (1, 2)

    convnet = tmp_path / "ours"
    convnet.mkdir()
    torch.save(build_network("convnet", 2, (1, 8, 8)).state_dict(), convnet / "convnet.pt")
    assert read_weights(convnet, "").adapt(grey, 0) == grey


def test_an_earlier_artifact_brings_its_network_its_size_and_its_normalisation(trained, tmp_path):
    save_model(tmp_path, build_network("resnet18", 2, (3, 64, 64)), SIGNATURE)
    start = read_artifact(tmp_path)
    adapted = start.adapt(ModelSignature("resnet18", ("a", "b", "c"), 1, 300, 200, (0.1,), (0.3,)), 0)
    assert (adapted.image_shape, adapted.mean, adapted.classes) == ((3, 64, 64), (0.5,) * 3, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, r"channel 'weights' needs one file \(\.bin, \.pt, \.pth, \.safetensors\); found: none"),
        ({"a.pt": b"", "b.pt": b""}, "found: a.pt, b.pt"),
        ({"mine.pt": b""}, "nothing says which network mine.pt belongs to: set the hyperparameter `model`"),
        ({"resnet18.pt": b"x"}, "resnet18.pt cannot be read"),
        ({"resnet18.safetensors": b"x"}, "resnet18.safetensors cannot be read"),
        ({"resnet18.pt": [1, 2]}, "holds no state dict: save it with torch.save"),
        ({"resnet18.pt": {"epoch": 3}}, "holds no state dict"),
        ({"resnet18.pt": nn.Linear(1, 1)}, "cannot be read: .*; save the state dict alone"),
    ],
)
def test_what_is_no_weights_is_an_error_that_says_what_to_do(files, text, tmp_path):
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            torch.save(content, tmp_path / name)
    with pytest.raises(DataError, match=text):
        read_weights(tmp_path, "")


def test_weights_of_another_network_are_an_error_that_names_both(trained, tmp_path):
    torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "mine.pt")
    with pytest.raises(DataError, match="fits the network: it has encoder.weight; the network has conv1.weight"):
        read_weights(tmp_path, "resnet18").load_into(trained)


def test_a_job_starts_from_weights_or_from_a_model_not_from_both(write_opt_ml):
    opt_ml = write_opt_ml(channels={"train": {}, "model": {}, "weights": {}})
    with pytest.raises(DataError, match="channels 'model' and 'weights' both say where to start"):
        find_start(read_environment(opt_ml, {}), "")
    assert find_start(read_environment(write_opt_ml(channels={"train": {}}), {}), "") is None


@pytest.mark.slow
def test_a_job_learns_new_classes_from_trained_weights_without_a_hyperparameter(
    training_job, shapes, trained, tmp_path
):
    """Grey images of 12 pixels: they come in as the weights know them, and the learning rate is that of fine-tuning."""
    weights = tmp_path / "weights"
    weights.mkdir()
    torch.save(trained.state_dict(), weights / "resnet18.pth")
    channels = {"train": shapes / "train", "test": shapes / "test", "weights": weights}
    job = training_job(channels=channels, hyperparameters={"epochs": 2, "image_size": 32})
    assert job.run() == {"algo-1": 0}, job.log()
    assert "120 of 122 tensors come from channel 'weights' (resnet18.pth); new: fc.weight [2, 512]" in job.log()
    assert "peak learning rate 0.0003 x 16 / 64 images = 7.5e-05" in job.log()
    assert load_model(job.opt_ml().model)[1].image_shape == (3, 32, 32)
    assert float(re.findall(r"test:accuracy=([0-9.]+);", job.log())[-1]) > 0.9
