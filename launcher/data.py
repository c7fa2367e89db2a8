"""Moves files between this machine and S3: in parallel, only what is not there yet, with progress."""

import hashlib
import logging
import tarfile
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from launcher.aws import Aws, refusals
from launcher.checksum import PART_BYTES, crc32, digest, md5_etag
from launcher.errors import AwsRefused, ConfigError, JobFailed
from launcher.files import files_of
from launcher.jobs.api import split_s3_uri
from launcher.multipart import MultipartUpload

logger = logging.getLogger(__name__)

THREADS = 8
TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
DIGEST_DIGITS = 12
DELETE_BATCH = 1000  # DeleteObjects takes as many


class Progress(Protocol):
    """Told about a transfer; one thread at a time."""

    def start(self, title: str, total_bytes: int) -> None: ...
    def expect(self, count_bytes: int) -> None: ...  # more than `start` knew of
    def advance(self, count_bytes: int) -> None: ...
    def finish(self) -> None: ...


class Silent:
    """Shows nothing."""

    def start(self, title: str, total_bytes: int) -> None:
        pass

    def expect(self, count_bytes: int) -> None:
        pass

    def advance(self, count_bytes: int) -> None:
        pass

    def finish(self) -> None:
        pass


@dataclass(frozen=True)
class Transfer:
    """What a transfer did."""

    files: int
    bytes: int
    skipped: int
    removed: int
    seconds: float
    digest: str = ""
    """Of names and contents, for an upload: the same data have the same."""


