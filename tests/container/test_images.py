"""Bytes become pixels or a clear error: never a crash, never gigabytes."""

import io
import random
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from container import images
from container.images import ImageError, ImageTooLarge, decode_image, image_extent
from container.model import resize_image


def encoded(kind: str, size=(11, 7), frames=1, mode="RGB", **options) -> bytes:
    pictures = [Image.new(mode, size, number) for number in range(frames)]
    buffer = io.BytesIO()
    extra = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(buffer, kind, **extra, **options)
    return buffer.getvalue()


def noise(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_decodes_to_the_channels_asked_for(kind, channels):
    image = decode_image(encoded(kind), channels)
    assert image.dtype == torch.uint8
    assert image.shape == (channels, 7, 11)


def test_a_png_keeps_its_pixels():
    pixels = np.arange(12 * 3, dtype=np.uint8).reshape(3, 4, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), 3).permute(1, 2, 0).tolist() == pixels.tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_kind_of_png_decodes(mode):
    assert decode_image(noise("PNG", mode), 3).shape == (3, 9, 13)
    assert decode_image(noise("PNG", mode), 1).shape == (1, 9, 13)


def test_sixteen_bits_of_grey_are_scaled_to_eight():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), 1).tolist() == [[[0, 128, 255]]]


def test_transparency_is_dropped():
    buffer = io.BytesIO()
    Image.new("RGBA", (1, 1), (10, 20, 30, 0)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), 3).flatten().tolist() == [10, 20, 30]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_taken_sideways_is_turned_upright(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    body = encoded(kind, size=(11, 7), exif=exif)
    assert decode_image(body, 3).shape == (3, 11, 7)
    assert image_extent(body) == (3, 11, 7)


def test_a_jpeg_of_four_colours_decodes():
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(buffer, "JPEG")
    assert decode_image(buffer.getvalue(), 3).float().mean() > 250


@pytest.mark.parametrize(
    ("body", "extent"),
    [(encoded("PNG", mode="L"), (1, 7, 11)), (encoded("PNG", mode="LA"), (1, 7, 11)), (encoded("JPEG"), (3, 7, 11))],
)
def test_the_extent_is_read_without_decoding(body, extent):
    assert image_extent(body) == extent


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "PIXEL_LIMIT", 70)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        with pytest.raises(ImageTooLarge, match="11 x 7 pixels; at most 70"):
            decode_image(encoded(kind), 3)
        with pytest.raises(ImageTooLarge):
            image_extent(encoded(kind))


def test_a_header_that_announces_gigabytes_is_refused():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    idat = b"IDAT" + zlib.compress(b"")
    with pytest.raises(ImageTooLarge, match="at most 50000000 pixels"):
        decode_image(body + struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat)), 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_refused(kind):
    with pytest.raises(ImageError, match="animation"):
        decode_image(encoded(kind, frames=3, **({"lossless": True} if kind == "WEBP" else {})), 3)


def test_of_several_pictures_in_one_jpeg_the_first_is_meant():
    """Telephones put a depth map or a second exposure behind the photograph."""
    first, second = (Image.new("L", size, shade) for size, shade in (((11, 7), 200), ((5, 5), 10)))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    image = decode_image(buffer.getvalue(), 3)
    assert (image.shape, image.unique().tolist()) == ((3, 7, 11), [200])


@pytest.mark.parametrize("size", [(1, 9000), (1, 60_000), (9000, 1), (1, 1)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_that_is_one_pixel_wide_is_resized_like_any_other(size, mode):
    """Its width has a stride of thousands, by which torch's resizing read beyond the image, and crashed."""
    channels = len(mode) if mode == "RGB" else 1
    image = decode_image(encoded("JPEG", size=size, mode=mode), channels)
    expected = resize_image(image.float(), 8, 8).round().to(torch.uint8)
    for _ in range(5):
        assert torch.equal(resize_image(image, 8, 8), expected)


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(progressive):
    """Fourteen bytes a scan, and every one goes over all pixels: minutes for a body of some kilobytes."""
    body = encoded("JPEG", size=(4000, 4000), quality=10, progressive=progressive)
    scan = body[body.rfind(b"\xff\xda") : -2][:14]
    with pytest.raises(ImageTooLarge, match="4000 x 4000 pixels in 10"):
        decode_image(body[:-2] + scan * 1000 + body[-2:], 3)
    assert decode_image(body, 3).shape == (3, 4000, 4000)


def run_length_encoded(width: int, height: int, data: bytes) -> bytes:
    start = 14 + 40 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + bytes(1024) + data


def test_a_compressed_bmp_whose_lines_end_early_is_refused():
    """Pillow fills a line byte by byte."""
    with pytest.raises(ImageError, match="a compressed BMP is not read"):
        decode_image(run_length_encoded(50_000_000, 1, b"\x01\x00\x00\x00"), 3)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("P", 3), ("RGBA", 1), ("I;16", 1)])
def test_an_image_of_several_strips_keeps_its_pixels(monkeypatch, mode, channels):
    body = noise("PNG", mode)
    whole = decode_image(body, channels)
    for pixels in (1, 13 * 2, 13 * 4):  # of rows that are 13 long
        monkeypatch.setattr(images, "STRIP_PIXELS", pixels)
        assert torch.equal(decode_image(body, channels), whole)


def test_an_image_is_decoded_without_a_copy_of_it():
    """Pillow's own memory is 4 bytes a pixel, the result's 3."""
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(buffer, "PNG")
    code = (
        "import pathlib, sys; from container.images import decode_image\n"
        "def peak(): return int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak(); decode_image(sys.stdin.buffer.read(), 3); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=buffer.getvalue(), capture_output=True, check=True)
    assert int(done.stdout) * 1024 < 10 * 16_000_000


def test_large_images_wait_for_each_other_and_small_ones_for_nobody():
    room, order, entered = images.Room(100_000_000), [], threading.Event()

    def second():
        entered.set()
        with room.taken(60_000_000):
            order.append("second")

    with room.taken(50_000_000):
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait(30)
        with room.taken(50_000_000), room.taken(images.SMALL_PIXELS):
            order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    "body", [b"", b"not an image", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF....WEBPVP8 "]
)
def test_bytes_that_are_no_image_are_an_error(body):
    with pytest.raises(ImageError, match="no image of the formats|header is damaged"):
        decode_image(body, 3)


def test_a_png_cut_anywhere_is_an_error_and_no_crash():
    """torchvision's own decoder ends the process here."""
    body = noise("PNG")
    whole = decode_image(body, 3)
    for length in range(len(body)):
        try:
            image = decode_image(body[:length], 3)
        except ImageError:
            continue
        assert length > len(body) - 40, "only a lost checksum or end mark may go unnoticed"
        assert torch.equal(image, whole)


def test_the_extent_of_a_png_that_lacks_a_few_bytes_is_read_or_an_error():
    """Pillow looks for a PNG's orientation behind its pixels, and decodes them on the way."""
    body, refused = noise("PNG"), 0
    extent = image_extent(body)
    for start in range(33, len(body) - 12, 3):
        try:
            assert image_extent(body[:start] + body[start + 5 :]) == extent
        except ImageError:
            refused += 1
    assert refused > 0


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # our own limit is lower
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_thousand_damaged_images_give_pixels_or_an_error(kind):
    chance, body = random.Random(0), noise(kind)
    for _ in range(1000):
        mutated = bytearray(body)
        for _ in range(chance.randint(1, 8)):
            mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        try:
            image = decode_image(bytes(mutated[: chance.randint(len(body) // 2, len(body))]), 3)
        except ImageError:
            continue
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
