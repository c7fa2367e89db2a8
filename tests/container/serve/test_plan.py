import pytest

from container.serve.plan import (
    GIB,
    Machine,
    PlanError,
    artifact_size,
    plan_server,
    read_machine,
    usable_cores,
    usable_memory,
)

LIGHT, HEAVY = 400_000, 46_000_000


def machine(cores=4, memory_gib=16, gpus=0, shm_writable=True):
    return Machine(cores, memory_gib * GIB, gpus, shm_writable)


@pytest.mark.parametrize(
    ("on", "artifact_bytes", "processes", "threads"),
    [
        (machine(cores=4), LIGHT, 4, 1),
        (machine(cores=4), HEAVY, 1, 4),
        (machine(cores=1), LIGHT, 1, 1),
        (machine(cores=64), LIGHT, 8, 8),
        (machine(cores=16, gpus=4), HEAVY, 4, 1),
    ],
)
def test_a_light_model_gets_a_process_per_core_and_a_heavy_one_threads(on, artifact_bytes, processes, threads):
    plan = plan_server(on, {}, artifact_bytes)
    assert (plan.processes, plan.compute_threads) == (processes, threads)


def test_c143_two_gigabytes_hold_one_process():
    assert plan_server(machine(cores=2, memory_gib=2), {}, LIGHT).processes == 1
    assert plan_server(machine(cores=6, memory_gib=2), {}, 15_000_000).processes == 1
    assert plan_server(machine(cores=6, memory_gib=6), {}, LIGHT).processes > 1


@pytest.mark.parametrize("cores", [1, 2, 3, 7, 96])
@pytest.mark.parametrize("artifact_bytes", [LIGHT, HEAVY])
def test_never_more_compute_threads_than_cores(cores, artifact_bytes):
    plan = plan_server(machine(cores=cores), {}, artifact_bytes)
    assert plan.processes * plan.compute_threads * plan.torch_threads <= cores


def test_every_choice_can_be_overridden_by_environment():
    environ = {
        "SAGEMAKER_MODEL_SERVER_WORKERS": "3",
        "SLIPWAY_COMPUTE_THREADS": "5",
        "SLIPWAY_TORCH_THREADS": "2",
        "SLIPWAY_MAX_BATCH_SIZE": "7",
        "SLIPWAY_MAX_QUEUE": "9",
        "SLIPWAY_MAX_REQUEST_BYTES": "11",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "13",
        "SAGEMAKER_BIND_TO_PORT": "9191",
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv",
    }
    plan = plan_server(machine(), environ, LIGHT)
    assert (plan.processes, plan.compute_threads, plan.torch_threads) == (3, 5, 2)
    assert (plan.max_batch_size, plan.max_queue, plan.max_request_bytes) == (7, 9, 11)
    assert (plan.request_timeout_seconds, plan.port, plan.default_accept) == (13, 9191, "text/csv")


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_setting_that_is_no_positive_number_is_named(value):
    with pytest.raises(PlanError, match="SAGEMAKER_MODEL_SERVER_WORKERS"):
        plan_server(machine(), {"SAGEMAKER_MODEL_SERVER_WORKERS": value}, LIGHT)


def test_c83_a_port_that_is_none_is_named():
    assert plan_server(machine(), {"SAGEMAKER_BIND_TO_PORT": "65535"}, LIGHT).port == 65535
    with pytest.raises(PlanError, match="SAGEMAKER_BIND_TO_PORT=65536 is no port"):
        plan_server(machine(), {"SAGEMAKER_BIND_TO_PORT": "65536"}, LIGHT)


def test_c106_empty_variables_are_unset_ones():
    environ = {"SAGEMAKER_BIND_TO_PORT": "", "SAGEMAKER_MODEL_SERVER_WORKERS": "", "SAGEMAKER_BATCH": ""}
    assert plan_server(machine(), environ, LIGHT) == plan_server(machine(), {}, LIGHT)


@pytest.mark.parametrize(
    ("value", "batch"), [("true", True), ("True", True), ("false", False), ("", False), (None, False)]
)
def test_c132_batch_mode_is_on_when_the_variable_says_so(value, batch):
    environ = {} if value is None else {"SAGEMAKER_BATCH": value}
    assert plan_server(machine(), environ, LIGHT).batch is batch


def test_no_time_limit_is_below_what_the_platform_allows():
    plan = plan_server(machine(), {}, LIGHT)
    assert plan.request_timeout_seconds >= 3600
    assert plan.graceful_seconds < 30
    assert plan.keep_alive_seconds >= 65


def test_c141_an_hour_of_an_asynchronous_request_is_within_the_deadline_whatever_its_queue_took():
    for on in (machine(), machine(gpus=1)):
        assert plan_server(on, {}, HEAVY).request_timeout_seconds > 3600  # InvocationTimeoutSeconds' maximum


def test_c142_gunicorn_beats_its_heart_in_tmp_where_dev_shm_cannot_be_written():
    assert plan_server(machine(shm_writable=False), {}, LIGHT).worker_tmp_dir == "/tmp"
    assert plan_server(machine(shm_writable=True), {}, LIGHT).worker_tmp_dir == "/dev/shm"


def test_multi_model_mode_is_one_process_so_that_there_is_one_registry():
    for workers in ("", "4"):
        environ = {"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_MODEL_SERVER_WORKERS": workers}
        assert plan_server(machine(), environ, LIGHT).processes == 1


@pytest.mark.parametrize(
    ("affinity", "cpu_max", "cores"),
    [
        (8, "max 100000", 8),
        (8, "", 8),
        (8, "150000 100000", 1),
        (8, "50000 100000", 1),
        (2, "400000 100000", 2),
        (8, "-1 100000", 8),
    ],
)
def test_cores_are_the_least_of_affinity_and_quota(affinity, cpu_max, cores):
    assert usable_cores(affinity, cpu_max) == cores


def test_memory_is_the_least_of_machine_and_cgroup():
    assert usable_memory(8 * GIB, str(2 * GIB)) == 2 * GIB
    assert usable_memory(8 * GIB, "max") == 8 * GIB


def test_the_plan_is_one_line_with_every_figure():
    line = plan_server(machine(), {}, LIGHT).line()
    assert "processes=4" in line
    assert "port=8080" in line
    assert "\n" not in line


def test_this_machine_can_be_read():
    found = read_machine()
    assert found.cores >= 1
    assert found.memory_bytes > 0


def test_c105_an_absent_model_directory_has_no_size(tmp_path):
    assert artifact_size(tmp_path / "absent") == 0
    (tmp_path / "weights").write_bytes(b"12345")
    assert artifact_size(tmp_path) == 5
