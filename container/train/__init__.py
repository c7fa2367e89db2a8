"""The training container: `launch` per host, `rank` per process, and the helpers a user's script may use.

A user's script imports the helpers from here; nothing is imported, and no torch loaded, until a name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from container.train.checkpoint import Checkpoints
    from container.train.environment import TrainingEnvironment, training_environment
    from container.train.health import Health
    from container.train.metrics import Metrics
    from container.train.stop import GracefulStop

__all__ = ["Checkpoints", "GracefulStop", "Health", "Metrics", "TrainingEnvironment", "training_environment"]

_HOMES = {
    "Checkpoints": "checkpoint",
    "GracefulStop": "stop",
    "Health": "health",
    "Metrics": "metrics",
    "TrainingEnvironment": "environment",
    "training_environment": "environment",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
