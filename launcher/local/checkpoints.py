"""CheckpointConfig: restored before a training container starts, synchronised while it runs and at its end."""

import threading
from collections.abc import Mapping
from pathlib import Path

from launcher.local.buckets import Buckets, parse_s3_uri
from launcher.local.inputs import download, source_objects

SYNC_SECONDS = 1.0
Stamp = tuple[int, int]  # mtime in ns, size in bytes


class CheckpointSync:
    """Keeps one S3 location equal to the checkpoint directories of all hosts of a job.

    New and changed files go up, files deleted on a host go in S3, too. A file that changed since the last look is left
    for the next one, so that half of it never lies in S3 for long; a rename shows as the new name first, then the old
    one's deletion, so that one complete checkpoint is there at every moment.
    """

    def __init__(self, buckets: Buckets, s3_uri: str, directories: Mapping[str, Path], *, deletes: bool = True) -> None:
        self._buckets = buckets
        self._uri = s3_uri
        self._bucket, prefix = parse_s3_uri(s3_uri)
        self._prefix = prefix.rstrip("/") + "/" if prefix else ""
        self._directories = directories
        self._deletes = deletes
        self._synced: dict[str, dict[str, Stamp]] = {host: {} for host in directories}
        self._seen: dict[str, dict[str, Stamp]] = {host: {} for host in directories}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"checkpoints {s3_uri}", daemon=True)

    def restore(self) -> None:
        """Copy what lies in S3 to every host.

        Raises:
            BucketError: no such bucket.
        """
        objects = source_objects(self._buckets, {"S3Uri": f"s3://{self._bucket}/{self._prefix}"})
        for host, directory in self._directories.items():
            download(self._buckets, objects, directory)
            self._synced[host] = self._seen[host] = _stamps(directory)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Stop, after a last look that takes every file as it is."""
        self._ended.set()
        self._thread.join()
        self._sync(is_last=True)

    def _run(self) -> None:
        while not self._ended.wait(SYNC_SECONDS):
            self._sync(is_last=False)

    def _sync(self, is_last: bool) -> None:
        for host, directory in self._directories.items():
            now = _stamps(directory)
            settled = (
                now if is_last else {name: stamp for name, stamp in now.items() if self._seen[host].get(name) == stamp}
            )
            for name, stamp in settled.items():
                if self._synced[host].get(name) != stamp:
                    self._upload(host, directory, name, stamp)
            unsettled = [name for name in now if name not in settled]
            if self._deletes and not unsettled:  # what replaces a deleted file may be the one that is not up yet
                for name in [name for name in self._synced[host] if name not in now]:
                    self._buckets.delete(self._bucket, self._prefix + name)
                    del self._synced[host][name]
            self._seen[host] = now

    def _upload(self, host: str, directory: Path, name: str, stamp: Stamp) -> None:
        try:
            body = (directory / name).read_bytes()
        except FileNotFoundError:
            return  # rotated away meanwhile; the next look sees that
        self._buckets.write(self._bucket, self._prefix + name, body)
        self._synced[host][name] = stamp


def _stamps(directory: Path) -> dict[str, Stamp]:
    stamps = {}
    for path in directory.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            stamps[path.relative_to(directory).as_posix()] = (status.st_mtime_ns, status.st_size)
    return stamps
