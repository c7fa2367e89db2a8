"""How large an encoded image says it is, read from its first bytes: a small file may decode to gigabytes."""

import struct
from collections.abc import Iterator

from container.serve.exchange import BadRequest, BodyTooLarge
from container.serve.png import SIGNATURE, checked_png

PIXEL_LIMIT = 50_000_000  # 150 MB as RGB bytes; more than any camera's picture, less than would hurt
JPEG_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def checked_image(body: bytes) -> bytes:
    """The image as it may be decoded.

    Raises:
        BodyTooLarge: it would have more than `PIXEL_LIMIT` pixels.
        BadRequest: its header is damaged, it is an animation, a PNG with any fault, or no JPEG, PNG, GIF or WebP.
    """
    try:
        width, height = extent(body)
    except (struct.error, IndexError):
        raise BadRequest("the image ends before its size is said") from None
    if width * height > PIXEL_LIMIT:
        raise BodyTooLarge(f"the image has {width} x {height} pixels, at most {PIXEL_LIMIT} are decoded")
    return checked_png(body) if body.startswith(SIGNATURE) else body


def extent(body: bytes) -> tuple[int, int]:
    """Width and height in pixels, by the header."""
    if body[:8] == SIGNATURE:
        return struct.unpack(">II", body[16:24])
    if body[:2] == b"\xff\xd8":
        return _jpeg_extent(body)
    if body[:4] == b"GIF8":
        return _gif_extent(body)
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return _webp_extent(body)
    raise BadRequest("the body is no JPEG, PNG, GIF or WebP image")


def _jpeg_extent(body: bytes) -> tuple[int, int]:
    position = 2
    while True:
        while body[position] != 0xFF:
            position += 1
        while body[position] == 0xFF:  # fill bytes
            position += 1
        marker = body[position]
        position += 1
        if marker in JPEG_FRAMES:
            height, width = struct.unpack(">HH", body[position + 3 : position + 7])
            return width, height
        if marker not in JPEG_STANDALONE:
            position += max(2, struct.unpack(">H", body[position : position + 2])[0])


def _webp_extent(body: bytes) -> tuple[int, int]:
    if body[12:16] == b"VP8X":
        width, height = (int.from_bytes(body[start : start + 3], "little") + 1 for start in (24, 27))
        return width, height
    if body[12:16] == b"VP8L":
        (bits,) = struct.unpack("<I", body[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", body[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _gif_extent(body: bytes) -> tuple[int, int]:
    width, height, flags = struct.unpack("<HHB", body[6:11])
    for number, (frame_width, frame_height) in enumerate(_gif_frames(body, 13 + _colour_table(flags))):
        if number:
            raise BadRequest("the image is an animation; send one frame")
        width, height = max(width, frame_width), max(height, frame_height)
    return width, height


def _gif_frames(body: bytes, position: int) -> Iterator[tuple[int, int]]:
    while body[position] in (0x21, 0x2C):
        if body[position] == 0x2C:
            width, height, flags = struct.unpack("<HHB", body[position + 5 : position + 10])
            yield width, height
            position += 11 + _colour_table(flags)  # the descriptor and the code size
        else:
            position += 2  # an extension's introducer and label
        while body[position]:  # sub-blocks
            position += 1 + body[position]
        position += 1


def _colour_table(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
