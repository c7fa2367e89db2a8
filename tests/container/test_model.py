"""The artifact survives a round trip, and says what is wrong with one that is not its own."""

import json
import subprocess
import sys

import pytest
import torch

from container.model import (
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    ModelFormatError,
    ModelSignature,
    build_network,
    load_model,
    normalize,
    read_signature,
    resize_image,
    save_model,
)

SIGNATURE = ModelSignature("convnet", ("cat", "dog"), 1, 8, 8, (0.5,), (0.25,))


@pytest.fixture
def artifact(tmp_path):
    network = build_network("convnet", 2, SIGNATURE.image_shape)
    save_model(tmp_path, network, SIGNATURE)
    return tmp_path


def test_a_loaded_model_answers_as_the_saved_one(tmp_path):
    network = build_network("convnet", 2, SIGNATURE.image_shape).eval()
    save_model(tmp_path, network, SIGNATURE)
    loaded, signature = load_model(tmp_path)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert signature.classes == ("cat", "dog")
    assert not loaded.training
    assert torch.equal(loaded(normalize(images, signature)), network(normalize(images, SIGNATURE)))


def test_saving_again_replaces_the_artifact_and_leaves_nothing_else(artifact):
    save_model(artifact, build_network("convnet", 2, SIGNATURE.image_shape), SIGNATURE)
    assert sorted(path.name for path in artifact.iterdir()) == [SIGNATURE_FILE, WEIGHTS_FILE]


def test_the_signature_names_the_torch_that_wrote_it(artifact):
    assert read_signature(artifact).torch_version == torch.__version__


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "vit_b_16", "googlenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_torchvision_classifier_takes_grey_and_colour_images(architecture, channels):
    network = build_network(architecture, 4, (channels, 32, 32)).eval()
    assert network(torch.zeros(1, channels, 32, 32)).shape == (1, 4)


def test_an_unknown_architecture_is_named():
    with pytest.raises(ModelFormatError, match="unknown architecture 'resnot'"):
        build_network("resnot", 2, (3, 32, 32))


def test_a_directory_without_signature_is_no_artifact(tmp_path):
    with pytest.raises(ModelFormatError, match=r"model\.json is missing"):
        load_model(tmp_path)


def test_a_signature_without_weights_is_refused(artifact):
    (artifact / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelFormatError, match="missing beside model.json"):
        load_model(artifact)


def test_c142_the_artifact_can_be_read_by_another_user(artifact):
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in artifact.iterdir())


def test_damaged_weights_are_refused(artifact):
    (artifact / WEIGHTS_FILE).write_bytes(b"not weights")
    with pytest.raises(ModelFormatError, match="does not fit its signature"):
        load_model(artifact)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a model signature"),
        ("[]", "is not a model signature"),
        ('{"format": 1}', "is not a model signature: KeyError: 'classes'"),
        ('{"format": 99}', "has format 99, this image reads format 1"),
    ],
)
def test_a_signature_that_is_not_ours_says_why(artifact, text, message):
    (artifact / SIGNATURE_FILE).write_text(text)
    with pytest.raises(ModelFormatError, match=message):
        read_signature(artifact)


def test_a_signature_with_an_unknown_field_is_refused(artifact):
    fields = json.loads((artifact / SIGNATURE_FILE).read_text())
    (artifact / SIGNATURE_FILE).write_text(json.dumps(fields | {"surprise": 1}))
    with pytest.raises(ModelFormatError, match="surprise"):
        read_signature(artifact)


def test_an_image_of_the_right_size_is_not_touched():
    image = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)
    assert resize_image(image, 8, 8) is image
    assert resize_image(image, 4, 6).shape == (1, 4, 6)


def test_without_torchvision_our_own_network_is_saved_and_served_and_jpeg_is_decoded():
    code = """
import sys
sys.modules["torchvision"] = None  # from here on it cannot be found
import io, tempfile
from pathlib import Path
from PIL import Image
from container.images import decode_image
from container.model import ModelFormatError, ModelSignature, architectures, build_network, load_model, save_model
from container.serve.vision import import_torchvision

import_torchvision()
jpeg = io.BytesIO()
Image.new("RGB", (4, 2), (200, 0, 0)).save(jpeg, "JPEG")
print(list(decode_image(jpeg.getvalue(), 3).shape), architectures())
directory = Path(tempfile.mkdtemp())
signature = ModelSignature("convnet", ("a", "b"), 1, 8, 8, (0,), (1,))
save_model(directory, build_network("convnet", 2, (1, 8, 8)), signature)
print(load_model(directory)[1].classes)
try:
    build_network("resnet18", 2, (3, 8, 8))
except ModelFormatError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "[3, 2, 4] ['convnet']",
        "('a', 'b')",
        "unknown architecture 'resnet18'; use 'convnet' or build the image with torchvision",
    ], done.stderr


def test_a_signature_without_a_scale_of_its_own_is_told_the_one_that_is_assumed(artifact, caplog):
    read_signature(artifact)
    assert caplog.messages == []
    fields = {"classes": ["cat", "dog"], "height": 8, "width": 8}
    (artifact / SIGNATURE_FILE).write_text(json.dumps(fields))
    assert read_signature(artifact).mean == (0.485, 0.456, 0.406)
    (told,) = caplog.messages
    assert "names no mean and std" in told
    assert "(0.485, 0.456, 0.406)" in told
