"""The built-in program's hyperparameters: typed, with defaults, and an error that names the nearest one."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from container.train.health import RULES


class HyperparameterError(Exception):
    """A hyperparameter the built-in program does not know, or whose value it cannot use."""


@dataclass(frozen=True)
class Settings:
    """What a job may set. Empty, 0 or -1 where the data decides."""

    model: str = ""
    """`convnet` or a torchvision classifier; by default `convnet` up to 64 pixels, else `resnet18`."""
    epochs: int = 15
    batch_size: int = 64
    """Images per optimizer step over all ranks together."""
    learning_rate: float = 0.0
    """Peak, after warm-up; by default 0.003 for a batch of 64, in proportion to the batch."""
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    warmup_epochs: float = 1.0
    seed: int = 0
    image_size: int = 0
    """Height and width; by default the images' own when they agree and are at most 256 pixels, else 224."""
    augment: bool = True
    """Small random shifts, turns and zooms; above 64 pixels mirror images, too."""
    amp: bool = True
    """Automatic mixed precision, on GPUs."""
    num_workers: int = -1
    """Decoding processes per rank for data too large for memory; by default the rank's share of the cores."""
    accumulation_steps: int = 1
    """Parts a rank's share of the batch is computed in, one after the other: memory for time."""
    compile: bool = False
    """torch.compile: minutes at the start, faster steps afterwards, on GPUs."""
    patience: int = 0
    """Epochs without a better validation accuracy after which training ends; 0: never."""
    health: str = ""
    """Health rules other than by default, as in `exploding=stop,starving=off`; see container/train/health.py."""
    stall_seconds: float = 600.0
    """Without a step ending, after which the rule `stalled` speaks."""
    checkpoint_seconds: float = 300.0
    """Within an epoch; after each epoch there is one anyway. 0: after every step."""
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "keep_checkpoints", "accumulation_steps", "stall_seconds"):
            if getattr(self, name) < 1:
                raise HyperparameterError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "weight_decay", "warmup_epochs", "image_size", "checkpoint_seconds", "patience"):
            if getattr(self, name) < 0:
                raise HyperparameterError(f"{name}={getattr(self, name)} must not be negative")

        for rule, action in self.health_rules.items():
            if rule not in RULES or action not in ("warn", "stop", "off"):
                raise HyperparameterError(f"health={self.health!r}: rules are {', '.join(RULES)}; =warn, =stop or =off")

    @property
    def health_rules(self) -> dict[str, str]:
        """Rule -> action, of those that `health` names."""
        pairs = [entry.partition("=") for entry in self.health.split(",") if entry.strip()]
        return {rule.strip(): action.strip() for rule, _, action in pairs}

    @classmethod
    def from_hyperparameters(cls, hyperparameters: Mapping[str, Any]) -> "Settings":
        """Settings from decoded hyperparameters; `-` and `_` in names are alike.

        Raises:
            HyperparameterError: an unknown name, or a value of another type or out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values = {}
        for given, value in hyperparameters.items():
            name = given.replace("-", "_")
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                suggestion = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(fields)}"
                raise HyperparameterError(f"unknown hyperparameter {given!r}; {suggestion}")
            values[name] = _convert(name, value, type(fields[name].default))
        return cls(**values)


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _convert(name: str, value: Any, kind: type) -> Any:
    """The value as its field's type; numbers may arrive as strings, since SDK v2's tuner quotes twice."""
    try:
        if kind is bool:
            return _BOOLEANS[str(value).lower()]
        number = kind(value)
        if kind is int and float(value) != number:
            raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError):
        raise HyperparameterError(f"{name}={value!r} is not {_ARTICLES[kind]}") from None
    return number


_ARTICLES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
