"""HTTP that is broken, or that two servers in a row would read differently, over raw sockets at both doors."""

import contextlib
import random
import re
import socket
from urllib.parse import urlsplit

import pytest

POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
# Never a 2xx, never a 5xx, never a second answer: name -> the bytes.
REFUSED = {
    "both lengths": CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "both lengths, turned": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n[1]" + SMUGGLED,
    "a list of lengths": POST + b"Content-Length: 3, 4\r\n\r\n[1]" + SMUGGLED,
    "a negative length": POST + b"Content-Length: -3\r\n\r\n[1]",
    "a signed length": POST + b"Content-Length: +3\r\n\r\n[1]" + SMUGGLED,
    "a length in words": POST + b"Content-Length: three\r\n\r\n[1]",
    "a hexadecimal length": POST + b"Content-Length: 0x3\r\n\r\n[1]" + SMUGGLED,
    "a length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n" + b"1" * 10,
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\n[1]",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked and more": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a coding with a tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk size in words": CHUNKED + b"\r\nzz\r\n[1]\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"\r\n-3\r\n[1]\r\n0\r\n\r\n",
    "a chunk size with 0x": CHUNKED + b"\r\n0x3\r\n[1]\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk size beyond 64 bits": CHUNKED + b"\r\nfffffffffffffffff\r\n[1]\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"\r\n1\r\n[1]\r\n0\r\n\r\n" + SMUGGLED,
    "a space before the colon": b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\n[1]" + SMUGGLED,
    "a space in a header's name": b"GET /ping HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n",
    "a header without a colon": b"GET /ping HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "a header without a name": b"GET /ping HTTP/1.1\r\nHost: x\r\n: x\r\n\r\n",
    "a zero byte in a header": b"GET /ping HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
    "a zero byte in the path": b"GET /ping\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a carriage return in a header": b"GET /ping HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
    "a huge header": b"GET /ping HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 2_000_000 + b"\r\n\r\n",
    "a huge trailer": CHUNKED + b"\r\n3\r\n[1]\r\n0\r\nA: " + b"a" * 2_000_000 + b"\r\n\r\n",
    "a huge path": b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown method": b"PEEK /ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "a version of the future": b"GET /ping HTTP/9.9\r\nHost: x\r\n\r\n",
    "no version and no host": b"GET\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c403") + bytes(190) + b"\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "zero bytes": bytes(200) + b"\r\n\r\n",
}
# May be answered, once, with anything but a 5xx: the standard allows it, or servers differ.
ODD = {
    "an absolute address": b"GET http://elsewhere/ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "an address with a user": b"GET http://a:b@elsewhere:0/ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bare line feed": b"GET /ping HTTP/1.1\nHost: x\n\n",
    "a folded header": b"GET /ping HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "a thousand headers": b"GET /ping HTTP/1.1\r\nHost: x\r\n"
    + b"".join(b"A%d: b\r\n" % n for n in range(1000))
    + b"\r\n",
    "a path upwards": b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "an encoded path upwards": b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "an encoding that ends": b"GET /ping% HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes that are no UTF-8": b"GET /\xff\xfe?\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "two slashes": b"GET //elsewhere/ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "an upgrade to nothing": b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: nothing\r\n\r\n",
    "an upgrade to HTTP/2": b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "a trailer": CHUNKED + b"Trailer: A\r\n\r\n3\r\n[1]\r\n0\r\nContent-Length: 9\r\n\r\n",
    "a chunk with an extension": CHUNKED + b"\r\n3;a=" + b"b" * 5000 + b"\r\n[1]\r\n0\r\n\r\n",
    "HTTP/1.0 with chunks": CHUNKED.replace(b"1.1", b"1.0") + b"\r\n3\r\n[1]\r\n0\r\n\r\n",
    "an expectation that nobody meets": POST + b"Expect: nothing\r\nContent-Length: 3\r\n\r\n[1]",
    "half a request": POST + b"Content-Length: 300\r\n\r\n[1]",
    "half a header": POST[:40],
    "a content encoding": POST + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n[1]",
    "a get with a body": b"GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n[1]",
}
# waitress, which stands in front of Flask here, reads these as chunked and as HTTP/1.0, as the standard allows.
READ_BY_WAITRESS = {"both lengths", "both lengths, turned", "a version of the future"}
NOT_BUILT = {501, 505}  # waitress says so of a coding or version that it does not know


@pytest.fixture(params=["flask_server", "production_server"])
def address(request):
    url = urlsplit(request.getfixturevalue(request.param).rstrip("/"))
    return url.hostname, url.port, request.param == "flask_server"


def exchange(address, request):
    """Everything the server answers, until it closes the connection after ours is closed for writing."""
    with socket.create_connection(address[:2], timeout=30) as client:
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
        except OSError:  # it has closed already: what it said may still be there
            pass
        pieces = []
        try:
            while piece := client.recv(65536):
                pieces.append(piece)
        except ConnectionError:
            pass
    return b"".join(pieces)


