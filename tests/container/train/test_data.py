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
    other_files,
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


def test_more_than_a_few_files_that_are_no_images_are_an_error_that_names_one(folder):
    signature = describe(folder)
    (folder.root / "a" / "3.png").write_bytes(b"not a png")
    with pytest.raises(DataError, match=r"a/3\.png is not an image that can be decoded"):
        ImageData(folder, signature, 1)


def test_a_damaged_file_among_many_is_left_out_with_its_label_and_a_warning(folder, caplog, monkeypatch):
    for number in range(5, 30):
        write(folder.root / "b" / f"{number}.png", 1, 8, 8, value=255)
    whole = (folder.root / "a" / "0.png").read_bytes()
    (folder.root / "a" / "0.png").write_bytes(whole[:40])  # its header is well: only the pixels cannot be decoded
    (folder.root / "a" / "1.png").write_bytes(b"")
    many = scan_folder(folder.root)
    with pytest.raises(DataError, match=r"a/0\.png is not an image that can be decoded"):
        ImageData(many, describe(many), 1)  # 2 of 35
    (folder.root / "a" / "1.png").unlink()
    many = scan_folder(folder.root)
    images = ImageData(many, describe(many), 1)
    assert "1 of 34 files are no images, and left out: a/0.png" in caplog.text
    assert (len(images), images.labels.tolist()) == (33, [0] * 3 + [1] * 30)
    assert images.folder.files == many.files[1:]
    assert [bool(image.any()) for image in images.images] == [bool(label) for label in images.labels]

    monkeypatch.setattr(data, "MEMORY_BYTES", 0)  # where none is decoded ahead, the first one ends the job, by name
    with pytest.raises(DataError, match=r"a/0\.png is not"):
        next(ImageData(many, describe(many), 0).batches([torch.tensor([0])]))


@pytest.mark.parametrize("kept_bytes", [0, 40])
def test_a_channel_of_damaged_files_names_the_first(tmp_path, kept_bytes):
    write(tmp_path / "a" / "1.png", 1, 8, 8)
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:kept_bytes])
    with pytest.raises(DataError, match=r"a/1\.png is not an image"):
        describe(scan_folder(tmp_path))


def test_files_that_are_left_out_because_of_their_suffix_are_counted(folder):
    for name in ("a/1.tif", "b/2.TIF", "b/README"):
        (folder.root / name).touch()
    assert other_files(folder.root) == {".tif": 2, ".txt": 1, "no suffix": 1}


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
