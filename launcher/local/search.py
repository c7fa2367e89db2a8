"""The Search operation over training jobs: by name, tag, metric, hyperparameter, or any other member."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from launcher.local.errors import ValidationException
from launcher.local.store import Document

Comparison = Callable[[Any, Any], bool]
COMPARISONS: dict[str, Comparison] = {
    "Equals": lambda have, want: have == want,
    "NotEquals": lambda have, want: have != want,
    "GreaterThan": lambda have, want: have > want,
    "GreaterThanOrEqualTo": lambda have, want: have >= want,
    "LessThan": lambda have, want: have < want,
    "LessThanOrEqualTo": lambda have, want: have <= want,
}
ORDERS = frozenset(COMPARISONS) - {"Equals", "NotEquals"}


def search(documents: list[Document], request: Mapping[str, Any]) -> list[Document]:
    """The resources that a Search request finds, in its order; the newest first where it names none.

    Raises:
        ValidationException: see `matches`.
    """
    found = [document for document in documents if matches(document, request.get("SearchExpression", {}))]
    found.sort(key=lambda document: _sort_key(member(document, request.get("SortBy", "CreationTime"))))
    return found if request.get("SortOrder") == "Ascending" else found[::-1]


def _sort_key(value: Any) -> tuple[bool, float, str]:
    number = as_number(value)
    return value is not None, 0.0 if number is None else number, "" if number is not None else str(value)


def matches(document: Document, expression: Mapping[str, Any]) -> bool:
    """Whether a resource satisfies a SearchExpression; an empty one takes everything.

    Raises:
        ValidationException: an operator without its value, or one that is for numbers and times on another value.
    """
    outcomes = [
        *(is_match(document, condition) for condition in expression.get("Filters", [])),
        *(has_nested(document, nested) for nested in expression.get("NestedFilters", [])),
        *(matches(document, inner) for inner in expression.get("SubExpressions", [])),
    ]
    return any(outcomes) if expression.get("Operator") == "Or" and outcomes else all(outcomes)


def has_nested(document: Document, nested: Mapping[str, Any]) -> bool:
    """Whether one item of a list satisfies all of the filters, whose names begin with the list's."""
    prefix = nested["NestedPropertyName"] + "."
    filters = [{**condition, "Name": condition["Name"].removeprefix(prefix)} for condition in nested["Filters"]]
    items = member(document, nested["NestedPropertyName"]) or []
    return any(all(is_match(item, condition) for condition in filters) for item in items)


def is_match(document: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Whether a member satisfies one filter; what a resource lacks is unequal to everything.

    Raises:
        ValidationException: see `matches`.
    """
    name, operator = condition["Name"], condition.get("Operator", "Equals")
    have = member(document, name)
    if operator in ("Exists", "NotExists"):
        return (have is not None) == (operator == "Exists")
    if "Value" not in condition:
        raise ValidationException(f"The filter on {name} with operator {operator} needs a Value")
    text = condition["Value"]
    if operator == "Contains":
        return text.lower() in str(have or "").lower()
    if operator == "In":
        return str(have) in [value.strip() for value in text.split(",")]
    if have is None:
        return operator == "NotEquals"
    number, wanted = as_number(have), as_number(text)
    if number is None or wanted is None:
        if operator in ORDERS:
            raise ValidationException(f"{operator} is for numbers and times; {name}={have!r} and {text!r} are not both")
        return COMPARISONS[operator](str(have).lower(), text.lower())  # "the comparison is case-insensitive"
    return COMPARISONS[operator](number, wanted)


def member(document: Mapping[str, Any], name: str) -> Any:
    """`TrainingJobStatus`, `ResourceConfig.InstanceType`, `HyperParameters.lr`, `Tags.team`, `Metrics.loss`."""
    first, _, rest = name.partition(".")
    if first == "Tags" and rest:
        return next((tag["Value"] for tag in document.get("Tags", []) if tag["Key"] == rest), None)
    if first == "Metrics" and rest:
        found = document.get("FinalMetricDataList", [])
        return next((item["Value"] for item in found if item["MetricName"] == rest), None)
    value: Any = document
    while name:
        if not isinstance(value, Mapping):
            return None
        if name in value:  # a hyperparameter's name may have dots
            return value[name]
        first, _, name = name.partition(".")
        value = value.get(first)
    return value


def as_number(value: Any) -> float | None:
    """A number, or the epoch seconds of an ISO 8601 time (of UTC where it names no zone)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
