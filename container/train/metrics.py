"""Metrics: one canonical log line each, which the job's regexes find, and one JSON object per epoch in a file."""

import json
import sys
from pathlib import Path

from container import contract


class Metrics:
    """Prints and keeps metrics; on ranks other than 0 it does nothing.

        metrics = Metrics(opt_ml.output_data / "metrics.jsonl", rank)
        metrics.log(epoch=3, step=120, values={"validation:accuracy": 0.98})

    prints `epoch=3 step=120 validation:accuracy=0.98;`, each metric on a line of its own.
    """

    def __init__(self, path: Path, rank: int = 0, history: list[dict[str, float]] | None = None) -> None:
        """Start the file, with the history of the job that this one resumes."""
        self.history = list(history or [])
        self._path = path
        self._is_writer = rank == 0
        if self._is_writer:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(entry) + "\n" for entry in self.history))

    def log(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Print each value and append one JSON line."""
        entry = {"epoch": epoch, "step": step, **values}
        self.history.append(entry)
        if not self._is_writer:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        for name, value in values.items():
            sys.stdout.write(f"epoch={epoch} step={step} {contract.format_metric(name, value)}\n")
        sys.stdout.flush()
