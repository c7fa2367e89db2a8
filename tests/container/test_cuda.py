"""CUDA forward compatibility is decided from files, so every case can be laid out without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from container.cuda import cuda_problem, forward_compatible_environment, host_driver_version, torch_cuda_version

DRIVER = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Sun Mar  3 03:33:33 UTC 2026\nGCC version: 13.3.0\n"
)
OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (root@host)\n"


@pytest.fixture
def compat_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "compat"
    directory.mkdir()
    (directory / "libcuda.so.580.65.06").touch()
    (directory / "libcuda.so.1").symlink_to("libcuda.so.580.65.06")
    return directory


@pytest.fixture
def host(tmp_path: Path):
    def write(version: str, template: str = DRIVER) -> Path:
        path = tmp_path / "version"
        path.write_text(template.format(version=version))
        return path

    return write


@pytest.mark.parametrize("version", ["470.256.02", "535.54.03", "580.65.05"])
def test_c8_an_older_driver_gets_the_compat_directory_first(compat_dir, host, version):
    environ = forward_compatible_environment({"LD_LIBRARY_PATH": "/usr/local/nvidia/lib"}, compat_dir, host(version))
    assert environ == {"LD_LIBRARY_PATH": f"{compat_dir}:/usr/local/nvidia/lib"}


@pytest.mark.parametrize("version", ["580.65.06", "580.105.08", "590.1"])
def test_c9_an_equal_or_newer_driver_gets_no_compat_directory(compat_dir, host, version):
    assert forward_compatible_environment({}, compat_dir, host(version)) is None


def test_c9_a_compat_directory_that_the_image_forced_is_taken_out(compat_dir, host):
    environ = forward_compatible_environment({"LD_LIBRARY_PATH": f"{compat_dir}:/lib"}, compat_dir, host("590.1"))
    assert environ == {"LD_LIBRARY_PATH": "/lib"}


def test_c10_a_machine_without_driver_stays_as_it_is(compat_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert forward_compatible_environment({}, compat_dir, tmp_path / "absent") is None


def test_an_image_without_compat_libraries_stays_as_it_is(tmp_path, host):
    assert forward_compatible_environment({}, tmp_path / "absent", host("470.256.02")) is None


def test_a_version_file_that_names_no_version_counts_as_unknown(compat_dir, host):
    assert forward_compatible_environment({}, compat_dir, host("unknown")) is None


def test_the_open_kernel_module_states_its_version_too(host):
    assert host_driver_version(host("580.65.06", OPEN_DRIVER)) == (580, 65, 6)


def test_where_the_version_file_is_missing_nvidia_smi_is_asked(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 535.54.03\necho 535.54.03\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert host_driver_version(tmp_path / "absent") == (535, 54, 3)


def test_c8_the_process_itself_starts_again_with_the_compat_directory(compat_dir, host, tmp_path):
    program = (
        "import sys; from pathlib import Path; import container.cuda as cuda; from container import __main__ as entry\n"
        f"answer = lambda environ: cuda.forward_compatible_environment(environ, Path({str(compat_dir)!r}), "
        f"Path({str(host('470.1'))!r}))\n"
        "entry.forward_compatible_environment = answer\n"
        "import os\n"
        "os.execve = lambda path, argv, environ: (print(argv[1:], environ['LD_LIBRARY_PATH']), sys.exit(0))\n"
        "entry.main(['train'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"['-m', 'container', 'train'] {compat_dir}"


def test_a_gpu_instance_without_a_driver_in_sight_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    problem = cuda_problem({}, "ml.g5.xlarge", "13.0", tmp_path, tmp_path / "absent")
    assert problem is not None
    assert problem.startswith("ml.g5.xlarge has GPUs, but no NVIDIA driver is visible in the container")
    for instance_type in ("ml.m5.large", "ml.c7g.large", "local", ""):
        assert cuda_problem({}, instance_type, "13.0", tmp_path, tmp_path / "absent") is None


def test_a_driver_too_old_for_torchs_cuda_needs_compat_libraries(compat_dir, host, tmp_path):
    problem = cuda_problem({}, "", "13.0", tmp_path / "none", host("470.256.02"))
    assert problem is not None
    assert problem.startswith("driver 470.256.2 is too old for the image's CUDA 13.0, which needs 580 or newer")
    assert cuda_problem({}, "", "13.0", compat_dir, host("470.256.02")) is None
    assert cuda_problem({}, "", "13.0", tmp_path / "none", host("580.65.06")) is None
    assert cuda_problem({}, "", "12.8", tmp_path / "none", host("535.54.03")) is None


def test_a_torch_without_cuda_on_a_gpu_machine_is_an_error_unless_the_cpu_is_asked_for(host, tmp_path):
    problem = cuda_problem({}, "ml.g5.xlarge", "", tmp_path, host("580.65.06"))
    assert problem is not None
    assert "built without CUDA, and this machine has a GPU (driver 580.65.6)" in problem
    for environ in ({"CUDA_VISIBLE_DEVICES": "-1"}, {"CUDA_VISIBLE_DEVICES": ""}, {"NVIDIA_VISIBLE_DEVICES": "void"}):
        assert cuda_problem(environ, "ml.g5.xlarge", "", tmp_path, host("580.65.06")) is None
    assert cuda_problem({}, "ml.g5.xlarge", None, tmp_path, host("580.65.06")) is None  # an image without torch


@pytest.mark.parametrize(("line", "version"), [("cuda: Optional[str] = '12.8'", "12.8"), ("cuda = None", "")])
def test_torchs_cuda_version_is_read_without_loading_torch(tmp_path, line, version):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('loaded')")
    (package / "version.py").write_text(f"__version__ = '2'\n{line}\nhip: Optional[str] = None\n")
    code = "from container.cuda import torch_cuda_version; print(torch_cuda_version())"
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version


def test_without_torch_there_is_no_cuda_version(monkeypatch):
    monkeypatch.setattr("container.cuda.find_spec", lambda name: None)
    assert torch_cuda_version() is None
