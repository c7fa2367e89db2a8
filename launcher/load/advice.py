"""What to set for a target, reckoned from a load test, with the arithmetic shown."""

import math
from dataclasses import dataclass

from launcher.load.stages import Load, Stage

HEADROOM = 0.5  # AWS's own safety factor to start with ("Load testing your auto scaling configuration")
ERROR_BUDGET = 0.01


@dataclass(frozen=True)
class Fleet:
    """What was measured."""

    instances: int | None
    """None where the endpoint is serverless."""
    instance_type: str
    cpus: int
    """Of one instance."""
    accelerated: bool


@dataclass(frozen=True)
class Target:
    """What the endpoint shall do; None leaves it open."""

    requests_per_second: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True)
class Advice:
    """A setting, its value, and how it was reckoned."""

    setting: str
    value: float | None
    why: str


def advise(load: Load, fleet: Fleet, target: Target) -> list[Advice]:
    """What to set for a target, each with its arithmetic."""
    best = within(load, target)
    if best is None:
        alone = load.stages[0]
        why = (
            f"no stage had a p99 of {target.p99_ms:g} ms and less than {ERROR_BUDGET:.0%} errors; with "
            f"{alone.concurrency} under way it is {alone.p99_ms:.1f} ms already, which more instances do not lower: "
            "take a faster instance type or a smaller model"
        )
        return [Advice("endpoint.instance_type", None, why)]
    if fleet.instances is None:
        return [_serverless(best, target)]
    capacity = best.requests_per_second / fleet.instances
    usable = HEADROOM * capacity
    found = []
    wanted = target.requests_per_second
    if wanted:
        why = f"{wanted:g}/s / ({capacity:.1f}/s of one instance x {HEADROOM:g} headroom) = {wanted / usable:.2f}"
        found.append(Advice("endpoint.instance_count", max(1, math.ceil(wanted / usable)), why))
    why = f"{capacity:.1f}/s of one instance x {HEADROOM:g} headroom x 60 s"
    found.append(Advice("endpoint.scaling.target", math.floor(60 * usable) or 1, why))
    return [*found, _side_by_side(load.stages[0], best, fleet)]


def within(load: Load, target: Target) -> Stage | None:
    """The stage with most throughput that meets the target's latency; without one, the knee."""
    if target.p99_ms is None:
        return load.knee
    good = [stage for stage in load.stages if stage.p99_ms <= target.p99_ms and stage.error_share <= ERROR_BUDGET]
    return max(good, key=lambda stage: stage.requests_per_second, default=None)


def _serverless(best: Stage, target: Target) -> Advice:
    rate = target.requests_per_second or best.requests_per_second
    busy = rate * best.mean_ms / 1000
    why = f"{rate:.1f}/s x {best.mean_ms / 1000:.3f} s each = {busy:.2f} under way at once, / {HEADROOM:g} headroom"
    return Advice("endpoint.serverless.max_concurrency", max(1, math.ceil(busy / HEADROOM)), why)


def _side_by_side(alone: Stage, best: Stage, fleet: Fleet) -> Advice:
    """How many requests an instance shall work at together: as one batch on an accelerator, in workers on CPUs."""
    assert fleet.instances
    waiting = best.concurrency / fleet.instances
    if fleet.accelerated:
        size = 2 ** math.ceil(math.log2(max(1.0, waiting)))
        why = f"{best.concurrency} under way / {fleet.instances} instances = {waiting:.1f}, up to a power of two"
        return Advice("endpoint.environment.SLIPWAY_MAX_BATCH_SIZE", size, why)
    rate = best.requests_per_second / fleet.instances
    busy = rate * alone.mean_ms / 1000
    why = (
        f"{rate:.1f}/s x {alone.mean_ms / 1000:.4f} s alone = {busy:.2f} at work, {waiting:.1f} under way; "
        f"{fleet.instance_type} has {fleet.cpus} CPUs"
    )
    workers = max(1, min(math.ceil(waiting), fleet.cpus))
    return Advice("endpoint.environment.SAGEMAKER_MODEL_SERVER_WORKERS", workers, why)
