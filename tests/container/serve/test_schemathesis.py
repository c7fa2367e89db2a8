"""Requests that schemathesis makes from the server's own document, and their like that break it, at both doors."""

import io
import json
import urllib.request

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

READS = ("/ping", "/execution-parameters", "/openapi.json", "/metrics")
BOTH = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


def allowed(address):
    """The methods that the server says it takes there."""
    with urllib.request.urlopen(urllib.request.Request(address, method="OPTIONS")) as answer:
        return set(answer.headers["Allow"].split(", "))


def arrays():
    """npy files, of the model's shape or not."""
    shapes = st.sampled_from([(1, 8, 8), (2, 1, 8, 8), (64,), (3, 3), ()])
    dtypes = st.sampled_from(["u1", "f4", "i8", "f8", "c8", "U3", "?"])

    def encoded(shape, dtype):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(shape, dtype))
        return buffer.getvalue()

    return st.builds(encoded, shapes, dtypes)


@pytest.fixture(scope="module", autouse=True)
def media_types():
    """What schemathesis sends where a schema says nothing of the bytes."""
    for kind in ("image/*", "application/x-recordio-protobuf", "application/x-tfrecord"):
        schemathesis.openapi.media_type(kind, st.binary(max_size=300))
    schemathesis.openapi.media_type("application/x-npy", arrays() | st.binary(max_size=100))
    for kind in ("text/csv", "application/jsonlines"):
        schemathesis.openapi.media_type(kind, st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))


@pytest.fixture(params=["flask", "production"])
def url(request, artifact):
    if request.param == "flask":
        return request.getfixturevalue("flask_server")
    return request.getfixturevalue("start_server")(artifact).wait_ready().url


@pytest.mark.parametrize("examples", [30, pytest.param(150, marks=pytest.mark.slow)])
def test_what_the_document_allows_or_almost_allows_is_never_a_server_error(url, examples):
    document = json.load(urllib.request.urlopen(f"{url}/openapi.json"))
    schema = schemathesis.openapi.from_dict(document)
    seen = set()

    def check(operation):
        responses = document["paths"][operation.path][operation.method]["responses"]

        def run(case):
            response = case.call(base_url=url)
            seen.add((operation.path, response.status_code))
            assert response.status_code < 500, (case.as_curl_command(), response.text)
            assert str(response.status_code) in responses, (case.as_curl_command(), response.text)
            assert "Traceback" not in response.text

        return run

    for path in READS:  # nothing to vary
        check(schema[path]["GET"])(schema[path]["GET"].Case())
        assert (
            {"GET", "HEAD"} <= allowed(f"{url}{path}") <= {name.upper() for name in schema[path]} | {"HEAD", "OPTIONS"}
        )
    invoke = schema["/invocations"]["POST"]
    for mode in BOTH:
        repeat = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        seed(0)(repeat(given(invoke.as_strategy(generation_mode=mode))(check(invoke))))()
    assert {("/invocations", 200), ("/invocations", 400), ("/ping", 200)} <= seen
