"""CloudWatch alarms: moto stores them, and here they are evaluated.

An alarm on one metric follows its data. What SetAlarmState sets stays until the data say something new: the service
goes back to the data within seconds, and whoever flips an alarm by hand here wants to see what follows. Alarms on
metric math and composite alarms change by SetAlarmState only.
"""

import time
from collections.abc import Iterable, Sequence
from operator import ge, gt, le, lt
from typing import Any

from moto.backends import get_backend

from launcher.local.buckets import ACCOUNT
from launcher.local.endpoint_metrics import Metric, metric_data, statistic

ALARM, OK, INSUFFICIENT = "ALARM", "OK", "INSUFFICIENT_DATA"
COMPARISONS = {
    "GreaterThanOrEqualToThreshold": ge,
    "GreaterThanThreshold": gt,
    "LessThanThreshold": lt,
    "LessThanOrEqualToThreshold": le,
}
LOOK_BACK = 2  # periods before the evaluated ones, from which missing data are made up for
NEW = "Unchecked: Initial alarm creation"  # moto's reason of an alarm that nobody has set


class Alarms:
    """The alarms of this account, as moto has them."""

    def __init__(self, region: str, speed: float) -> None:
        self._region = region
        self._speed = speed
        self._last: dict[str, tuple[Any, str]] = {}  # name -> the alarm and what its data said last

    def _all(self) -> dict[str, Any]:
        return dict(get_backend("cloudwatch")[ACCOUNT][self._region].alarms)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that no alarm has."""
        known = self._all()
        return [name for name in names if name not in known]

    def ringing(self, names: Iterable[str]) -> list[str]:
        """Those of the names whose alarm is in ALARM."""
        known = self._all()
        return [name for name in names if name in known and known[name].state_value == ALARM]

    def ringing_for(self, action: str) -> list[Any]:
        """Alarms in ALARM that call an action, such as a scaling policy's ARN."""
        found = [alarm for alarm in self._all().values() if alarm.state_value == ALARM]
        return [alarm for alarm in found if alarm.actions_enabled and action in (alarm.alarm_actions or [])]

    def evaluate(self) -> None:
        """Let every alarm on one metric follow its data."""
        alarms = [alarm for alarm in self._all().values() if is_followed(alarm)]
        metrics = {metric_of(alarm) for alarm in alarms}
        longest = max((float(alarm.period) * (alarm.evaluation_periods + LOOK_BACK) for alarm in alarms), default=0.0)
        now = time.time()
        data = metric_data(self._region, metrics, now - longest / self._speed)
        for alarm in alarms:
            self._follow(alarm, data_state(alarm, data.get(metric_of(alarm), []), now, self._speed))

    def _follow(self, alarm: Any, state: str) -> None:
        known, before = self._last.get(alarm.name, (None, ""))
        self._last[alarm.name] = (alarm, state)
        was_set_by_hand = known is not alarm and alarm.state_reason != NEW
        if (known is alarm and state == before) or was_set_by_hand or alarm.state_value == state:
            return
        alarm.update_state(f"Threshold Crossed: the data of {alarm.metric_name} say {state}", "{}", state)


def is_followed(alarm: Any) -> bool:
    """Whether the alarm looks at one metric with a statistic that is known here."""
    statistic_name = str(alarm.statistic or alarm.extended_statistic or "")
    is_known = statistic_name in ("Sum", "Average", "Minimum", "Maximum", "SampleCount") or statistic_name[:1] == "p"
    return bool(alarm.metric_name and alarm.namespace and alarm.comparison_operator in COMPARISONS and is_known)


def metric_of(alarm: Any) -> Metric:
    """The metric an alarm looks at."""
    return Metric(alarm.namespace, alarm.metric_name, frozenset((item.name, item.value) for item in alarm.dimensions))


def data_state(alarm: Any, data: Sequence[Any], now: float, speed: float) -> str:
    """What the data of its metric say about an alarm: `OK`, `ALARM` or `INSUFFICIENT_DATA`.

    The periods end now: the service's end at full minutes, which nobody here wants to wait for.
    """
    period, count = float(alarm.period) / speed, int(alarm.evaluation_periods)
    needed = int(alarm.datapoints_to_alarm or count)
    name = str(alarm.statistic or alarm.extended_statistic)
    values = [
        statistic(data, name, now - (index + 1) * period, now - index * period) for index in range(count + LOOK_BACK)
    ]
    treatment = alarm.treat_missing_data or "missing"
    compare = COMPARISONS[alarm.comparison_operator]
    threshold = float(alarm.threshold)
    if treatment in ("breaching", "notBreaching"):
        verdicts = [treatment == "breaching" if item is None else compare(item, threshold) for item in values[:count]]
        return ALARM if sum(verdicts) >= needed else OK
    verdicts = [compare(item, threshold) for item in values if item is not None][:count]
    if not verdicts:
        return str(alarm.state_value) if treatment == "ignore" else INSUFFICIENT
    return ALARM if sum(verdicts) >= min(needed, len(verdicts)) else OK
