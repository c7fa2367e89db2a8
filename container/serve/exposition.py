"""`/metrics`: the figures of all processes in Prometheus' text form."""

from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from container.serve import telemetry
from container.serve.exchange import Response
from container.serve.health import Health
from container.serve.metrics import Histogram, Metrics
from container.serve.service import Service

# name, what it is; only where the second is there and above 0, or the gauge counts from 0 anyway
GAUGES = {
    "queue_length": ("slipway_queue_length", "Requests that wait for a compute thread."),
    "resident_bytes": ("slipway_process_resident_memory_bytes", "Memory of the process, shared pages included."),
    "model_bytes": ("slipway_model_memory_bytes", "Parameters and buffers of the loaded torch models."),
    "models": ("slipway_models_loaded", "Models that can be invoked."),
    "device_used_bytes": ("slipway_device_memory_used_bytes", "Memory in use on the process's GPU, by anybody."),
    "device_total_bytes": ("slipway_device_memory_total_bytes", "Memory of the process's GPU."),
}
ONLY_WHERE_KNOWN = {"device_used_bytes", "device_total_bytes"}


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
        yield from self._gauges()
        restarts = CounterMetricFamily("slipway_process_restarts", "Processes that died and were replaced.")
        restarts.add_metric((), self._metrics.restarts)
        yield restarts

    def _gauges(self) -> Iterator[Metric]:
        living = self._health.occupied()
        for name, (published, text) in GAUGES.items():
            family = GaugeMetricFamily(published, text, labels=("process",))
            for row in living:
                value = self._metrics.figures(row).gauges[name]
                if value or name not in ONLY_WHERE_KNOWN:
                    family.add_metric((str(row),), value)
            yield family
        ready = GaugeMetricFamily("slipway_processes_ready", "Processes that can answer.")
        ready.add_metric((), self._health.ready())
        yield ready


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' buckets: each counts what is at or below its bound."""
    buckets, seen = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(seen)))
    return buckets
