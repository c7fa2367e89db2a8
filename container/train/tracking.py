"""Metrics for an experiment tracker, MLflow or Weights & Biases, which may be slow, unreachable or broken.

Each tracker runs in a process of its own that reads JSON lines. The job never waits for it but once, at its end, for a
few seconds; whatever goes wrong there is one line in the log.
"""

import atexit
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from container import contract
from container.train.runtime import end_with_parent

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 15.0  # at the job's end, for all trackers together, to send what they still have
# Its own defaults, 7 retries of 120 s each, suit a person who waits. A variable of the job's wins.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Trackers:
    """The trackers that a job asks for."""

    def __init__(self, names: Sequence[str], close_seconds: float = CLOSE_SECONDS) -> None:
        """Start one process per name; a package that is not installed is a warning."""
        self._close_seconds = close_seconds
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in names:
            if name not in _TRACKERS:
                logger.warning("tracker %r is none of %s", name, ", ".join(_TRACKERS))
            elif find_spec(name) is None:
                logger.warning("tracker %s is not installed: put it into requirements.txt beside the script", name)
            else:
                self._processes[name] = _start(name)
        if self._processes:
            atexit.register(self.close)

    @classmethod
    def from_env(cls) -> "Trackers":
        """Those of the variable SLIPWAY_TRACKERS, such as `mlflow,wandb`."""
        names = os.environ.get(contract.TRACKERS_VARIABLE, "").split(",")
        return cls([name.strip() for name in names if name.strip()])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass metrics on; returns at once."""
        line = json.dumps({"step": step, "values": dict(values)}).encode() + b"\n"
        for name, process in list(self._processes.items()):
            assert process.stdin is not None
            try:
                os.write(process.stdin.fileno(), line)
            except BlockingIOError:
                self._give_up(name, "it does not take metrics any more")
            except BrokenPipeError:
                self._give_up(name, "")

    def close(self) -> None:
        """Give the trackers time to send the rest, then end them."""
        deadline = time.monotonic() + self._close_seconds
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
        for name, process in list(self._processes.items()):
            try:
                status = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._give_up(name, f"it did not finish within {self._close_seconds:g} s")
            else:
                if status != 0:
                    self._give_up(name, "")
        self._processes.clear()

    def _give_up(self, name: str, problem: str) -> None:
        """Drop a tracker with one line: ours, or its own last words."""
        process = self._processes.pop(name)
        if problem:
            process.kill()
        assert process.stdout is not None
        last_words = process.stdout.read().decode(errors="replace").strip()  # it has ended, or is about to
        process.wait()
        logger.warning("tracker %s is given up: %s", name, problem or last_words)


def _start(name: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "container.train.tracking", name]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**_PATIENCE, **os.environ},
    )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process


# --- in the tracker's own process -------------------------------------------------------------------------------------


class _MLflow:
    """`MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` are read by the package itself."""

    def __init__(self, job_name: str, hyperparameters: Mapping[str, Any]) -> None:
        import mlflow  # type: ignore[import-not-found,unused-ignore]

        self._mlflow = mlflow
        mlflow.start_run(run_name=job_name)
        mlflow.log_params(dict(hyperparameters))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({name.replace(":", "/"): value for name, value in values.items()}, step=step)

    def finish(self) -> None:
        self._mlflow.end_run()


class _WandB:
    """`WANDB_API_KEY`, `WANDB_PROJECT` and `WANDB_MODE` are read by the package itself. A retried job goes on."""

    def __init__(self, job_name: str, hyperparameters: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found,unused-ignore]

        self._wandb = wandb
        wandb.init(id=job_name, name=job_name, resume="allow", config=dict(hyperparameters))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._wandb.log({name.replace(":", "/"): value for name, value in values.items()}, step=step)

    def finish(self) -> None:
        self._wandb.finish()


_TRACKERS: dict[str, type[_MLflow] | type[_WandB]] = {"mlflow": _MLflow, "wandb": _WandB}


def main(name: str) -> int:
    """Send what comes on standard input to a tracker; the last words on standard output say why that failed."""
    end_with_parent()
    words = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print stays out of the job's log
    hyperparameters = json.loads(os.environ.get(contract.sm_variable("hps"), "{}"))
    try:
        tracker = _TRACKERS[name](os.environ.get(contract.TRAINING_JOB_NAME, "job"), hyperparameters)
        for line in sys.stdin:
            tracker.log(**json.loads(line))
        tracker.finish()
    except Exception as error:  # whatever a foreign package raises is told, and the job goes on
        words.write(f"{type(error).__name__}: {error}"[:500].replace("\n", " "))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
