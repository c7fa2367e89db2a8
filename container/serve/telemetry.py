"""A thread per process that publishes what only the process itself can see, and writes its embedded metric lines."""

import os
import threading
import time

from container.serve import emf
from container.serve.metrics import Metrics
from container.serve.service import Service

PUBLISH_SECONDS = 0.5


def start(service: Service, metrics: Metrics, lines: emf.Settings | None) -> None:
    """Publish this process's gauges for as long as it lives, and its embedded metric lines where they are wanted."""
    threading.Thread(target=_run, args=(service, metrics, lines), name="telemetry", daemon=True).start()


def _run(service: Service, metrics: Metrics, lines: emf.Settings | None) -> None:
    before, due = metrics.figures(metrics.row), time.monotonic() + (lines.seconds if lines else 0)
    while True:
        publish(service, metrics)
        if lines and time.monotonic() >= due:
            now = metrics.figures(metrics.row)
            emf.write(lines, before, now, device_of(service))
            before, due = now, due + lines.seconds
        time.sleep(PUBLISH_SECONDS)


def publish(service: Service, metrics: Metrics) -> None:
    """Write this process's gauges into its row."""
    metrics.set("pid", os.getpid())
    metrics.set("queue_length", service.waiting())
    predictors = service.predictors()
    metrics.set("models", len(predictors))
    metrics.set("model_bytes", sum(predictor.memory_bytes for predictor in predictors))


def device_of(service: Service) -> int | None:
    """The number of the GPU that this process computes on; None where it computes on none, or nothing yet."""
    devices = (predictor.defaults.device.partition("cuda:")[2] for predictor in service.predictors())
    return next((int(number) for number in devices if number), None)
