"""What a job or endpoint will cost, from a table of prices, before it is sent; and the caps that refuse it.

A price that is not in the table is said to be unknown and never guessed. Storage, data transfer and taxes are left out.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launcher.account.fleets import fleets
from launcher.config import Config
from launcher.config.limits import Limits
from launcher.errors import ConfigError, LauncherError

TABLE_VARIABLE = "SLIPWAY_PRICES"  # a table of your own, in the form of prices.json
TABLE = Path(__file__).with_name("prices.json")
HOURS_PER_MONTH = 730  # as AWS's own calculator counts
LOCAL_TYPE = "local"  # this machine


class OverBudget(LauncherError):
    """A request would cost more than the configuration allows, or nobody can say that it would not."""

    exit_code = 7


@dataclass(frozen=True)
class Prices:
    """On-demand prices by region, and where they come from."""

    source: str
    date: str
    regions: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        return f"prices of {self.date}: {self.source}"

    def hourly(self, region: str, instance_type: str) -> float | None:
        """US dollars per hour of one instance; None where the table has none."""
        if instance_type == LOCAL_TYPE:
            return 0.0
        return self.regions.get(region, {}).get("instances", {}).get(instance_type)

    def serverless_gb_second(self, region: str) -> float | None:
        """US dollars per gigabyte of memory and second of a serverless request."""
        return self.regions.get(region, {}).get("serverless_gb_second")


@dataclass(frozen=True)
class Machines:
    """Instances of one type doing one thing."""

    purpose: str
    instance_type: str
    count: int
    usd_per_hour: float | None
    """Of all of them; None where the price is unknown."""


@dataclass(frozen=True)
class Estimate:
    """What one request will cost; None stands for unknown, or for no such figure."""

    kind: Literal["train", "transform", "deploy"]
    machines: tuple[Machines, ...]
    usd_per_hour: float | None
    usd_per_month: float | None
    """Of an endpoint that stays."""
    usd_maximum: float | None
    """Of a training job that runs into its time limit, or a month of an endpoint scaled out all the time."""
    notes: tuple[str, ...]
    prices: str = ""
    """How old the prices are, and where they come from."""

    def lines(self) -> list[str]:
        """For a person."""
        parts = [
            f"   {item.purpose}: {item.count} x {item.instance_type} {_money(item.usd_per_hour)} per hour"
            for item in self.machines
        ]
        if self.kind == "train":
            total = f"-> train: {_money(self.usd_per_hour)} per hour, at most {_money(self.usd_maximum)}"
        elif self.kind == "transform":
            total = f"-> transform: {_money(self.usd_per_hour)} per hour"
        else:
            total = f"-> deploy: {_money(self.usd_per_hour)} per hour, {_money(self.usd_per_month)} per month"
            if self.usd_maximum != self.usd_per_month:
                total += f", {_money(self.usd_maximum)} if scaled out all month"
        return [total, *parts, *(f"   {note}" for note in self.notes)]


def load_prices(environ: Mapping[str, str]) -> Prices:
    """The table that `SLIPWAY_PRICES` names, or ours.

    Raises:
        ConfigError: the file is missing or is not such a table.
    """
    path = Path(environ.get(TABLE_VARIABLE) or TABLE)
    try:
        table = json.loads(path.read_text())
        prices = Prices(table["source"], table["date"], table["regions"])
        figures = [
            price
            for region in prices.regions.values()
            for price in (*region["instances"].values(), region.get("serverless_gb_second", 0))
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{TABLE_VARIABLE}={path} is no table of prices ({type(error).__name__}: {error}); it needs source, "
            'date and regions: {"us-east-1": {"instances": {"ml.m5.xlarge": 0.23}}}'
        ) from error
    if not all(isinstance(price, int | float) and price >= 0 for price in figures):
        raise ConfigError(f"{TABLE_VARIABLE}={path} holds a price that is no number of US dollars per hour")
    return prices


def estimate(kind: Literal["train", "transform", "deploy"], config: Config, prices: Prices) -> Estimate:
    """What the configured request will cost at on-demand prices."""
    if kind == "train":
        found = _training(config, prices)
    elif kind == "transform":
        found = _transform(config, prices)
    else:
        found = _serverless(config, prices) if config.endpoint.serverless else _endpoint(config, prices)
    unknown = dict.fromkeys(item.instance_type for item in found.machines if item.usd_per_hour is None)
    notes = [
        f"the price of {name} in {config.region} is not in the table; name a table of your own in {TABLE_VARIABLE}"
        for name in unknown
    ]
    return replace(found, notes=(*found.notes, *notes), prices=str(prices))


def _training(config: Config, prices: Prices) -> Estimate:
    training = config.training
    hours = (training.max_runtime + (training.keep_alive or 0)) / 3600
    if training.instance_groups:
        machines = tuple(
            _machines(config, prices, group.name, group.instance_type, group.instance_count)
            for group in training.instance_groups
        )
        hourly = _sum(item.usd_per_hour for item in machines)
    else:
        names = ["training", *(f"or instead ({number})" for number in range(2, 1 + len(training.instance_type)))]
        machines = tuple(
            _machines(config, prices, name, instance_type, training.instance_count)
            for name, instance_type in zip(names, training.instance_type, strict=True)
        )
        known = [item.usd_per_hour for item in machines if item.usd_per_hour is not None]
        hourly = max(known) if len(known) == len(machines) else None
    notes = [f"at most {hours:g} h (max_runtime{' and keep_alive' if training.keep_alive else ''})"]
    if training.spot:
        notes.append("spot is billed at a lower price that changes; the maximum is the on-demand price")
    return Estimate("train", machines, hourly, None, _times(hourly, hours), tuple(notes))


def _transform(config: Config, prices: Prices) -> Estimate:
    transform = config.transform
    machines = (_machines(config, prices, "transform", transform.instance_type, transform.instance_count),)
    notes = ("SageMaker knows no time limit for a batch transform job, so there is no maximum",)
    return Estimate("transform", machines, machines[0].usd_per_hour, None, None, tuple(notes))


def _endpoint(config: Config, prices: Prices) -> Estimate:
    endpoint = config.endpoint
    wanted = fleets(endpoint)
    machines = tuple(_machines(config, prices, item.name, item.instance_type, item.count) for item in wanted)
    hourly = _sum(item.usd_per_hour for item in machines)
    scaled_out = _sum(_times(prices.hourly(config.region, item.instance_type), item.most) for item in wanted)
    notes = []
    if endpoint.scaling:
        notes.append(f"scales between {endpoint.scaling.min} and {endpoint.scaling.max} instances per variant")
    if endpoint.managed_instances:
        notes.append(f"at most {endpoint.managed_instances.max} instances, as many as the components need")
    monthly, most = _times(hourly, HOURS_PER_MONTH), _times(scaled_out, HOURS_PER_MONTH)
    notes.append("an endpoint is billed until it is deleted, used or not: `python -m launcher delete NAME`")
    return Estimate("deploy", machines, hourly, monthly, most, tuple(notes))


def _serverless(config: Config, prices: Prices) -> Estimate:
    serverless = config.endpoint.serverless
    assert serverless is not None
    rate = prices.serverless_gb_second(config.region)
    per_hour = _times(rate, serverless.memory_mb / 1024 * 3600)
    notes = [
        "serverless: nothing while idle; one request at a time, without a pause: "
        f"{_money(per_hour)} per hour; at most {serverless.max_concurrency} at once"
    ]
    if serverless.provisioned_concurrency:
        notes.append("provisioned concurrency is billed while idle, too; its price is not in the table")
    idle = None if serverless.provisioned_concurrency else 0.0
    return Estimate("deploy", (), idle, _times(idle, HOURS_PER_MONTH), None, tuple(notes))


def _machines(config: Config, prices: Prices, purpose: str, instance_type: str, count: int) -> Machines:
    return Machines(purpose, instance_type, count, _times(prices.hourly(config.region, instance_type), count))


def priced(kind: Literal["train", "transform", "deploy"], config: Config, environ: Mapping[str, str]) -> Estimate:
    """The estimate to tell right before a request goes to AWS; a local job costs nothing and needs none.

    Raises:
        ConfigError: `SLIPWAY_PRICES` names no table of prices.
        OverBudget: a cap in `limits` does not hold.
    """
    found = estimate(kind, config, load_prices(environ))
    refuse_over_limit(found, config.limits)
    return found


def refuse_over_limit(estimate: Estimate, limits: Limits) -> None:
    """Stop before something is sent that costs more than `limits` allows.

    A batch transform job and an on-demand serverless endpoint have no maximum, so no cap can hold for them.

    Raises:
        OverBudget: it would cost more, or a cap is set and a price is unknown.
    """
    if estimate.kind == "train":
        _refuse("limits.max_job_cost", limits.max_job_cost, estimate.usd_maximum, "lower training.max_runtime")
    if estimate.kind == "deploy" and estimate.machines:
        name = "limits.max_endpoint_cost_per_month"
        cap = limits.max_endpoint_cost_per_month
        _refuse(name, cap, estimate.usd_maximum, "take fewer or smaller instances, scale out less far")


def _refuse(name: str, cap: float | None, most: float | None, way_out: str) -> None:
    if cap is None:
        return
    if most is None:
        raise OverBudget(
            f"{name}={cap:g} is set and the price is unknown, so nobody can say that it holds; "
            f"add the price to a table of your own ({TABLE_VARIABLE}) or remove the limit"
        )
    if most > cap:
        raise OverBudget(f"this may cost {_money(most)} and {name} is {_money(cap)}; {way_out}, or raise the limit")


def _times(price: float | None, factor: float) -> float | None:
    return None if price is None else price * factor


def _sum(prices: Iterable[float | None]) -> float | None:
    total = 0.0
    for price in prices:
        if price is None:
            return None
        total += price
    return total


def _money(amount: float | None) -> str:
    if amount is None:
        return "an unknown price"
    return f"${amount:,.3f}".rstrip("0").rstrip(".") if 0 < amount < 0.1 else f"${amount:,.2f}"
