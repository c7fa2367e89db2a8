"""Augmented manifests as Ground Truth writes them, streamed through a FIFO and read from files."""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from torch.utils.data import DataLoader

from container.train.files import ChannelError
from container.train.manifest import AugmentedManifest, AugmentedManifestFile, ImageLabel
from container.train.pipe import PipeChannel

NAMES = ("source-ref", "species", "species-metadata")


def png(value: int, height: int = 4, width: int = 6) -> bytes:
    pixels = torch.full((3, height, width), value, dtype=torch.uint8)
    return torchvision.io.encode_png(pixels).numpy().tobytes()


def line(index: int, name: str) -> dict:
    """A line of Ground Truth's image classification, less its `source-ref`."""
    metadata = {
        "class-name": name,
        "confidence": 0.93,
        "type": "groundtruth/image-classification",
        "human-annotated": "yes",
    }
    return {"species": index, "species-metadata": metadata}


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Streams records as the platform does with RecordWrapperType RecordIO; gives the channel."""
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("SLIPWAY_RUNTIME_DIR", str(tmp_path / "runtime"))
    threads = []

    def start(*epochs: Sequence[bytes]) -> PipeChannel:
        def write():
            for number, records in enumerate(epochs):
                fifo = tmp_path / f"train_{number}"
                os.mkfifo(fifo)
                with fifo.open("wb") as file:
                    for record in records:
                        file.write(
                            b"\x0a\x23\xd7\xce" + len(record).to_bytes(4, "little") + record + bytes(-len(record) % 4)
                        )

        threads.append(threading.Thread(target=write))
        threads[-1].start()
        return PipeChannel(tmp_path / "train", records=True, timeout_seconds=20)

    yield start
    for thread in threads:
        thread.join(20)


def test_each_line_is_one_sample_with_content_and_values_under_their_names(stream):
    first, second = line(0, "cat"), line(1, "dog")
    records = [png(10), b"0", json.dumps(first["species-metadata"]).encode()]
    records += [png(20), b"1", json.dumps(second["species-metadata"]).encode()]
    samples = list(AugmentedManifest(stream(records), NAMES))
    assert samples == [{"source-ref": png(10), **first}, {"source-ref": png(20), **second}]


def test_images_and_labels_come_as_batches_epoch_by_epoch(stream):
    records = [part for value in (10, 20, 30) for part in (png(value), str(value // 20).encode())]
    samples = AugmentedManifest(stream(records, records), NAMES[:2], ImageLabel(label="species"))
    for _ in range(2):
        batches = list(DataLoader(samples, batch_size=2, num_workers=2))
        assert [tuple(images.shape) for images, _ in batches] == [(2, 3, 4, 6), (1, 3, 4, 6)]
        assert [labels.tolist() for _, labels in batches] == [[0, 1], [1]]
        assert batches[0][0][1].unique().tolist() == [20]


def test_a_value_that_is_no_json_is_a_string(stream):
    assert list(AugmentedManifest(stream([png(1), b"tabby cat"]), ("source-ref", "name")))[0]["name"] == "tabby cat"


def test_an_attribute_too_few_is_an_error(stream):
    samples = AugmentedManifest(stream([png(1), b"0", png(2)]), NAMES[:2])
    with pytest.raises(
        ChannelError, match=r"'train' ends after \['source-ref'\] of sample 1: its AttributeNames are not"
    ):
        list(samples)


def test_attributes_in_another_order_are_an_error(stream):
    with pytest.raises(ChannelError, match="attribute 'species' of sample 0 is no text but .*PNG.* not in the order"):
        list(AugmentedManifest(stream([png(1), b"0"]), ("species", "source-ref")))


def test_without_record_framing_there_are_no_samples(tmp_path):
    with pytest.raises(ChannelError, match="channel 'train' needs RecordWrapperType RecordIO"):
        AugmentedManifest(PipeChannel(tmp_path / "train", records=False), NAMES)


@pytest.fixture
def channels(tmp_path: Path) -> tuple[Path, Path]:
    """A manifest channel with two lines, and the channel of its images."""
    manifest, images = tmp_path / "manifest", tmp_path / "images"
    (images / "a").mkdir(parents=True)
    (images / "a" / "1.png").write_bytes(png(10))
    (images / "2.png").write_bytes(png(20))
    lines = [{"source-ref": "s3://bucket/pets/a/1.png", **line(0, "cat")}]
    lines += [{"source-ref": "s3://bucket/pets/2.png", **line(1, "dog")}]
    manifest.mkdir()
    (manifest / "output.manifest").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (manifest / ".DS_Store").write_bytes(b"noise")
    return manifest, images


def test_a_manifest_in_a_file_channel_finds_its_images_in_another(channels):
    manifest, images = channels
    samples = AugmentedManifestFile(manifest, "s3://bucket/pets", images, ImageLabel(label="species", channels=1))
    assert len(samples) == 2
    assert [(image.unique().tolist(), label) for image, label in samples] == [([10], 0), ([20], 1)]
    assert AugmentedManifestFile(manifest / "output.manifest", "s3://bucket/pets/", images)[1]["species"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "output.manifest is empty"),
        ("not json", "sample 0: not a JSON object: b'not json'"),
        ("3", "sample 0: not a JSON object"),
        (
            '{"source-ref": "s3://other/1.png"}',
            "'source-ref' is 's3://other/1.png', which is not below s3://bucket/pets/",
        ),
        ('{"source-ref": "s3://bucket/pets/3.png"}', r"images/3.png cannot be read: No such file"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_an_error(channels, text, message):
    manifest, images = channels
    (manifest / "output.manifest").write_text(text)
    with pytest.raises(ChannelError, match=message):
        AugmentedManifestFile(manifest, "s3://bucket/pets", images)[0]


def test_two_manifests_or_none_are_an_error(channels, tmp_path):
    manifest, images = channels
    (manifest / "second.jsonl").write_text("{}")
    with pytest.raises(ChannelError, match="should hold one manifest .*, and holds output.manifest, second.jsonl"):
        AugmentedManifestFile(manifest, "s3://b", images)
    with pytest.raises(ChannelError, match="and holds no file that ends like one"):
        AugmentedManifestFile(images, "s3://b", images)


def test_a_class_name_finds_its_index_among_given_classes():
    sample = {"source-ref": png(1), **line(7, "dog")}  # the labelling job's own number
    assert ImageLabel(label="species", classes=("cat", "dog"))(sample)[1] == 1
    assert ImageLabel(label="species")(sample)[1] == 7
    assert ImageLabel(label="name", classes=("cat", "dog"))({"source-ref": png(1), "name": "dog"})[1] == 1


def test_images_take_the_size_asked_for():
    image, _ = ImageLabel(label="species", size=(8, 8))({"source-ref": png(9), "species": 0})
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.uint8


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"source-ref": png(1)}, r"no attribute 'species', but \['source-ref'\]"),
        ({"source-ref": b"text", "species": 0}, "'source-ref' is not an image that can be decoded"),
        ({"source-ref": png(1), **line(0, "cow")}, r"'species' is class 'cow', which is none of \['cat', 'dog'\]"),
        ({"source-ref": png(1), "species": 2}, "'species' is 2: a class index is needed"),
        ({"source-ref": png(1), "species": -1}, "'species' is -1"),
        ({"source-ref": png(1), "species": [1, 2]}, r"'species' is \[1, 2\]"),
    ],
)
def test_a_sample_that_cannot_be_used_is_an_error(sample, message):
    with pytest.raises(ChannelError, match=message):
        ImageLabel(label="species", classes=("cat", "dog"))(sample)


def test_a_class_name_without_classes_is_an_error():
    with pytest.raises(ChannelError, match="'name' is 'dog': a class index is needed, or give `classes`"):
        ImageLabel(label="name")({"source-ref": png(1), "name": "dog"})
