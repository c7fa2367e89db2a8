"""Puts a user's serving code into a model archive, where every SageMaker container looks for it: `code/`."""

import hashlib
import tarfile
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

from isal import igzip, isal_zlib

from launcher.errors import ConfigError, JobFailed
from launcher.files import files_of

CODE = "code"
FAST = 1  # ISA-L's level: packs ten times as fast as zlib's 1, and no larger


def code_files(directory: Path, without: Collection[Path]) -> list[Path]:
    """The files of a code directory, in order, without those of some directories below it.

    Raises:
        ConfigError: there are none.
    """
    found = files_of(directory, without)
    if not found:
        raise ConfigError(f"the code directory {directory} does not exist or holds no files")
    return found


def code_digest(directory: Path, without: Collection[Path] = ()) -> str:
    """A text that changes exactly when a file of the directory does."""
    digest = hashlib.sha256()
    for path in code_files(directory, without):
        digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def repack(archive: Path, code: Path, target: Path, without: Collection[Path] = ()) -> None:
    """Copy a model archive with `code/` replaced by a directory; the model's own files are streamed.

    Raises:
        JobFailed: the archive is damaged.
        ConfigError: the code directory is empty.
    """
    files = code_files(code, without)
    try:
        with (
            igzip.open(archive, "rb") as unpacked,
            tarfile.open(fileobj=unpacked, mode="r|") as source,
            igzip.open(target, "wb", compresslevel=FAST) as packed,
            tarfile.open(fileobj=packed, mode="w|", dereference=True) as output,
        ):
            for member in _members(source):
                output.addfile(member, source.extractfile(member) if member.isreg() else None)
            for path in files:
                output.add(path, f"{CODE}/{path.relative_to(code).as_posix()}")
    except (tarfile.TarError, isal_zlib.error, OSError, EOFError) as error:  # type: ignore[misc]
        hint = "; it is a zip: `tar czf model.tar.gz -C FOLDER .` packs a folder's files as SageMaker takes them"
        said = f"{archive.name} cannot be repacked: {error}{hint if zipfile.is_zipfile(archive) else ''}"
        raise JobFailed(said) from error


def _members(source: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in source:
        first = member.name.removeprefix("./").partition("/")[0]
        if first != CODE:
            yield member
