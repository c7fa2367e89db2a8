"""Starting, finding and ending the local SageMaker's server from a command line. Standard library only.

The server runs in the background and says where it is in `server.json`. It holds a lock on `server.alive` as long as it
lives, so that a server that died is known from one that runs, whatever its process id means by now.
"""

import contextlib
import fcntl
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = Path(".launcher")
RUNTIME_VARIABLE = "SLIPWAY_LOCAL_RUNTIME"  # process or docker; otherwise what the machine has
LOCAL_IMAGES = {"training": "slipway-train:local", "serving": "slipway-serve:local"}
LOCAL_IMAGES_FIX = (
    "`make images` in the checkout of Slipway builds slipway-train:local and slipway-serve:local; without images, end "
    f"this server (`python -m launcher local down`) and set {RUNTIME_VARIABLE}=process"
)
UP_SECONDS = 60.0
DOWN_SECONDS = 60.0  # endpoints get 30 s to drain
POLL_SECONDS = 0.05
LOG_LINES = 15
HOME_LABEL = "slipway.home"  # of every container and network that a server starts: its home
ALIVE = "server.alive"  # locked by a server for life; holds its process id
AWS_CONFIG = "aws-config"  # an AWS configuration file with an empty default profile
DUMMY_CREDENTIAL = "local"
DEFAULT_REGION = "us-east-1"


class LocalServerError(Exception):
    """The server did not come up, or did not go down; the text has the last lines of its log."""


@dataclass(frozen=True)
class LocalServer:
    """A running server."""

    url: str
    pid: int
    home: Path
    runtime: str  # "docker" or "process"
    region: str = DEFAULT_REGION

    def environment(self) -> dict[str, str]:
        """The variables that send any AWS client here, and keep it from looking elsewhere."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": DUMMY_CREDENTIAL,
            "AWS_SECRET_ACCESS_KEY": DUMMY_CREDENTIAL,
            "AWS_SESSION_TOKEN": "",
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_PROFILE": "default",  # the caller's may name one that only the caller's own files have
            "AWS_CONFIG_FILE": str(self.home / AWS_CONFIG),
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
            "SAGEMAKER_VALIDATE_ROLE": "false",  # the SDK's ModelTrainer asks IAM for what moto does not have
        }


def up(home: Path = DEFAULT_HOME, environ: Mapping[str, str] | None = None) -> LocalServer:
    """Start the server, or return the one that runs.

    Args:
        home: where it keeps its state.
        environ: the environment of a server that is started; default: this process's own.

    Raises:
        LocalServerError: it does not come up; with the last lines of its log.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "up.lock"):
        running = _wait_for_answer(home, None) if is_alive(home) else None  # it may be busy, or just starting
        return running or _start(home, environ)


def status(home: Path = DEFAULT_HOME) -> LocalServer | None:
    """The server of this home if one runs and answers."""
    home = home.resolve()
    if not is_alive(home):
        return None
    server = _read(home)
    return server if server is not None and _answers(server) else None


def down(home: Path = DEFAULT_HOME) -> bool:
    """End the server and every container it runs; False if none runs.

    Raises:
        LocalServerError: it still lives after a minute; it has been sent SIGKILL. Or nothing says which process it is.
    """
    home = home.resolve()
    if not is_alive(home):
        return False
    process_id = _process_id(home)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    while is_alive(home):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
            raise LocalServerError(
                f"The local SageMaker did not end in {DOWN_SECONDS:g} s and was killed.{_log_end(home)}"
            )
        time.sleep(POLL_SECONDS)
    return True


def interrupt(home: Path, job_name: str) -> None:
    """Interrupt a running training job as a spot reclaim does.

    Raises:
        LocalServerError: no server runs, or no such job runs.
    """
    server = status(home)
    if server is None:
        raise LocalServerError(f"No local SageMaker runs in {home}; start it with: python -m launcher local up")
    code, answer = _request(server, "POST", f"/_local/interrupt/{job_name}")
    if code != 200:
        raise LocalServerError(json.loads(answer)["message"])


def _start(home: Path, environ: Mapping[str, str] | None) -> LocalServer:
    log = home / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher.local.server", str(home)],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        server = _wait_for_answer(home, process)
    except LocalServerError:
        process.kill()
        process.wait()
        raise
    if server is None:
        raise LocalServerError(f"The local SageMaker ended with code {process.returncode}.{_log_end(home)}")
    return server


def _wait_for_answer(home: Path, process: subprocess.Popen[bytes] | None) -> LocalServer | None:
    """The server once it answers, or None if it ends before.

    Args:
        home: of the server.
        process: the one just started; None where it was there before.

    Raises:
        LocalServerError: it lives and does not answer.
    """
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline:
        server = _read(home)
        if server is not None and (process is None or server.pid == process.pid) and _answers(server):
            return server
        if process.poll() is not None if process is not None else not is_alive(home):
            return None
        time.sleep(POLL_SECONDS)
    raise LocalServerError(
        f"The local SageMaker did not answer within {UP_SECONDS:g} s; end it with: python -m launcher local down."
        f"{_log_end(home)}"
    )


def _log_end(home: Path) -> str:
    log = home / "server.log"
    lines = log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:] if log.is_file() else []
    return "\n".join([f" The end of {log}:", *lines])


def _read(home: Path) -> LocalServer | None:
    try:
        state = json.loads((home / "server.json").read_text())
        return LocalServer(state["url"], state["pid"], home, state["runtime"], state.get("region", DEFAULT_REGION))
    except (OSError, ValueError, KeyError):
        return None


def _process_id(home: Path) -> int:
    """Of the server that holds the lock; an older version's left `server.alive` empty, and `server.json` has it.

    Raises:
        LocalServerError: neither file says it.
    """
    text = (home / ALIVE).read_text()
    server = _read(home)
    if text.isdecimal():
        return int(text)
    if server is not None and _answers(server):  # else the file may be of one that has ended, and the id another's
        return server.pid
    raise LocalServerError(
        f"A local SageMaker runs, and neither {home / ALIVE} nor an answer of it says its process id: find it with "
        f"`fuser {home / ALIVE}` and end it"
    )


def is_alive(home: Path) -> bool:
    """Whether somebody holds the lock that a server holds for life."""
    try:
        with (home / ALIVE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _answers(server: LocalServer) -> bool:
    try:
        code, answer = _request(server, "GET", "/_local/health")
        return code == 200 and json.loads(answer)["home"] == str(server.home)
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return False


def _request(server: LocalServer, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
