"""`application/vnd.amazon.eventstream`: the frames of a streamed answer, as every AWS client decodes them.

A frame is: total length, length of the headers, CRC-32 of these eight bytes, headers, payload, CRC-32 of all before.
A header is: length of its name, name, type (7: string), length of its value, value. All numbers are big-endian.
"""

import json
import struct
import zlib

CONTENT_TYPE = "application/vnd.amazon.eventstream"
STRING = 7


def payload_part(data: bytes) -> bytes:
    """A `PayloadPart` event."""
    headers = {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}
    return _frame(headers, data)


def exception(name: str, members: dict[str, str]) -> bytes:
    """An exception that ends the stream, such as `ModelStreamError`."""
    headers = {":message-type": "exception", ":exception-type": name, ":content-type": "application/json"}
    return _frame(headers, json.dumps(members).encode())


def _frame(headers: dict[str, str], payload: bytes) -> bytes:
    encoded = b"".join(_header(name, value) for name, value in headers.items())
    prelude = struct.pack("!II", 4 + 4 + 4 + len(encoded) + len(payload) + 4, len(encoded))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + encoded + payload
    return message + struct.pack("!I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    return struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", STRING, len(value)) + value.encode()
