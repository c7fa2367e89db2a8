"""Which objects of an S3 source a host gets, and under which names. Pure functions, and the copying."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from launcher.local.buckets import Buckets, parse_s3_uri
from launcher.local.errors import JobFailed

T = TypeVar("T")


@dataclass(frozen=True)
class InputObject:
    """One object of a source and its path relative to the channel's directory."""

    bucket: str
    key: str
    path: str


def relative_to_prefix(key: str, prefix: str) -> str:
    """The path of `key` below a channel whose S3Prefix is `prefix`.

    A prefix may be a folder with or without its slash, a whole key, or the start of a name.
    """
    if key == prefix:
        return PurePosixPath(key).name
    folder = prefix if prefix.endswith("/") or not prefix else prefix + "/"
    if key.startswith(folder):
        return key[len(folder) :]
    return key[prefix.rfind("/") + 1 :]


def source_objects(buckets: Buckets, source: Mapping[str, Any]) -> list[InputObject]:
    """Every object of an S3DataSource (S3Prefix or ManifestFile), in key order; console folders are left out.

    Raises:
        BucketError: no such bucket, or no such manifest.
        JobFailed: the manifest is not the JSON it must be.
    """
    bucket, key = parse_s3_uri(source["S3Uri"])
    if source.get("S3DataType", "S3Prefix") == "ManifestFile":
        return manifest_objects(buckets.read(bucket, key), source["S3Uri"])
    keys = (found for found in buckets.keys(bucket, key) if not found.endswith("/"))
    return [InputObject(bucket, found, relative_to_prefix(found, key)) for found in keys]


def manifest_objects(manifest: bytes, uri: str) -> list[InputObject]:
    """The objects that a manifest names: `[{"prefix": "s3://bucket/folder/"}, "a.csv", "b.csv"]`.

    Raises:
        JobFailed: it is no such list.
    """
    try:
        head, *names = json.loads(manifest)
        bucket, prefix = parse_s3_uri(head["prefix"])
        return [InputObject(bucket, prefix + name, name) for name in names]
    except (ValueError, TypeError, KeyError) as error:
        raise JobFailed(
            f'ClientError: Manifest {uri} is not a JSON list like [{{"prefix": "s3://bucket/folder/"}}, "a.csv"]: '
            f"{error}"
        ) from error


def shard(objects: Sequence[T], index: int, count: int, distribution: str) -> list[T]:
    """What host `index` of `count` gets: everything, or with ShardedByS3Key every `count`-th object."""
    return list(objects[index::count]) if distribution == "ShardedByS3Key" else list(objects)


def download(buckets: Buckets, objects: Sequence[InputObject], directory: Path) -> None:
    """Write objects below a directory.

    Raises:
        BucketError: an object is not there.
        JobFailed: a key would lie outside the directory, or is a file and a folder at once.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for item in objects:
        target = directory / item.path
        if ".." in PurePosixPath(item.path).parts or item.path.startswith("/"):
            raise JobFailed(
                f"ClientError: Data download failed: s3://{item.bucket}/{item.key} lies outside its channel"
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(buckets.read(item.bucket, item.key))
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise JobFailed(
                f"ClientError: Data download failed: s3://{item.bucket}/{item.key} is a file and a folder at once"
            ) from error
