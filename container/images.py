"""Encoded images become pixels here, for training and serving alike, without trusting a byte of them.

Pillow reads the header, so that a small file cannot announce gigabytes, and decodes everything but JPEG. torchvision
decodes JPEG, which is where speed counts: outside the interpreter's lock, into the tensor. Its PNG decoder is not used:
torchvision 0.29.1 ends in a segmentation fault on a PNG with a truncated chunk. In an image without torchvision Pillow
decodes JPEG, too.
"""

import io

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    import torchvision
except ModuleNotFoundError:
    torchvision = None

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
PIXEL_LIMIT = 50_000_000  # 150 MB as RGB bytes; more than any camera's picture, less than would hurt


class ImageError(ValueError):
    """The bytes are no image that can be decoded."""


class ImageTooLarge(ImageError):
    """The image has more than `PIXEL_LIMIT` pixels; nothing of it was decoded."""


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
    with _opened(encoded) as image:
        if torchvision and image.format == "JPEG" and image.mode in ("L", "RGB"):
            return _decode_jpeg(encoded, channels)
        try:
            upright = ImageOps.exif_transpose(image)
            pixels = _eight_bits(upright).convert("L" if channels == 1 else "RGB")
        except Exception as error:  # Pillow's plugins raise whatever their parsers do
            raise ImageError(f"damaged {image.format}: {error}") from error
    array = np.array(pixels)  # a copy: Pillow's own memory is read-only
    return torch.from_numpy(array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1)))


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
        animated = getattr(image, "is_animated", False)  # an attribute of the formats that can be
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
    return image


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
