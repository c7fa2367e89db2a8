"""What to set for a target: the arithmetic of a load test."""

import pytest

from launcher.commands.load import cpus_of
from launcher.load.advice import Advice, Fleet, Target, advise
from launcher.load.stages import Load, Stage

CPU = Fleet(2, "ml.c5.2xlarge", 8, accelerated=False)
GPU = Fleet(1, "ml.g5.xlarge", 4, accelerated=True)


def stage(concurrency, rate, mean, p99, failed=0):
    errors = {"container 500": failed} if failed else {}
    return Stage(concurrency, 1000, errors, rate, mean, mean, mean, p99, p99, 0.1)


LOAD = Load((stage(1, 50, 20, 25), stage(4, 190, 21, 30), stage(8, 260, 31, 60), stage(16, 265, 60, 200, failed=50)))


def values(load, fleet, target):
    return {item.setting: item.value for item in advise(load, fleet, target)}


def test_instances_and_scaling_follow_from_the_knee():
    found = values(LOAD, CPU, Target(requests_per_second=400))
    # 190/s on two instances: 95/s each, half of it used
    assert found["endpoint.instance_count"] == 9
    assert found["endpoint.scaling.target"] == 2850


def test_a_latency_target_allows_the_most_throughput_that_keeps_it():
    found = values(LOAD, CPU, Target(requests_per_second=400, p99_ms=100))
    assert found["endpoint.instance_count"] == 7  # 260/s, as 16 at once breaks the limit and fails too often
    assert found["endpoint.scaling.target"] == 3900


def test_the_arithmetic_is_shown():
    first = advise(LOAD, CPU, Target(requests_per_second=400))[0]
    assert first == Advice("endpoint.instance_count", 9, "400/s / (95.0/s of one instance x 0.5 headroom) = 8.42")


def test_without_a_rate_no_count_is_advised():
    assert "endpoint.instance_count" not in values(LOAD, CPU, Target())


def test_a_latency_that_no_stage_keeps_asks_for_another_machine():
    (item,) = advise(LOAD, CPU, Target(p99_ms=10))
    assert (item.setting, item.value) == ("endpoint.instance_type", None)
    assert "with 1 under way it is 25.0 ms already" in item.why


@pytest.mark.parametrize(
    ("fleet", "setting", "value"),
    [
        (CPU, "endpoint.environment.SAGEMAKER_MODEL_SERVER_WORKERS", 4),  # 8 under way on two instances
        (Fleet(1, "ml.c5.large", 2, accelerated=False), "endpoint.environment.SAGEMAKER_MODEL_SERVER_WORKERS", 2),
        (GPU, "endpoint.environment.SLIPWAY_MAX_BATCH_SIZE", 8),
        (Fleet(3, "ml.g5.xlarge", 4, accelerated=True), "endpoint.environment.SLIPWAY_MAX_BATCH_SIZE", 4),
    ],
)
def test_cpus_get_workers_and_accelerators_batches(fleet, setting, value):
    assert values(LOAD, fleet, Target(p99_ms=100))[setting] == value


def test_a_serverless_endpoint_gets_its_concurrency_by_littles_law():
    fleet = Fleet(None, "serverless", 0, accelerated=False)
    assert values(LOAD, fleet, Target(requests_per_second=100)) == {"endpoint.serverless.max_concurrency": 5}


@pytest.mark.parametrize(
    ("instance_type", "cpus"),
    [("ml.t2.medium", 2), ("ml.c5.large", 2), ("ml.g5.xlarge", 4), ("ml.c5.9xlarge", 36), ("ml.p4d.24xlarge", 96)],
)
def test_the_size_in_a_types_name_tells_its_cpus(instance_type, cpus):
    assert cpus_of(instance_type) == cpus
