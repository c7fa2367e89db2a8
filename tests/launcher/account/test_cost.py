import json

import pytest

from launcher.account.cost import TABLE, OverBudget, Prices, estimate, load_prices, priced, refuse_over_limit
from launcher.config import Config
from launcher.errors import ConfigError

REGION = "us-east-1"


@pytest.fixture
def prices() -> Prices:
    instances = {"ml.m5.xlarge": 0.25, "ml.g5.xlarge": 1.5, "ml.g5.2xlarge": 2.0}
    return Prices("a test", "2026-01", {REGION: {"instances": instances, "serverless_gb_second": 0.00002}})


def config_of(**sections) -> Config:
    return Config.model_validate(sections)


def test_a_training_job_costs_at_most_price_times_instances_times_its_time_limit(prices):
    config = config_of(training={"instance_type": "ml.g5.xlarge", "instance_count": 2, "max_runtime": "8h"})
    found = estimate("train", config, prices)
    assert found.usd_per_hour == 3.0
    assert found.usd_maximum == 24.0
    assert found.usd_per_month is None


def test_of_several_instance_types_the_most_expensive_counts(prices):
    config = config_of(training={"instance_type": ["ml.g5.xlarge", "ml.g5.2xlarge"], "max_runtime": "1h"})
    assert estimate("train", config, prices).usd_maximum == 2.0


def test_instance_groups_are_added_up(prices):
    groups = [
        {"name": "gpu", "instance_type": "ml.g5.xlarge", "instance_count": 2},
        {"name": "cpu", "instance_type": "ml.m5.xlarge", "instance_count": 4},
    ]
    found = estimate("train", config_of(training={"instance_groups": groups, "max_runtime": "2h"}), prices)
    assert (found.usd_per_hour, found.usd_maximum) == (4.0, 8.0)


def test_a_warm_pool_is_part_of_the_maximum(prices):
    config = config_of(training={"instance_type": "ml.m5.xlarge", "max_runtime": "1h", "keep_alive": "1h"})
    found = estimate("train", config, prices)
    assert found.usd_maximum == 0.5
    assert "at most 2 h (max_runtime and keep_alive)" in found.notes


def test_spot_is_noted_and_the_maximum_stays_the_on_demand_price(prices):
    config = config_of(training={"instance_type": "ml.m5.xlarge", "max_runtime": "4h", "spot": True})
    found = estimate("train", config, prices)
    assert found.usd_maximum == 1.0
    assert "spot is billed at a lower price that changes; the maximum is the on-demand price" in found.notes


def test_an_endpoint_costs_by_the_hour_and_by_the_month_of_730_hours(prices):
    variants = [{"name": "a", "model": "s3://b/m.tar.gz"}, {"name": "b", "model": "x", "instance_type": "ml.m5.xlarge"}]
    shadow = {"name": "c", "model": "y", "instance_count": 3}
    endpoint = {"instance_type": "ml.g5.xlarge", "variants": variants, "shadow": shadow}
    found = estimate("deploy", config_of(endpoint=endpoint), prices)
    assert found.usd_per_hour == 1.5 + 0.25 + 4.5
    assert found.usd_per_month == 6.25 * 730
    assert found.usd_maximum == found.usd_per_month


def test_scaling_sets_the_maximum_of_an_endpoint(prices):
    endpoint = {"instance_type": "ml.m5.xlarge", "instance_count": 2, "scaling": {"min": 1, "max": 4, "target": 60}}
    found = estimate("deploy", config_of(endpoint=endpoint), prices)
    assert found.usd_per_month == 365
    assert found.usd_maximum == 730
    assert "$730.00 if scaled out all month" in found.lines()[0]


def test_an_endpoint_scaled_to_zero_may_still_scale_out(prices):
    scaling = {"min": 0, "max": 2}
    endpoint = {"instance_type": "ml.m5.xlarge", "instance_count": 0, "asynchronous": True, "scaling": scaling}
    found = estimate("deploy", config_of(endpoint=endpoint), prices)
    assert (found.usd_per_month, found.usd_maximum) == (0, 365)


def test_a_serverless_endpoint_costs_nothing_while_idle(prices):
    found = estimate("deploy", config_of(endpoint={"serverless": {"memory_mb": 2048}}), prices)
    assert found.usd_per_month == 0
    assert "$0.14 per hour; at most 5 at once" in found.notes[0]


def test_provisioned_concurrency_has_no_known_price(prices):
    found = estimate("deploy", config_of(endpoint={"serverless": {"provisioned_concurrency": 1}}), prices)
    assert found.usd_per_month is None
    assert "its price is not in the table" in found.notes[1]


def test_a_transform_job_has_a_price_per_hour_and_no_maximum(prices):
    found = estimate("transform", config_of(transform={"instance_type": "ml.m5.xlarge", "instance_count": 2}), prices)
    assert (found.usd_per_hour, found.usd_maximum) == (0.5, None)
    assert found.lines()[0] == "-> transform: $0.50 per hour"


@pytest.mark.parametrize(
    ("region", "instance_type"), [("us-east-1", "ml.p5.48xlarge"), ("eu-central-1", "ml.m5.xlarge")]
)
def test_an_unknown_price_is_said_and_never_guessed(prices, region, instance_type):
    config = config_of(region=region, training={"instance_type": [instance_type, "ml.m5.xlarge"]})
    found = estimate("train", config, prices)
    assert (found.usd_per_hour, found.usd_maximum) == (None, None)
    assert f"the price of {instance_type} in {region} is not in the table" in " ".join(found.notes)
    assert found.lines()[0] == "-> train: an unknown price per hour, at most an unknown price"


