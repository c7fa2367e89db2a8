import contextlib
import io
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.serve import codec
from container.serve.exchange import BadRequest, NotAcceptable, UnsupportedMediaType


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("application/json; charset=utf-8", "application/json"),
        ("TEXT/CSV", "text/csv"),
        (None, "application/json"),
        ("", "application/json"),
        (";", "application/json"),
        ("application/x-ndjson", "application/jsonlines"),
    ],
)
def test_c92_c93_media_type_is_what_stands_before_the_semicolon(header, kind):
    assert codec.media_type(header) == kind


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "text/csv"),
        ("*/*", "text/csv"),
        ("application/json", "application/json"),
        ("text/html, application/x-npy;q=0.5", "application/x-npy"),
        ("application/json;q=0.1, text/csv;q=0.9", "text/csv"),
        ("application/json;q=0, */*;q=0.1", "text/csv"),
        ("application/*", "application/json"),
        ("APPLICATION/JSONL", "application/jsonlines"),
    ],
)
def test_c92_accept_chooses_the_best_format_and_an_absent_one_the_default(accept, chosen):
    assert codec.negotiate(accept, codec.ARRAY_TYPES, "text/csv") == chosen


@pytest.mark.parametrize("accept", ["image/png", "application/json;q=0", "application/json;q=x"])
def test_c94_an_accept_that_names_nothing_writable_is_refused(accept):
    with pytest.raises(NotAcceptable, match="names no format"):
        codec.negotiate(accept, codec.ARRAY_TYPES, "application/json")


@pytest.mark.parametrize(
    "body", [b"1,2\n3,4", b"1,2\n3,4\n", b"1,2\r\n3,4\r\n", b'"1","2"\n3,4', b"\xef\xbb\xbf1,2\n3,4"]
)
def test_c133_csv_has_one_row_per_line_with_or_without_a_final_newline(body):
    assert codec.decode_csv(body).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no rows"),
        (b"\n\n", "no rows"),
        (b"1,2\n3", "row 2 has 1 fields, row 1 has 2"),
        (b"1,2\n3,x", "row 2, field 2 of the CSV body is no number: 'x'"),
        (b"\xff\xfe", "not UTF-8"),
        (b'"1",\xff', "not UTF-8"),
        (b"1\n2\x0b3", r"row 2, field 1 of the CSV body is no number: '2\\x0b3'"),
        (b"1,2\n" * 60_000 + b"x,2", "row 60001, field 1 of the CSV body is no number"),
        (b"1,2\n" * 60_000 + b"\n1", "row 60001 has 1 fields, row 1 has 2"),
        (b'"1"\r2,3', "cannot be read: new-line character"),
        (b'"' + b"1" * 200_000 + b'"', "cannot be read: field larger than field limit"),
    ],
)
def test_c94_a_bad_csv_body_is_told_which_row(body, message):
    with pytest.raises(BadRequest, match=message):
        codec.decode_csv(body)


@pytest.fixture
def peak_memory():
    """Bytes that Python and numpy held at most during a call, beyond what they held before."""

    def measured(function, *arguments):
        tracemalloc.start()
        try:
            function(*arguments)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measured


def test_a_long_csv_body_is_never_in_memory_as_python_s_numbers(peak_memory):
    """40 bytes and more each."""
    body = b"1000,1000\n" * 60_000
    assert codec.decode_csv(body).shape == (60_000, 2)
    assert peak_memory(codec.decode_csv, body) < 8_000_000


@pytest.mark.parametrize("other", [b'""', b"1", b"[]", b'{"a":1}'])
@pytest.mark.parametrize("kind", ["application/json", "application/jsonlines"])
def test_one_long_text_in_a_list_does_not_make_every_element_as_long(peak_memory, kind, other):
    records = b"\n" if kind == "application/jsonlines" else b","
    body = records.join([b'"' + b"x" * 30_000 + b'"', *[other] * 10_000])
    body = body if kind == "application/jsonlines" else b"[" + body + b"]"
    assert len(codec.decode_array(body, kind)) == 10_001
    assert peak_memory(codec.decode_array, body, kind) < 10_000_000


