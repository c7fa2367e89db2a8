"""RecordIO-protobuf and TFRecord bodies, against what AWS's toolkit and the tfrecord package write."""

import contextlib
import io
import json
import struct

import numpy as np
import pytest
import scipy.sparse
import tfrecord
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sagemaker_training.record_pb2 import Record
from sagemaker_training.recordio import (
    _write_numpy_to_dense_tensor,
    _write_recordio,
    _write_spmatrix_to_sparse_tensor,
)

from container.recordio import read_records
from container.serve import codec
from container.serve.exchange import BadRequest, NotAcceptable
from container.serve.record_messages import DENSE_LIMIT_BYTES
from launcher.local import records as platform

SWITCH = {"SLIPWAY_RECORD_PLACEHOLDERS": "true"}
RECORDIO, TFRECORD = codec.RECORDIO, codec.TFRECORD
unhurried = settings(deadline=None, max_examples=300)


def recordio(array, labels=None):
    stream = io.BytesIO()
    _write_numpy_to_dense_tensor(stream, array, labels)
    return stream.getvalue()


def framed(*messages):
    stream = io.BytesIO()
    for message in messages:
        _write_recordio(stream, message.SerializeToString())
    return stream.getvalue()


def record(**features):
    """A Record; each feature is (kind, values, keys, shape), or a list of bytes."""
    message = Record()
    for name, feature in features.items():
        if isinstance(feature, list):
            message.features[name].bytes.value.extend(feature)
            continue
        kind, values, keys, shape = feature
        tensor = getattr(message.features[name], kind)
        tensor.values.extend(values)
        tensor.keys.extend(keys)
        tensor.shape.extend(shape)
    return message


@pytest.fixture
def tfrecords(tmp_path):
    def write(*examples):
        writer = tfrecord.TFRecordWriter(str(tmp_path / "data"))
        for example in examples:
            writer.write(example)
        writer.close()
        return (tmp_path / "data").read_bytes()

    return write


ROWS = np.arange(6, dtype=np.float32).reshape(2, 3) / 7


@pytest.mark.parametrize(("dtype", "expected"), [("float32", np.float32), ("float64", np.float32), (int, np.int32)])
def test_c139_records_that_the_toolkit_wrote_become_rows(dtype, expected):
    rows = (ROWS * 10).astype(dtype)
    array = codec.decode_array(recordio(rows, np.zeros(2)), RECORDIO)
    assert array.dtype == expected
    np.testing.assert_allclose(array, rows, rtol=1e-6)


def test_c139_sparse_records_become_dense_rows():
    rows = np.array([[0, 2.5, 0, 0], [0, 0, 0, 0], [1, 0, 0, 3]])
    stream = io.BytesIO()
    _write_spmatrix_to_sparse_tensor(stream, scipy.sparse.csr_matrix(rows))
    assert codec.decode_array(stream.getvalue(), RECORDIO).tolist() == rows.tolist()


def test_c139_examples_that_the_tfrecord_package_wrote_become_rows(tfrecords):
    body = tfrecords(*[{"x": (row, "float"), "label": (1, "int")} for row in ROWS])
    np.testing.assert_array_equal(codec.decode_array(body, TFRECORD), ROWS)
    whole = tfrecords({"ids": ([1, -2, 3], "int")})
    assert codec.decode_array(whole, TFRECORD).tolist() == [[1, -2, 3]]


@pytest.mark.parametrize("strategy", ["SingleRecord", "MultiRecord"])
@pytest.mark.parametrize("split_type", ["RecordIO", "TFRecord"])
def test_c139_what_the_platform_splits_is_read(split_type, strategy, tfrecords):
    rows = np.arange(500 * 7, dtype=np.float32).reshape(500, 7)
    content = recordio(rows) if split_type == "RecordIO" else tfrecords(*[{"x": (row, "float")} for row in rows])
    kind = RECORDIO if split_type == "RecordIO" else TFRECORD
    groups = list(platform.groups(platform.split(content, split_type), split_type, strategy, 4096))
    assert len(groups) == (500 if strategy == "SingleRecord" else len(groups)) > 3
    bodies = [platform.request_body(group, split_type, strategy) for group in groups]
    np.testing.assert_array_equal(np.concatenate([codec.decode_array(body, kind) for body in bodies]), rows)


def test_c139_one_record_may_have_its_framing_without_padding():
    message = record(values=("float32_tensor", [1, 2], [], []), a=["é".encode()], metadata=[b"xy"])
    body = framed(message)
    padding = -message.ByteSize() % 4
    assert padding
    assert codec.decode_array(body[:-padding], RECORDIO).tolist() == [[1, 2]]


