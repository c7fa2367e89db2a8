"""When a scheduled action of Application Auto Scaling is due: `at(…)`, `rate(…)` and `cron(…)`.

Source: "Schedule recurring scaling actions using cron expressions" of the Application Auto Scaling User Guide.
"""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

UNITS = {"minute": 60, "hour": 3600, "day": 86400}
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
CRON_FIELDS = 6  # minutes, hours, day of month, month, day of week, year
MAX_MINUTES = 24 * 60  # looked back at most: a server that slept does not do everything it missed


def is_due(schedule: str, timezone: str | None, created: float, after: float, until: float) -> bool:
    """Whether an action falls between two times.

    Args:
        schedule: its expression.
        timezone: of `at` and `cron`; None is UTC.
        created: epoch seconds; what `rate` counts from.
        after: epoch seconds, not included.
        until: epoch seconds, included.

    Raises:
        ValueError: no expression that is known here.
    """
    kind, _, rest = schedule.partition("(")
    text = rest.rstrip(")").strip()
    zone = ZoneInfo(timezone) if timezone else UTC
    if kind == "at":
        return after < datetime.fromisoformat(text).replace(tzinfo=zone).timestamp() <= until
    if kind == "rate":
        number, unit = text.split()
        seconds = int(number) * UNITS[unit.rstrip("s")]
        return (until - created) // seconds > max(0.0, after - created) // seconds
    if kind != "cron" or len(text.split()) != CRON_FIELDS:
        raise ValueError(f"{schedule!r} is neither at(…), rate(…) nor cron(…) of six fields")
    minute = datetime.fromtimestamp(until, zone).replace(second=0, microsecond=0)
    for _ in range(MAX_MINUTES):
        if minute.timestamp() <= after:
            return False
        if cron_matches(text, minute):
            return True
        minute -= timedelta(minutes=1)
    return False


def cron_matches(text: str, minute: datetime) -> bool:
    """Whether a minute is one of a cron expression's."""
    values = (minute.minute, minute.hour, minute.day, minute.month, minute.isoweekday() % 7 + 1, minute.year)
    names = ((), (), (), MONTHS, DAYS, ())
    return all(
        field_matches(field, value, known) for field, value, known in zip(text.split(), values, names, strict=True)
    )


def field_matches(field: str, value: int, names: tuple[str, ...]) -> bool:
    """Whether a value is one of a field: `*`, `?`, `5`, `MON-FRI`, `0/15`, `1,3`."""
    for index, name in enumerate(names, start=1):
        field = re.sub(rf"\b{name}\b", str(index), field, flags=re.IGNORECASE)
    return any(_part_matches(part, value) for part in field.split(","))


def _part_matches(part: str, value: int) -> bool:
    if part in ("*", "?"):
        return True
    span, _, step = part.partition("/")
    low, _, high = span.partition("-")
    first = 0 if low == "*" else int(low)
    last = int(high) if high else (first if not step else 9999)
    return first <= value <= last and (value - first) % int(step or 1) == 0
