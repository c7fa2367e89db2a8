"""MetricDefinitions over log lines: final values, and the points that go to CloudWatch."""

import re
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from moto.backends import get_backend
from moto.cloudwatch.models import MetricDatum

from launcher.local.buckets import ACCOUNT

NAMESPACE = "/aws/sagemaker/TrainingJobs"
Points = list[tuple[float, float]]  # epoch seconds and value


class MetricScanner:
    """Finds the metrics of one job in the lines of all its hosts."""

    def __init__(self, definitions: Sequence[Mapping[str, str]], job_name: str, region: str) -> None:
        self._patterns = [(definition["Name"], re.compile(definition["Regex"])) for definition in definitions]
        self._final: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._job_name = job_name
        self._cloudwatch = get_backend("cloudwatch")[ACCOUNT][region]

    def scan(self, line: str, seconds: float | None = None) -> None:
        """Keep what a line says; it was printed now, or at `seconds` of the epoch."""
        for name, pattern in self._patterns:
            match = pattern.search(line)
            value = _number(match.group(1)) if match and pattern.groups else None
            if value is not None:
                self._keep(name, value, time.time() if seconds is None else seconds)

    def final(self) -> list[dict[str, Any]]:
        """FinalMetricDataList."""
        with self._lock:
            return [
                {"MetricName": name, "Value": value, "Timestamp": seconds}
                for name, (value, seconds) in self._final.items()
            ]

    def _keep(self, name: str, value: float, now: float) -> None:
        with self._lock:
            self._final[name] = (value, now)
            datum = {
                "MetricName": name,
                "Value": value,
                "Timestamp": datetime.fromtimestamp(now, UTC).replace(tzinfo=None),  # as moto keeps them
                "Dimensions": [{"Name": "TrainingJobName", "Value": self._job_name}],
            }
            self._cloudwatch.put_metric_data(NAMESPACE, [datum])


def metric_points(region: str, job_name: str) -> dict[str, Points]:
    """Every metric of a job, its points in the order in which they came."""
    points: dict[str, Points] = {}
    for datum in list(get_backend("cloudwatch")[ACCOUNT][region].metric_data):
        is_of_job = [item.value for item in datum.dimensions] == [job_name]
        if isinstance(datum, MetricDatum) and datum.namespace == NAMESPACE and is_of_job:
            points.setdefault(datum.name, []).append((datum.timestamp.replace(tzinfo=UTC).timestamp(), datum.value))
    return points


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value - value == 0 else None  # NaN and infinity are no values of CloudWatch
