"""Metrics: told once by the program, and passed on to everybody who reads them."""

import json
import sys
from pathlib import Path

from container import contract
from container.contract import OptMl
from container.train.tensorboard import EventFile
from container.train.tracking import Trackers

DEFINITIONS_LIMIT = 40  # MetricDefinitionList.max


class Metrics:
    """Prints and keeps metrics; on ranks other than 0 it does nothing.

        metrics = Metrics(opt_ml.output_data / "metrics.jsonl", rank)
        metrics.log(epoch=3, step=120, values={"validation:accuracy": 0.98})

    prints `epoch=3 step=120 validation:accuracy=0.98;`, each metric on a line of its own, where SageMaker's regular
    expressions find it; appends a JSON object to the file; adds to TensorBoard's event file, in `tensorboard` beside
    the file or where the job's TensorBoardOutputConfig wants it; and tells the trackers that SLIPWAY_TRACKERS names.
    """

    def __init__(self, path: Path, rank: int = 0, history: list[dict[str, float]] | None = None) -> None:
        """Start the file, with the history of the job that this one resumes."""
        self.history = list(history or [])
        self._path = path
        self._is_writer = rank == 0
        self._readers: _Readers | None = None
        if self._is_writer:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(entry) + "\n" for entry in self.history))

    @property
    def definitions(self) -> list[dict[str, str]]:
        """`AlgorithmSpecification.MetricDefinitions` of all names so far, as SageMaker takes them."""
        names = dict.fromkeys(name for entry in self.history for name in entry if name not in ("epoch", "step"))
        return [{"Name": name, "Regex": contract.metric_regex(name)} for name in names][:DEFINITIONS_LIMIT]

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
        if self._readers is None:
            self._readers = _Readers(self._path)
            for earlier in self.history[:-1]:
                self._readers.tell(earlier)
        self._readers.tell(entry)


class _Readers:
    """TensorBoard's file and the trackers; they begin with the first metric."""

    def __init__(self, path: Path) -> None:
        platforms = OptMl.from_env().tensorboard  # exists where the platform copies it to S3 while the job runs
        self._events = EventFile(platforms if platforms.is_dir() else path.parent / "tensorboard")
        self._trackers = Trackers.from_env()

    def tell(self, entry: dict[str, float]) -> None:
        values = {name: value for name, value in entry.items() if name not in ("epoch", "step")}
        self._events.add(int(entry["step"]), values)
        self._trackers.log(int(entry["step"]), values)