def statuses(answer):
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def serves(address):
    return statuses(exchange(address, b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == [200]


@pytest.mark.parametrize("name", REFUSED)
def test_malformed_http_is_refused_once_and_the_next_connection_is_served(address, name):
    if address[2] and name in READ_BY_WAITRESS:
        pytest.skip("another server's choice; it is not in front of Flask in production")
    answer = exchange(address, REFUSED[name])
    found = statuses(answer)
    allowed = NOT_BUILT if address[2] else set()
    assert len(found) <= 1, answer
    assert all(400 <= status < 500 or status in allowed for status in found), answer
    assert b"Traceback" not in answer
    assert serves(address)


@pytest.mark.parametrize("name", ODD)
def test_odd_http_is_no_server_error_and_the_next_connection_is_served(address, name):
    answer = exchange(address, ODD[name])
    found = [status for status in statuses(answer) if status != 100]
    assert len(found) <= 1, answer
    assert all(status < 500 or (status in NOT_BUILT and address[2]) for status in found), answer
    assert b"Traceback" not in answer
    assert b"root:" not in answer
    assert serves(address)


def test_random_bytes_are_no_request(address):
    chance = random.Random(0)
    for _ in range(50):
        answer = exchange(address, chance.randbytes(200) + b"\r\n\r\n")
        assert all(400 <= status < 500 or (status in NOT_BUILT and address[2]) for status in statuses(answer)), answer
    assert serves(address)


@pytest.mark.parametrize("name", ["a huge header", "a huge path", "a huge trailer"])
def test_what_the_parser_would_collect_without_end_is_cut_off(production_server, name):
    """431, or a reset that outruns it; read to its end, the trailer's request would be a 400 for its shape."""
    url = urlsplit(production_server)
    assert statuses(exchange((url.hostname, url.port), REFUSED[name])) in ([], [431])


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
WEBSOCKET = UPGRADE.replace(b"h2c", b"websocket") + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
ROW = b",".join([b"0"] * 64)
LENGTH = b"Content-Length: %d\r\n" % len(ROW)
CSV = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
IN_CHUNKS = b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(ROW), ROW)
# What RFC 9112 and RFC 9110 say of a request, and whether the connection lives on: name -> the bytes, statuses, open.
BY_THE_BOOK = {
    "nothing odd": (CSV + LENGTH + b"\r\n" + ROW, [200], True),
    "no host": (b"GET /ping HTTP/1.1\r\n\r\n", [400], False),
    "no host, elsewhere": (b"GET /models HTTP/1.1\r\n\r\n", [400], False),
    "no host in HTTP/1.0": (b"GET /ping HTTP/1.0\r\n\r\n", [200], False),
    "two hosts": (PING + b"Host: y\r\n\r\n", [400], False),
    "the same host twice": (PING + b"Host: x\r\n\r\n", [400], False),
    "a host that is none": (b"GET /ping HTTP/1.1\r\nHost: a b/c\r\n\r\n", [400], False),
    "a host of 1,000 characters": (b"GET /ping HTTP/1.1\r\nHost: " + b"a" * 1000 + b"\r\n\r\n", [400], False),
    "an empty host": (b"GET /ping HTTP/1.1\r\nHost:\r\n\r\n", [200], True),
    "HTTP/0.9": (b"GET /ping\r\n\r\n", [400], False),
    "HTTP/2.0 without its preface": (b"GET /ping HTTP/2.0\r\nHost: x\r\n\r\n", [400], False),
    "a tunnel": (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", [400], False),
    "a coding before chunked": (CSV + b"Transfer-Encoding: gzip, chunked\r\n" + IN_CHUNKS, [400], False),
    "chunked in capitals": (CSV + b"Transfer-Encoding: CHUNKED\r\n" + IN_CHUNKS, [200], True),
    "chunks in HTTP/1.0": (CSV.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n" + IN_CHUNKS, [200], False),
    "a trailer": (CSV + b"Transfer-Encoding: chunked\r\n" + IN_CHUNKS[:-2] + b"Host: y\r\n\r\n", [200], True),
    "the offer of HTTP/2": (PING + UPGRADE + b"\r\n", [200], True),
    "the offer of HTTP/2 before a body": (CSV + UPGRADE + LENGTH + b"\r\n" + ROW, [200], True),
    "the offer of HTTP/2 before chunks": (CSV + UPGRADE + b"Transfer-Encoding: chunked\r\n" + IN_CHUNKS, [200], True),
    "a WebSocket that is posted": (CSV + WEBSOCKET + LENGTH + b"\r\n" + ROW, [200], True),
    "a body that is waited for": (CSV + b"Expect: 100-Continue\r\n" + LENGTH + b"\r\n" + ROW, [100, 200], True),
    "the same in HTTP/1.0": (
        (CSV + b"Expect: 100-continue\r\n" + LENGTH).replace(b"1.1", b"1.0") + b"\r\n" + ROW,
        [200],
        False,
    ),
    "a trace": (b"TRACE /ping HTTP/1.1\r\nHost: x\r\nCookie: secret\r\n\r\n", [405], True),
    "three at once": ((PING + b"\r\n") * 3, [200] * 3, True),
}


def converse(address, *pieces):
    """The statuses of what is answered to the pieces, each sent by itself, and to a last ping on that connection."""
    with socket.create_connection(address[:2], timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                client.sendall(piece)
            client.sendall(PING + b"Connection: close\r\n\r\n")
        except OSError:  # it has been closed already
            pass
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(65536):
                answer += piece
    assert b"secret" not in answer
    return statuses(answer)


@pytest.mark.parametrize("name", BY_THE_BOOK)
@pytest.mark.parametrize("split", [False, True], ids=["at once", "head and body apart"])
def test_what_the_standard_says_of_a_request_is_done_and_the_next_one_is_answered(production_server, name, split):
    request, expected, stays_open = BY_THE_BOOK[name]
    head, end, body = request.partition(b"\r\n\r\n")
    pieces = [head + end, body] if split and body else [request]
    url = urlsplit(production_server)
    assert converse((url.hostname, url.port), *pieces) == expected + [200] * stays_open
    assert serves((url.hostname, url.port))


def test_a_body_behind_the_offer_of_another_protocol_is_never_a_request(production_server):
    """It was, where it came by itself: one caller's body, another request for the server."""
    url = urlsplit(production_server)
    smuggled = b"DELETE /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    head = CSV + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(smuggled)
    assert converse((url.hostname, url.port), head, smuggled) == [400, 200]
