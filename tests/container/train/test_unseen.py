"""Images nobody has seen before, without a hyperparameter: small, few, rare, damaged, of many sizes, oddly named."""

import json
import re

import pytest
import torch
from torchvision.io import write_jpeg, write_png

from container import contract
from container.model import read_signature

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # whole trainings, on machines that do other things, too


@pytest.fixture
def texture():
    """Draws a coloured image of a class, of some size: `texture("stripes")`, uint8 [3, H, W]."""
    generator = torch.Generator().manual_seed(5)

    def draw(name, smallest=20, largest=48):
        height, width = (int(torch.randint(smallest, largest, (1,), generator=generator)) for _ in range(2))
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        period = int(torch.randint(4, 8, (1,), generator=generator))
        pattern = {"stripes": rows // period, "bars": columns // period, "checks": rows // period + columns // period}
        dark = torch.randint(0, 110, (3, 1, 1), generator=generator)
        light = torch.randint(130, 220, (3, 1, 1), generator=generator)
        noise = torch.randint(0, 36, (3, height, width), generator=generator)
        return (torch.where(pattern[name] % 2 == 0, dark, light) + noise).to(torch.uint8)

    return draw


@pytest.fixture
def textures(tmp_path, texture):
    """Lays channels out: `textures(train=(70, 35, 20), test=(20, 20, 20))`, so many JPEG files of each class."""

    def write(**channels):
        for channel, counts in channels.items():
            for name, count in zip(("stripes", "bars", "checks"), counts, strict=True):
                directory = tmp_path / channel / name
                directory.mkdir(parents=True)
                for number in range(count):
                    write_jpeg(texture(name), str(directory / f"{number}.jpg"), quality=90)
        return {channel: tmp_path / channel for channel in channels}

    return write


def report_of(job):
    job.start()
    assert job.wait(800) == {"algo-1": 0}, job.log()
    return json.loads((job.opt_ml().output_data / "report.json").read_text())


def test_images_of_many_sizes_in_few_examples_are_learnt(training_job, textures):
    job = training_job(channels=textures(train=(70, 35, 20), validation=(20, 20, 20)))
    report = report_of(job)
    assert "convnet for 3 classes of 3x48x48, 125 images, batch 8 over 1 rank(s), 20 epochs of 15 steps" in job.log()
    assert report["validation:macro_f1"] > 0.9, report["by_class"]
    printed = set(re.findall(r"epoch=\d+ step=\d+ ([\w:]+)=\S+;", job.log()))
    assert printed == {name for name in contract.BUILTIN_METRICS if not name.startswith("test:")}


def test_rare_classes_and_a_damaged_file_are_told_and_learnt(training_job, textures):
    channels = textures(train=(132, 24, 12), test=(20, 20, 20))
    (channels["train"] / "stripes" / "7.jpg").write_bytes(b"\xff\xd8 that is all")
    (channels["train"] / "bars" / "7.tif").touch()
    job = training_job(channels=channels)
    report = report_of(job)
    assert "1 of 168 files are no images, and left out: stripes/7.jpg" in job.log()
    assert "channel 'train': by their names no images, and left out: 1 x .tif" in job.log()
    assert "class 'checks' has 12 images, 'stripes' 131: class_weights=balanced makes rare" in job.log()
    assert report["test:macro_f1"] > 0.75, report["by_class"]


def test_two_tiny_grey_images_per_class_are_learnt_by_heart(training_job, tmp_path):
    generator = torch.Generator().manual_seed(1)
    for light, name in ((30, "50$ or $60$"), (120, 'zwölf, "drei"'), (210, "a b")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(2):
            image = light + torch.randint(0, 30, (1, 5, 7), generator=generator)
            write_png(image.to(torch.uint8), str(tmp_path / "train" / name / f"{number}.png"))
    job = training_job(channels={"train": tmp_path / "train", "test": tmp_path / "train"})
    assert report_of(job)["test:accuracy"] == 1
    signature = read_signature(job.opt_ml().model)
    assert (signature.image_shape, signature.classes) == ((1, 5, 7), ("50$ or $60$", "a b", 'zwölf, "drei"'))


def test_large_pictures_become_224_pixels_for_a_resnet(training_job, tmp_path, texture):
    for name in ("stripes", "bars"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(4):
            write_jpeg(texture(name, 600, 900), str(tmp_path / "train" / name / f"{number}.jpg"))
    job = training_job(channels={"train": tmp_path / "train"}, hyperparameters={"epochs": 1})
    report_of(job)
    assert "resnet18 for 2 classes of 3x224x224, 8 images, batch 8 over 1 rank(s), 1 epochs of 1 steps" in job.log()
