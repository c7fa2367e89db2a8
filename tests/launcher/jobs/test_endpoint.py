"""An endpoint section becomes CreateModel, CreateEndpointConfig and CreateEndpoint."""

import pytest

from launcher.errors import ConfigError
from launcher.jobs import components, endpoint
from launcher.jobs.model import Measured, ServedModel, together
from launcher.jobs.timeouts import timeouts
from launcher.jobs.update import return_call, update_call
from launcher.validate import problems

MODEL = ServedModel("s3://bucket/model.tar.gz")
MODES = {
    "realtime": "name: digits\nendpoint: {instance_type: ml.g5.xlarge, environment: {A: 1}, volume_size_gb: 100}",
    "serverless": "name: digits\nendpoint: {serverless: {memory_mb: 2048, provisioned_concurrency: 1}}",
    "asynchronous": """
name: digits
endpoint:
  asynchronous: {max_concurrent: 4, error_topic: "arn:aws:sns:us-east-1:111122223333:errors"}
""",
    "variants": """
name: digits
endpoint:
  variants: [{name: old, model: s3://b/1, weight: 9}, {name: new, model: s3://b/2, instance_type: ml.m5.large}]
  shadow: {name: next, model: s3://b/3, instance_count: 1}
  capture: {sampling: 20}
  kms_key: alias/key
""",
    "containers": """
name: digits
endpoint:
  instance_type: ml.m5.large
  environment: {SHARED: 1}
  container_mode: Direct
  containers: [{name: prepare, image: "111122223333.dkr.ecr.us-east-1.amazonaws.com/prepare:1", environment: {A: 1}},
    {name: classify, model: s3://b/1}]
""",
    "components": """
name: digits
endpoint:
  instance_type: ml.m5.large
  managed_instances: {min: 0, max: 3}
  components:
  - {name: a, model: s3://b/1, copies: 2, cpus: 1, environment: {A: 1}}
  - {name: b, model: s3://b/2, accelerators: 1}
""",
    "multi_model": """name: digits
endpoint: {multi_model: true, model: s3://bucket/models/, instance_type: ml.m5.xlarge}
""",
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_makes_valid_requests(mode, config, context, golden):
    made = config(yaml=MODES[mode])
    models = {name: ServedModel(uri or MODEL.uri) for name, uri in endpoint.models_of(made.endpoint).items()}
    calls = endpoint.calls(made, context, models)
    if made.endpoint.components:
        calls += components.calls(made, context, models)
    assert [problem for call in calls for problem in problems(call)] == []
    golden(f"endpoint_{mode}", [call.request for call in calls])


def test_the_same_deployment_has_the_same_names(config, context):
    first, second = (endpoint.calls(config(), context, {"main": MODEL}) for _ in range(2))
    assert first == second


def test_another_model_has_another_name_and_the_endpoint_keeps_its_own(config, context):
    first = endpoint.calls(config(), context, {"main": MODEL})
    second = endpoint.calls(config(), context, {"main": ServedModel("s3://bucket/other.tar.gz")})
    assert [call.request != other.request for call, other in zip(first, second, strict=True)] == [True, True, True]
    assert first[-1].request["EndpointName"] == second[-1].request["EndpointName"] == "digits"


def test_two_endpoints_of_one_project_share_models_and_no_configuration(config, context):
    one, other = (
        endpoint.calls(config(f"endpoint.name={name}"), context, {"main": MODEL}) for name in ("one", "other")
    )
    assert one[0] == other[0]
    assert one[1].request["EndpointConfigName"] != other[1].request["EndpointConfigName"]


def test_variants_of_one_model_create_it_once(config, context):
    made = config("endpoint.variants=[{name: a, model: s3://b/1}, {name: b, model: s3://b/1, weight: 2}]")
    calls = endpoint.calls(made, context, {"a": MODEL, "b": MODEL})
    assert [call.operation for call in calls] == ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"]


@pytest.mark.parametrize("kind", ["all_at_once", "canary", "linear", "rolling"])
def test_an_update_rolls_out_as_configured(kind, config, golden):
    made = config(f"endpoint.rollout={{type: {kind}, percent: 20, wait: 5m, alarms: [errors]}}")
    call = update_call(made, "digits-2", ["errors"])
    assert problems(call) == []
    golden(f"update_{kind}", call.request)


def test_the_way_back_is_at_once_and_asks_no_alarm(config):
    made = config("endpoint.rollout={type: canary, alarms: [errors]}")
    assert return_call(made, "old").request == {"EndpointName": "digits", "EndpointConfigName": "old"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{type: linear, percent: 5}", "percent=5 is too small for type=linear; at least 10"),
        ("{type: rolling, keep_old: 60}", "keep_old is not for type=rolling"),
        ("{type: linear, wait: 30m}", "11 parts|10 parts with wait=1800s .* longer than timeout=14400s"),
        ("{alarms: [{metric: errors}]}", "metric and above"),
        ("{alarms: [{metric: errors, above: 1, period: 40}]}", "full minutes"),
        ("{alarms: [{name: a, metric: errors, above: 1}]}", "metric and above"),
    ],
)
def test_a_rollout_that_cannot_be_kept_is_refused(section, message, config):
    with pytest.raises(ConfigError, match=message):
        config(f"endpoint.rollout={section}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["endpoint.serverless=true"], "components excludes serverless"),
        (["endpoint.scaling={max: 2, target: 1}"], "components scale each for itself"),
    ],
)
def test_what_components_exclude_is_refused(settings, message, config):
    with pytest.raises(ConfigError, match=message):
        config("endpoint.components=[{name: a, model: s3://b/1}]", *settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("endpoint.managed_instances={max: 2}", "managed_instances is for endpoints with components"),
        (
            "endpoint.components=[{name: a, model: s3://b/1}, {name: a, model: s3://b/1}]",
            "two components have the same",
        ),
        (
            "endpoint.components=[{name: a, model: s3://b/1, scaling: {max: 2}}]",
            "components a: scaling.target is not set",
        ),
    ],
)
def test_components_that_make_no_sense_are_refused(settings, message, config):
    with pytest.raises(ConfigError, match=message):
        config(settings)


