"""Checks a PNG completely before torchvision sees it: its decoder crashes the process on the errors libpng reports.

Seen with torchvision 0.29.1: a truncated or corrupt chunk ends in a segmentation fault instead of a RuntimeError.
"""

import struct
import zlib
from collections.abc import Iterator

from container.serve.exchange import BadRequest

SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # what decides the pixels, and their orientation
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def checked_png(body: bytes) -> bytes:
    """The PNG with nothing but the chunks that decide its pixels.

    Raises:
        BadRequest: any part of it is not as the standard says; the caller has checked how many pixels it has.
    """
    chunks = list(_chunks(body))
    kinds = [kind for kind, _ in chunks]
    if kinds[:1] != [b"IHDR"] or kinds.count(b"IHDR") != 1 or kinds[-1:] != [b"IEND"] or len(chunks[0][1]) != 13:
        raise BadRequest("the PNG does not begin with its header and end with its end")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth not in DEPTHS.get(colour, ()) or compression or filtering or interlace > 1 or not width or not height:
        raise BadRequest("the PNG's header holds values the standard does not know")
    _check_palette(chunks, colour, depth)
    rows = _row_sizes(width, height, depth * SAMPLES[colour], interlace)
    _check_pixels(b"".join(data for kind, data in chunks if kind == b"IDAT"), rows)
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunks(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kept chunks; the pixels as one."""
    position, pixels = len(SIGNATURE), []
    while position < len(body):
        head = body[position : position + 8]
        if len(head) < 8:
            raise BadRequest("the PNG ends within a chunk")
        length, kind = struct.unpack(">I4s", head)
        data = body[position + 8 : position + 8 + length]
        checksum = body[position + 8 + length : position + 12 + length]
        if len(checksum) < 4 or int.from_bytes(checksum, "big") != zlib.crc32(kind + data):
            raise BadRequest(f"the PNG's chunk {kind!r} is damaged")
        position += 12 + length
        if kind == b"IDAT":
            pixels.append(data)
            continue
        if kind == b"IEND":
            yield b"IDAT", b"".join(pixels)
            yield kind, b""
            return
        if kind in KEPT and not pixels:
            yield kind, data
        elif kind[0] & 0x20 == 0:  # a critical chunk out of place, or one nobody knows
            raise BadRequest(f"the PNG has a chunk {kind!r} that cannot be read")
    raise BadRequest("the PNG has no end")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _check_palette(chunks: list[tuple[bytes, bytes]], colour: int, depth: int) -> None:
    kinds = [kind for kind, _ in chunks]
    palettes = [data for kind, data in chunks if kind == b"PLTE"]
    allowed = colour in (2, 3, 6)
    if len(palettes) > allowed or (colour == 3 and not palettes):
        raise BadRequest("the PNG has a palette too many or too few")
    for palette in palettes:
        if not palette or len(palette) % 3 or len(palette) > 3 * (2**depth if colour == 3 else 256):
            raise BadRequest(f"the PNG's palette has {len(palette)} bytes")
    if max(kinds.count(b"tRNS"), kinds.count(b"eXIf")) > 1:
        raise BadRequest("the PNG says something twice")
    if b"tRNS" in kinds and palettes and kinds.index(b"tRNS") < kinds.index(b"PLTE"):
        raise BadRequest("the PNG's transparency stands before its palette")


def _row_sizes(width: int, height: int, bits: int, interlace: int) -> list[tuple[int, int]]:
    """(bytes of a row with its filter byte, rows) of each pass."""
    passes = ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = []
    for left, top, step_x, step_y in passes:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            sizes.append((1 + (columns * bits + 7) // 8, rows))
    return sizes


def _check_pixels(compressed: bytes, sizes: list[tuple[int, int]]) -> None:
    expected = sum(size * rows for size, rows in sizes)
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(compressed, expected + 1)
    except zlib.error as error:
        raise BadRequest(f"the PNG's pixels cannot be inflated: {error}") from None
    if len(raw) != expected or not inflater.eof:
        raise BadRequest(f"the PNG holds other than the {expected} bytes of pixels its header announces")
    start = 0
    for size, rows in sizes:
        if max(raw[start : start + size * rows : size]) > 4:
            raise BadRequest("the PNG has a row with an unknown filter")
        start += size * rows
