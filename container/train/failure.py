"""Why a job failed, told once: the first real error of all ranks, cut to what SageMaker shows."""

import json
import os
import re
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from container import contract
from container.contract import OptMl, truncate_utf8

MESSAGE_LIMIT_BYTES = 760  # of the 1,024: leaves room for type, place, rank, host and a hint
HINT_LIMIT_BYTES = 200

# What a rank says when another one has died: true, but never the cause. A script's own errors say such things, too (its
# database refuses the connection), but with other types.
_SECONDARY_TYPES = frozenset(
    {
        *("RuntimeError", "DistError", "DistBackendError", "DistNetworkError", "DistStoreError", "PeersUnreachable"),
        *("BrokenPipeError", "ConnectionResetError"),
    }
)
_SECONDARY = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|socket (timeout|closed)|remote process|"
    r"ncclRemoteError|ncclSystemError|NCCL communicator was aborted|aborted by|gloo.*timed? ?out|"
    r"timed out waiting|recvValue failed|sendBytes failed|heartbeat|DistNetworkError|DistStoreError|"
    r"another rank failed",
    re.IGNORECASE,
)
_SECONDARY_SIGNALS = frozenset({signal.SIGTERM})

_SHARED_MEMORY_HINT = "shared memory is too small: lower num_workers (0 needs none)"
# Pattern of type and message -> what to do. The first that matches counts.
_HINTS = {
    r"^HostLost": (
        "its instance or container was killed: a spot interruption, a fault, no memory left? See the end of its log; "
        "with checkpoints a retry goes on from the last one"
    ),
    r"CUDA out of memory|CUDA error: out of memory": "lower batch_size, or use an instance with more GPU memory",
    r"bus error|shared memory|/dev/shm": _SHARED_MEMORY_HINT,
    # the last two are torch.save's words for it
    r"No space left on device|disk quota|PytorchStreamWriter failed|unexpected pos \d+ vs": (
        "the volume is full: raise VolumeSizeInGB, or keep fewer checkpoints"
    ),
    r"No module named": "put the package into requirements.txt beside the script, or into the image",
    r"unrecognized arguments: (True|False)": (
        "a hyperparameter is an option with a value; in place of action='store_true' give it type=ast.literal_eval"
    ),
    r"unrecognized arguments|unknown hyperparameter": "compare the job's hyperparameters with what the program takes",
    r"no kernel image is available|CUDA driver version is insufficient|forward compatibility": (
        "the host's driver does not suit the image's CUDA: use a newer instance family or an older CUDA image"
    ),
    r"CUDA error: device-side assert": "a label or index is out of range; CUDA_LAUNCH_BLOCKING=1 shows where",
    r"SM_CHANNEL_|/input/data/": "the job has no such channel, or it is empty here: compare its InputDataConfig",
    r"Read-only file system": "input channels are read-only: write to the model, output data or /tmp directories",
    r"Can't pickle|cannot pickle": "DataLoader workers need top-level functions; num_workers=0 needs none",
}
_SIGNAL_HINTS = {
    signal.SIGKILL: "out of memory? lower batch_size or num_workers, or use an instance with more memory",
    signal.SIGSEGV: "a native library crashed; the log has the Python stack of each thread",
    signal.SIGBUS: _SHARED_MEMORY_HINT,
    signal.SIGILL: "the image's libraries use CPU instructions that this instance type lacks",
}


@dataclass(frozen=True)
class RankError:
    """One rank's end, as the rank itself or torchrun recorded it."""

    rank: int
    host: str
    time: float
    """Seconds since the epoch."""
    type: str
    """Exception class, without its module; empty when the process died without one."""
    message: str
    location: str = ""
    """User `file:line`."""
    trace: str = ""
    exit_code: int = 1
    """As subprocess gives it: negative for a signal."""

    @property
    def signal(self) -> signal.Signals | None:
        return signal.Signals(-self.exit_code) if -self.exit_code in set(signal.Signals) else None

    @property
    def is_secondary(self) -> bool:
        """Whether this is what a healthy rank reports after another one has failed."""
        if self.type:
            return self.type in _SECONDARY_TYPES and bool(_SECONDARY.search(f"{self.type}: {self.message}"))
        if self.signal == signal.SIGABRT:  # by a thread that is not Python's: NCCL's watchdog, whose peer is gone
            return bool(self.trace) and "Current thread" not in self.trace
        return self.signal in _SECONDARY_SIGNALS or self.exit_code == 128 + signal.SIGTERM

    @property
    def hint(self) -> str:
        """What to do about it, where the cause is known; else empty."""
        if self.signal in _SIGNAL_HINTS and not self.type:
            return _SIGNAL_HINTS[self.signal]
        text = f"{self.type}: {self.message}"
        if self.is_secondary:
            return "another rank or host failed first: see the logs of the other hosts"
        return next((hint for pattern, hint in _HINTS.items() if re.search(pattern, text, re.IGNORECASE)), "")

    @property
    def summary(self) -> str:
        """Type and message, or the way the process died."""
        if self.type:
            return f"{self.type}: {self.message}" if self.message else self.type
        if self.signal:
            return f"killed by signal {self.signal.value} ({self.signal.name})"
        return self.message or f"exited with code {self.exit_code} without an exception"


