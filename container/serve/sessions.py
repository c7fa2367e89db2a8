"""Stateful sessions: the ids a handler's conversation lives under, in a store that all processes share.

A session is a directory below the temporary one, made by the process that got `NEW_SESSION`; whichever process gets
the next request finds it. The handler keeps what it likes in that directory ("Stateful sessions", developer guide).
"""

import contextlib
import os
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from container import contract
from container.serve.exchange import BadRequest

NEW_SESSION = "NEW_SESSION"
NEW_SESSION_HEADER = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_SESSION_HEADER = "X-Amzn-SageMaker-Closed-Session-Id"
ID_PATTERN = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
ID_LIMIT = 256
EXPIRY_FILE = ".expires"


@dataclass(frozen=True)
class Session:
    """One conversation."""

    id: str
    directory: Path
    """The handler's own, until the session is closed or expires."""
    expires: float
    """Unix time."""
    is_new: bool = False


class SessionStore:
    """Sessions below `directory`, each for `seconds` after its last request."""

    def __init__(self, directory: Path, seconds: float) -> None:
        self._directory = directory
        self._seconds = seconds

    def find(self, session_id: str) -> Session:
        """The session a request names, made where it names `NEW_SESSION`; its time begins anew.

        Raises:
            BadRequest: it is unknown, expired or closed, or no session id at all.
        """
        if session_id == NEW_SESSION:
            self._forget_expired()
            identity = str(uuid.uuid4())
            return self._make(Session(identity, self._directory / identity, self._new_expiry(), is_new=True))
        if len(session_id) > ID_LIMIT or not ID_PATTERN.fullmatch(session_id):
            raise BadRequest(f"{session_id[:80]!r} is no session id")
        session = Session(session_id, self._directory / session_id, self._new_expiry())
        try:
            if _expiry(session.directory) < time.time():
                shutil.rmtree(session.directory, ignore_errors=True)
                raise FileNotFoundError(session.directory)
            os.utime(session.directory / EXPIRY_FILE, (session.expires, session.expires))
        except FileNotFoundError:  # another process may have closed it this very moment
            raise BadRequest(f"session {session_id} is unknown, closed or expired; ask for {NEW_SESSION}") from None
        return session

    def close(self, session: Session) -> None:
        """Forget a session and everything in its directory."""
        shutil.rmtree(session.directory, ignore_errors=True)

    def _new_expiry(self) -> float:
        return time.time() + self._seconds

    def _make(self, session: Session) -> Session:
        session.directory.mkdir(parents=True, mode=0o700)
        unnamed = session.directory / f"{EXPIRY_FILE}.new"
        unnamed.touch()
        os.utime(unnamed, (session.expires, session.expires))
        unnamed.rename(session.directory / EXPIRY_FILE)  # from here on others see the session, and how long it lives
        return session

    def _forget_expired(self) -> None:
        if self._directory.is_dir():
            for directory in self._directory.iterdir():
                with contextlib.suppress(FileNotFoundError):  # being made, or being closed, by another process
                    if _expiry(directory) < time.time():
                        shutil.rmtree(directory, ignore_errors=True)


def _expiry(directory: Path) -> float:
    """Unix time, kept as the time stamp of a file: processes read and set it at once, never half of it.

    Raises:
        FileNotFoundError: there is no such session.
    """
    return (directory / EXPIRY_FILE).stat().st_mtime


def opened_headers(session: Session) -> dict[str, str]:
    """What announces a new session: the guide names one header, AWS's library sends the other."""
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session.expires))
    return dict.fromkeys((contract.SESSION_ID_HEADER, NEW_SESSION_HEADER), f"{session.id}; Expires={expires}")


def closed_headers(session: Session) -> dict[str, str]:
    """What announces that a session is closed."""
    return {CLOSED_SESSION_HEADER: session.id}
