"""CloudWatch metrics of endpoints, under the service's names, and statistics over whatever lies in CloudWatch.

Source of names, units and dimensions: "Metrics for monitoring Amazon SageMaker AI with Amazon CloudWatch". Values of
one moment are added up in one datum, which moto then has as if it came with `StatisticValues`.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil, floor, log10
from typing import Any

from moto.backends import get_backend
from moto.cloudwatch.models import MetricAggregatedDatum, MetricDatum

from launcher.local.buckets import ACCOUNT
from launcher.local.metrics import Points

NAMESPACE = "AWS/SageMaker"
MOMENT_SECONDS = 10.0  # resolution of the service's high-resolution metrics
SIGNIFICANT_DIGITS = 2  # of the values that percentiles are taken from
MICROSECONDS, COUNT = "Microseconds", "Count"
Dimensions = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Source:
    """What was invoked."""

    endpoint: str
    variant: str
    config: str
    component: str = ""

    def dimensions(self) -> list[Dimensions]:
        """Every set of dimensions under which the service puts an invocation's metrics."""
        variant = (("EndpointName", self.endpoint), ("VariantName", self.variant))
        if self.component:
            return [(("InferenceComponentName", self.component),)]
        return [variant, (*variant, ("EndpointConfigName", self.config))]


@dataclass(frozen=True)
class Outcome:
    """How one invocation went."""

    status: int
    """Of the container; 0: it did not answer in time."""
    model_seconds: float
    overhead_seconds: float
    instances: int
    """Among which the invocations are shared."""


class Datum(MetricAggregatedDatum):
    """Values of one metric in one moment; grows while the moment lasts."""

    def __init__(self, name: str, dimensions: Dimensions, moment: float, unit: str) -> None:
        members = [{"Name": key, "Value": value} for key, value in dimensions]
        timestamp = datetime.fromtimestamp(moment, UTC).replace(tzinfo=None)  # as moto keeps them
        super().__init__(NAMESPACE, name, float("inf"), float("-inf"), 0.0, 0.0, members, timestamp, unit)
        self.values: Counter[float] = Counter()

    def add(self, value: float, count: int = 1) -> None:
        self.min, self.max = min(self.min, value), max(self.max, value)
        self.sample_count += count
        self.sum += value * count
        self.values[rounded(value)] += count


@dataclass
class EndpointMetrics:
    """Collects what endpoints measure, and puts it into CloudWatch."""

    region: str
    speed: float = 1.0
    """How many times shorter a moment is; see `clock.SPEED_VARIABLE`."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _moment: float = 0.0
    _data: dict[tuple[str, Dimensions], Datum] = field(default_factory=dict)

    def record(self, source: Source, outcome: Outcome) -> None:
        """Count one invocation."""
        values = invocation_values(source, outcome)
        for dimensions in source.dimensions():
            self.put(dimensions, values)

    def put(self, dimensions: Dimensions, values: Iterable[tuple[str, float, str]]) -> None:
        """Add values: name, value and unit of each."""
        with self._lock:
            self._turn_page()
            for name, value, unit in values:
                datum = self._data.get((name, dimensions))
                if datum is None:
                    datum = Datum(name, dimensions, self._moment, unit)
                    self._data[name, dimensions] = datum
                    get_backend("cloudwatch")[ACCOUNT][self.region].metric_data.append(datum)
                datum.add(value)

    def _turn_page(self) -> None:
        length = MOMENT_SECONDS / self.speed
        moment = time.time() // length * length
        if moment != self._moment:
            self._moment, self._data = moment, {}


def invocation_values(source: Source, outcome: Outcome) -> list[tuple[str, float, str]]:
    """The metrics of one invocation; error metrics are 0 where there was none, so that their average is a rate."""
    is_client, is_server = 400 <= outcome.status < 500, outcome.status >= 500 or outcome.status == 0
    share = "InvocationsPerCopy" if source.component else "InvocationsPerInstance"
    return [
        ("Invocations", 1.0, COUNT),
        (share, 1.0 / max(1, outcome.instances), COUNT),
        ("Invocation4XXErrors", float(is_client), COUNT),
        ("Invocation5XXErrors", float(is_server), COUNT),
        ("InvocationModelErrors", float(is_client or is_server), COUNT),
        ("ModelLatency", outcome.model_seconds * 1e6, MICROSECONDS),
        ("OverheadLatency", max(0.0, outcome.overhead_seconds) * 1e6, MICROSECONDS),
    ]


SHOWN = {  # a name for people, and what is shown of a moment
    "Invocations": ("invocations", lambda datum: datum.sum),
    "ModelLatency": ("model latency in ms", lambda datum: datum.sum / datum.sample_count / 1000),
    "Invocation4XXErrors": ("client errors", lambda datum: datum.sum),
    "Invocation5XXErrors": ("server errors", lambda datum: datum.sum),
}


def variant_points(region: str, endpoint: str) -> dict[str, Points]:
    """The main metrics of an endpoint's variants, a point per moment; errors only where there were any."""
    points: dict[str, Points] = {}
    for datum in recent(get_backend("cloudwatch")[ACCOUNT][region].metric_data):
        dimensions = {item.name: item.value for item in datum.dimensions}
        is_of_variant = set(dimensions) == {"EndpointName", "VariantName"} and dimensions["EndpointName"] == endpoint
        if isinstance(datum, Datum) and is_of_variant and datum.name in SHOWN:
            words, value = SHOWN[datum.name]
            moment = datum.timestamp.replace(tzinfo=UTC).timestamp()
            points.setdefault(f"{dimensions['VariantName']}: {words}", []).append((moment, value(datum)))
    return {name: found for name, found in points.items() if "errors" not in name or any(value for _, value in found)}


