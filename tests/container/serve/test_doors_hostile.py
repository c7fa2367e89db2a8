"""Hostile requests at both doors over sockets: the same status, headers and body, whatever stands in the head."""

import http.client
import itertools
import json
import random
import re
from urllib.parse import urlsplit

import pytest

ROW = ",".join(["7"] * 64).encode()
BODIES = {
    "text/csv": [ROW, ROW + b"\n1", b"\xff", b'"' + ROW + b'"', b""],
    "application/json": [b"[" + ROW + b"]", b'{"instances":[[1e999]]}', b"\xef\xbb\xbf[1]", b"nul", b'["\\ud800"]'],
    "application/jsonlines": [b"[" + ROW + b"]\r\n\r\n[" + ROW + b"]", b"[1]\n{"],
    "application/x-npy": [b"\x93NUMPY\x01\x00\x02\x00{}", b"\x93NUMPY\x09\x00"],
    "image/png": [b"\x89PNG\r\n\x1a\n", b"GIF89a"],
    "application/zip": [b"PK"],
}
ACCEPTS = [
    *("", "*/*", "text/csv", "text/*", "application/*;q=0.1", "*/*;q=0", "application/json;q=0, */*", "image/png"),
    *(
        "text/csv;q=nan",
        "text/csv;q=1e999",
        "text/csv;q=-1",
        "text/csv;q=",
        "text/csv;;q=0.1",
        ";",
        ", ,",
        "é/é",
        "\xff",
    ),
    *(
        "TEXT/CSV ; q = 0.5",
        "text/csv;charset=x;q=0.2, application/json;q=0.3",
        "a" * 5000,
        "a/b," * 3000,
        '"',
        "text/csv\t",
    ),
]
CONTENT_TYPES = [
    *(
        "",
        ";",
        "; x",
        "application/json; charset=utf-16",
        "application/json, text/csv",
        "APPLICATION/JSON",
        "text/csv\t",
    ),
    *("json", "é", "a" * 3000, "multipart/form-data", "image/", "image/*", "image/svg+xml", "text/plain"),
]
OTHERS = [
    *(
        ("Content_Type", "image/png"),
        ("Content_Length", "3"),
        ("Transfer_Encoding", "x"),
        ("X-HTTP-Method-Override", "GET"),
    ),
    *(("traceparent", "00-"), ("X-Amzn-SageMaker-Custom-Attributes", "é" * 2000), ("Content-Encoding", "gzip")),
    *(("X-Amzn-SageMaker-Session-Id", "../x"), ("Range", "bytes=0-1"), ("Expect", "tea"), ("Accept-Charset", "x")),
]
PATHS = [
    "/invocations?x=1",
    "/invocations/",
    "//invocations",
    "/%69nvocations",
    "/invocations%00",
    "/invocations;a",
    "/ping",
]
PATHS += ["/models/../ping", "/%2e%2e/ping", "/x%ff", "/%c0%ae%c0%ae/", "/a%0d%0ab", "/" + "a" * 3000, "/openapi.json"]


def requests(count):
    """(method, path, headers, body, chunked): mostly invocations."""
    for number in range(count):
        chance = random.Random(number)
        kind = chance.choice(list(BODIES))
        headers = [("Content-Type", chance.choice(CONTENT_TYPES) if chance.random() < 0.4 else kind)]
        headers += [("Accept", chance.choice(ACCEPTS)) for _ in range(chance.choice((0, 1, 1, 2)))]
        headers += chance.sample(OTHERS, chance.choice((0, 0, 1, 2)))
        if chance.random() < 0.1:
            headers.append(("Content-Type", chance.choice([*CONTENT_TYPES, *BODIES])))
        chance.shuffle(headers)
        path = chance.choice(PATHS) if chance.random() < 0.3 else "/invocations"
        method = chance.choice(("GET", "PUT", "HEAD", "DELETE")) if chance.random() < 0.1 else "POST"
        yield method, path, headers, chance.choice(BODIES[kind]), chance.random() < 0.2


def ask(url, method, path, headers, body, chunked):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value.encode("latin-1"))
    if chunked:
        connection.putheader("Transfer-Encoding", "chunked")
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:3], body[3:]) if part) + b"0\r\n\r\n"
    else:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    text = re.sub(rb"\d\.\d{3,}(e-\d+)?", b"0.0", answer.read())  # probabilities differ in their last digits
    found = {name.lower(): value for name, value in answer.getheaders()}
    for server_s_own in ("date", "server", "connection", *(["content-length"] if b"0.0" in text else [])):
        found.pop(server_s_own, None)
    if "allow" in found:
        found["allow"] = sorted(found["allow"].split(", "))
    connection.close()
    return answer.status, found, text


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_whatever_stands_in_the_head_both_doors_give_one_answer(flask_server, production_server, count):
    seen = set()
    for request in requests(count):
        asked, produced = ask(flask_server, *request), ask(production_server, *request)
        assert asked == produced, request
        assert asked[0] < 500, request
        assert asked[0] == 200 or request[0] == "HEAD" or json.loads(asked[2])["error"]
        seen.add(asked[0])
    assert seen >= {200, 400, 404, 405, 406, 415}


def test_headers_that_come_twice_are_one_list(flask_server, production_server):
    """The last one alone was read, so that a second Accept turned the first one's 200 into a 406."""
    for url, accepts in itertools.product(
        (flask_server, production_server), (("text/csv", "a/b"), ("a/b", "text/csv"))
    ):
        headers = [("Content-Type", "text/csv"), *(("Accept", accept) for accept in accepts)]
        assert ask(url, "POST", "/invocations", headers, ROW, False)[0] == 200
        twice = [("Content-Type", "text/csv"), ("Content-Type", "application/json")]
        assert ask(url, "POST", "/invocations", twice, ROW, False)[0] == 415
