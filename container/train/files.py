"""Which channels a job has, and which of the files in a channel are data."""

import fnmatch
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from container.train.environment import TrainingEnvironment

logger = logging.getLogger(__name__)

# What S3 prefixes collect beside the data: Spark's and Databricks' commit marks, EMR's directory marks, file managers.
NOISE_FILES = ("_SUCCESS", "_committed_*", "_started_*", "*_$folder$", "Thumbs.db", "desktop.ini")
NOISE_DIRECTORIES = ("__MACOSX", "__pycache__", "_temporary")


class ChannelError(Exception):
    """A channel is missing, or does not hold what was asked of it."""


def channel_config(environment: TrainingEnvironment, channel: str) -> dict[str, str]:
    """The channel's entry of inputdataconfig.json; of its keys only TrainingInputMode is always there.

    Raises:
        ChannelError: the job has no such channel. Files such as `<channel>-manifest` beside it are none.
    """
    if channel not in environment.channels:
        named = ", ".join(repr(name) for name in sorted(environment.channels)) or "none at all"
        raise ChannelError(f"the job has no channel {channel!r}; its channels are {named}")
    return dict(environment.channels[channel])


def channel_directory(environment: TrainingEnvironment, channel: str) -> Path:
    """Where a File or FastFile channel lies. It may be read-only, and empty where objects are fewer than hosts.

    Raises:
        ChannelError: no such channel, or a Pipe channel, which has no directory.
    """
    mode = channel_config(environment, channel)["TrainingInputMode"]
    if mode == "Pipe":
        raise ChannelError(f"channel {channel!r} has TrainingInputMode Pipe: read it with PipeChannel")
    return environment.opt_ml.channel(channel)


def list_files(root: Path, suffixes: Collection[str] = ()) -> list[Path]:
    """The data files below `root`, sorted, so that every rank and every worker sees the same order.

    Left out are hidden files and whatever lies in hidden directories (`.DS_Store`, `.ipynb_checkpoints/`), Spark's
    `_SUCCESS` and its like, and a file `<channel>-manifest`. Links to directories are not followed.

    Args:
        root: a channel's directory.
        suffixes: in lower case, with the dot; compared without case. Empty for any.

    Raises:
        ChannelError: `root` is not a directory.
    """
    if not root.is_dir():
        raise ChannelError(f"{root} is not a directory: is it the path of a File or FastFile channel?")
    found = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if not _is_noise(name, NOISE_DIRECTORIES)]
        found += [
            Path(directory, name)
            for name in names
            if not _is_noise(name, (*NOISE_FILES, f"{root.name}-manifest"))
            and (not suffixes or name.lower().endswith(tuple(suffixes)))
        ]
    return sorted(found)


def replace_links(directory: Path) -> None:
    """Put what they point at in place of all symbolic links below a directory: the platform does not follow them."""
    for link in [path for path in directory.rglob("*") if path.is_symlink()]:
        target = link.resolve()
        link.unlink()
        if target.is_dir():
            shutil.copytree(target, link, ignore_dangling_symlinks=True)
        elif target.is_file():
            shutil.copy2(target, link)
        else:
            logger.warning("%s pointed nowhere, and is left out", link)


def _is_noise(name: str, patterns: Collection[str]) -> bool:
    return name.startswith(".") or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
