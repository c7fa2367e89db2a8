"""Which files a directory holds: its own, and not what tools keep beside them."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

TOOLS_OWN = {"launcher.yaml", ".launcher", ".git", ".venv", "__pycache__", ".ipynb_checkpoints", ".DS_Store"}
TOOLS_OWN |= {".mypy_cache", ".pytest_cache", ".ruff_cache"}
VIRTUAL_ENVIRONMENT = "pyvenv.cfg"  # lies in every one, whatever its directory is called


def files_of(directory: Path, without: Collection[Path] = ()) -> list[Path]:
    """The files below a directory, in order; links count as what they point at.

    Args:
        directory: one that is not there has no files.
        without: directories below it whose files are left out.
    """
    left_out = {path.resolve() for path in without} - {directory.resolve()}
    return sorted(_walk(directory, left_out, ()))


def _walk(directory: Path, left_out: set[Path], above: tuple[Path, ...]) -> Iterator[Path]:
    here = directory.resolve()
    if here in left_out or here in above or not here.is_dir() or (above and (here / VIRTUAL_ENVIRONMENT).exists()):
        return  # `above`: a link to a directory that it lies in
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name in TOOLS_OWN:
                continue
            if entry.is_dir():
                yield from _walk(directory / entry.name, left_out, (*above, here))
            elif entry.is_file():
                yield directory / entry.name