def rounded(value: float) -> float:
    """The value with its first digits only, so that few different ones are kept."""
    return 0.0 if value == 0 else round(value, SIGNIFICANT_DIGITS - 1 - floor(log10(abs(value))))


# --- statistics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """Which metric, exactly: CloudWatch takes other dimensions for another metric."""

    namespace: str
    name: str
    dimensions: frozenset[tuple[str, str]]

    @staticmethod
    def of(specification: Mapping[str, Any]) -> "Metric":
        """Of a CustomizedMetricSpecification or a PutMetricAlarm body."""
        dimensions = frozenset((item["Name"], item["Value"]) for item in specification.get("Dimensions", []))
        return Metric(specification["Namespace"], specification["MetricName"], dimensions)


def metric_data(region: str, metrics: Iterable[Metric], since: float) -> dict[Metric, list[Any]]:
    """Moto's data of some metrics since a time (epoch seconds), in one look at all of them."""
    wanted = {(metric.namespace, metric.name): [] for metric in metrics}  # type: dict[tuple[str, str], list[Metric]]
    for metric in metrics:
        wanted[metric.namespace, metric.name].append(metric)
    found: dict[Metric, list[Any]] = defaultdict(list)
    earliest = datetime.fromtimestamp(since, UTC).replace(tzinfo=None)
    for datum in recent(get_backend("cloudwatch")[ACCOUNT][region].metric_data):
        for metric in wanted.get((datum.namespace, datum.name), ()):
            at = datum.timestamp.replace(tzinfo=None)
            if at >= earliest and {(item.name, item.value) for item in datum.dimensions} == metric.dimensions:
                found[metric].append(datum)
    return found


def recent(data: Sequence[Any]) -> Iterator[Any]:
    """A copy: requests append to it meanwhile."""
    return iter(list(data))


def statistic(data: Sequence[Any], name: str, start: float, end: float) -> float | None:
    """One statistic of the data between two times (epoch seconds); None where there is none.

    Args:
        data: of one metric, from `metric_data`.
        name: `Sum`, `Average`, `Minimum`, `Maximum`, `SampleCount`, or a percentile such as `p99`.
        start: not included.
        end: included.

    Raises:
        ValueError: a statistic that is not known here.
    """
    window = [datum for datum in data if start < datum.timestamp.replace(tzinfo=UTC).timestamp() <= end]
    if not window:
        return None
    values = values_of(window)
    count = sum(values.values())
    total = sum(datum.value if isinstance(datum, MetricDatum) else datum.sum for datum in window)
    if name.startswith("p") and name[1:].replace(".", "", 1).isdigit():
        return percentile(values, float(name[1:]))
    known = {
        "Sum": total,
        "Average": total / count,
        "Minimum": min(datum.value if isinstance(datum, MetricDatum) else datum.min for datum in window),
        "Maximum": max(datum.value if isinstance(datum, MetricDatum) else datum.max for datum in window),
        "SampleCount": float(count),
    }
    if name not in known:
        raise ValueError(f"the local SageMaker has no statistic {name!r}; it has {', '.join(known)} and p0 to p100")
    return float(known[name])


def values_of(window: Iterable[Any]) -> Counter[float]:
    """How often each value occurs; of a stranger's statistic set, the average stands for all."""
    values: Counter[float] = Counter()
    for datum in window:
        if isinstance(datum, Datum):
            values.update(datum.values)
        elif isinstance(datum, MetricDatum):
            values[datum.value] += 1
        else:
            values[datum.sum / datum.sample_count] += round(datum.sample_count)
    return values


def percentile(values: Counter[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed."""
    rank = max(1, ceil(sum(values.values()) * percent / 100))
    for value in sorted(values):
        rank -= values[value]
        if rank <= 0:
            break
    return value