def test_a_payload_that_holds_the_magic_number_in_parts_is_joined():
    magic = bytes([0x0A, 0x23, 0xD7, 0xCE])
    payload = record(image=[b"12345678" + magic + b"abcd"]).SerializeToString()
    place = payload.index(magic)
    payload = record(image=[b"." * (-place % 4) + b"12345678" + magic + b"abcd"]).SerializeToString()
    first, last = payload.split(magic)
    assert len(first) % 4 == 0
    body = b"".join(
        magic + struct.pack("<I", (flag << 29) + len(part)) + part + bytes(-len(part) % 4)
        for flag, part in ((1, first), (3, last))
    )
    assert codec.decode_array(body, RECORDIO)[0].endswith(magic + b"abcd")


def test_a_shape_is_given_to_the_values():
    body = framed(record(values=("float32_tensor", range(6), [], [1, 2, 3])))
    assert codec.decode_array(body, RECORDIO).shape == (1, 1, 2, 3)


def test_of_several_features_the_inputs_name_wins():
    values = ("float32_tensor", [1], [], [])
    assert codec.decode_array(framed(record(z=("int32_tensor", [2], [], []), values=values)), RECORDIO).tolist() == [
        [1]
    ]


WIDE = ("float32_tensor", [1], [0], [2**62, 2**62])
GOOD = ("float32_tensor", [1, 2], [], [])
BROKEN_RECORDS = {
    "the body holds no records": [],
    "record 1 has no features|the first record has no features": [record()],
    "shape [3] does not hold 2 values": [record(values=("float32_tensor", [1, 2], [], [3]))],
    "need a shape": [record(values=("float32_tensor", [1, 2], [0, 1], []))],
    "takes more than": [record(values=WIDE)],
    "outside of shape": [record(values=("int32_tensor", [1], [5], [5]))],
    "64 dimensions; an array can have 63": [record(values=("float32_tensor", [1], [], [1] * 64))],
    "no array can have the shape [0, 92": [record(values=("float32_tensor", [], [], [0, 2**63]))],
    "2 keys for 1 values": [record(values=("float64_tensor", [1], [0, 1], [5]))],
    "record 2 has no feature 'values'": [record(values=GOOD), record(other=GOOD)],
    "record 2 has shape [1]": [record(values=GOOD), record(values=("float32_tensor", [1], [], []))],
    "which feature": [record(a=GOOD, b=GOOD)],
    "numbers in some records and bytes in others": [record(values=GOOD), record(values=[b"x"])],
}


@pytest.mark.parametrize("message", BROKEN_RECORDS)
def test_records_that_make_no_array_are_refused_with_the_reason(message):
    with pytest.raises(BadRequest) as raised:
        codec.decode_array(framed(*BROKEN_RECORDS[message]), RECORDIO)
    assert any(part in str(raised.value) for part in message.split("|"))


def test_records_that_would_fill_the_memory_are_refused():
    width = DENSE_LIMIT_BYTES // 8  # floats: half of the limit
    sparse = record(values=("float32_tensor", [1], [0], [width]))
    with pytest.raises(BadRequest, match="the first 3 records take more than"):
        codec.decode_array(framed(sparse, sparse, sparse), RECORDIO)


def test_one_record_of_many_wide_features_is_refused():
    wide = ("float32_tensor", [1], [0], [DENSE_LIMIT_BYTES // 8])
    with pytest.raises(BadRequest, match="the features of record 1 take more than"):
        codec.decode_array(framed(record(a=wide, b=wide, values=wide)), RECORDIO)


def test_with_placeholders_the_records_that_would_fill_the_memory_get_one(open_door, user_model):
    wide = record(values=("float32_tensor", [1], [0], [DENSE_LIMIT_BYTES // 8]))
    model = user_model("def predict_fn(data, model): return [float(row.sum()) for row in data]")
    door = open_door(model, {"SLIPWAY_RECORD_PLACEHOLDERS": "true"})
    answer = door.request("POST", "/invocations", framed(wide, wide, wide), {"Content-Type": RECORDIO})
    assert json.loads(answer.body)[:2] == [1.0, 1.0]
    assert json.loads(answer.body)[2]["error"].startswith("record 3 and those before it take more than")


def test_a_tensor_of_very_many_dimensions_is_refused_before_they_are_multiplied():
    """The product of 100,000 extents is a number of two million digits, and takes a minute."""
    shape = [2**63 + 1] * 100_000
    with pytest.raises(BadRequest, match="100000 dimensions; an array can have 63"):
        codec.decode_array(framed(record(values=("float32_tensor", [1], [], shape))), RECORDIO)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda body: body[:-9], "ends at byte"),
        (lambda body: body + b"junkjunk", "record 2 at byte .* starts with"),
        (lambda body: b"x" + body, r"record 1 \(.* bytes\) is no protobuf message Record"),
        (lambda body: body[:8] + b"\xff" * 12 + body[20:], "is no protobuf message Record"),
    ],
)
def test_damaged_recordio_is_refused_with_its_place(damage, message):
    with pytest.raises(BadRequest, match=message):
        codec.decode_array(damage(recordio(ROWS)), RECORDIO)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda body: body[:-1], "TFRecord 2 at byte .* says .* bytes, and the body ends before"),
        (lambda body: body + b"\1", "TFRecord 3 at byte .* ends inside of its head"),
        (lambda body: body + bytes(12), "TFRecord 3 at byte .*: the CRC of its length is wrong"),
        (lambda body: body[:20] + b"\xff" + body[21:], "TFRecord 1 at byte 0: the CRC of its data is wrong"),
        (lambda body: b"\xff" + body[1:], "does not start with a TFRecord's length and CRC, and is no Example"),
    ],
)
def test_damaged_tfrecords_are_refused_with_their_place(damage, message, tfrecords):
    with pytest.raises(BadRequest, match=message):
        codec.decode_array(damage(tfrecords(*[{"x": (row, "float")} for row in ROWS])), TFRECORD)


