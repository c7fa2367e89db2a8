"""Bodies that mean harm, by content type: good ones, and how each kind is broken where its parser looks."""

import functools
import io
import json
import random
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from container.serve.records import masked_crc

SHAPE = (1, 8, 8)
BOMB_CHANCE = 0.001  # each costs a second of computing
NUMBERS = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999999",
        "1e-999999",
        "-0",
        "9" * 400,
        "9" * 10_000,
        "0." + "9" * 5000,
    ),
    *(
        "1_0",
        "0x10",
        "+1",
        ".5",
        "1.",
        "01",
        "1e",
        "--1",
        "1 2",
        "١",
        "½",
        "∞",
        "",
        " ",
        "null",
        "true",
        '"1"',
        '"',
        "[]",
    ),
    *(
        "{}",
        "[[]]",
        '"\\ud800"',
        '"\\u0000"',
        '"' + "x" * 3000 + '"',
        "\x00",
        "\ufeff",
        "\u2028",
        "18446744073709551616",
    ),
    *(
        "1.7976931348623157e308",
        "3.5e38",
        "-9223372036854775809",
        '{"instances":1}',
        '{"data":{"data":1}}',
        "\\",
        "'1'",
    ),
)
DTYPES = (
    "<f4",
    ">f4",
    "|O",
    "<U9",
    "<f2",
    "<f16",
    "<c16",
    "|b1",
    "|V3",
    "<M8[s]",
    "<u8",
    "=i2",
    "<f4,<f4",
    "(2,)<f4",
    "f4" * 99,
)
SHAPES = (
    *(
        "(1, 8, 8)",
        "(2, 64)",
        "(64,)",
        "(-1,)",
        "(9**9, 9**9)",
        "()",
        "(0, 8)",
        "(0,)",
        "(True, 64)",
        "(1.0, 64)",
        "(64)",
    ),
    *(
        f"({2**63}, 0)",
        f"({2**32}, {2**32})",
        f"({'9' * 4000}, {'9' * 4000})",
        "(" + "1," * 70 + ")",
        "('a',)",
        "None",
        "[64]",
    ),
)
HEADER_TEXTS = (
    "{}",
    "[" * 4000,
    "()" * 100,
    "__import__('os').abort()",
    "{'descr': '<f4'}",
    "\x00" * 50,
    "{" * 300,
    "é" * 90,
)


