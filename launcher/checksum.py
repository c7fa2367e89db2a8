"""What S3 says of an object's content, reckoned from a file here: where both agree, nothing has to travel."""

import base64
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PART_BYTES = 8 * 1024 * 1024  # smaller files go in one request; ETag and checksum depend on it
MOST_PARTS = 10_000  # S3's limit
ALGORITHM = "CRC32"  # botocore sends one with each request anyway; S3 must be told when a large file begins


def part_bytes(size: int) -> int:
    """Length of the parts of a file of that size: doubled until their number is one that S3 takes."""
    length = PART_BYTES
    while length * MOST_PARTS < size:
        length *= 2
    return length


@dataclass(frozen=True)
class Digest:
    """MD5 of a file, as S3 reckons its ETag."""

    parts: tuple[bytes, ...]
    """Of each part; one of the whole where the file is sent in one request."""
    is_multipart: bool

    @property
    def etag(self) -> str:
        """What S3 says of the file when it was uploaded from here (unencrypted or SSE-S3)."""
        if not self.is_multipart:
            return self.parts[0].hex()
        return f"{_md5(b''.join(self.parts)).hexdigest()}-{len(self.parts)}"


def digest(path: Path) -> Digest:
    """Read a file for its digest: that costs a third of sending it, so only where there is something to compare."""
    is_multipart = path.stat().st_size >= PART_BYTES
    return Digest(tuple(_md5(part).digest() for part in _parts(path)), is_multipart)


def crc32(path: Path) -> str:
    """ChecksumCRC32 of the object that an upload from here makes; unlike the ETag it is the same under a KMS key.

    Of several parts it is that of their checksums; HeadObject adds `-` and their number to it, other answers do not.
    """
    parts = [zlib.crc32(part).to_bytes(4) for part in _parts(path)]
    is_multipart = path.stat().st_size >= PART_BYTES
    return base64.b64encode(zlib.crc32(b"".join(parts)).to_bytes(4) if is_multipart else parts[0]).decode()


def _parts(path: Path) -> Iterator[bytes]:
    """The file as it travels; an empty one is one empty part."""
    length = part_bytes(path.stat().st_size)
    with path.open("rb") as file:
        yield file.read(length)
        yield from iter(lambda: file.read(length), b"")


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def md5_etag(reply: dict[str, Any]) -> str:
    """The ETag in a reply about an object; empty under a KMS key, where it is no MD5."""
    if reply.get("ServerSideEncryption", "").startswith("aws:kms"):
        return ""
    return reply["ETag"].strip('"')