def test_an_update_without_a_rollout_says_nothing_about_it(config):
    assert update_call(config(), "x").request == {"EndpointName": "digits", "EndpointConfigName": "x"}


@pytest.mark.parametrize(
    ("gigabytes", "expected"), [(None, (None, None)), (0.5, (None, None)), (20, (1200, 600)), (500, (3600, 3600))]
)
def test_c146_a_large_model_gets_time_to_download_and_to_start(gigabytes, expected, config):
    size = None if gigabytes is None else int(gigabytes * 1e9)
    limits = timeouts(config().endpoint, ServedModel(MODEL.uri, size))
    assert (limits.download.seconds, limits.startup.seconds) == expected


def test_c146_configured_times_win(config, context):
    made = config("endpoint.download_timeout=10m", "endpoint.startup_timeout=20m")
    calls = endpoint.calls(made, context, {"main": ServedModel(MODEL.uri, int(900e9))})
    (variant,) = calls[1].request["ProductionVariants"]
    assert variant["ModelDataDownloadTimeoutInSeconds"] == 600
    assert variant["ContainerStartupHealthCheckTimeoutInSeconds"] == 1200


MEASURED = Measured(200.0, 30.0, "deploy --probe, 2026-11-21")


@pytest.mark.parametrize(
    ("measured", "size", "expected"),
    [
        (MEASURED, 1_000, (None, 600)),  # three times what it took here, up to a minute
        (Measured(160.0, 0.0, "x"), 1_000, (None, None)),  # 480 s are SageMaker's own
        (Measured(5000.0, 0.0, "x"), 1_000, (None, 3600)),  # the API's maximum
        (Measured(9.0, 0.0, "x"), int(20e9), (1200, 480)),  # it loads fast here, whatever its size
        (MEASURED, int(20e9), (1320, 600)),  # unpacking counts
    ],
)
def test_c146_what_was_measured_here_decides_the_start(measured, size, expected, config):
    limits = timeouts(config().endpoint, ServedModel(MODEL.uri, size, measured=measured))
    assert (limits.download.seconds, limits.startup.seconds) == expected


def test_a_limit_is_told_with_its_reason(config):
    found = timeouts(config().endpoint, ServedModel(MODEL.uri, int(20e9), measured=MEASURED))
    assert found.lines() == [
        "download_timeout 1320 s: 20.0 GB at 50 MB/s and 30.0 s to unpack here, x 3",
        "startup_timeout 600 s: loaded in 200.0 s here (deploy --probe, 2026-11-21), x 3",
    ]
    assert timeouts(config().endpoint, ServedModel(MODEL.uri, 1_000)).lines() == []


def test_several_containers_load_one_after_the_other_at_worst():
    found = together([ServedModel("a", 10, measured=MEASURED), ServedModel("b", 20, measured=MEASURED)])
    assert (found.size_bytes, found.measured.load_seconds) == (30, 400)
    assert together([ServedModel("a", 10, measured=MEASURED), ServedModel("b", 20)]).measured is None


def test_with_scaling_an_update_keeps_the_instances_and_takes_the_weights_of_the_file(config):
    request = update_call(config("endpoint.scaling={max: 3, target: 9}"), "x").request
    assert request["RetainAllVariantProperties"] is True
    assert request["ExcludeRetainedVariantProperties"] == [{"VariantPropertyType": "DesiredWeight"}]
