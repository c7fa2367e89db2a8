"""TensorBoard event files of scalars, as TensorBoard reads them.

The format is small: records of TFRecord framing around two protobuf messages. TensorBoard's own writer would bring gRPC
and a web server into the image, tensorboardX boto3 into every job: 0.25 s and 10 MB of rank 0's memory. Source of the
fields: tensorflow/core/util/event.proto and framework/summary.proto.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_CASTAGNOLI = 0x82F63B78  # reflected polynomial of CRC-32C


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


class EventFile:
    """One event file, appended to; each `add` is in the file when it returns."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self.path = directory / name
        self._append(_string(3, "brain.Event:2"))  # what every reader looks for first

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One event with a scalar per name; `train:loss` is shown as `loss` in the section `train`."""
        summary = b"".join(
            _bytes(1, _string(1, name.replace(":", "/")) + _key(2, 5) + struct.pack("<f", value))
            for name, value in values.items()
        )
        self._append(_key(2, 0) + _varint(step) + _bytes(5, summary))

    def _append(self, event: bytes) -> None:
        event = _key(1, 1) + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(event))
        with self.path.open("ab") as file:
            file.write(length + _checksum(length) + event + _checksum(event))


def _checksum(data: bytes) -> bytes:
    """TFRecord's: CRC-32C, rotated and shifted, so that a checksum of checksums is none."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _bytes(field: int, data: bytes) -> bytes:
    return _key(field, 2) + _varint(len(data)) + data


def _string(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
