"""Splitting, grouping and assembling records."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.local.record_filters import FilterError, parse_path, select
from launcher.local.records import RecordError, assemble, groups, request_body, split, unframe


def recordio(*bodies):
    return b"".join(struct.pack("<II", 0xCED7230A, len(body)) + body + b"\0" * (-len(body) % 4) for body in bodies)


def tfrecord(*bodies):
    return b"".join(struct.pack("<Q", len(body)) + b"crc1" + body + b"crc2" for body in bodies)


FRAMES = {"RecordIO": recordio, "TFRecord": tfrecord}


@given(st.lists(st.binary(max_size=20)), st.sampled_from(sorted(FRAMES)))
def test_c36_framed_records_come_back_whole_and_unframed(bodies, split_type):
    content = FRAMES[split_type](*bodies)
    records = split(content, split_type)
    assert b"".join(records) == content
    assert [unframe(record, split_type) for record in records] == bodies


@given(st.binary(max_size=60).filter(lambda content: b"\r" not in content))
def test_lines_lose_nothing(content):
    assert b"".join(split(content, "Line")) == content


@pytest.mark.parametrize(
    ("content", "split_type", "message"),
    [
        (b"\0" * 8, "RecordIO", "magic number 0x0 at byte 0 is not 0xced7230a"),
        (recordio(b"abcd")[:-1], "RecordIO", "says 4 bytes, and the data end before"),
        (recordio(b"abcd") + b"\x0a", "RecordIO", "the data end inside a record's head"),
        (tfrecord(b"abcd")[:-1], "TFRecord", "says 4 bytes, and the data end before"),
        (b"\0" * 11, "TFRecord", "the data end inside a record's head"),
    ],
)
def test_c37_broken_framing_is_named(content, split_type, message):
    with pytest.raises(RecordError, match=message):
        split(content, split_type)


@given(st.lists(st.binary(min_size=1, max_size=9)), st.integers(9, 30))
def test_groups_keep_the_order_and_the_limit(records, limit):
    together = list(groups(records, "Line", "MultiRecord", limit))
    assert [record for group in together for record in group] == records
    assert all(sum(map(len, group)) <= limit for group in together)
    for group, following in zip(together, together[1:], strict=False):
        assert sum(map(len, group)) + len(following[0]) > limit  # as many as fit


def test_a_limit_of_zero_is_none():
    assert list(groups([b"a" * 100] * 3, "Line", "MultiRecord", 0)) == [[b"a" * 100] * 3]


def test_a_single_record_is_sent_without_its_line_end_and_several_with_it():
    assert request_body([b"a,1\r\n"], "Line", "SingleRecord") == b"a,1"
    assert request_body([b"a,1\n", b"b,2"], "Line", "MultiRecord") == b"a,1\nb,2"
    assert request_body([b"whole\n"], "None", "MultiRecord") == b"whole\n"


def test_answers_are_joined_with_or_without_line_ends():
    assert assemble([b"a", b"b"], "None") == b"ab"
    assert assemble([b"a", b"b"], "Line") == b"a\nb\n"


@pytest.mark.parametrize(
    ("path", "picked"),
    [
        ("$", {"a": [1, 2, 3], "b": {"c-d": 4}}),
        ("$.a", [1, 2, 3]),
        ("$.a[1]", 2),
        ("$.a[-1]", 3),
        ("$.a[1:]", [2, 3]),
        ("$.a[:-1]", [1, 2]),
        ("$.a[0,2]", [1, 3]),
        ("$.b.c-d", 4),
        ("$['b']['c-d']", 4),
        ("$['a','b']", {"a": [1, 2, 3], "b": {"c-d": 4}}),
    ],
)
def test_paths_pick_what_the_guide_says(path, picked):
    assert select({"a": [1, 2, 3], "b": {"c-d": 4}}, path) == picked


@pytest.mark.parametrize("path", ["a", "$a", "$..a", "$[", "$[]", "$[?(@.a)]", "$['a',1]"])
def test_paths_outside_the_subset_are_refused(path):
    with pytest.raises(FilterError):
        parse_path(path)


@pytest.mark.parametrize("path", ["$.z", "$.a[7]", "$.a.x", "$['z','a']", "$.b[0,1]"])
def test_what_a_record_lacks_is_named(path):
    with pytest.raises(FilterError, match="has nothing at"):
        select({"a": [1], "b": {}}, path)
