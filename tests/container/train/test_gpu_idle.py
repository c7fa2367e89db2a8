"""GPUs that do nothing, read from a driver that is pretended."""

import sys
import time

import pytest

from container.train import gpu_idle
from container.train.gpu_idle import GpuWatch, nvml_reader

# An nvidia-ml-py whose two GPUs are idle.
PYNVML = """
class NVMLError(Exception): pass
class Rates: gpu = 1
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUtilizationRates(handle): return Rates
"""


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(gpu_idle, "SAMPLE_SECONDS", 0.02)
    monkeypatch.setattr(gpu_idle, "WINDOW_SECONDS", 0.1)


def judged(read, action="warn", gpus=2, seconds=30.0):
    stopped = []
    watch = GpuWatch(read, gpus, action, stopped.append)
    deadline = time.monotonic() + seconds
    while watch._thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.close()
    return stopped


def test_an_idle_gpu_is_told_with_its_share(fast, capsys):
    assert judged(lambda: [97.0, 3.0]) == []
    out = capsys.readouterr().out
    assert "health rule gpu_idle (warn): busy over the last 0 s: GPU 1 3 %. Is the model on the GPU" in out


def test_busy_gpus_and_those_of_nobody_are_not(fast, capsys):
    judged(lambda: [97.0, 3.0], gpus=1, seconds=0.5)
    assert capsys.readouterr().out == ""


def test_an_idle_gpu_can_stop_the_job(fast):
    (evidence,) = judged(lambda: [0.0, 0.0], action="stop")
    assert "GPU 0 0 %, GPU 1 0 %" in evidence


def test_a_machine_without_driver_or_package_is_not_watched(monkeypatch):
    assert nvml_reader() is None  # nvidia-ml-py is here, and no driver
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml_reader() is None


@pytest.mark.slow
def test_the_agent_ends_a_job_whose_gpus_idle_where_the_rule_says_stop(training_job):
    script = "import time\ndef waits():\n    time.sleep(300)\nwaits()\n"
    job = training_job(gpus=2, script=script)
    packages = job.base / "packages"
    packages.mkdir()
    (packages / "pynvml.py").write_text(PYNVML)
    (packages / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'container.train.agent' in sys.orig_argv:\n"
        "    from container.train import gpu_idle\n"
        "    gpu_idle.SAMPLE_SECONDS, gpu_idle.WINDOW_SECONDS = 0.5, 5.0\n"
    )
    job.environ |= {"PYTHONPATH": str(packages), "SLIPWAY_HEALTH": "gpu_idle=stop"}
    assert job.run() == {"algo-1": 1}, job.log()
    assert job.failure().startswith("UnhealthyTraining: gpu_idle: busy over the last 5 s: GPU 0 1 %, GPU 1 1 %.")
    assert "in waits" in (job.opt_ml().output_data / "errors" / "algo-1-rank-0.txt").read_text()


def test_a_rule_that_does_not_exist_ends_the_job_with_its_name(training_job):
    job = training_job(script="pass")
    job.environ["SLIPWAY_HEALTH"] = "gpu_idel=stop"
    assert job.run() == {"algo-1": 1}
    assert "health rule gpu_idel='stop': rules are nan, exploding" in job.failure()