@unhurried
@given(st.sampled_from(codec.RECORD_TYPES), st.binary(max_size=60), st.integers(0, 200), st.booleans())
def test_no_damage_is_anything_but_a_client_error(kind, garbage, place, inserted):
    body = recordio(ROWS)
    tail = place if inserted else place + len(garbage)
    with contextlib.suppress(BadRequest):
        codec.decode_array(body[:place] + garbage + body[tail:], kind)


def image(shade):
    stream = io.BytesIO()
    Image.new("L", (8, 8), shade).save(stream, "PNG")
    return stream.getvalue()


def test_c139_the_built_in_classifier_answers_each_record(door, tfrecords):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64)).astype(np.float32)

    def labels(body, kind):
        answer = door.request("POST", "/invocations", body, {"Content-Type": kind})
        assert answer.status == 200, answer.body
        return [record["probabilities"] for record in json.loads(answer.body)["predictions"]]

    expected = labels(b"\n".join(codec.encode_json(row) for row in pixels), codec.JSON_LINES)
    np.testing.assert_allclose(labels(recordio(pixels), RECORDIO), expected, rtol=1e-4)
    np.testing.assert_allclose(
        labels(tfrecords(*[{"x": (row, "float")} for row in pixels]), TFRECORD), expected, rtol=1e-4
    )
    images = tfrecords({"image/encoded": (image(7), "byte")}, {"image/encoded": (image(9), "byte")})
    alone = door.request("POST", "/invocations", image(9), {"Content-Type": "image/png"})
    np.testing.assert_allclose(
        labels(images, TFRECORD)[1], json.loads(alone.body)["predictions"][0]["probabilities"], rtol=1e-4
    )


def predicted(body):
    """The labels of each record of an answer, read by AWS's toolkit's own messages."""
    found = []
    for payload in read_records(io.BytesIO(body)):
        message = Record.FromString(payload)
        labels = {}
        for name, value in message.label.items():
            tensor = getattr(value, value.WhichOneof("value"))
            labels[name] = [text.decode() for text in tensor.value] if hasattr(tensor, "value") else list(tensor.values)
        found.append(labels)
    return found


def test_an_answer_may_be_recordio_with_a_record_for_each_row(door):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64)).astype(np.float32)
    headers = {"Content-Type": RECORDIO, "Accept": RECORDIO}
    answer = door.request("POST", "/invocations", recordio(pixels), headers)
    assert answer.headers["content-type"] == RECORDIO
    as_json = door.request("POST", "/invocations", recordio(pixels), {"Content-Type": RECORDIO})
    expected = json.loads(as_json.body)["predictions"]
    found = predicted(answer.body)
    assert [record["label"] for record in found] == [[record["label"]] for record in expected]
    np.testing.assert_allclose(
        [record["probabilities"] for record in found], [record["probabilities"] for record in expected], rtol=1e-6
    )
    assert [len(record["score"]) for record in found] == [1, 1, 1]


