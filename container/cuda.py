"""CUDA forward compatibility: which libcuda a process must load, decided before anything loads it.

An image built for CUDA 13 runs on a host with an older driver only through NVIDIA's compat libraries, and fails with
error 803 if it loads them where the driver is as new. The NVIDIA Container Toolkit leaves the choice to the image since
1.17.4 ("Updating inference containers to comply with the NVIDIA Container Toolkit").
"""

import os
import re
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from container.contract import COMPAT_DIR

DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")
LIBRARY_PATH = "LD_LIBRARY_PATH"
_NVIDIA_SMI_SECONDS = 10
# CUDA's major version -> the oldest driver that runs it by itself ("CUDA Toolkit Release Notes", minor compatibility).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
_GPU_INSTANCE = re.compile(r"ml\.(p|g|gr)\d")
_NO_GPU_WANTED = {"CUDA_VISIBLE_DEVICES": ("", "-1"), "NVIDIA_VISIBLE_DEVICES": ("", "none", "void")}
_CPU_WAY_OUT = "; the variable CUDA_VISIBLE_DEVICES=-1 asks for the CPU"


def forward_compatible_environment(
    environ: Mapping[str, str],
    compat_dir: Path = COMPAT_DIR,
    driver_version_file: Path = DRIVER_VERSION_FILE,
) -> dict[str, str] | None:
    """The environment in which this process must start again, or None where it may stay as it is.

    Args:
        environ: the process's environment.
        compat_dir: where the image keeps the compat libraries.
        driver_version_file: where the host's kernel module states its version.

    Returns:
        `environ` with `compat_dir` first in LD_LIBRARY_PATH if the host's driver is strictly older than the libraries;
        without `compat_dir` where it is in the path and must not be; None if nothing needs to change.
    """
    paths = [path for path in environ.get(LIBRARY_PATH, "").split(":") if path]
    others = [path for path in paths if path != str(compat_dir)]
    wanted = [str(compat_dir), *others] if _needs_compat(compat_dir, driver_version_file) else others
    if wanted == paths:
        return None
    return {**environ, LIBRARY_PATH: ":".join(wanted)}


def _needs_compat(compat_dir: Path, driver_version_file: Path) -> bool:
    library = compat_dir / "libcuda.so.1"
    if not library.exists():
        return False
    compat = _version(os.path.basename(os.path.realpath(library)).removeprefix("libcuda.so."))
    host = host_driver_version(driver_version_file)
    return bool(compat and host and host < compat)


def host_driver_version(driver_version_file: Path = DRIVER_VERSION_FILE) -> tuple[int, ...] | None:
    """The host's NVIDIA driver version, such as (580, 65, 6); None on a machine without one."""
    if driver_version_file.is_file():
        line = next((line for line in driver_version_file.read_text().splitlines() if line.startswith("NVRM")), "")
        match = re.search(r"\s(\d+(?:\.\d+)+)\s", line)
        return _version(match.group(1)) if match else None
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return _version(answer.partition("\n")[0].strip())


def torch_cuda_version() -> str | None:
    """The CUDA version of the installed torch, such as `13.0`; empty for a build without CUDA, None without torch.

    Read from torch's files: importing it takes seconds, and loads libcuda.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text()
    match = re.search(r"^cuda\b[^=]*= *'([^']*)'", text, re.MULTILINE)
    return match.group(1) if match else ""


def cuda_problem(
    environ: Mapping[str, str],
    instance_type: str,
    torch_cuda: str | None,
    compat_dir: Path = COMPAT_DIR,
    driver_version_file: Path = DRIVER_VERSION_FILE,
) -> str | None:
    """Why CUDA cannot work on this machine although it has a GPU, and what to do; None where it can, or need not.

    Args:
        environ: the process's environment; where it hides the GPUs, nothing is wrong.
        instance_type: such as `ml.g5.xlarge`; empty where only the driver tells whether there is a GPU.
        torch_cuda: as `torch_cuda_version` gives it.
        compat_dir: where the image keeps the compat libraries.
        driver_version_file: where the host's kernel module states its version.
    """
    if torch_cuda is None or any(environ.get(name) in values for name, values in _NO_GPU_WANTED.items()):
        return None
    driver = host_driver_version(driver_version_file)
    if driver is None:
        if not _GPU_INSTANCE.match(instance_type):
            return None
        return (
            f"{instance_type} has GPUs, but no NVIDIA driver is visible in the container: the image must set "
            f"NVIDIA_VISIBLE_DEVICES=all and NVIDIA_DRIVER_CAPABILITIES=compute,utility{_CPU_WAY_OUT}"
        )
    version = ".".join(map(str, driver))
    if not torch_cuda:
        return f"the image's torch is built without CUDA, and this machine has a GPU (driver {version}){_CPU_WAY_OUT}"
    oldest = OLDEST_DRIVER.get(int(torch_cuda.partition(".")[0]), 0)
    if driver[0] < oldest and not (compat_dir / "libcuda.so.1").exists():
        return (
            f"driver {version} is too old for the image's CUDA {torch_cuda}, which needs {oldest} or newer, and "
            f"{compat_dir} has no compat libraries: add the package cuda-compat, or use a newer instance{_CPU_WAY_OUT}"
        )
    return None


def _version(text: str) -> tuple[int, ...] | None:
    return tuple(int(part) for part in text.split(".")) if re.fullmatch(r"\d+(\.\d+)+", text) else None
