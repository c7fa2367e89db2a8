"""S3 keys as plain files: every key has a path of its own, readable where the key is, and none leaves its folder."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

CLASH = "%file"  # ends the file of a key that is a folder, too: `a` beside `a/b`; a real `%` is written %25
LONG = "%~"  # ends a piece of a name that is too long for a file system
MAX_NAME_BYTES = 200
TEMPORARY = "%tmp"  # no key's file has this name


def relative_path(key: str) -> PurePosixPath:
    """Where a key's file lies below its folder."""
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


class KeyFiles:
    """The files of one bucket below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def items(self) -> Iterator[tuple[str, Path]]:
        """Every key and its file."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name != TEMPORARY:
                yield key_of(PurePosixPath(path.relative_to(self.folder))), path

    def read(self, key: str) -> bytes | None:
        """A key's bytes, or None where it has no file."""
        path = self._path(key)
        return path.read_bytes() if path.is_file() else None

    def write(self, key: str, content: bytes) -> None:
        """Write a key's file, whole or not at all; a file that stands where a folder must be is moved aside."""
        folder = self.folder
        for part in relative_path(key).parts[:-1]:
            folder = folder / part
            if folder.is_file():
                aside = folder.read_bytes()
                folder.unlink()
                folder.mkdir()
                folder.with_name(folder.name + CLASH).write_bytes(aside)
        folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key)
        temporary = path.with_name(TEMPORARY)
        temporary.write_bytes(content)
        temporary.replace(path)

    def remove(self, key: str) -> None:
        """Remove a key's file, if there is one, and the folders that it leaves empty."""
        path = self._path(key)
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self.folder:
                return
            try:
                parent.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return

    def _path(self, key: str) -> Path:
        path = self.folder / relative_path(key)
        aside = path.with_name(path.name + CLASH)
        return aside if path.is_dir() or aside.is_file() else path