def pictures(kind: str, modes: tuple[str, ...], **options: object) -> list[bytes]:
    """One of each mode, and an animation where the format has any."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    found = []
    for mode in modes:
        image = Image.fromarray(pixels)
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        for extra in ({}, options, {"exif": orientation(6)}):
            buffer = io.BytesIO()
            image.save(buffer, kind, **extra)
            found.append(buffer.getvalue())
    if kind in ("GIF", "PNG", "WEBP"):
        buffer = io.BytesIO()
        frames = [Image.new("RGB", (9, 9), shade) for shade in (0, 99)]
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        found.append(buffer.getvalue())
    return found


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@functools.cache
def seeds() -> dict[str, list[bytes]]:
    """Good bodies of each content type."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)
    rows = [row.ravel().tolist() for row in pixels]
    quoted = [[f'"{value}"' for value in row] for row in rows]
    return {
        "application/json": [
            json.dumps(value).encode()
            for value in (
                {"instances": pixels.tolist()},
                {"instances": [{"features": row} for row in rows]},
                pixels.tolist(),
                rows[0],
            )
        ],
        "text/csv": [
            end.join(",".join(map(str, row)) for row in table).encode(encoding)
            for table in (rows, quoted)
            for end in ("\n", "\r\n", "\r")
            for encoding in ("utf-8", "utf-8-sig", "utf-16")
        ],
        "application/jsonlines": [
            end.join(json.dumps(value(row)).encode() for row in rows)
            for value in (lambda row: row, lambda row: {"features": row})
            for end in (b"\n", b"\r\n", b"\n\n\n")
        ],
        "application/x-npy": [
            npy(np.asarray(pixels.astype(dtype), order=order)) for dtype in ("u1", ">f4", "f8", "?") for order in "CF"
        ],
        "application/x-recordio-protobuf": [recordio(rows[0]), recordio(rows[0]) * 2, recordio(rows[0])[8:]],
        "application/x-tfrecord": [tfrecord(rows[0]), tfrecord(rows[0]) * 2, tfrecord(rows[0])[12:-4]],
        "image/png": pictures("PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), optimize=True),
        "image/jpeg": pictures("JPEG", ("L", "RGB", "CMYK"), progressive=True),
        "image/webp": pictures("WEBP", ("RGB", "RGBA"), lossless=True),
        "image/gif": pictures("GIF", ("L", "P"), interlace=0),
        "image/bmp": pictures("BMP", ("1", "L", "P", "RGB")),
        "multipart/form-data; boundary=x": [b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n--x--\r\n'],
    }


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def recordio(values: list[int]) -> bytes:
    """One record of SageMaker's protobuf: features {"values": float32 tensor}."""
    tensor = field(1, np.array(values, "<f4").tobytes())
    return recordio_frame(field(1, field(1, b"values") + field(2, field(2, tensor))))


def recordio_frame(record: bytes, flag: int = 0) -> bytes:
    return struct.pack("<II", 0xCED7230A, len(record) | flag << 29) + record + bytes(-len(record) % 4)


def tfrecord(values: list[int]) -> bytes:
    """One tf.train.Example: the feature "values", a float list."""
    feature = field(2, field(1, np.array(values, "<f4").tobytes()))
    return tfrecord_frame(field(1, field(1, field(1, b"values") + field(2, feature))))


def tfrecord_frame(example: bytes, length: int | None = None) -> bytes:
    head = struct.pack("<Q", len(example) if length is None else length)
    return head + struct.pack("<I", masked_crc(head)) + example + struct.pack("<I", masked_crc(example))


def field(number: int, value: bytes) -> bytes:
    """A protobuf field of bytes."""
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded, value = encoded + bytes([value & 127 | 128]), value >> 7
    return encoded + bytes([value])


def fuzzed(kind: str, source: random.Random) -> bytes:
    """One body: mostly mutated, sometimes cut off or random."""
    chance, good = source.random(), source.choice(seeds()[kind])
    if chance < BOMB_CHANCE and kind in BOMBS:
        return BOMBS[kind]()
    if chance < 0.05:
        return source.randbytes(source.randrange(400))
    if chance < 0.15:
        return good[: source.randrange(len(good))]
    for _ in range(source.choice((0, 1, 1, 1, 2, 3)) if kind in MUTATORS else 0):
        good = MUTATORS[kind](good, source)
    return mutated(good, source) if source.random() < 0.5 else good


def mutated(body: bytes, source: random.Random) -> bytes:
    """A few bytes changed, removed, put in, or repeated."""
    changed = bytearray(body)
    for _ in range(source.randint(1, 6)):
        position = source.randrange(len(changed) + 1)
        action = source.randrange(5)
        if action == 0 and position < len(changed):
            changed[position] = source.choice((0, 1, 127, 128, 255, source.randrange(256)))
        elif action == 1 and position < len(changed):
            changed[position] ^= 1 << source.randrange(8)
        elif action == 2:
            del changed[position : position + source.randrange(1, 20)]
        elif action == 3:
            changed[position:position] = source.randbytes(source.randrange(1, 20))
        elif len(changed) < 100_000:
            changed[position:position] = changed[:position]
    return bytes(changed)


def mutated_text(body: bytes, source: random.Random) -> bytes:
    """A number replaced by what a parser may trip over, the whole nested deep, or in another dress."""
    chance = source.random()
    if chance < 0.05:
        depth = source.choice((10, 63, 64, 65, 1000, 1023, 1024, 5000, 100_000))
        opening, closing = source.choice(((b"[", b"]"), (b'{"data":', b"}"), (b'{"instances":', b"}")))
        return opening * depth + body + closing * source.choice((0, depth))
    if chance < 0.1:
        return source.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n\r\n", b"label,a,b\n", b"\x00", b"// x\n")) + body
    if chance < 0.15:
        return body.replace(
            *source.choice(((b",", b";"), (b",", b"\t"), (b",", b",,"), (b",", b", "), (b"\n", b"\x0b")))
        )
    if chance < 0.2:
        return (body + b"\n") * source.choice((2, 50))
    places = list(re.finditer(rb"\d+", body))
    if not places:
        return body
    chosen = source.choice(places)
    return body[: chosen.start()] + source.choice(NUMBERS).encode() + body[chosen.end() :]


def mutated_npy(body: bytes, source: random.Random) -> bytes:
    """Another header, of the length that the file announces or not, or another array altogether."""
    if source.random() < 0.3:
        extents = [source.choice((0, 1, 2, 3, 8, 64)) for _ in range(source.randrange(5))]
        array = np.zeros(extents, source.choice(("u1", ">i4", "f2", ">f8", "?", "c8", "U3", "M8[s]", "f8,i4", "i8")))
        return npy(np.asarray(array, order=source.choice("CF")))
    header = f"{{'descr': {source.choice(DTYPES)!r}, 'fortran_order': {source.choice(('True', 'False', '2', '[]'))}, "
    header += f"'shape': {source.choice(SHAPES)}, }}"
    text = (source.choice(HEADER_TEXTS) if source.random() < 0.2 else header).encode("latin-1", "replace") + b"\n"
    version = source.choice((1, 1, 1, 2, 3, 0, 9))
    length = source.choice((len(text), len(text), len(text), 0, 65535, 2**31))
    packed = struct.pack("<H", length & 0xFFFF) if version == 1 else struct.pack("<I", length)
    return b"\x93NUMPY" + bytes([version, 0]) + packed + text + source.choice((body[128:], b"", bytes(256)))


def random_message(source: random.Random, depth: int = 0) -> bytes:
    """Protobuf of any fields and wire types; fields of messages as a rule, whose numbers the schemas have."""
    pieces = []
    for _ in range(source.randrange(4)):
        number, wire = source.choice((1, 1, 1, 2, 2, 3, 7, 9, 15)), source.choice((2, 2, 2, 2, 0, 1, 5, 3, 4, 6))
        pieces.append(bytes([number << 3 | wire]))
        if wire == 2:
            inner = random_message(source, depth + 1) if depth < 6 else source.randbytes(source.choice((0, 4, 8, 17)))
            size = source.choice((len(inner),) * 9 + (2**31, 2**63, 2**70))
            pieces.append(varint(size) + source.choice((inner, inner, inner, b"values")))
        elif wire == 0:
            pieces.append(varint(source.choice((0, 1, 64, 2**31, 2**63, 2**64 - 1, 2**70))))
        else:
            pieces.append(source.randbytes(8 if wire == 1 else 4))
    return b"".join(pieces)


def sparse(source: random.Random) -> bytes:
    """A SageMaker record whose tensor has keys and a shape."""
    keys = b"".join(varint(source.choice((0, 1, 63, 2**63))) for _ in range(source.randrange(3)))
    shape = b"".join(
        varint(source.choice((0, 1, 8, 64, 2**25, 2**62))) for _ in range(source.choice((1, 2, 3, 70, 900)))
    )
    tensor = field(1, bytes(4 * source.randrange(3))) + field(2, keys) + field(3, shape)
    return field(1, field(1, b"values") + field(2, field(source.choice((2, 3, 7, 9)), tensor)))


def mutated_recordio(body: bytes, source: random.Random) -> bytes:
    """Other messages in a right framing, or a right message in another framing."""
    record = source.choice((random_message(source), sparse(source), mutated(body[8:], source), body[8:]))
    parts = [recordio_frame(record, source.choice((0, 0, 0, 1, 2, 3, 7))) for _ in range(source.choice((1, 1, 2, 40)))]
    return b"".join(parts) if source.random() < 0.9 else struct.pack("<II", 0xCED7230A, 2**29 - 1) + record


def mutated_tfrecord(body: bytes, source: random.Random) -> bytes:
    """Other data under right checksums, or lengths that are not the data's."""
    data = source.choice((random_message(source), mutated(body[12:-4], source), body[12:-4], b""))
    length = source.choice((None,) * 8 + (0, 2**31, 2**63, 2**64 - 1))
    return tfrecord_frame(data, length) * source.choice((1, 1, 2, 40))


def chunk(name: bytes, data: bytes) -> bytes:
    """One of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_chunks(body: bytes) -> list[tuple[bytes, bytes]]:
    found, start = [], 8
    while start + 12 <= len(body):
        (length,) = struct.unpack_from(">I", body, start)
        found.append((body[start + 4 : start + 8], body[start + 8 : start + 8 + length]))
        start += 12 + length
    return found


def mutated_png(body: bytes, source: random.Random) -> bytes:
    """Another header, or other chunks in another order, all checksums right."""
    chunks = png_chunks(body)
    if not chunks:
        return body
    position = source.randrange(len(chunks))
    name, data = chunks[position]
    action = source.randrange(6)
    if action == 0 and len(chunks[0][1]) == 13:
        size = struct.pack(">II", *(source.choice((0, 1, 7, 24, 9000, 2**31 - 1, 2**32 - 1)) for _ in range(2)))
        chunks[0] = (
            chunks[0][0],
            source.choice((size, chunks[0][1][:8])) + bytes(source.randrange(18) for _ in range(5)),
        )
    elif action == 1:
        chunks[position] = (name, mutated(data, source))
    elif action == 2:
        chunks.insert(position, chunks[source.randrange(len(chunks))])
    elif action == 3:
        del chunks[position]
    elif action == 4:
        source.shuffle(chunks)
    else:
        names = (
            b"tRNS",
            b"PLTE",
            b"gAMA",
            b"iCCP",
            b"eXIf",
            b"acTL",
            b"fcTL",
            b"zTXt",
            b"iTXt",
            b"IDAT",
            b"pHYs",
            b"sRGB",
        )
        text = source.choice((text_bomb(), source.randbytes(30), b"", bytes(768)))
        chunks.insert(source.randrange(len(chunks) + 1), (source.choice(names), text))
    return body[:8] + b"".join(chunk(*each) for each in chunks)


@functools.cache
def text_bomb() -> bytes:
    """Of a zTXt or iTXt chunk: ten megabytes in ten kilobytes."""
    return b"k\0\0" + zlib.compress(bytes(10_000_000), 9)


def jpeg_segments(body: bytes) -> list[bytes]:
    """Each from its marker on; a scan with its data."""
    starts = [match.start() for match in re.finditer(rb"\xff[\xc0-\xcf\xd8-\xfe]", body)]
    return [body[start:end] for start, end in zip(starts, [*starts[1:], len(body)], strict=True)]


def mutated_jpeg(body: bytes, source: random.Random) -> bytes:
    """Another size, kind of frame, sampling or orientation; segments changed, repeated, in another order."""
    segments = jpeg_segments(body)
    if len(segments) < 3:
        return body
    position = source.randrange(1, len(segments))
    frame = next((number for number, each in enumerate(segments) if each[1:2] in (b"\xc0", b"\xc2")), 1)
    action = source.randrange(6)
    if action == 0:
        size = struct.pack(">HH", *(source.choice((0, 1, 24, 3000, 9000, 65535)) for _ in range(2)))
        segments[frame] = segments[frame][:5] + size + segments[frame][9:]
    elif action == 1:
        kind = source.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xDD, 0xDC))
        segments[frame] = bytes([0xFF, kind]) + segments[frame][2:]
    elif action == 2:
        segments[position] = segments[position][:4] + mutated(segments[position][4:], source)
    elif action == 3:
        segments[position:position] = [segments[source.randrange(1, len(segments))]] * source.choice((1, 2, 300))
    elif action == 4:
        del segments[position]
    else:
        exif = (
            b"\xff\xe1"
            + struct.pack(">H", 40)
            + b"Exif\0\0"
            + source.choice((b"II*\0\x08\0\0\0", b"MM\0*"))
            + bytes(24)
        )
        segments.insert(1, exif)
    return b"".join(segments)


def mutated_head(body: bytes, source: random.Random) -> bytes:
    """Numbers of two and four bytes in the first sixty bytes replaced: sizes, counts and kinds."""
    changed = bytearray(body)
    for _ in range(source.randint(1, 3)):
        position = source.randrange(4, max(5, min(60, len(changed) - 4)))
        value = source.choice((0, 1, 2, 255, 3000, 65535, 2**24, 2**31 - 1, 2**32 - 1))
        changed[position : position + 4] = struct.pack("<I", value)[: source.choice((2, 4))].ljust(2, b"\0")
    return bytes(changed)


@functools.cache
def flat_png() -> bytes:
    """49 megapixels in 143 kB."""
    header = struct.pack(">IIBBBBB", 7000, 7000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(21_001 * 7000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@functools.cache
def flat(kind: str) -> bytes:
    """49 megapixels in this format; a JPEG goes over them in forty scans."""
    buffer = io.BytesIO()
    options = {"JPEG": {"progressive": True, "quality": 10}, "WEBP": {"quality": 1}}.get(kind, {})
    Image.new("RGB", (7000, 7000)).save(buffer, kind, **options)
    body = buffer.getvalue()
    if kind != "JPEG":
        return body
    scan = body[body.rfind(b"\xff\xda") : -2]
    return body[:-2] + scan * 30 + body[-2:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "image/png": flat_png,
    "image/jpeg": lambda: flat("JPEG"),
    "image/webp": lambda: flat("WEBP"),
    "image/gif": lambda: flat("GIF"),
    "application/json": lambda: b'{"instances":["' + b"x" * 30_000 + b'"' + b',""' * 10_000 + b"]}",
    "text/csv": lambda: b"1\n" * 300_000,
    "application/jsonlines": lambda: b"{}\n" * 100_000,
    "application/x-recordio-protobuf": lambda: recordio_frame(
        field(1, field(2, field(2, field(3, b"\x02" * 300_000))))
    ),
}
MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "application/json": mutated_text,
    "application/jsonlines": mutated_text,
    "text/csv": mutated_text,
    "application/x-npy": mutated_npy,
    "application/x-recordio-protobuf": mutated_recordio,
    "application/x-tfrecord": mutated_tfrecord,
    "image/png": mutated_png,
    "image/jpeg": mutated_jpeg,
    "image/webp": mutated_head,
    "image/gif": mutated_head,
    "image/bmp": mutated_head,
}
