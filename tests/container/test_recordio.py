"""RecordIO against a writer of its own, written here from dmlc-core's description of the format."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container.recordio import NoRecordIO, RecordIOError, read_records

MAGIC = bytes([0x0A, 0x23, 0xD7, 0xCE])


unhurried = settings(deadline=None)  # other work shares this machine


def frame(flag: int, payload: bytes) -> bytes:
    padding = b"\0" * ((4 - len(payload) % 4) % 4)
    return MAGIC + struct.pack("<I", (flag << 29) + len(payload)) + payload + padding


def dmlc_record(payload: bytes) -> bytes:
    """One record as dmlc-core writes it: cut at each magic number on a multiple of four, which is left out."""
    cuts, start = [], 0
    for place in range(0, len(payload) // 4 * 4, 4):
        if payload[place : place + 4] == MAGIC:
            cuts.append(payload[start:place])
            start = place + 4
    if not cuts:
        return frame(0, payload)
    flags = [1] + [2] * (len(cuts) - 1)
    return b"".join(map(frame, flags, cuts)) + frame(3, payload[start:])


def records(data: bytes) -> list[bytes]:
    return list(read_records(io.BytesIO(data)))


# Payloads made of magic numbers, of single bytes that shift them off their place, and of anything else.
payloads = st.lists(st.sampled_from([MAGIC, b"\0", MAGIC[:3]]) | st.binary(max_size=9), max_size=6).map(b"".join)


def test_c36_payloads_of_0_to_4_bytes_decode_exactly():
    expected = [b"", b"a", b"ab", b"abc", b"abcd"]
    assert records(b"".join(frame(0, payload) for payload in expected)) == expected


@unhurried
@given(st.lists(payloads, max_size=6))
def test_c36_whatever_dmlc_writes_is_read_back(expected):
    assert records(b"".join(map(dmlc_record, expected))) == expected


def test_a_record_in_three_parts_gets_its_magic_numbers_back():
    payload = b"abcd" + MAGIC + b"efgh" + MAGIC + b"i"
    data = dmlc_record(payload)
    assert data == frame(1, b"abcd") + frame(2, b"efgh") + frame(3, b"i")
    assert records(data) == [payload]


@unhurried
@given(st.lists(payloads, min_size=1, max_size=3), st.data())
def test_c37_an_end_anywhere_but_between_records_is_an_error(expected, data):
    encoded = [dmlc_record(payload) for payload in expected]
    boundaries = {sum(map(len, encoded[:count])) for count in range(len(encoded) + 1)}
    whole = b"".join(encoded)
    cut = data.draw(st.integers(0, len(whole)).filter(lambda place: place not in boundaries))
    with pytest.raises(RecordIOError, match="inside of a record"):
        records(whole[:cut])


def test_c37_every_single_place_of_a_cut_is_found():
    whole = frame(0, b"12345") + dmlc_record(b"ab12" + MAGIC + b"x")
    for cut in set(range(len(whole))) - {0, 16}:
        with pytest.raises(RecordIOError, match=f"ends at byte {cut}, inside of a record"):
            records(whole[:cut])


@unhurried
@given(st.binary(min_size=8, max_size=40).filter(lambda data: data[:4] != MAGIC))
def test_c37_a_wrong_magic_number_is_an_error_that_says_where(garbage):
    stream = read_records(io.BytesIO(frame(0, b"fine!") + garbage))
    assert next(stream) == b"fine!"
    with pytest.raises(NoRecordIO, match=r"record 1 at byte 16 starts with 0x\w{8}, not with RecordIO's 0xced7230a"):
        next(stream)


@pytest.mark.parametrize(
    "data",
    [
        frame(2, b"middle"),
        frame(3, b"last"),
        frame(1, b"a") + frame(0, b"b"),
        frame(1, b"a") + frame(1, b"b"),
        frame(7, b""),
    ],
)
def test_parts_out_of_their_order_are_an_error(data):
    with pytest.raises(RecordIOError, match=r"continuation flag \d cannot stand here"):
        records(data)


class Pieces(io.RawIOBase):
    """A stream whose reads give the data in pieces, as a FIFO's do."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes = data, sizes

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(len(buffer), self.sizes.pop() if self.sizes else len(buffer))
        piece, self.data = self.data[:size], self.data[size:]
        buffer[: len(piece)] = piece
        return len(piece)


@unhurried
@given(st.lists(payloads, max_size=4), st.lists(st.integers(1, 9), max_size=30), st.integers(1, 20))
def test_records_are_whole_in_whatever_pieces_the_bytes_come(expected, sizes, buffer_bytes):
    stream = Pieces(b"".join(map(dmlc_record, expected)), sizes)
    assert list(read_records(io.BufferedReader(stream, buffer_bytes))) == expected


def test_a_record_is_handed_out_before_the_next_one_is_waited_for():
    class Endless(io.RawIOBase):
        pieces = [frame(0, b"abcd")]

        def readable(self):
            return True

        def readinto(self, buffer):
            assert self.pieces, "asked for more than the first record"
            piece = self.pieces.pop()
            buffer[: len(piece)] = piece
            return len(piece)

    assert next(read_records(io.BufferedReader(Endless()))) == b"abcd"
