"""What this machine has measured of models, by the content of their archives: how long they load, what they propose.

The same archive has the same ETag here and in an account, so that what `deploy --local` or a probe has seen counts when
it goes to AWS.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError
from launcher.jobs.model import Measured

FILE = "load-times.json"


@dataclass(frozen=True)
class Entry:
    """What is known of one archive."""

    measured: Measured
    execution_parameters: Mapping[str, Any] | None = None
    """The answer of /execution-parameters; None where nobody has asked."""


def now_by(verb: str) -> str:
    """Where a measurement comes from: `deploy --local, 2026-11-21`."""
    return f"{verb}, {datetime.now(UTC):%Y-%m-%d}"


def note(home: Path, etag: str, entry: Entry) -> None:
    """Keep what was measured; the last measurement counts, and an answer stays until there is another."""
    entries = _read(home)
    parameters = entry.execution_parameters or entries.get(etag, {}).get("execution_parameters")
    entries[etag] = {**vars(entry.measured), "execution_parameters": parameters}
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".{FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(entries, indent=2) + "\n")
    temporary.replace(home / FILE)  # a Ctrl-C in the middle of writing damages nothing


def known(home: Path, etag: str) -> Entry | None:
    """What is known of an archive; None where it has not been seen.

    Raises:
        ConfigError: the file is not ours any more.
    """
    found = _read(home).get(etag)
    if found is None:
        return None
    try:
        measured = Measured(float(found["load_seconds"]), float(found["unpack_seconds"]), str(found["origin"]))
        return Entry(measured, found["execution_parameters"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(home, error) from error


def _read(home: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((home / FILE).read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(home, error) from error


def _damaged(home: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{home / FILE} cannot be read ({type(error).__name__}: {error}); remove it, it is made again")
