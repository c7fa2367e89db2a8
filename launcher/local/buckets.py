"""The local S3: moto's objects in memory, mirrored to plain files `s3/<bucket>/<key>`.

Clients reach moto over HTTP; the platform (inputs, artifacts, checkpoints) uses the methods here. Content type and user
metadata that differ from the default lie in `s3-metadata/`, so that `s3/` holds nothing but the objects.
"""

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

from moto.backends import get_backend
from moto.s3.models import FakeDeleteMarker

from launcher.local.key_files import KeyFiles

ACCOUNT = "123456789012"  # moto's
DEFAULT_METADATA = {"content-type": "binary/octet-stream"}


class BucketError(Exception):
    """A bucket or key that is not there, or a URI that is none."""


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`.

    Raises:
        BucketError: not an S3 URI.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise BucketError(f"{uri!r} is not an S3 URI like 's3://bucket/key'")
    return bucket, key


class Buckets:
    """Objects by bucket and key; safe to use from any thread."""

    def __init__(self, home: Path, region: str) -> None:
        self.lock = threading.RLock()  # moto's stores are plain dicts: one request at a time
        self._files = home / "s3"
        self._metadata = home / "s3-metadata"
        self._region = region
        self._backend = get_backend("s3")[ACCOUNT]["aws"]

    def restore(self) -> None:
        """Fill moto from the files of an earlier server."""
        self._files.mkdir(parents=True, exist_ok=True)
        for folder in self._files.iterdir():
            self._backend.create_bucket(folder.name, self._region)
            metadata_files = KeyFiles(self._metadata / folder.name)
            for key, path in KeyFiles(folder).items():
                stored = self._backend.put_object(folder.name, key, path.read_bytes())
                metadata = metadata_files.read(key)
                if metadata is not None:
                    stored.set_metadata(json.loads(metadata))

    # --- what the platform does -------------------------------------------------------------------------------------

    def exists(self, bucket: str) -> bool:
        with self.lock:
            return bucket in self._backend.buckets

    def create(self, bucket: str) -> None:
        with self.lock:
            self._backend.create_bucket(bucket, self._region)
            self.mirror_bucket(bucket)

    def keys(self, bucket: str, prefix: str) -> list[str]:
        """Keys below a prefix, sorted.

        Raises:
            BucketError: no such bucket.
        """
        with self.lock:
            if bucket not in self._backend.buckets:
                raise BucketError(f"The specified bucket does not exist: {bucket}")
            return sorted(
                key for key in self._backend.buckets[bucket].keys if key.startswith(prefix) and self._find(bucket, key)
            )

    def read(self, bucket: str, key: str) -> bytes:
        """An object's bytes.

        Raises:
            BucketError: no such bucket or key.
        """
        with self.lock:
            stored = self._find(bucket, key)
            if stored is None:
                raise BucketError(f"The specified key does not exist: s3://{bucket}/{key}")
            return stored.value

    def write(self, bucket: str, key: str, body: bytes, content_type: str | None = None) -> None:
        """Store an object.

        Raises:
            BucketError: no such bucket.
        """
        with self.lock:
            if bucket not in self._backend.buckets:
                raise BucketError(f"The specified bucket does not exist: {bucket}")
            stored = self._backend.put_object(bucket, key, body)
            if content_type:
                stored.set_metadata({"Content-Type": content_type})
            self.mirror_object(bucket, key)

    def delete(self, bucket: str, key: str) -> None:
        with self.lock:
            self._backend.delete_object(bucket, key)
            self.mirror_object(bucket, key)

    def _find(self, bucket: str, key: str) -> Any:
        if bucket not in self._backend.buckets:
            return None
        stored = self._backend.buckets[bucket].keys.get(key)
        return None if isinstance(stored, FakeDeleteMarker) else stored

    # --- the mirror -------------------------------------------------------------------------------------------------

    def mirror_bucket(self, bucket: str) -> None:
        """Make the folder of a bucket what the bucket is: there, or gone."""
        with self.lock:
            folder = self._files / bucket
            if bucket in self._backend.buckets:
                folder.mkdir(parents=True, exist_ok=True)
                return
            with contextlib.suppress(OSError):  # S3 deletes only empty buckets
                folder.rmdir()

    def mirror_object(self, bucket: str, key: str) -> None:
        """Make the file of a key what the object is: its bytes, or gone."""
        files, metadata_files = KeyFiles(self._files / bucket), KeyFiles(self._metadata / bucket)
        with self.lock:
            stored = self._find(bucket, key)
            if stored is None:
                files.remove(key)
                metadata_files.remove(key)
                return
            files.write(key, stored.value)
            metadata = {name.lower(): value for name, value in stored.metadata.items()}
            if metadata == DEFAULT_METADATA:
                metadata_files.remove(key)
            else:
                metadata_files.write(key, json.dumps(metadata).encode())
