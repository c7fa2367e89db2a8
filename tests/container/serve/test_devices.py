"""GPUs as nvidia-ml-py reads them from a driver's library that is pretended, in C."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from container.serve import telemetry

READ = """
import json, sys
from container.serve import devices
for visible in json.loads(sys.argv[1]):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    uses = devices.read(environ)
    assert [use.index for use in uses] == list(range(len(uses)))
    print(json.dumps([[use.uuid, use.busy, use.used_bytes, use.total_bytes] for use in uses]))
assert "torch" not in sys.modules
"""
FIRST = ["GPU-aaaa-1", 0.37, 10_000_000_000, 80_000_000_000]
SECOND = ["GPU-abbb-2", 1.0, 1, 4]
PARTS = [["MIG-cccc-1", None, 5, 20], ["MIG-dddd-2", None, 7, 20]]


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Environment in which there is one."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("driver") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True)
    return {"LD_LIBRARY_PATH": str(library.parent)}


def read(environ, visible=(None,)):
    """What a process sees, by CUDA_VISIBLE_DEVICES; None: it is not set."""
    process = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(visible)],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(visible, map(json.loads, process.stdout.splitlines()), strict=True))


def test_the_gpus_are_those_that_cuda_would_show_in_its_order(driver):
    expected = {
        None: [FIRST, SECOND],
        "0,1": [FIRST, SECOND],
        "1,0": [SECOND, FIRST],
        " 1 ": [SECOND],
        "GPU-abbb-2": [SECOND],
        "GPU-ab,0": [SECOND, FIRST],
        "GPU-a": [],  # the beginning of two
        "1,7,0": [SECOND],
        "1,-1,0": [SECOND],
        "0,GPU-aaaa-1": [],  # one twice
        "": [],
        "NoDevFiles": [],
    }
    assert read(driver, tuple(expected)) == expected


def test_a_part_of_a_split_gpu_has_its_own_memory_and_no_load(driver):
    expected = {
        None: [FIRST, PARTS[0]],  # CUDA shows one part
        "1": [PARTS[0]],
        "MIG-dddd-2": [PARTS[1]],
        "GPU-abbb-2": [],
    }
    assert read({**driver, "FAKE_NVML": "split"}, tuple(expected)) == expected


def test_a_gpu_that_is_lost_is_there_without_figures(driver):
    assert read({**driver, "FAKE_NVML": "lost"}) == {None: [FIRST, ["GPU-abbb-2", None, None, None]]}


def test_without_a_driver_or_with_a_broken_one_there_is_no_gpu(driver):
    assert read({}) == {None: []}
    assert read({**driver, "FAKE_NVML": "broken"}) == {None: []}


def test_a_server_tells_how_busy_each_gpu_is_and_starts_no_cuda_for_it(driver, start_server, user_model):
    model = user_model("""
        import sys
        def predict_fn(data, model): return "torch" in sys.modules
    """)
    server = start_server(model, **driver).wait_ready()
    text = server.request("GET", "/metrics").body.decode()
    found = {
        (sample.name, sample.labels["device"], sample.labels["uuid"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "device" in sample.labels
    }
    names = (
        "slipway_device_utilization_ratio",
        "slipway_device_memory_used_bytes",
        "slipway_device_memory_total_bytes",
    )
    assert found == {
        (name, str(number), device[0]): value
        for number, device in enumerate((FIRST, SECOND))
        for name, value in zip(names, device[1:], strict=True)
    }
    answer = server.request("POST", "/invocations", b"1", {"Content-Type": "application/json"})
    assert json.loads(answer.body) is False


def test_a_metric_line_has_the_use_of_the_process_s_own_gpu(driver):
    code = "import json; from container.serve import emf; print(json.dumps([emf.usage(n) for n in (0, 1, None)]))"
    environ = {"PATH": os.environ["PATH"], **driver, "FAKE_NVML": "split"}
    output = subprocess.check_output([sys.executable, "-c", code], env=environ, text=True)
    first, part, none = ({name: (value, unit) for name, value, unit in values} for values in json.loads(output))
    assert first.pop("ResidentMemory")[0] > 1e6
    assert first == {"DeviceUtilization": (37.0, "Percent"), "DeviceMemoryUtilization": (12.5, "Percent")}
    assert part.keys() == {"ResidentMemory", "DeviceMemoryUtilization"}
    assert none.keys() == {"ResidentMemory"}


@pytest.mark.parametrize(("devices", "number"), [(["cuda:1"], 1), (["cpu", "cuda:0"], 0), (["cpu"], None), ([], None)])
def test_the_gpu_of_a_process_is_the_one_its_models_are_on(devices, number):
    models = [SimpleNamespace(defaults=SimpleNamespace(device=device)) for device in devices]
    assert telemetry.device_of(SimpleNamespace(predictors=lambda: models)) == number
