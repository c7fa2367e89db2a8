"""Starts a model's container here once, to ask what nobody else knows: how long it loads, what it proposes."""

import json
import math
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
SLOWER = 3  # an instance that also downloads the image and shares its disk: three times what it took here
LONGEST_TIMEOUT = 3600
ROUNDED_TO = 60


@dataclass(frozen=True)
class Probe:
    """What one start has shown."""

    load_seconds: float
    """From the start of the container to the first 200 on /ping."""
    execution_parameters: Mapping[str, Any]
    """The answer of /execution-parameters; empty where the container has none."""

    def proposals(self, origin: str) -> list[tuple[str, str, str]]:
        """(setting, value, where it comes from); of a setting without a value, SageMaker's default is right."""
        answer = self.execution_parameters
        asked = f"{contract.EXECUTION_PARAMETERS_PATH} of {origin}"
        rows = [
            (setting, str(read(answer[member])), asked)
            for setting, member, read in (
                ("transform.max_concurrent", "MaxConcurrentTransforms", int),
                ("transform.strategy", "BatchStrategy", STRATEGIES.__getitem__),
                ("transform.max_payload_mb", "MaxPayloadInMB", int),
            )
            if member in answer
        ]
        return [*rows, ("endpoint.startup_timeout", startup_timeout(self.load_seconds), self._loaded(origin))]

    def _loaded(self, origin: str) -> str:
        return (
            f"{origin} was healthy after {self.load_seconds:.1f} s here, x {SLOWER}; "
            f"SageMaker's own limit is {contract.STARTUP_TIMEOUT_SECONDS} s"
        )


def startup_timeout(load_seconds: float) -> str:
    """`ContainerStartupHealthCheckTimeoutInSeconds` for a model that loads so long; empty where the default will do."""
    needed = SLOWER * load_seconds
    if needed <= contract.STARTUP_TIMEOUT_SECONDS:
        return ""
    return str(min(LONGEST_TIMEOUT, math.ceil(needed / ROUNDED_TO) * ROUNDED_TO))


def probe(target: Target, model: Path, environment: Mapping[str, str], directory: Path) -> Probe:
    """Start the container as a batch job does, ask, and remove it.

    Args:
        target: the image, or our own code.
        model: an unpacked model archive.
        environment: the job's variables.
        directory: empty; for the container's files.

    Raises:
        CheckFailed: it does not become healthy, or its answer is none that SageMaker understands.
    """
    patience = Patience()
    bench = Bench(target, Materials(model=model), directory, (SERVE,), patience)
    try:
        began = time.monotonic()
        server = bench.start_server({contract.BATCH: "true", **environment}, bench.model)
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
        Probe(0, answer).proposals("")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailed(
            f"{contract.EXECUTION_PARAMETERS_PATH} answered {body[:200]!r}; MaxConcurrentTransforms and "
            "MaxPayloadInMB must be whole numbers, BatchStrategy MULTI_RECORD or SINGLE_RECORD"
        ) from error
    return answer
