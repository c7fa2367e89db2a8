"""What a process counted in an interval as one CloudWatch embedded metric line.

CloudWatch makes metrics of such lines in a log group, and a SageMaker endpoint's standard output is one: nothing has to
reach the container, no agent runs and no permission is needed. The form is the "Specification: Embedded metric format".
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from container.serve.metrics import Figures
from container.serve.plan import PlanError

EMF_SECONDS = "SLIPWAY_EMF_SECONDS"  # how often a line is written; unset: never
EMF_NAMESPACE = "SLIPWAY_EMF_NAMESPACE"
ENDPOINT_NAME = "SLIPWAY_ENDPOINT_NAME"  # the platform tells a container neither of these two
VARIANT_NAME = "SLIPWAY_VARIANT_NAME"
DEFAULT_NAMESPACE = "Slipway/Serving"
Value = tuple[str, float, str]
"""Name, value and unit of a metric."""
PHASE_NAMES = {"queue": "QueueTime", "decode": "DecodeTime", "predict": "PredictTime", "encode": "EncodeTime"}


@dataclass(frozen=True)
class Settings:
    """Where CloudWatch puts the metrics, and how often."""

    seconds: int
    namespace: str
    dimensions: Mapping[str, str]

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings | None":
        """None where no lines were asked for.

        Raises:
            PlanError: the interval is no whole number above 0.
        """
        text = environ.get(EMF_SECONDS) or ""
        if not text:
            return None
        if not text.isdecimal() or int(text) == 0:
            raise PlanError(f"{EMF_SECONDS}={text!r} must be a whole number above 0")
        names = {"EndpointName": environ.get(ENDPOINT_NAME), "VariantName": environ.get(VARIANT_NAME)}
        dimensions = {name: value for name, value in names.items() if value}
        # The specification's schema wants at least one.
        return cls(int(text), environ.get(EMF_NAMESPACE) or DEFAULT_NAMESPACE, dimensions or {"Service": "slipway"})


def write(settings: Settings, before: Figures, now: Figures, device: int | None) -> None:
    """One line on standard output, in one piece: other processes write there, too.

    Args:
        settings: where it goes.
        before: the process's figures at the last line.
        now: and at this one.
        device: the number of the process's GPU, if it has one.
    """
    output = sys.__stdout__  # what is printed may be logged, and CloudWatch wants the bare document
    assert output is not None
    output.write(line(settings, (before, now), usage(device), int(time.time() * 1000)) + "\n")
    output.flush()


def usage(device: int | None) -> list[Value]:
    """What this process and its GPU use at the moment."""
    from container.serve import devices, processes  # pynvml: for those who ask

    process = processes.read(os.getpid())
    values: list[Value] = [("ResidentMemory", process.resident_bytes, "Bytes")] if process else []
    found = [use for use in devices.read(os.environ) if use.index == device]
    for use in found:
        if use.busy is not None:
            values.append(("DeviceUtilization", round(100 * use.busy, 2), "Percent"))
        if use.used_bytes is not None and use.total_bytes:
            values.append(("DeviceMemoryUtilization", round(100 * use.used_bytes / use.total_bytes, 2), "Percent"))
    return values


def line(settings: Settings, looks: tuple[Figures, Figures], usage: list[Value], timestamp_ms: int) -> str:
    """The embedded metric document of what happened between two looks at a process's figures."""
    values = {name: (value, unit) for name, value, unit in (*_values(*looks), *usage)}
    directive = {
        "Namespace": settings.namespace,
        "Dimensions": [list(settings.dimensions)],
        "Metrics": [{"Name": name, "Unit": unit} for name, (_, unit) in values.items()],
    }
    document = {
        "_aws": {"Timestamp": timestamp_ms, "CloudWatchMetrics": [directive]},
        **settings.dimensions,
        "Process": os.getpid(),  # to look at, no dimension: each process would be a metric of its own
        **{name: value for name, (value, _) in values.items()},
    }
    return json.dumps(document)


def _values(before: Figures, now: Figures) -> list[Value]:
    """A mean and a quantile only where there was something to measure."""
    statuses = {key: count - before.requests.get(key, 0) for key, count in now.requests.items()}
    invocations = {key: count for key, count in statuses.items() if key[0].endswith(("/invocations", "/invoke"))}
    values: list[Value] = [
        ("Invocations", sum(invocations.values()), "Count"),
        ("Invocation4XXErrors", _of_class(invocations, 4), "Count"),
        ("Invocation5XXErrors", _of_class(invocations, 5), "Count"),
        ("QueueLength", now.gauges["queue_length"], "Count"),
    ]
    total = now.phases["total"].minus(before.phases["total"])
    if total.count:
        values.append(("Latency", _milliseconds(total.sum / total.count), "Milliseconds"))
        values.append(("LatencyP99", _milliseconds(total.quantile(0.99)), "Milliseconds"))
    for phase, name in PHASE_NAMES.items():
        spent = now.phases[phase].minus(before.phases[phase])
        if spent.count:
            values.append((name, _milliseconds(spent.sum / spent.count), "Milliseconds"))
    batches = now.batches.minus(before.batches)
    if batches.count:
        values.append(("BatchSize", round(batches.sum / batches.count, 3), "Count"))
    return values


def _of_class(statuses: Mapping[tuple[str, int], int], first_digit: int) -> int:
    return sum(count for (_, status), count in statuses.items() if status // 100 == first_digit)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 4)
