"""`/metrics`: the figures of all processes in Prometheus' text form."""

import os
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from container.serve import devices, processes, telemetry
from container.serve.exchange import Response
from container.serve.health import Health
from container.serve.metrics import Histogram, Metrics
from container.serve.service import Service

PUBLISHED = {
    "queue_length": ("slipway_queue_length", "Requests that wait for a compute thread."),
    "model_bytes": ("slipway_model_memory_bytes", "Parameters and buffers of the loaded torch models."),
    "models": ("slipway_models_loaded", "Models that can be invoked."),
}
"""Gauge of a row -> its name and what it is."""


def exposition(service: Service, metrics: Metrics) -> Response:
    """The answer to `GET /metrics`."""
    telemetry.publish(service, metrics)
    registry = CollectorRegistry()
    registry.register(Collected(metrics, service.health))
    return Response(200, generate_latest(registry), CONTENT_TYPE_LATEST)


class Collected(Collector):
    """The rows of `Metrics` as prometheus_client's families."""

    def __init__(self, metrics: Metrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health

    def describe(self) -> Iterable[Metric]:
        return ()  # else registering collects once for the names

    def collect(self) -> Iterator[Metric]:
        """Counters are sums over all processes, the dead ones too; gauges are of each that lives."""
        total = self._metrics.total()
        requests = CounterMetricFamily("slipway_requests", "Answered requests.", labels=("route", "status"))
        for (route, status), count in sorted(total.requests.items()):
            requests.add_metric((route, str(status) if status else "other"), count)
        yield requests
        phases = HistogramMetricFamily(
            "slipway_request_duration_seconds", "Time of an invocation in each phase, and in total.", labels=("phase",)
        )
        for phase, histogram in total.phases.items():
            phases.add_metric((phase,), _cumulative(histogram), histogram.sum)
        yield phases
        batches = HistogramMetricFamily("slipway_batch_size", "Requests that were predicted together.")
        batches.add_metric((), _cumulative(total.batches), total.batches.sum)
        yield batches
        yield from self._published()
        yield from self._processes()
        yield from _devices()

    def _published(self) -> Iterator[Metric]:
        """What each process says of itself."""
        for name, (published, text) in PUBLISHED.items():
            family = GaugeMetricFamily(published, text, labels=("process",))
            for row in self._health.occupied():
                family.add_metric((str(row),), self._metrics.figures(row).gauges[name])
            yield family

    def _processes(self) -> Iterator[Metric]:
        """What the kernel says of each."""
        labels = ("process",)
        cpu = CounterMetricFamily(
            "slipway_process_cpu_seconds", "CPU time of the process since it began.", None, labels
        )
        resident = GaugeMetricFamily(
            "slipway_process_resident_memory_bytes", "Memory of the process, shared pages included.", None, labels
        )
        files = GaugeMetricFamily("slipway_process_open_fds", "Open files and connections.", None, labels)
        for row in self._health.occupied():
            use = processes.read(int(self._metrics.figures(row).gauges["pid"]))
            if use:
                cpu.add_metric((str(row),), use.cpu_seconds)
                resident.add_metric((str(row),), use.resident_bytes)
                files.add_metric((str(row),), use.open_files)
        yield from (cpu, resident, files)
        ready = GaugeMetricFamily("slipway_processes_ready", "Processes that can answer.")
        ready.add_metric((), self._health.ready())
        yield ready
        restarts = CounterMetricFamily("slipway_process_restarts", "Processes that died and were replaced.")
        restarts.add_metric((), self._metrics.restarts)
        yield restarts


def _devices() -> Iterator[Metric]:
    labels = ("device", "uuid")
    busy = GaugeMetricFamily(
        "slipway_device_utilization_ratio", "Share of the last second in which the GPU computed.", None, labels
    )
    used = GaugeMetricFamily("slipway_device_memory_used_bytes", "Memory of the GPU in use, by anybody.", None, labels)
    total = GaugeMetricFamily("slipway_device_memory_total_bytes", "Memory of the GPU.", None, labels)
    for device in devices.read(os.environ):
        for family, value in ((busy, device.busy), (used, device.used_bytes), (total, device.total_bytes)):
            if value is not None:
                family.add_metric((str(device.index), device.uuid), value)
    yield from (family for family in (busy, used, total) if family.samples)


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' buckets: each counts what is at or below its bound."""
    buckets, seen = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(seen)))
    return buckets
