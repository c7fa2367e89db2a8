"""Packing and unpacking `model.tar.gz` and `output.tar.gz`."""

import io
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from isal import igzip

from launcher.local.errors import JobFailed

COMPRESSION_LEVEL = 1  # of ISA-L's: ten times as fast as zlib's 1, and no larger


def files_of(directories: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Files below several directories by relative path, and the paths that more than one directory has.

    The first directory wins, as hosts are given in order and the first is rank 0's.
    """
    found: dict[str, Path] = {}
    clashes = []
    for directory in directories:
        for path in _files_below(directory):
            name = path.relative_to(directory).as_posix()
            if name in found:
                clashes.append(name)
            found.setdefault(name, path)
    return found, clashes


def _files_below(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_symlink() or not path.is_dir())


def pack(files: dict[str, Path]) -> bytes:
    """A gzipped tar of files under their names, without a leading directory."""
    buffer = io.BytesIO()
    with (
        igzip.open(buffer, "wb", compresslevel=COMPRESSION_LEVEL) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for name, path in files.items():
            archive.add(path, name, recursive=False)
    return buffer.getvalue()


def unpack(archive: bytes, directory: Path, uri: str) -> None:
    """Unpack `model.tar.gz` for hosting.

    Raises:
        JobFailed: no tar.gz, a symbolic link in it, or a member outside the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                if member.issym() or member.islnk():
                    raise JobFailed(f"Model data at {uri} holds the link {member.name!r}; SageMaker refuses links")
            tar.extractall(directory, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise JobFailed(f"Failed to extract model data archive from {uri}. Is it a tar.gz? ({error})") from error


def remove_tree(directory: Path) -> None:
    """Remove a directory that may be gone, or hold files that another user wrote."""
    shutil.rmtree(directory, ignore_errors=True)
