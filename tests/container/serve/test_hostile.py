"""Input that means harm, or is merely broken: never a 5xx, never a dead process, never a trace in an answer."""

import io
import json
import os
import random
import socket
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.io import encode_jpeg, encode_png

from container.model import decode_image
from container.serve import codec, images
from container.serve.exchange import BadRequest, BodyTooLarge

CONTENT_TYPES = [
    "application/json",
    "text/csv",
    "application/x-npy",
    "application/jsonlines",
    "image/png",
    "image/jpeg",
]


def encoded(kind, size=(11, 7), frames=1, **options):
    pictures = [Image.new("RGB", size, (number, 0, 0)) for number in range(frames)]
    buffer = io.BytesIO()
    extra = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(buffer, kind, **extra, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        encoded("PNG"),
        encoded("JPEG"),
        encoded("JPEG", progressive=True),
        encoded("GIF"),
        encoded("WEBP"),
        encoded("WEBP", lossless=True),
    ],
    ids=["png", "jpeg", "progressive", "gif", "webp", "webp-lossless"],
)
def test_the_size_of_an_image_is_read_from_its_header(body):
    assert images.extent(body) == (11, 7)
    images.checked_image(body)


@pytest.mark.parametrize(
    "body",
    [
        encoded("PNG", (20000, 20000)),
        b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x0b\x08" + struct.pack(">HH", 60000, 60000),
        b"GIF89a" + struct.pack("<HHB", 65535, 65535, 0) + b"\0\0;",
        b"RIFF....WEBPVP8X" + bytes(8) + b"\xff\xff\xff\xff\xff\xff",
    ],
    ids=["png", "jpeg", "gif", "webp"],
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(body):
    with pytest.raises(BodyTooLarge, match="pixels"):
        images.checked_image(body)


def test_an_animation_is_refused():
    with pytest.raises(BadRequest, match="animation"):
        images.checked_image(encoded("GIF", frames=3))


@pytest.mark.parametrize(
    "body", [b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF....WEBPVP8 ", b"\xff\xd8abc"]
)
def test_an_image_that_ends_early_is_refused(body):
    with pytest.raises(BadRequest, match="ends before"):
        images.checked_image(body)


def png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def header(width=2, height=2, depth=8, colour=0, interlace=0):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)


def pixels_of(raw=b"\0ab\0cd"):
    return b"IDAT", zlib.compress(raw)


END = (b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (png(header(), pixels_of()), "no end"),
        (png(header(), pixels_of(), END)[:-14], "damaged"),
        (png(header(), pixels_of(), END)[:44], "damaged"),
        (png(header(), pixels_of(), END)[:36], "ends within"),
        (png(header(), pixels_of(), END).replace(b"IDAT", b"IDAU"), "damaged"),
        (png(header(), header(), pixels_of(), END), "does not begin"),
        (png((b"IHDR", header()[1] + b"x"), pixels_of(), END), "does not begin"),
        (png(header(depth=3), pixels_of(), END), "does not know"),
        (png(header(width=0), pixels_of(), END), "does not know"),
        (png(header(interlace=2), pixels_of(), END), "does not know"),
        (png(header(), (b"ABCD", b""), pixels_of(), END), "cannot be read"),
        (png(header(), pixels_of(), (b"PLTE", b"abc"), END), "cannot be read"),
        (png(header(), (b"PLTE", b"abc"), pixels_of(), END), "too many or too few"),
        (png(header(colour=3), pixels_of(), END), "too many or too few"),
        (png(header(colour=3), (b"PLTE", b"ab"), pixels_of(), END), "2 bytes"),
        (png(header(), (b"tRNS", b"ab"), (b"tRNS", b"ab"), pixels_of(), END), "twice"),
        (png(header(colour=3), (b"tRNS", b"a"), (b"PLTE", b"abc"), pixels_of(), END), "before its palette"),
        (png(header(), (b"IDAT", b"junk"), END), "inflated"),
        (png(header(), pixels_of(b"\0ab"), END), "the 6 bytes"),
        (png(header(), pixels_of(b"\0ab\0cdX"), END), "the 6 bytes"),
        (png(header(), pixels_of(b"\0ab\7cd"), END), "filter"),
    ],
)
def test_a_png_with_any_fault_is_refused_because_the_decoder_would_crash_on_it(body, message):
    with pytest.raises(BadRequest, match=message):
        images.checked_image(body)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_png_keeps_its_pixels_when_it_is_checked(mode):
    picture = Image.fromarray(np.arange(13 * 9, dtype=np.uint8).reshape(13, 9)).convert("L" if mode == "I;16" else mode)
    buffer = io.BytesIO()
    (picture.convert("I;16") if mode == "I;16" else picture).save(
        buffer, "PNG", dpi=(72, 72), transparency=0 if mode == "P" else None
    )
    body = buffer.getvalue()
    checked = images.checked_image(body)
    assert b"pHYs" in body
    assert b"pHYs" not in checked
    for channels in (1, 3):
        assert torch.equal(decode_image(body, channels), decode_image(checked, channels))


