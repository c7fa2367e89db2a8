"""Uploads one large file in parts, and goes on with what an upload that broke off has left.

Neither boto3 nor the AWS CLI resumes an upload: both begin again. S3 keeps the parts of an unfinished one, though, and
says their numbers and MD5; those that are the file's own need not travel twice.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from launcher.aws import refusals
from launcher.errors import AwsRefused

logger = logging.getLogger(__name__)

PART_BYTES = 8 * 1024 * 1024  # smaller files go in one request; the ETag depends on it
MOST_PARTS = 10_000  # S3's limit
CHECKSUM = "CRC32"  # botocore sends one with each part anyway; S3 must be told at the beginning
NOT_ALLOWED = frozenset({"AccessDenied", "NotImplemented", "MethodNotAllowed"})


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
    """Read a file once for its digest."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < PART_BYTES:
            return Digest((hashlib.file_digest(file, _md5).digest(),), is_multipart=False)
        length = part_bytes(size)
        parts = tuple(_md5(chunk).digest() for chunk in iter(lambda: file.read(length), b""))
        return Digest(parts, is_multipart=True)


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


@dataclass
class MultipartUpload:
    """One file on its way; `send` may be called from several threads."""

    client: Any
    bucket: str
    key: str
    path: Path
    digest: Digest
    upload_id: str
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Part number -> what CompleteMultipartUpload wants to know of it."""

    @classmethod
    def begin(cls, client: Any, bucket: str, key: str, path: Path, file_digest: Digest) -> "MultipartUpload":
        """Go on with an unfinished upload to this key where there is one, else begin."""
        unfinished = _unfinished(client, bucket, key)
        if unfinished is None:
            reply = client.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm=CHECKSUM)
            return cls(client, bucket, key, path, file_digest, reply["UploadId"])
        upload = cls(client, bucket, key, path, file_digest, unfinished)
        upload.done.update(upload._there_already())
        if upload.done:
            logger.info("   %s: %d of %d parts are there already", path.name, len(upload.done), len(file_digest.parts))
        return upload

    def missing(self) -> list[int]:
        """Numbers of the parts that have to travel; the first is 1."""
        return [number for number in range(1, 1 + len(self.digest.parts)) if number not in self.done]

    @property
    def resumed_bytes(self) -> int:
        return self.path.stat().st_size - sum(self._length(number) for number in self.missing())

    def send(self, number: int) -> int:
        """Send one part; how many bytes it had."""
        length = self._length(number)
        with self.path.open("rb") as file:
            file.seek((number - 1) * part_bytes(self.path.stat().st_size))
            body = file.read(length)
        reply = self.client.upload_part(
            Bucket=self.bucket,
            Key=self.key,
            UploadId=self.upload_id,
            PartNumber=number,
            Body=body,
            ChecksumAlgorithm=CHECKSUM,
        )
        self.done[number] = _part(number, reply)
        return len(body)

    def finish(self) -> None:
        """Make the parts one object.

        Raises:
            AwsRefused: S3 holds something else than the file; it was changed meanwhile.
        """
        parts = [self.done[number] for number in sorted(self.done)]
        try:
            reply = self.client.complete_multipart_upload(
                Bucket=self.bucket, Key=self.key, UploadId=self.upload_id, MultipartUpload={"Parts": parts}
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchUpload":
                raise
            reply = self.client.head_object(Bucket=self.bucket, Key=self.key)  # another launcher was as fast
        arrived = reply["ETag"].strip('"')
        if arrived != self.digest.etag and not reply.get("ServerSideEncryption", "").startswith("aws:kms"):
            raise AwsRefused(
                f"s3://{self.bucket}/{self.key} is not what {self.path} was when its upload began (ETag {arrived}, "
                f"expected {self.digest.etag}): it was changed meanwhile; upload it again"
            )

    def _length(self, number: int) -> int:
        size = self.path.stat().st_size
        length = part_bytes(size)
        return min(length, size - (number - 1) * length)

    def _there_already(self) -> Iterator[tuple[int, dict[str, Any]]]:
        pages = self.client.get_paginator("list_parts").paginate(
            Bucket=self.bucket, Key=self.key, UploadId=self.upload_id
        )
        for part in (part for page in pages for part in page.get("Parts", [])):
            number = part["PartNumber"]
            expected = self.digest.parts[number - 1] if number <= len(self.digest.parts) else b""
            if part["ETag"].strip('"') == expected.hex():  # never so in a bucket with KMS keys: there, all is sent
                yield number, _part(number, part)


def _unfinished(client: Any, bucket: str, key: str) -> str | None:
    """The newest unfinished upload to a key; None also where the caller may not ask."""
    try:
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key)
        found = [item for page in pages for item in page.get("Uploads", []) if item["Key"] == key]
    except ClientError as error:
        if error.response["Error"]["Code"] in NOT_ALLOWED:
            return None
        with refusals("ListMultipartUploads"):
            raise
    newest = max(found, key=lambda item: item["Initiated"], default=None)
    return newest["UploadId"] if newest else None


def _part(number: int, reply: dict[str, Any]) -> dict[str, Any]:
    checksum = {f"Checksum{CHECKSUM}": reply[f"Checksum{CHECKSUM}"]} if f"Checksum{CHECKSUM}" in reply else {}
    return {"PartNumber": number, "ETag": reply["ETag"], **checksum}