def test_this_machine_costs_nothing(prices):
    assert estimate("train", config_of(training={"instance_type": "local"}), prices).usd_maximum == 0


def test_a_job_over_the_cap_is_refused_and_one_at_the_cap_is_not(prices):
    limits = {"max_job_cost": 15}
    allowed = config_of(training={"instance_type": "ml.g5.xlarge", "max_runtime": "10h"}, limits=limits)
    refuse_over_limit(estimate("train", allowed, prices), allowed.limits)
    longer = config_of(training={"instance_type": "ml.g5.xlarge", "max_runtime": "11h"}, limits=limits)
    with pytest.raises(OverBudget, match=r"cost \$16.50 and limits.max_job_cost is \$15.00; lower training") as error:
        refuse_over_limit(estimate("train", longer, prices), longer.limits)
    assert error.value.exit_code == 7


def test_an_endpoint_that_could_scale_over_the_cap_is_refused(prices):
    config = config_of(
        endpoint={"instance_type": "ml.m5.xlarge", "scaling": {"max": 4, "target": 60}},
        limits={"max_endpoint_cost_per_month": 500},
    )
    with pytest.raises(OverBudget, match=r"may cost \$730.00 and limits.max_endpoint_cost_per_month is \$500.00"):
        refuse_over_limit(estimate("deploy", config, prices), config.limits)


def test_right_before_sending_the_estimate_is_told_or_the_request_refused():
    cheap = config_of(training={"instance_type": "ml.m5.xlarge", "max_runtime": "1h"}, limits={"max_job_cost": 1})
    assert priced("train", cheap, {}).usd_maximum == 0.23
    with pytest.raises(OverBudget):
        priced("train", config_of(limits={"max_job_cost": 1}), {})


def test_with_a_cap_an_unknown_price_is_refused(prices):
    config = config_of(training={"instance_type": "ml.p5.48xlarge"}, limits={"max_job_cost": 100000})
    with pytest.raises(OverBudget, match="max_job_cost=100000 is set and the price is unknown"):
        refuse_over_limit(estimate("train", config, prices), config.limits)


def test_without_a_cap_nothing_is_refused(prices):
    config = config_of(training={"instance_type": "ml.p5.48xlarge", "instance_count": 100})
    refuse_over_limit(estimate("train", config, prices), config.limits)
    refuse_over_limit(estimate("transform", config, prices), config.limits)


def test_a_cap_cannot_hold_for_an_on_demand_serverless_endpoint_and_does_not_stop_it(prices):
    config = config_of(endpoint={"serverless": True}, limits={"max_endpoint_cost_per_month": 1})
    refuse_over_limit(estimate("deploy", config, prices), config.limits)


def test_our_own_table_says_where_its_figures_come_from_and_how_old_they_are():
    found = load_prices({})
    assert "from memory" in found.source
    assert "check https://aws.amazon.com/sagemaker/ai/pricing/ before you rely on it" in found.source
    assert found.date == "2025-06"
    assert estimate("train", Config(), found).prices == f"prices of 2025-06: {found.source}"


def test_our_own_table_grows_with_the_size_of_the_machine():
    table = json.loads(TABLE.read_text())["regions"][REGION]["instances"]
    for family in ("m5", "c5", "r5", "g4dn", "p3"):
        costs = [price for name, price in table.items() if name.split(".")[1] == family]
        assert costs == sorted(costs)


def test_a_table_of_your_own_replaces_ours(tmp_path):
    path = tmp_path / "prices.json"
    table = {"source": "our contract", "date": "2026-11", "regions": {"eu-west-1": {"instances": {"ml.m5.xlarge": 2}}}}
    path.write_text(json.dumps(table))
    found = load_prices({"SLIPWAY_PRICES": str(path)})
    config = config_of(region="eu-west-1", training={"instance_type": "ml.m5.xlarge", "max_runtime": "1h"})
    assert estimate("train", config, found).usd_maximum == 2
    assert found.hourly(REGION, "ml.m5.xlarge") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"source": "x", "date": "y", "regions": {"r": {}}}'])
def test_a_broken_table_says_what_is_needed(tmp_path, text):
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is no table of prices .* it needs source, date and regions"):
        load_prices({"SLIPWAY_PRICES": str(path)})


def test_a_missing_table_says_which(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.json is no table of prices"):
        load_prices({"SLIPWAY_PRICES": str(tmp_path / "nowhere.json")})


@pytest.mark.parametrize("price", ['"1"', "-1", "null"])
def test_a_price_that_is_no_number_is_refused(tmp_path, price):
    path = tmp_path / "prices.json"
    path.write_text(f'{{"source": "x", "date": "y", "regions": {{"r": {{"instances": {{"ml.m5.xlarge": {price}}}}}}}}}')
    with pytest.raises(ConfigError, match="holds a price that is no number"):
        load_prices({"SLIPWAY_PRICES": str(path)})


def test_a_cap_counts_the_machines_that_components_may_start(prices):
    components = [{"name": "a", "model": "job"}]
    endpoint = {"instance_type": "ml.m5.xlarge", "components": components, "managed_instances": {"max": 4}}
    found = estimate("deploy", config_of(endpoint=endpoint), prices)
    assert (found.usd_per_month, found.usd_maximum) == (182.5, 730)
    assert "at most 4 instances, as many as the components need" in found.notes
    with pytest.raises(OverBudget, match=r"this may cost \$730.00 and limits.max_endpoint_cost_per_month is \$700.00"):
        refuse_over_limit(found, config_of(limits={"max_endpoint_cost_per_month": 700}).limits)