def upload(
    aws: Aws, source: Path, uri: str, progress: Progress | None = None, without: Collection[Path] = ()
) -> Transfer:
    """Make an S3 prefix the mirror of a directory, or one object the copy of a file.

    Objects of the same size and checksum stay; under a prefix, objects that have no file any more are removed, or a
    job would train on data that is gone here. An upload that broke off leaves its parts in S3, and the next one goes on
    with them.

    Args:
        aws: where to.
        source: on this machine.
        uri: its place in S3.
        progress: is told.
        without: directories below the source that are left out.

    Raises:
        ConfigError: the source does not exist or is empty.
        AwsRefused: S3 said no.
    """
    progress = progress or Silent()
    bucket, key = split_s3_uri(uri)
    files = _files(source, key, without)
    existing = {item["Key"]: item for item in objects(aws, uri if source.is_dir() else f"s3://{bucket}/{key}")}
    started = time.monotonic()
    client = aws.client("s3")
    same_size = [
        (path, name) for path, name in files if name in existing and existing[name]["Size"] == path.stat().st_size
    ]
    with ThreadPoolExecutor(THREADS) as pool, refusals("upload"):  # hashing lets other threads run
        found = pool.map(lambda pair: _etag_there(client, bucket, pair[0], existing[pair[1]]), same_size)
        etags = {name: etag for (_, name), etag in zip(same_size, found, strict=True) if etag}
    waiting = [(path, name) for path, name in files if name not in etags]
    total = sum(path.stat().st_size for path, _ in waiting)
    progress.start(f"upload {source.name} -> {uri}", total)
    etags |= _send(client, bucket, waiting, progress)
    names = {name for _, name in files}
    gone = [name for name in existing if name not in names] if source.is_dir() else []
    for start in range(0, len(gone), DELETE_BATCH):
        batch = [{"Key": name} for name in gone[start : start + DELETE_BATCH]]
        aws.call("s3", "DeleteObjects", Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
    progress.finish()
    seconds = time.monotonic() - started
    return Transfer(len(waiting), total, len(files) - len(waiting), len(gone), seconds, _digest(key, etags))


def _etag_there(client: Any, bucket: str, path: Path, item: dict[str, Any]) -> str:
    """The file's ETag where an object of the same size has the same content, else an empty text."""
    etag = digest(path).etag
    if item["ETag"].strip('"') == etag:
        return etag
    reply = client.head_object(Bucket=bucket, Key=item["Key"], ChecksumMode="ENABLED")
    same_under_a_key = not md5_etag(reply) and reply.get("ChecksumCRC32", "").partition("-")[0] == crc32(path)
    return etag if same_under_a_key else ""


def _send(client: Any, bucket: str, files: list[tuple[Path, str]], progress: Progress) -> dict[str, str]:
    """Send files, large ones in parts.

    Returns:
        Their ETags; S3 says them, so that what is sent need not be hashed here as well.
    """
    etags: dict[str, str] = {}

    def put(path: Path, name: str) -> int:
        body = path.read_bytes()
        etags[name] = md5_etag(client.put_object(Bucket=bucket, Key=name, Body=body)) or digest(path).etag
        return len(body)

    small = [(put, (path, name)) for path, name in files if path.stat().st_size < PART_BYTES]
    with refusals("upload"):
        large = [
            MultipartUpload.begin(client, bucket, name, path)
            for path, name in files
            if path.stat().st_size >= PART_BYTES
        ]
    progress.advance(sum(item.resumed_bytes for item in large))
    parts = [(item.send, (number,)) for item in large for number in item.missing()]
    _in_parallel("upload", [*small, *parts], progress)
    with refusals("upload"):
        for item in large:
            etags[item.key] = item.finish() or digest(item.path).etag
    return etags


def download(aws: Aws, uri: str, target: Path, progress: Progress | None = None) -> Transfer:
    """Copy everything under an S3 prefix into a directory; a name that would leave it is refused.

    Raises:
        AwsRefused: S3 said no, or an object's name points outside the directory.
    """
    progress = progress or Silent()
    bucket, prefix = split_s3_uri(uri)
    started = time.monotonic()
    found = [item for item in objects(aws, uri) if not item["Key"].endswith("/")]
    total = sum(item["Size"] for item in found)
    progress.start(f"download {uri} -> {target}", total)
    client = aws.client("s3")
    base = prefix if prefix.endswith("/") or not prefix else prefix.rpartition("/")[0]

    def get(item: dict[str, Any]) -> int:
        path = _inside(target, item["Key"][len(base) :].lstrip("/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        if item["Size"] < PART_BYTES:
            path.write_bytes(client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
        else:
            client.download_file(bucket, item["Key"], str(path), Config=TRANSFER)
        return item["Size"]

    _in_parallel("download", [(get, (item,)) for item in found], progress)
    progress.finish()
    return Transfer(len(found), total, 0, 0, time.monotonic() - started)


def objects(aws: Aws, uri: str) -> Iterator[dict[str, Any]]:
    """Key, Size and ETag of every object under a prefix."""
    bucket, prefix = split_s3_uri(uri)
    with refusals("ListObjectsV2"):
        for page in aws.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from page.get("Contents", [])


@dataclass(frozen=True)
class Stored:
    """An object in S3."""

    bytes: int
    etag: str
    """The same content, uploaded the same way, has the same."""


def stored(aws: Aws, uri: str) -> Stored | None:
    """What lies at a URI, or None where nothing does."""
    bucket, key = split_s3_uri(uri)
    try:
        reply = aws.client("s3").head_object(Bucket=bucket, Key=key)
    except ClientError:
        return None
    return Stored(reply["ContentLength"], reply["ETag"].strip('"'))


def unpack(archive: Path, target: Path) -> list[str]:
    """Unpack a tar archive; members that would leave the directory are refused.

    Returns:
        The members' names.

    Raises:
        JobFailed: the archive is damaged or unsafe.
    """
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
            return tar.getnames()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise JobFailed(f"{archive} cannot be unpacked: {error}") from error


def _files(source: Path, key: str, without: Collection[Path]) -> list[tuple[Path, str]]:
    if source.is_file():
        return [(source, key)]
    if not source.is_dir():
        raise ConfigError(f"{source} does not exist; nothing to upload")
    prefix = key.rstrip("/")
    found = [
        (path, "/".join(filter(None, (prefix, path.relative_to(source).as_posix()))))
        for path in files_of(source, without)
    ]
    if not found:
        raise ConfigError(f"{source} holds no files; nothing to upload")
    return found


def _digest(key: str, etags: dict[str, str]) -> str:
    lines = "\n".join(f"{name.removeprefix(key)} {etags[name]}" for name in sorted(etags))
    return hashlib.sha256(lines.encode()).hexdigest()[:DIGEST_DIGITS]


def _inside(target: Path, name: str) -> Path:
    path = (target / name).resolve()
    if not path.is_relative_to(target.resolve()):
        raise AwsRefused(f"the object {name!r} would be written outside {target}")
    return path


def _in_parallel(what: str, tasks: list[tuple[Callable[..., int], tuple[Any, ...]]], progress: Progress) -> None:
    """Run all tasks; each returns the bytes it moved.

    Raises:
        AwsRefused: the first task that failed; the others are dropped.
    """
    with ThreadPoolExecutor(THREADS) as pool, refusals(what):
        futures = [pool.submit(function, *arguments) for function, arguments in tasks]
        try:
            for future in as_completed(futures):
                progress.advance(future.result())
        except Boto3Error as error:
            raise AwsRefused(f"{what}: {error}") from error
        finally:
            pool.shutdown(cancel_futures=True)
