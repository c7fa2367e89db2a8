"""Uploads one large file in parts, and goes on with what an upload that broke off has left.

Neither boto3 nor the AWS CLI resumes an upload: both begin again. S3 keeps the parts of an unfinished one, though, and
says their numbers and MD5; those that are the file's own need not travel twice.
"""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from launcher.aws import refusals
from launcher.checksum import ALGORITHM, digest, md5_etag, part_bytes
from launcher.errors import AwsRefused

logger = logging.getLogger(__name__)

NOT_ALLOWED = frozenset({"AccessDenied", "NotImplemented", "MethodNotAllowed"})


@dataclass
class MultipartUpload:
    """One file on its way; `send` may be called from several threads."""

    client: Any
    bucket: str
    key: str
    path: Path
    before: os.stat_result
    """The file's, when its upload began."""
    upload_id: str
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Part number -> what CompleteMultipartUpload wants to know of it."""

    @classmethod
    def begin(cls, client: Any, bucket: str, key: str, path: Path) -> "MultipartUpload":
        """Go on with an unfinished upload to this key where there is one, else begin."""
        before = path.stat()
        unfinished = _unfinished(client, bucket, key)
        if unfinished is None:
            reply = client.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm=ALGORITHM)
            return cls(client, bucket, key, path, before, reply["UploadId"])
        upload = cls(client, bucket, key, path, before, unfinished)
        upload.done.update(upload._there_already())
        if upload.done:
            logger.info("   %s: %d of %d parts are there already", path.name, len(upload.done), upload.count)
        return upload

    @property
    def part_bytes(self) -> int:
        return part_bytes(self.before.st_size)

    @property
    def count(self) -> int:
        """Number of the parts."""
        return math.ceil(self.before.st_size / self.part_bytes)

    def missing(self) -> list[int]:
        """Numbers of the parts that have to travel; the first is 1."""
        return [number for number in range(1, 1 + self.count) if number not in self.done]

    @property
    def resumed_bytes(self) -> int:
        return self.before.st_size - sum(self._length(number) for number in self.missing())

    def send(self, number: int) -> int:
        """Send one part; how many bytes it had."""
        length = self._length(number)
        with self.path.open("rb") as file:
            file.seek((number - 1) * self.part_bytes)
            body = file.read(length)
        reply = self.client.upload_part(
            Bucket=self.bucket,
            Key=self.key,
            UploadId=self.upload_id,
            PartNumber=number,
            Body=body,
            ChecksumAlgorithm=ALGORITHM,
        )
        self.done[number] = _part(number, reply)
        return len(body)

    def finish(self) -> str:
        """Make the parts one object.

        Returns:
            Its ETag; empty where a KMS key makes it one that says nothing.

        Raises:
            AwsRefused: the file was changed meanwhile; the object stays what it was.
        """
        after = self.path.stat()
        if (after.st_size, after.st_mtime_ns) != (self.before.st_size, self.before.st_mtime_ns):
            raise AwsRefused(
                f"{self.path} was changed while it travelled to s3://{self.bucket}/{self.key}; upload it again"
            )
        parts = [self.done[number] for number in sorted(self.done)]
        try:
            reply = self.client.complete_multipart_upload(
                Bucket=self.bucket, Key=self.key, UploadId=self.upload_id, MultipartUpload={"Parts": parts}
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchUpload":
                raise
            reply = self.client.head_object(Bucket=self.bucket, Key=self.key)  # another launcher was as fast
        return md5_etag(reply)

    def _length(self, number: int) -> int:
        return min(self.part_bytes, self.before.st_size - (number - 1) * self.part_bytes)

    def _there_already(self) -> Iterator[tuple[int, dict[str, Any]]]:
        expected = dict(enumerate(digest(self.path).parts, start=1))
        pages = self.client.get_paginator("list_parts").paginate(
            Bucket=self.bucket, Key=self.key, UploadId=self.upload_id
        )
        for part in (part for page in pages for part in page.get("Parts", [])):
            number = part["PartNumber"]
            if part["ETag"].strip('"') == expected.get(number, b"").hex():  # never under a KMS key: there, all is sent
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
    checksum = {f"Checksum{ALGORITHM}": reply[f"Checksum{ALGORITHM}"]} if f"Checksum{ALGORITHM}" in reply else {}
    return {"PartNumber": number, "ETag": reply["ETag"], **checksum}
