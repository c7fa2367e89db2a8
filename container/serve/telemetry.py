"""A thread per process that publishes what only the process itself can see, and writes its embedded metric lines."""

import os
import sys
import threading
import time
from pathlib import Path

from container.serve import emf
from container.serve.metrics import Metrics
from container.serve.service import Service

PUBLISH_SECONDS = 0.5
STATM = Path("/proc/self/statm")


def start(service: Service, metrics: Metrics, lines: emf.Settings | None) -> None:
    """Publish this process's gauges for as long as it lives, and its embedded metric lines where they are wanted."""
    threading.Thread(target=_run, args=(service, metrics, lines), name="telemetry", daemon=True).start()


def _run(service: Service, metrics: Metrics, lines: emf.Settings | None) -> None:
    before, due = metrics.figures(metrics.row), time.monotonic() + (lines.seconds if lines else 0)
    while True:
        publish(service, metrics)
        if lines and time.monotonic() >= due:
            now = metrics.figures(metrics.row)
            emf.write(lines, before, now)
            before, due = now, due + lines.seconds
        time.sleep(PUBLISH_SECONDS)


def publish(service: Service, metrics: Metrics) -> None:
    """Write this process's gauges into its row."""
    metrics.set("queue_length", service.waiting())
    metrics.set("resident_bytes", resident_bytes())
    predictors = service.predictors()
    metrics.set("models", len(predictors))
    metrics.set("model_bytes", sum(predictor.memory_bytes for predictor in predictors))
    used, total = device_memory()
    metrics.set("device_used_bytes", used)
    metrics.set("device_total_bytes", total)


def resident_bytes() -> int:
    """This process's resident memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_memory() -> tuple[int, int]:
    """Bytes in use and in all on the GPU that torch computes on; zeros where it computes on none."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # torch may be half imported by the thread that loads the model
    if cuda is None or not getattr(cuda, "is_initialized", bool)():
        return 0, 0
    free, total = cuda.mem_get_info()
    return total - free, total