def from_exception(error: BaseException, rank: int, host: str, code_dir: str | None = None) -> RankError:
    """The record of an exception that ends a rank.

    Args:
        error: what was raised.
        rank: global rank.
        host: name in resourceconfig.json.
        code_dir: the user's code; the innermost frame below it is named, else the innermost one outside of libraries.
    """
    code = 1
    message, frames = _unwrapped(str(error), type(error).__name__)
    if isinstance(error, SystemExit):
        code = (error.code & 0xFF or 1) if isinstance(error.code, int) else 1  # what the kernel makes of it
        message = f"the script called sys.exit({error.code!r})"
    return RankError(
        rank=rank,
        host=host,
        time=time.time(),
        type=type(error).__name__,
        message=message,
        location=_location(error, frames, code_dir),
        trace="".join(traceback.format_exception(error)),
        exit_code=code,
    )


def _unwrapped(text: str, kind: str) -> tuple[str, list[tuple[str, str]]]:
    """What another process has raised, as DataLoader and torch.multiprocessing put it: into the text of their error.

    Args:
        text: of the error; where it holds a traceback, that of the process comes before what it says.
        kind: the error's type, which is not said twice.

    Returns:
        What is said, and file and line of the traceback's frames, outermost first; the text itself where it holds none.
    """
    head, marker, trace = text.rpartition("Traceback (most recent call last):\n")
    said = [line for line in trace.splitlines() if line.strip() and not line.startswith("  ")]
    if not marker or not said:
        return text, []
    where = next((line for line in head.splitlines() if line.strip()), "").rstrip(".: ")
    message = re.sub(rf"^(\w+\.)*{re.escape(kind)}: ", "", "\n".join(said))
    return f"{message}; {where}" if where else message, re.findall(r'File "([^"]+)", line (\d+)', trace)


def _location(error: BaseException, frames: list[tuple[str, str]], code_dir: str | None) -> str:
    """`file:line` of the user's own code where there is some among the frames.

    Args:
        error: what was raised here.
        frames: where it was raised in another process; empty where that was here.
        code_dir: the user's code.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{os.path.basename(error.filename)}:{error.lineno}"
    frames = frames or [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in frames if code_dir and frame[0].startswith(code_dir)]
    outside = [
        frame
        for frame in frames
        if not re.search(r"site-packages|dist-packages|/lib/python|<frozen|container/train/rank", frame[0])
    ]
    return "".join(f"{os.path.basename(name)}:{line}" for name, line in (own or outside or frames)[-1:])


def record(directory: Path, error: RankError) -> None:
    """Leave a rank's error for the launcher: whole or not at all. The first record of a rank stays."""
    path = directory / f"error-{error.rank}.json"
    if path.exists():
        return
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(error)), errors="replace")
    temporary.replace(path)


def recorded(directory: Path) -> list[RankError]:
    """Every error the ranks of this host recorded."""
    return [RankError(**json.loads(path.read_text())) for path in sorted(directory.glob("error-*.json"))]


def first_cause(errors: Sequence[RankError]) -> RankError | None:
    """The earliest error that is not merely the echo of another one; the earliest echo where there is nothing else."""
    return min(errors, key=lambda error: (error.is_secondary, error.time), default=None)


def reason(error: RankError) -> str:
    """The failure file's text: at most 1,024 bytes of UTF-8, the exception first, then place, rank, host and hint."""
    place = ", ".join(word for word in (error.location, f"rank {error.rank} on {error.host}") if word)
    summary = error.summary.encode("utf-8", "replace").decode()
    cut = truncate_utf8(summary, MESSAGE_LIMIT_BYTES)
    text = f"{cut}{'...' if cut != summary else ''} ({place})"
    if error.hint:
        # in parentheses, since SageMaker goes on behind it: ", exit code: 1"
        text += f"\n(hint: {truncate_utf8(error.hint, HINT_LIMIT_BYTES)})"
    return truncate_utf8(text, contract.FAILURE_REASON_LIMIT)


def write_failure(opt_ml: OptMl, text: str) -> None:
    """Write the failure file, unless there is one with content: the first writer knows best."""
    path = opt_ml.failure
    if path.is_file() and path.stat().st_size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".failure.{os.getpid()}")
    temporary.write_bytes(truncate_utf8(text, contract.FAILURE_REASON_LIMIT).encode())
    temporary.replace(path)


def location_in_stack(stack: str, code_dir: str | None) -> str:
    """The innermost `file:line` of the user's code in faulthandler's output."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack)  # innermost first
    own = [frame for frame in frames if code_dir and frame[0].startswith(code_dir)]
    return "".join(f"{os.path.basename(name)}:{line}" for name, line in own[:1])


def write_traces(opt_ml: OptMl, host: str, errors: Sequence[RankError], stacks: Mapping[int, str]) -> None:
    """Full traces of this host's ranks below the output data directory; names carry host and rank, so none collide.

    Args:
        opt_ml: this host's tree.
        host: its name.
        errors: what the ranks recorded; another host's cause among them is left to that host.
        stacks: rank -> where its threads stood when it was ended.
    """
    texts = {error.rank: error.trace for error in errors if error.host == host}
    heads = {error.rank: f"{error.summary}\n{_utc(error.time)}" for error in errors if error.host == host}
    for rank in sorted(texts.keys() | stacks.keys()):
        parts = [heads.get(rank, ""), texts.get(rank, ""), stacks.get(rank, "")]
        path = opt_ml.output_data / "errors" / f"{host}-rank-{rank}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(dict.fromkeys(part for part in parts if part)), errors="replace")


def _utc(seconds: float) -> str:
    return time.strftime("%F %T UTC", time.gmtime(seconds))
