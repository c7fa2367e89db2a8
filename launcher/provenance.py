"""What a job was made of, as tags: a fingerprint of its uploaded data, and the commit of its project."""

import subprocess
from pathlib import Path

DATA_TAG, COMMIT_TAG = "slipway:data", "slipway:commit"
TAG_LIMIT = 256  # characters of a tag's value
GIT_SECONDS = 10


def provenance(directory: Path, digests: list[str]) -> dict[str, str]:
    """Tags that say what a job was made of: its uploaded data, and the commit of the project."""
    tags = {DATA_TAG: "-".join(digests)[:TAG_LIMIT]} if digests else {}
    commit = _git(directory, "rev-parse", "--short=12", "HEAD")
    if commit:
        changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
        tags[COMMIT_TAG] = f"{commit}-changed" if changed else commit
    return tags


def _git(directory: Path, *arguments: str) -> str:
    """Output of a git command; empty where there is no git or no repository."""
    try:
        command = ["git", "-C", str(directory), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
