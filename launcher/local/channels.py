"""The channels of a training job on its hosts: files copied, pipes fed, file systems mounted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from container.contract import OptMl
from launcher.local.buckets import Buckets, parse_s3_uri
from launcher.local.containers import Mount
from launcher.local.errors import JobFailed
from launcher.local.inputs import InputObject, download, shard, source_objects
from launcher.local.opt_ml import input_mode
from launcher.local.pipes import PipeFeeder, channel_chunks

AUGMENTED = "AugmentedManifestFile"
REFERENCE = "-ref"  # an attribute of such a name is the URI of what is streamed
FILE_SYSTEMS = "file-systems"  # in the server's home: a directory, or a link to one, per file system's id
Piece = InputObject | bytes


def provide(
    buckets: Buckets, request: Mapping[str, Any], channel: Mapping[str, Any], trees: Mapping[str, OptMl]
) -> list[PipeFeeder]:
    """Give a channel with S3 data to its hosts.

    Args:
        buckets: where the data lie.
        request: the CreateTrainingJob body.
        channel: one of its InputDataConfig.
        trees: of the hosts that get it.

    Returns:
        What feeds the pipes, where it is read in Pipe mode.

    Raises:
        BucketError: an object is not there.
        JobFailed: the data are not what the channel says.
    """
    source = channel["DataSource"]["S3DataSource"]
    distribution = source.get("S3DataDistributionType", "FullyReplicated")
    name = channel["ChannelName"]
    if input_mode(request, channel) != "Pipe":
        objects = source_objects(buckets, source)
        for index, tree in enumerate(trees.values()):
            download(buckets, shard(objects, index, len(trees), distribution), tree.channel(name))
        return []
    if source.get("S3DataType") == AUGMENTED:
        groups = augmented_groups(buckets, source)
    else:
        groups = [[item] for item in source_objects(buckets, source)]

    def read(piece: Piece) -> bytes:
        return piece if isinstance(piece, bytes) else buckets.read(piece.bucket, piece.key)

    return [
        PipeFeeder(tree.data, name, channel_chunks(shard(groups, index, len(trees), distribution), read, channel))
        for index, tree in enumerate(trees.values())
    ]


def augmented_groups(buckets: Buckets, source: Mapping[str, Any]) -> list[list[Piece]]:
    """Of each line of an augmented manifest, the values of its AttributeNames in their order.

    Raises:
        BucketError: there is no such manifest.
        JobFailed: a line is no JSON object, lacks an attribute, or refers to what is not there.
    """
    uri, names = source["S3Uri"], source.get("AttributeNames", [])
    groups = []
    for number, line in enumerate(buckets.read(*parse_s3_uri(uri)).decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            groups.append([_piece(name, json.loads(line)[name]) for name in names])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise JobFailed(
                f"ClientError: Line {number} of the manifest {uri} is no JSON object with {', '.join(names)}: {error!r}"
            ) from error
    referred = (piece for group in groups for piece in group if isinstance(piece, InputObject))
    for piece in referred:
        buckets.read(piece.bucket, piece.key)  # now, or an epoch would break off in its middle
    return groups


def _piece(name: str, value: Any) -> Piece:
    if not name.endswith(REFERENCE):
        return (value if isinstance(value, str) else json.dumps(value)).encode()
    bucket, key = parse_s3_uri(value)
    return InputObject(bucket, key, "")


def file_system_mounts(home: Path, channels: Sequence[Mapping[str, Any]], tree: OptMl) -> tuple[Mount, ...]:
    """Channels on a file system, as what a host's container has to mount."""
    return tuple(
        Mount(
            file_system_directory(home, channel["DataSource"]["FileSystemDataSource"]),
            tree.channel(channel["ChannelName"]),
            read_only=channel["DataSource"]["FileSystemDataSource"]["FileSystemAccessMode"] == "ro",
        )
        for channel in channels
        if "FileSystemDataSource" in channel["DataSource"]
    )


def file_system_directory(home: Path, source: Mapping[str, str]) -> Path:
    """What stands on this machine for a directory of an EFS or FSx file system."""
    return (home / FILE_SYSTEMS / source["FileSystemId"] / source["DirectoryPath"].lstrip("/")).resolve()
