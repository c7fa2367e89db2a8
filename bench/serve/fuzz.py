"""Bodies that mean harm, against a running server: .venv/bin/python bench/serve/fuzz.py [--count 10000] [--seed 0].

For each content type `count` bodies: good ones mutated, cut off, or nothing but random bytes. The server is `--url`'s,
or one that is started here on a small classifier of images. A 5xx, an answer with a trace, an error that is no JSON,
a connection that breaks and a process that dies are defects; each is kept with its seed, and the exit status is 1.
"""

import argparse
import http.client
import io
import json
import random
import re
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for container.model

from running import RunningServer

from container.serve.records import masked_crc

CONNECTIONS = 4
SHAPE = (1, 8, 8)
ALLOWED = {200, 400, 406, 413, 415}
RESTARTS = re.compile(r"^slipway_process_restarts_total (\S+)$", re.MULTILINE)
NUMBERS = ("NaN", "1e999", "-1e999", "-0", "9" * 400, "1_0", "0x10", "1e-400", "١", "null", "true", '"1"', "[]", "{}")
NPY_WORDS = ("<f4", "|O", "<U9", "<c16", "<M8[s]", "[('a','<f4')]", "True", "(1, 8, 8)", "(-1,)", "(9**9, 9**9)", "()")


def seeds() -> dict[str, bytes]:
    """A good body of each content type."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)
    rows = [row.ravel().tolist() for row in pixels]
    return {
        "application/json": json.dumps({"instances": pixels.tolist()}).encode(),
        "text/csv": "\n".join(",".join(map(str, row)) for row in rows).encode(),
        "application/jsonlines": b"\n".join(json.dumps({"features": row}).encode() for row in rows),
        "application/x-npy": npy(pixels),
        "application/x-recordio-protobuf": recordio(rows[0]),
        "application/x-tfrecord": tfrecord(rows[0]),
        "image/png": picture("PNG"),
        "image/jpeg": picture("JPEG"),
        "image/webp": picture("WEBP"),
        "multipart/form-data; boundary=x": b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n--x--\r\n',
    }


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def recordio(values: list[int]) -> bytes:
    """One record of SageMaker's protobuf: features {"values": float32 tensor}."""
    floats = np.array(values, "<f4").tobytes()
    tensor = _field(1, floats)
    entry = _field(1, b"values") + _field(2, _field(2, tensor))
    record = _field(1, entry)
    return struct.pack("<II", 0xCED7230A, len(record)) + record + bytes(-len(record) % 4)


def tfrecord(values: list[int]) -> bytes:
    """One tf.train.Example: the feature "values", a float list."""
    feature = _field(2, _field(1, np.array(values, "<f4").tobytes()))
    example = _field(1, _field(1, _field(1, b"values") + _field(2, feature)))
    length = struct.pack("<Q", len(example))
    return length + struct.pack("<I", masked_crc(length)) + example + struct.pack("<I", masked_crc(example))


def mutated_tfrecord(body: bytes, source: random.Random) -> bytes:
    """Other data under right checksums."""
    data = mutated(body[12:-4], source)
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def _field(number: int, value: bytes) -> bytes:
    size, length = len(value), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + value


def fuzzed(kind: str, good: bytes, source: random.Random) -> bytes:
    """One body: mostly mutated, sometimes cut off or random."""
    chance = source.random()
    if chance < 0.1:
        return source.randbytes(source.randrange(400))
    if chance < 0.25:
        return good[: source.randrange(len(good))]
    if chance < 0.5 and kind in MUTATORS:
        good = MUTATORS[kind](good, source)
    return mutated(good, source) if source.random() < 0.8 else good


def mutated(body: bytes, source: random.Random) -> bytes:
    """A few bytes changed, removed, put in, or repeated."""
    changed = bytearray(body)
    for _ in range(source.randint(1, 6)):
        position = source.randrange(len(changed) + 1)
        action = source.randrange(5)
        if action == 0 and position < len(changed):
            changed[position] = source.randrange(256)
        elif action == 1 and position < len(changed):
            changed[position] ^= 1 << source.randrange(8)
        elif action == 2:
            del changed[position : position + source.randrange(1, 20)]
        elif action == 3:
            changed[position:position] = source.randbytes(source.randrange(1, 20))
        else:
            changed[position:position] = changed[:position]
    return bytes(changed)


def mutated_text(body: bytes, source: random.Random) -> bytes:
    """A number replaced by what a parser may trip over, or the whole nested deep."""
    if source.random() < 0.1:
        depth = source.choice((10, 100, 1000, 5000, 100_000))
        return b"[" * depth + body + b"]" * source.choice((0, depth))
    numbers = list(re.finditer(rb"\d+", body))
    chosen = source.choice(numbers)
    return body[: chosen.start()] + source.choice(NUMBERS).encode() + body[chosen.end() :]