def test_hostile_accept_headers_do_not_stay_in_memory(peak_memory):
    def ask():
        for number in range(60):
            accept = f"a/{number}, */*;q=0.5," + "b/c," * 2000
            assert codec.negotiate(accept, codec.ANSWER_TYPES, codec.JSON) == codec.JSON

    assert peak_memory(ask) < 3_000_000


@pytest.mark.parametrize("accept", ["é/é", "text/\x01", "a/" + "b" * 300])
def test_what_could_not_be_a_content_type_is_no_choice(accept):
    assert codec.preferences(accept) == []
    assert codec.preferences(f"{accept}, text/x;q=0.1") == ["text/x"]


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b"[1,]", b"[" * 5000 + b"]" * 5000, b"\xff"])
def test_c94_what_is_no_json_is_a_bad_request(body):
    with pytest.raises(BadRequest, match="not JSON"):
        codec.decode_json(body)


def test_c133_json_lines_skip_blank_lines_and_name_the_bad_one():
    assert codec.decode_json_lines(b"[1]\n\n[2]\n") == [[1], [2]]
    with pytest.raises(BadRequest, match="line 3"):
        codec.decode_json_lines(b"1\n2\nx")


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", "uint8", "int64", "bool", "float16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_keeps_values_shape_and_dtype(dtype, order):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype=dtype, order=order)
    decoded = codec.decode_npy(npy(array))
    assert decoded.dtype == array.dtype
    assert decoded.tolist() == array.tolist()


def test_npy_stays_on_the_memory_of_the_body():
    body = npy(np.zeros(1000, np.float32))
    assert np.shares_memory(codec.decode_npy(body), np.frombuffer(body, np.uint8))


def test_npy_of_version_2_and_of_no_elements_is_read():
    assert codec.decode_npy(npy(np.empty((0, 3)))).shape == (0, 3)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ones(2), version=(2, 0))
    assert codec.decode_npy(buffer.getvalue()).tolist() == [1, 1]


def header(text, version=1):
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


def shaped(shape, dtype=b"<f4"):
    return header(b"{'descr': '%b', 'fortran_order': False, 'shape': %b}\n" % (dtype, shape))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "does not start"),
        (b"\x93NUMPY", "does not start"),
        (npy(np.array([{}], dtype=object), allow_pickle=True), "dtype object is refused"),
        (npy(np.zeros(2, dtype=[("a", "f4")])), "is refused"),
        (npy(np.array(["a"])), "is refused"),
        (npy(np.zeros(4))[:-1], "the body has 31"),
        (npy(np.zeros(4)) + b"x", "the body has 33"),
        (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n"), "no whole number from 0"),
        (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999,)}\n"), "the body has 0"),
        (
            header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 1)}\n") + bytes(4),
            "no whole number from 0",
        ),
        (
            header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 65 + b")}\n") + bytes(4),
            "no array can",
        ),
        (header(b"{'descr': '<f4', 'fortran_order': True, 'shape': (%d, 0)}\n" % 2**70), "no array can have the shape"),
        (shaped(b"(%b, %b)" % (b"9" * 4000, b"9" * 4000)), "more than 8 EiB; the body has 0"),
        (header(b"{'descr': '<f16', 'fortran_order': False, 'shape': (1,)}\n") + bytes(16), "is refused"),
        (header(b"__import__('os')\n"), "cannot be read"),
        (header(b"(" * 9000), "cannot be read"),
        (header(b" " * 20000), "the limit is"),
        (header(b"{}", version=9), "cannot be read"),
    ],
)
def test_npy_that_is_damaged_or_would_need_unpickling_is_refused(body, message):
    with pytest.raises(BadRequest, match=message):
        codec.decode_npy(body)


