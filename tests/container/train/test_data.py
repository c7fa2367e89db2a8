"""Image folders: what becomes of them, and an order that does not know the rank."""

import pytest
import torch
from torchvision.io import write_jpeg, write_png

from container.train import data
from container.train.data import (
    DataError,
    ImageData,
    augment,
    describe_images,
    epoch_draws,
    scan_folder,
    training_batches,
)


def write(path, *shape, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (
        torch.randint(0, 256, shape, dtype=torch.uint8)
        if value is None
        else torch.full(shape, value, dtype=torch.uint8)
    )
    (write_jpeg if path.suffix == ".jpg" else write_png)(image, str(path))


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        write(tmp_path / "a" / f"{number}.png", 1, 8, 8, value=0)
        write(tmp_path / "b" / f"{number}.png", 1, 8, 8, value=255)
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.png").touch()
    write(tmp_path / "outside.png", 1, 8, 8)
    return scan_folder(tmp_path)


def describe(folder, architecture="", image_size=0):
    return describe_images(folder, sorted(set(folder.class_names)), architecture, image_size)


def test_only_images_within_class_folders_count(folder):
    assert len(folder.files) == 10
    assert folder.files[0] == "a/0.png"
    assert set(folder.class_names) == {"a", "b"}


def test_equal_grey_images_keep_their_size_and_one_channel(folder):
    signature = describe(folder)
    assert (signature.image_shape, signature.architecture, signature.classes) == ((1, 8, 8), "convnet", ("a", "b"))
    assert signature.mean == pytest.approx((0.5,))


def test_photographs_of_many_sizes_become_224_pixels_in_three_channels(tmp_path):
    write(tmp_path / "x" / "1.jpg", 3, 300, 200)
    write(tmp_path / "x" / "2.png", 1, 100, 50)
    signature = describe(scan_folder(tmp_path))
    assert (signature.image_shape, signature.architecture) == ((3, 224, 224), "resnet18")
    assert describe(scan_folder(tmp_path), "mobilenet_v3_small", 32).image_shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("sides", "pixels"), [([20, 40, 33], 48), ([28, 31], 32), ([100, 90, 300], 112), ([500, 640], 224)]
)
def test_images_of_many_sizes_become_about_as_large_as_most_of_them(sides, pixels, tmp_path):
    for number, side in enumerate(sides):
        write(tmp_path / "x" / f"{number}.png", 3, side, side - 7)
    assert describe(scan_folder(tmp_path)).image_shape == (3, pixels, pixels)


def test_streaming_images_leaves_torchs_own_generator_alone(folder, monkeypatch):
    """A resumed job makes one loader more than one that was left alone, and must draw the same numbers."""
    monkeypatch.setattr(data, "MEMORY_BYTES", 0)
    before = torch.get_rng_state()
    assert len(list(ImageData(folder, describe(folder), 0).batches([torch.tensor([3, 9])]))) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_too_many_for_memory_are_decoded_per_batch_and_are_the_same(folder, monkeypatch, workers):
    indices = [torch.tensor([3, 9]), torch.tensor([0])]
    kept = ImageData(folder, describe(folder), 1)
    monkeypatch.setattr(data, "MEMORY_BYTES", 0)
    streamed = ImageData(folder, describe(folder), workers)
    assert streamed.images is None
    for one, other in zip(kept.batches(indices), streamed.batches(indices), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_class_that_training_does_not_know_is_an_error(folder, tmp_path):
    write(tmp_path / "other" / "c" / "1.png", 1, 8, 8)
    with pytest.raises(DataError, match="has classes that channel 'train' lacks: c"):
        ImageData(scan_folder(tmp_path / "other"), describe(folder), 1)


def test_a_file_that_is_no_image_is_named(folder, monkeypatch):
    signature = describe(folder)
    (folder.root / "a" / "3.png").write_bytes(b"not a png")
    with pytest.raises(DataError, match=r"a/3\.png is not an image that can be decoded"):
        ImageData(folder, signature, 1)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_ranks_together_see_the_same_batches_whatever_their_number(ranks):
    shares = [training_batches(23, 5, seed=7, epoch=2, share=(rank, ranks)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {4}
    together = [sorted(torch.cat(step).tolist()) for step in zip(*shares, strict=True)]
    alone = [sorted(step.tolist()) for step in training_batches(23, 5, seed=7, epoch=2, share=(0, 1))]
    assert together == alone
    assert training_batches(23, 5, 7, 3, (0, 1))[0].tolist() != training_batches(23, 5, 7, 2, (0, 1))[0].tolist()


def test_an_image_is_changed_the_same_way_in_whatever_batch_it_is():
    draws = epoch_draws(10, seed=1, epoch=0)
    assert torch.equal(draws, epoch_draws(10, seed=1, epoch=0))
    assert not torch.equal(draws, epoch_draws(10, seed=1, epoch=1))
    for pixels in (12, 80):
        images = torch.rand(10, 1, pixels, pixels)
        whole = augment(images, draws)
        part = augment(images[[2, 5]], draws[[2, 5]])
        assert torch.allclose(whole[[2, 5]], part, atol=1e-6)
        assert not torch.allclose(whole, images, atol=1e-3)