def mutated_npy(body: bytes, source: random.Random) -> bytes:
    """A header that says something else than the data, of the length that the file announces."""
    header = f"{{'descr': {source.choice(NPY_WORDS)!r}, 'fortran_order': {source.choice(NPY_WORDS)}, "
    header += f"'shape': {source.choice(NPY_WORDS)}, }}"
    text = header.encode("latin-1", "replace") + b"\n"
    return body[:8] + struct.pack("<H", len(text)) + text + body[128:]


def mutated_png(body: bytes, source: random.Random) -> bytes:
    """Another size or colour type in the header, its checksum right."""
    header = bytearray(body[16:29])
    if source.random() < 0.5:
        header[:8] = struct.pack(">II", *(source.choice((0, 1, 7, 10_000, 2**31 - 1)) for _ in range(2)))
    else:
        header[8:13] = bytes(source.randrange(8) for _ in range(5))
    return body[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + body[33:]


def mutated_jpeg(body: bytes, source: random.Random) -> bytes:
    """Another size in the frame's header."""
    start = body.find(b"\xff\xc0") + 5
    size = struct.pack(">HH", source.choice((0, 1, 9000, 65535)), source.choice((0, 1, 9000, 65535)))
    return body[:start] + size + body[start + 4 :]


MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "application/json": mutated_text,
    "application/jsonlines": mutated_text,
    "text/csv": mutated_text,
    "application/x-npy": mutated_npy,
    "application/x-tfrecord": mutated_tfrecord,
    "image/png": mutated_png,
    "image/jpeg": mutated_jpeg,
}


@dataclass
class Row:
    """What became of the bodies of one content type."""

    statuses: Counter = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)


def defect(status: int, answer: bytes) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if status not in ALLOWED:
        return f"status {status}: {answer[:200]!r}"
    if b"Traceback" in answer or b'File \\"/' in answer:
        return f"a trace in the answer: {answer[:200]!r}"
    if status == 200:
        return ""
    try:
        error = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        return f"an error that is no JSON: {answer[:200]!r}"
    return "" if error and len(answer) <= 2048 else f"an error of {len(answer)} bytes"


def run(address: str, kind: str, numbers: range, seed: int) -> Row:
    """Send the bodies of these numbers over one connection, opened again where the server closed it."""
    row, good = Row(), seeds()[kind]
    connection = http.client.HTTPConnection(address, timeout=60)
    for number in numbers:
        body = fuzzed(kind, good, random.Random(f"{seed}/{kind}/{number}"))
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": kind})
            answer = connection.getresponse()
            found = defect(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            row.statuses["broken"] += 1
            found = f"no answer: {error!r}"
        else:
            row.statuses[answer.status] += 1
        if found:
            row.defects.append(f"{kind} seed {seed} body {number}: {found}")
    connection.close()
    return row


def restarts(address: str) -> float:
    """How many processes of the server have died so far."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/metrics")
    found = RESTARTS.search(connection.getresponse().read().decode())
    connection.close()
    if found is None:
        raise SystemExit("the server shows no /metrics: is SLIPWAY_METRICS=false set?")
    return float(found[1])


def fuzz(address: str, count: int, seed: int) -> Iterator[tuple[str, Row]]:
    """A row of the table per content type."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for kind in seeds():
            before = restarts(address)
            parts = [range(start, count, CONNECTIONS) for start in range(CONNECTIONS)]
            row = Row()
            for part in pool.map(lambda part, kind=kind: run(address, kind, part, seed), parts):
                row.statuses += part.statuses
                row.defects += part.defects
            if restarts(address) != before:
                row.defects.append(f"{kind} seed {seed}: a process died")
            yield kind, row


@contextmanager
def own_server() -> Iterator[str]:
    """The address of a server on a classifier of small grey images with random weights."""
    from container.model import ModelSignature, build_network, save_model

    with tempfile.TemporaryDirectory() as directory:
        classes = tuple("abcdefghij")
        signature = ModelSignature("convnet", classes, *SHAPE, (0.5,), (0.25,))
        save_model(Path(directory) / "ml" / "model", build_network("convnet", len(classes), SHAPE), signature)
        with RunningServer(Path(directory) / "ml") as server:
            yield f"127.0.0.1:{server.port}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a server that runs; else one is started")
    parser.add_argument("--count", type=int, default=10_000, help="bodies per content type")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.url:
        return table(urlsplit(arguments.url).netloc, arguments.count, arguments.seed)
    with own_server() as address:
        return table(address, arguments.count, arguments.seed)


def table(address: str, count: int, seed: int) -> int:
    """Print a row per content type as it is done; 1 where there was a defect."""
    defects: list[str] = []
    print(f"{'Content-Type':34} {'bodies':>7}  statuses")
    for kind, row in fuzz(address, count, seed):
        statuses = " ".join(f"{status}:{number}" for status, number in sorted(row.statuses.items(), key=str))
        print(f"{kind:34} {row.statuses.total():7}  {statuses}", flush=True)
        defects += row.defects
    for line in defects[:50]:
        print(line)
    print(f"{len(defects)} defects")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