@pytest.mark.parametrize(
    ("body", "kind", "values"),
    [
        (b'{"instances": [[1, 2], [3, 4]]}', "application/json", [[1, 2], [3, 4]]),
        (b"[[1.5]]", "application/json", [[1.5]]),
        (b"1,2", "text/csv", [[1, 2]]),
        (b"[1]\n[2]", "application/jsonlines", [[1], [2]]),
        (npy(np.eye(2)), "application/x-npy", [[1, 0], [0, 1]]),
    ],
)
def test_numbers_of_every_format_become_an_array(body, kind, values):
    assert codec.decode_array(body, kind).tolist() == values


@pytest.mark.parametrize("value", [{"question": "?"}, ["a", "b"], [[1], [1, 2]], "text", None])
def test_json_that_is_no_array_of_numbers_stays_what_it_is(value):
    assert codec.decode_array(json.dumps(value).encode(), "application/json") == value


def test_c94_a_type_without_decoder_is_refused_with_the_known_ones():
    with pytest.raises(UnsupportedMediaType) as raised:
        codec.decode_array(b"", "application/zip")
    assert raised.value.details["known"] == [*codec.ARRAY_TYPES, *codec.RECORD_TYPES]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"[[0.5,1.0],[2.0,null]]"),
        ("text/csv", b"0.5,1.0\n2.0,nan"),
        ("application/jsonlines", b"[0.5,1.0]\n[2.0,null]"),
    ],
)
def test_c134_answers_end_without_a_newline_and_json_has_null_for_nan(kind, body):
    assert codec.encode_prediction(np.array([[0.5, 1], [2, np.nan]]), kind) == body


def test_csv_prints_the_digits_that_json_prints_and_they_read_back_as_the_same_numbers():
    array = np.array([[0.1, -2.2181177, 1e-5, 16777216, 1 / 3]], np.float32)
    text = codec.encode_prediction(array, codec.CSV)
    assert text == b"0.1,-2.2181177,1e-05,1.6777216e+07,0.33333334"
    assert codec.decode_csv(text).tobytes() == array.tobytes()
    assert [float(field) for field in text.split(b",")] == json.loads(codec.encode_prediction(array, codec.JSON))[0]
    assert codec.encode_prediction(np.array([1 / 3]), codec.CSV) == b"0.3333333333333333"
    assert codec.encode_prediction(np.array([[1, 2]]), codec.CSV) == b"1,2"


def test_an_array_survives_npy_both_ways():
    array = np.random.default_rng(0).random((3, 2))
    assert codec.decode_npy(codec.encode_prediction(array, codec.NPY)).tolist() == array.tolist()


@pytest.mark.parametrize("kind", ["text/csv", "application/x-npy"])
@pytest.mark.parametrize("prediction", [{"a": 1}, [[1], [1, 2]]])
def test_c94_what_is_no_array_has_no_form_as_csv_or_npy(kind, prediction):
    with pytest.raises(NotAcceptable, match="ask for application/json"):
        codec.encode_prediction(prediction, kind)


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (b"raw", b"raw"),
        ("é", "é".encode()),
        (bytearray(b"x"), b"x"),
        ({"a": np.float32(1)}, b'{"a":1.0}'),
        ({1}, b"[1]"),
    ],
)
def test_what_a_handler_returns_becomes_bytes(value, body):
    assert codec.to_bytes(value) == body


def test_an_object_without_json_form_says_so():
    with pytest.raises(TypeError, match="object has no JSON form"):
        codec.to_bytes(object())


@given(st.binary(max_size=300), st.sampled_from([*codec.ARRAY_TYPES, "application/zip"]))
def test_any_bytes_decode_or_are_refused_with_a_client_error(body, kind):
    for candidate in (body, b"\x93NUMPY\x01\x00" + body):
        with contextlib.suppress(BadRequest, UnsupportedMediaType):
            codec.decode_array(candidate, kind)
