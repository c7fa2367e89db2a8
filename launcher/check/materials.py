"""What the checks test with, and how long they wait: the user's own, or made by `samples` for our images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from container import contract
from launcher.check.http import Request


@dataclass(frozen=True)
class Materials:
    """What to test with: the user's own, or made for one of our images; what is missing cannot be judged."""

    model: Path | None = None
    """A model directory, as unpacked into `/opt/ml/model`."""
    request: Request | None = None
    """A request that this model answers with 200."""
    slow_model: Path | None = None
    """A model that takes seconds for `slow_request`; by default `model`."""
    slow_request: Request | None = None
    out_of_memory_model: Path | None = None
    """A model whose loading runs out of memory."""
    line_request: Request | None = None
    """One record in a line; by default `request`, where that is of lines."""
    channels: Mapping[str, Path] = field(default_factory=dict)
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    """Make a short job."""
    long_hyperparameters: Mapping[str, str] = field(default_factory=dict)
    """Added for a job that must still run when it is stopped."""
    multi_model: bool = False
    """Whether to try multi-model mode where no label can ask for it, as with a process."""
    scripts: bool = False
    """Whether a script at `/opt/ml/code/train.py` is what `train` runs, as in our training image."""


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds: the platform's own limits."""

    startup: float = contract.STARTUP_TIMEOUT_SECONDS
    ping: float = contract.PING_TIMEOUT_SECONDS
    training: float = 900
    """For a job with the user's hyperparameters to end."""
    underway: float = 30
    """After which a job that still runs is taken to be in its loop, if its log does not show it before."""
    training_stop: float = contract.TRAINING_STOP_SECONDS
    early_stop: float = 10
    serving_stop: float = contract.SERVING_STOP_SECONDS
    usage_error: float = 5
    engine: float = 10
    """Added where starting a container counts against a limit."""
    broken_model: float = 60
    """For a server with a broken model to end; one that does not must never be healthy in that time."""
    late_model: float = 30
    """For a model to be ready after the first healthy `/ping`, which said so too early."""
