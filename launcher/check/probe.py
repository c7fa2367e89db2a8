"""Starts a model's container here once, to ask what nobody else knows: how long it loads, what it proposes."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from container import contract
from launcher.check.bench import SERVE, Bench
from launcher.check.http import send
from launcher.check.materials import Materials, Patience
from launcher.check.started import wait_until_healthy
from launcher.check.target import CheckFailed, Target

STRATEGIES = {"MULTI_RECORD": "MultiRecord", "SINGLE_RECORD": "SingleRecord"}


@dataclass(frozen=True)
class Probe:
    """What one start has shown."""

    load_seconds: float
    """From the start of the container to the first 200 on /ping."""
    execution_parameters: Mapping[str, Any]
    """The answer of /execution-parameters; empty where the container has none."""


def settings_of(execution_parameters: Mapping[str, Any]) -> dict[str, str]:
    """The answer as settings of the launcher's: `transform.strategy` -> `MultiRecord`; those it names.

    Raises:
        ValueError, TypeError, KeyError: it names one in a way that SageMaker does not understand.
    """
    reading: tuple[tuple[str, str, Any], ...] = (
        ("transform.max_concurrent", "MaxConcurrentTransforms", int),
        ("transform.strategy", "BatchStrategy", STRATEGIES.__getitem__),
        ("transform.max_payload_mb", "MaxPayloadInMB", int),
    )
    return {
        setting: str(read(execution_parameters[member]))
        for setting, member, read in reading
        if member in execution_parameters
    }


def probe(target: Target, model: Path, environment: Mapping[str, str], directory: Path) -> Probe:
    """Start the container, ask, and remove it.

    Args:
        target: the image, or our own code.
        model: an unpacked model archive.
        environment: the variables of the job or endpoint; a batch job's has SAGEMAKER_BATCH.
        directory: empty; for the container's files.

    Raises:
        CheckFailed: it does not become healthy, or its answer is none that SageMaker understands.
    """
    patience = Patience()
    bench = Bench(target, Materials(model=model), directory, (SERVE,), patience)
    try:
        began = time.monotonic()
        server = bench.start_server(dict(environment), bench.model)
        wait_until_healthy(server, patience.startup)
        seconds = time.monotonic() - began
        answer = send(server.address, "GET", contract.EXECUTION_PARAMETERS_PATH)
        return Probe(seconds, parameters(answer.body) if answer.status == 200 else {})
    finally:
        bench.close()


def parameters(body: bytes) -> dict[str, Any]:
    """The answer of /execution-parameters.

    Raises:
        CheckFailed: a batch transform job would fail on it.
    """
    try:
        answer = dict(json.loads(body))
        settings_of(answer)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailed(
            f"{contract.EXECUTION_PARAMETERS_PATH} answered {body[:200]!r}; MaxConcurrentTransforms and "
            "MaxPayloadInMB must be whole numbers, BatchStrategy MULTI_RECORD or SINGLE_RECORD"
        ) from error
    return answer
