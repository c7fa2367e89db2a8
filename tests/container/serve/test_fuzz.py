"""The decoders in this process, and a server over sockets, on what nobody should send."""

import contextlib
import functools
import io
import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from container.images import ImageError, decode_image, image_extent
from container.serve import codec
from container.serve.exchange import BadRequest, BodyTooLarge, UnsupportedMediaType

FUZZ = Path(__file__).parents[3] / "bench" / "serve" / "fuzz.py"
CLIENT_ERRORS = (BadRequest, BodyTooLarge, UnsupportedMediaType)
QUICK = settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))

extents = st.integers(-3, 4) | st.sampled_from([2**31, 2**63, 2**70, True])
words = st.sampled_from(
    ["<f4", "|O", "|V0", "<U9", "<f16", "<f2", ">i8", "|b1", "<M8[s]", "[('a', '<f4')]", "\x00", "é"]
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["", "1e999", "-nan", "0x10", "1_0", '"', '""', '"1', "\r", "\x00", "\x1c", "\u2028", "٣", "9" * 5000]
    ),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["instances", "features", "data", "instance", "x"]), inner, max_size=3)
    ),
    max_leaves=20,
)


def decoded(body, kind):
    with contextlib.suppress(*CLIENT_ERRORS):
        return codec.decode_array(body, kind)


@QUICK
@given(words, st.booleans(), st.lists(extents, max_size=70), st.sampled_from([1, 2, 3]), st.binary(max_size=64))
def test_any_npy_header_is_read_or_refused(word, fortran, shape, version, data):
    header = f"{{'descr': {word!r}, 'fortran_order': {fortran}, 'shape': {tuple(shape)!r}}}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    array = decoded(b"\x93NUMPY" + bytes([version, 0]) + length + header + data, codec.NPY)
    assert array is None or (array.dtype.kind in "biuf" and array.shape == tuple(shape))


@QUICK
@given(st.lists(st.lists(numbers, max_size=5), max_size=5), st.sampled_from(["\n", "\r\n", "\r", "\x0b"]))
def test_any_csv_is_read_or_refused(rows, end):
    body = end.join(",".join(map(str, row)) for row in rows).encode()
    array = decoded(body, codec.CSV)
    assert array is None or (array.dtype == np.float32 and array.ndim == 2)


@QUICK
@given(values, st.sampled_from(["application/json", "application/jsonlines"]))
def test_any_json_is_answered_at_the_door_with_200_or_400(door, value, kind):
    body = json.dumps(value).encode()
    answer = door.request("POST", "/invocations", body, {"Content-Type": kind})
    assert answer.status in (200, 400), answer.body


@pytest.mark.parametrize("depth", [10, 64, 65, 300, 1000, 1023, 1024, 5000, 200_000])
@pytest.mark.parametrize("kind", ["application/json", "application/jsonlines"])
def test_json_of_any_depth_is_a_client_error(door, depth, kind):
    for body in (b"[" * depth + b"]" * depth, b"[" * depth, b'{"data":' * depth + b"1" + b"}" * depth):
        answer = door.request("POST", "/invocations", body, {"Content-Type": kind})
        assert answer.status == 400, answer.body


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@QUICK
@given(
    st.tuples(*[st.sampled_from([0, 1, 2, 9, 4000, 2**31 - 1, 2**32 - 1])] * 2),
    st.lists(st.integers(0, 17), min_size=5, max_size=5),
    st.binary(max_size=60),
    st.sampled_from([b"eXIf", b"iCCP", b"zTXt", b"acTL", b"PLTE", b"tRNS", b"IDAT"]),
)
def test_any_png_header_is_decoded_or_refused(size, kind, data, name):
    head = chunk(b"IHDR", struct.pack(">II", *size) + bytes(kind))
    body = (
        b"\x89PNG\r\n\x1a\n" + head + chunk(name, data) + chunk(b"IDAT", zlib.compress(data * 20)) + chunk(b"IEND", b"")
    )
    with contextlib.suppress(ImageError):
        image_extent(body)
        assert decode_image(body, 3).dtype == torch.uint8


def test_text_that_unpacks_to_gigabytes_beside_the_pixels_is_no_memory():
    """Pillow reads compressed text and colour profiles while it opens a file."""
    bomb = zlib.compress(bytes(50_000_000), 9)
    for name, prefix in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "PNG")
        good = buffer.getvalue()
        tracemalloc.start()
        with contextlib.suppress(ImageError):
            decode_image(good[:33] + chunk(name, prefix + bomb) + good[33:], 1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10_000_000, name


@functools.cache
def hundred_megapixels():
    """A flat PNG of 10,000 by 10,000 pixels, complete, in half a megabyte."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0))
    pixels = zlib.compress(bytes(10_001 * 10_000), 1)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # our own limit is lower
def test_an_image_of_a_hundred_megapixels_is_413_and_nothing_of_it_is_decoded(door):
    answer = door.request("POST", "/invocations", hundred_megapixels(), {"Content-Type": "image/png"})
    assert (answer.status, b"10000 x 10000 pixels" in answer.body) == (413, True)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"[" + b"NaN," * 63 + b"1]"),
        ("text/csv", b"nan," * 63 + b"1"),
        ("text/csv", b"inf," * 63 + b"1"),
    ],
)
def test_a_pixel_that_is_no_number_is_400(door, kind, body):
    assert door.request("POST", "/invocations", body, {"Content-Type": kind}).status == 400


@pytest.mark.slow
def test_a_server_survives_hundreds_of_bodies_of_each_type(production_server):
    argv = [sys.executable, str(FUZZ), "--url", production_server, "--count", "300", "--seed", "7"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 300 ") == 12, done.stdout


def test_a_defect_fails_the_fuzzer(tmp_path, start_server, user_model):
    server = start_server(user_model("def predict_fn(data, model): raise KeyError"), SAGEMAKER_MODEL_SERVER_WORKERS="1")
    server.wait_ready()
    argv = [sys.executable, str(FUZZ), "--url", server.url, "--count", "20", "--seed", "7"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'status 500: b\'{"error":' in done.stdout


@pytest.mark.slow
def test_no_decoder_raises_anything_but_refusals_under_coverage_guided_mutation():
    pytest.importorskip("atheris", reason="pip install atheris: coverage-guided fuzzing")
    argv = [sys.executable, str(FUZZ.with_name("fuzz_decoders.py")), "--seconds", "3"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("no defect") == 13, done.stdout