@pytest.mark.parametrize(
    ("prediction", "labels", "kind"),
    [
        (np.float32([[1, 2], [3, 4]]), [{"values": [1, 2]}, {"values": [3, 4]}], "float32_tensor"),
        (np.float64([0.1, 0.2]), [{"values": [0.1]}, {"values": [0.2]}], "float64_tensor"),
        (np.array([7, 8]), [{"values": [7]}, {"values": [8]}], "int32_tensor"),
        ([2**40], [{"values": [2**40]}], "float64_tensor"),
        ({"name": "cat", "box": np.ones((2, 2), np.float32)}, [{"name": ["cat"], "box": [1, 1, 1, 1]}], ""),
        (3.5, [{"values": [3.5]}], "float64_tensor"),
    ],
)
def test_numbers_and_texts_have_a_form_as_records(prediction, labels, kind):
    body = codec.encode_prediction(prediction, RECORDIO)
    assert predicted(body) == labels
    if kind:
        first = Record.FromString(next(read_records(io.BytesIO(body))))
        assert first.label["values"].WhichOneof("value") == kind


@pytest.mark.parametrize("prediction", [[[1, [2, 3]]], [{"a": object()}], [["a", 1]]])
def test_what_is_neither_numbers_nor_texts_has_no_form_as_records(prediction):
    with pytest.raises(NotAcceptable, match="no form as application/x-recordio-protobuf"):
        codec.encode_prediction(prediction, RECORDIO)


@pytest.mark.parametrize("kind", [RECORDIO, TFRECORD])
def test_c135_a_bad_record_gets_a_placeholder_where_that_is_configured(open_door, artifact, tfrecords, kind):
    good, rows = image(9), [image(7), b"no image", image(9)]
    if kind == RECORDIO:
        stream = io.BytesIO()
        for row in rows:
            _write_recordio(stream, record(image=[row]).SerializeToString())
        body = stream.getvalue()
    else:
        body = tfrecords(*[{"image": (row, "byte")} for row in rows])
    headers = {"Content-Type": kind, "Accept": "application/jsonlines"}
    assert open_door(artifact).request("POST", "/invocations", body, headers).status == 400
    door = open_door(artifact, SWITCH)
    answers = [json.loads(line) for line in door.request("POST", "/invocations", body, headers).body.splitlines()]
    assert answers[1]["index"] == 1
    assert "record 2: the image cannot be decoded" in answers[1]["error"]
    alone = json.loads(door.request("POST", "/invocations", good, {"Content-Type": "image/png"}).body)["predictions"][0]
    np.testing.assert_allclose(answers[2]["probabilities"], alone["probabilities"], rtol=1e-4)
    as_records = door.request("POST", "/invocations", body, {"Content-Type": kind, "Accept": RECORDIO})
    assert predicted(as_records.body)[1]["error"] == [answers[1]["error"]]


def test_c139_a_file_of_tfrecords_is_split_sent_and_assembled_to_a_file_of_recordio(
    start_server, user_model, tfrecords
):
    server = start_server(user_model("def model_fn(model_dir): return lambda rows: rows.sum(1)")).wait_ready()
    rows = np.arange(200 * 7, dtype=np.float32).reshape(200, 7)
    content = tfrecords(*[{"x": (row, "float"), "label": (1, "int")} for row in rows])
    for strategy in ("SingleRecord", "MultiRecord"):
        groups = platform.groups(platform.split(content, "TFRecord"), "TFRecord", strategy, 4096)
        answers = [
            server.request("POST", "/invocations", platform.request_body(group, "TFRecord", strategy), headers)
            for group in groups
            for headers in [{"Content-Type": TFRECORD, "Accept": RECORDIO}]
        ]
        assert {answer.status for answer in answers} == {200}
        assert 1 < len(answers) <= len(rows)
        found = predicted(b"".join(answer.body for answer in answers))
        assert [record["values"] for record in found] == [[total] for total in rows.sum(1).tolist()]


def test_c135_a_record_of_another_width_or_kind_gets_a_placeholder(open_door, user_model):
    door = open_door(user_model("def model_fn(model_dir): return lambda rows: rows.sum(1)"), SWITCH)
    three = ("float32_tensor", [1, 2, 3], [], [])
    body = framed(record(x=three), record(x=("float32_tensor", [1], [], [])), record(a=three, b=three), record(x=three))
    answer = door.request("POST", "/invocations", body, {"Content-Type": RECORDIO})
    values = json.loads(answer.body)
    assert (values[0], values[3]) == (6, 6)
    assert values[1] == {
        "index": 1,
        "error": "record 2 holds numbers of shape [1], most records numbers of shape [3]",
    }
    assert "record 3: which feature is the input?" in values[2]["error"]


def test_a_damaged_record_is_a_400_at_the_door(door):
    answer = door.request("POST", "/invocations", recordio(ROWS)[:-5], {"Content-Type": RECORDIO})
    assert answer.status == 400
    assert b"ends at byte" in answer.body
