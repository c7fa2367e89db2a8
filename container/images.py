"""Encoded images become pixels here, for training and serving alike, without trusting a byte of them.

Pillow reads the header, so that a small file cannot announce gigabytes, and decodes everything but JPEG. torchvision
decodes JPEG, which is where speed counts: outside the interpreter's lock, into the tensor. Its PNG decoder is not used:
torchvision 0.29.1 ends in a segmentation fault on a PNG with a truncated chunk. In an image without torchvision Pillow
decodes JPEG, too.
"""

import contextlib
import io
import threading
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    import torchvision
except ModuleNotFoundError:
    torchvision = None

JPEGS = ("JPEG", "MPO")  # MPO: what Pillow calls a JPEG with others behind it, as telephones make them
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
PIXEL_LIMIT = 50_000_000  # 150 MB as RGB bytes; more than any camera's picture, less than would hurt
PIXELS_AT_ONCE = 100_000_000  # on all threads of a process; each takes 3 to 15 bytes while it is decoded
SMALL_PIXELS = 1_000_000  # as many as this never wait for others
STRIP_PIXELS = 1_000_000  # converted at a time
START_OF_SCAN = b"\xff\xda"
SCANNED_PIXEL_LIMIT = 1_000_000_000  # a progressive JPEG goes over its pixels in each scan, 10 times as a rule


class ImageError(ValueError):
    """The bytes are no image that can be decoded."""


class ImageTooLarge(ImageError):
    """The image has more than `PIXEL_LIMIT` pixels, or goes over them too often; nothing of it was decoded."""


class Room:
    """So many pixels may be decoded at once; who wants more waits for the others."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Have room for an image; a small one has it always."""
        if pixels <= SMALL_PIXELS:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_ROOM = Room(PIXELS_AT_ONCE)


def decode_image(encoded: bytes | memoryview, channels: int) -> torch.Tensor:
    """One image as pixels, turned upright by its EXIF orientation.

    Args:
        encoded: the file's bytes: JPEG, PNG, GIF, WebP or BMP.
        channels: 1 for grey, 3 for RGB; transparency is dropped, 16 bits become 8.

    Returns:
        uint8 [C, H, W].

    Raises:
        ImageTooLarge: over `PIXEL_LIMIT` pixels.
        ImageError: none of the formats, damaged, or an animation.
    """
    with _opened(encoded) as image, _ROOM.taken(image.width * image.height):
        if torchvision and image.format in JPEGS and image.mode in ("L", "RGB"):
            return _decode_jpeg(encoded, channels)
        try:
            ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image, "L" if channels == 1 else "RGB")
        except Exception as error:  # Pillow's plugins raise whatever their parsers do
            raise ImageError(f"damaged {image.format}: {error}") from error


def image_extent(encoded: bytes | memoryview) -> tuple[int, int, int]:
    """Channels (1 or 3), height and width of an image as its header says, upright.

    Raises:
        ImageTooLarge: over `PIXEL_LIMIT` pixels.
        ImageError: none of the formats, damaged, or an animation.
    """
    with _opened(encoded) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # Orientation values that swap the sides
        except Exception as error:  # a PNG's stands behind its pixels, which Pillow then decodes
            raise ImageError(f"damaged {image.format}: {error}") from error
        grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
        return 1 if grey else 3, width if turned else height, height if turned else width


def _opened(encoded: bytes | memoryview) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        # An attribute of the formats that can be; of a JPEG the first picture is the one that is meant.
        animated = image.format not in JPEGS and getattr(image, "is_animated", False)
    except UnidentifiedImageError:
        raise ImageError(f"no image of the formats {', '.join(FORMATS)}, or damaged in its first bytes") from None
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"{error}; at most {PIXEL_LIMIT} pixels are decoded") from None
    except Exception as error:
        raise ImageError(f"the image's header is damaged: {error}") from error
    if image.width * image.height > PIXEL_LIMIT:
        raise ImageTooLarge(f"{image.width} x {image.height} pixels; at most {PIXEL_LIMIT} are decoded")
    if animated:
        raise ImageError("the image is an animation; one frame is needed")
    if any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise ImageError("a compressed BMP is not read: Pillow takes a second for a million pixels")
    if image.format in JPEGS and image.width * image.height * (scans := bytes(encoded).count(START_OF_SCAN)) > (
        SCANNED_PIXEL_LIMIT
    ):
        raise ImageTooLarge(f"{image.width} x {image.height} pixels in {scans} scans; fewer are decoded")
    return image


def _pixels(image: Image.Image, mode: str) -> torch.Tensor:
    """Of the mode `L` or `RGB`, uint8 [C, H, W]. Strip by strip: a copy of a whole image is 200 MB."""
    pixels = np.empty((len(mode), image.height, image.width), np.uint8)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        array = np.asarray(_eight_bits(strip).convert(mode))
        pixels[:, top : top + rows] = array.transpose(2, 0, 1) if mode == "RGB" else array
    return torch.from_numpy(pixels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips 16 bits of grey instead of scaling them."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def _decode_jpeg(encoded: bytes | memoryview, channels: int) -> torch.Tensor:
    mode = torchvision.io.ImageReadMode.GRAY if channels == 1 else torchvision.io.ImageReadMode.RGB
    buffer = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    try:
        return torchvision.io.decode_jpeg(buffer, mode=mode, apply_exif_orientation=True)
    except RuntimeError as error:
        raise ImageError(f"damaged JPEG: {str(error).splitlines()[0]}") from error
