"""The local S3: moto's objects in memory, mirrored to plain files `s3/<bucket>/<key>`.

Clients reach moto over HTTP; the platform (inputs, artifacts, checkpoints) uses the methods here. Content type and user
metadata that differ from the default lie in `s3-metadata/`, so that `s3/` holds nothing but the objects.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from moto.backends import get_backend
from moto.s3.models import FakeDeleteMarker

ACCOUNT = "123456789012"  # moto's
DEFAULT_METADATA = {"Content-Type": "binary/octet-stream"}
CLASH = "%file"  # ends the file of a key that is a folder, too: `a` beside `a/b`; a real `%` is written %25
LONG = "%~"  # ends a piece of a name that is too long for a file system
MAX_NAME_BYTES = 200
TEMPORARY = "%tmp"  # no key's file has this name


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


def relative_path(key: str) -> PurePosixPath:
    """Where a key's file lies below its bucket's folder; every key has one of its own, none leaves the folder."""
    parts: list[str] = []
    for part in key.split("/"):
        safe = part.replace("%", "%25").replace("\0", "%00")
        if safe.strip(".") == "":  # "", ".", "..", which a file system reads otherwise
            safe = "%" + safe.replace(".", "%2E")
        while len(safe.encode()) > MAX_NAME_BYTES:
            piece = safe.encode()[: MAX_NAME_BYTES - 8].decode("utf-8", "ignore")
            parts.append(piece + LONG)
            safe = safe[len(piece) :]
        parts.append(safe if safe.strip(".") else safe.replace(".", "%2E"))
    return PurePosixPath(*parts)


def key_of(path: PurePosixPath) -> str:
    """The key whose file lies at `path`: the inverse of `relative_path`, the clash mark included."""
    joined = str(path).removesuffix(CLASH).replace(LONG + "/", "")
    return "/".join("" if part == "%" else unquote(part.replace("%%", "%", 1)) for part in joined.split("/"))


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
            for path in folder.rglob("*"):
                if path.is_file() and path.name != TEMPORARY:
                    self._restore_object(folder.name, path)

    def _restore_object(self, bucket: str, path: Path) -> None:
        relative = PurePosixPath(path.relative_to(self._files / bucket))
        stored = self._backend.put_object(bucket, key_of(relative), path.read_bytes())
        metadata = self._metadata / bucket / f"{relative}.json"
        if metadata.is_file():
            stored.set_metadata(json.loads(metadata.read_text()), replace=False)

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
        with self.lock:
            stored = self._find(bucket, key)
            folder = self._files / bucket
            path = _existing_or_new(folder, relative_path(key))
            metadata_path = self._metadata / bucket / f"{path.relative_to(folder)}.json"
            if stored is None:
                _remove(path, folder)
                _remove(metadata_path, self._metadata)
                return
            _write_atomically(path, stored.value)
            metadata = dict(stored.metadata)
            if {name.lower(): value for name, value in metadata.items()} == {"content-type": "binary/octet-stream"}:
                _remove(metadata_path, self._metadata)
            else:
                _write_atomically(metadata_path, json.dumps(metadata).encode())


def _existing_or_new(folder: Path, relative: PurePosixPath) -> Path:
    """The file for a key, with a file that stands where a folder must be moved aside."""
    path = folder
    for part in relative.parts[:-1]:
        path = path / part
        if path.is_file():
            content = path.read_bytes()
            path.unlink()
            path.mkdir()
            path.with_name(path.name + CLASH).write_bytes(content)
    path = path / relative.parts[-1]
    return path.with_name(path.name + CLASH) if path.is_dir() else path


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY)
    temporary.write_bytes(content)
    temporary.replace(path)


def _remove(path: Path, stop: Path) -> None:
    """Remove a file and the folders that it leaves empty, below `stop`."""
    path.unlink(missing_ok=True)
    for parent in _parents_below(path, stop):
        try:
            parent.rmdir()
        except OSError:
            return


def _parents_below(path: Path, stop: Path) -> Iterator[Path]:
    for parent in path.parents:
        if parent == stop:
            return
        yield parent
