"""CUDA forward compatibility: which libcuda a process must load, decided before anything loads it.

An image built for CUDA 13 runs on a host with an older driver only through NVIDIA's compat libraries, and fails with
error 803 if it loads them where the driver is as new. The NVIDIA Container Toolkit leaves the choice to the image since
1.17.4 ("Updating inference containers to comply with the NVIDIA Container Toolkit").
"""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from container.contract import COMPAT_DIR

DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")
LIBRARY_PATH = "LD_LIBRARY_PATH"
_NVIDIA_SMI_SECONDS = 10


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


def _version(text: str) -> tuple[int, ...] | None:
    return tuple(int(part) for part in text.split(".")) if re.fullmatch(r"\d+(\.\d+)+", text) else None