def test_an_interlaced_png_is_read():
    body = png(
        header(4, 4, interlace=1), pixels_of(b"".join([b"\0a", b"\0b", b"\0cc", b"\0dd\0dd", b"\0eeee\0eeee"])), END
    )
    assert decode_image(images.checked_image(body), 1).shape == (1, 4, 4)


def test_text_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(codec, "TEXT_LIMIT_BYTES", 10)
    for decode in (codec.decode_json, codec.decode_csv, codec.decode_json_lines):
        with pytest.raises(BodyTooLarge, match="11 bytes of text"):
            decode(b"1" * 11)


@pytest.fixture(scope="module")
def bodies():
    """A good body for each content type: what mutations start from."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8)).astype(np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    rows = "\n".join(",".join(map(str, row.ravel())) for row in pixels)
    picture = torch.from_numpy(pixels[0])
    return {
        "application/json": json.dumps({"instances": pixels.tolist()}).encode(),
        "text/csv": rows.encode(),
        "application/x-npy": buffer.getvalue(),
        "application/jsonlines": b"\n".join(json.dumps(row.tolist()).encode() for row in pixels),
        "image/png": encode_png(picture).numpy().tobytes(),
        "image/jpeg": encode_jpeg(picture).numpy().tobytes(),
    }


def mutate(body, random_source):
    mutated = bytearray(body)
    for _ in range(random_source.randint(1, 8)):
        position = random_source.randrange(len(mutated) or 1)
        action = random_source.randrange(4)
        if action == 0 and mutated:
            mutated[position] = random_source.randrange(256)
        elif action == 1:
            del mutated[position : position + random_source.randrange(1, 20)]
        elif action == 2:
            mutated[position:position] = random_source.randbytes(random_source.randrange(1, 20))
        else:
            mutated += mutated[:position]
    return bytes(mutated)


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_mutated_bodies_are_answered_with_200_or_a_client_error(door, bodies, content_type, seed):
    body = mutate(bodies[content_type], random.Random(seed))
    answer = door.request("POST", "/invocations", body, {"Content-Type": content_type})
    assert answer.status in (200, 400, 413), answer.body
    assert b"Traceback" not in answer.body
    assert len(answer.body) < 2048 or answer.status == 200


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=200), content_type=st.text(max_size=40), accept=st.text(max_size=60))
def test_any_body_and_any_headers_get_a_client_error_at_most(door, body, content_type, accept):
    headers = {"Content-Type": content_type, "Accept": accept}
    if not all(value.isprintable() and value.isascii() for value in headers.values()):
        return  # no HTTP server hands such a header on
    answer = door.request("POST", "/invocations", body, headers)
    assert answer.status in (200, 400, 406, 413, 415), answer.body


MALFORMED = [
    b"GET\r\n\r\n",
    b"\x00\x01\x02\x03\r\n\r\n",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"GET /ping HTTP/9.9\r\n\r\n",
    b"GET /ping HTTP/1.1\r\nBad Header: x\r\n\r\n",
]


def test_malformed_http_is_refused_and_hurts_nobody_else(start_server, user_model):
    model = user_model("def predict_fn(data, model): return data")
    server = start_server(model, SAGEMAKER_MODEL_SERVER_WORKERS="1").wait_ready()
    workers = server.workers()
    for request in [*MALFORMED, *(os.urandom(200) for _ in range(20))]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda client=client: client.recv(65536), b""))
            assert not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 5")), (request, answer)
            assert answer.count(b"HTTP/1.1") <= 1, (request, answer)
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    for client in idle:
        client.sendall(b"POST /invocations HTTP/1.1\r\nContent-")
    assert server.request("POST", "/invocations", b"[1]", {"Content-Type": "application/json"}).body == b"[1]"
    for client in idle:
        client.close()
    assert server.workers() == workers
