"""How long a model may take to download and to start, from what is measured here or, without that, from its size."""

import math
from dataclasses import dataclass

from container.contract import STARTUP_TIMEOUT_SECONDS
from launcher.config.endpoint import Endpoint
from launcher.jobs.model import ServedModel

DOWNLOAD_BYTES_PER_SECOND = 50e6  # S3 to an instance's volume and unpacking, one stream, the slow side of what is seen
LOAD_BYTES_PER_SECOND = 100e6  # reading weights from the volume into the process
SLOWER = 3  # an instance that also downloads the image and shares its disk: three times what it took here
SURE_SECONDS = STARTUP_TIMEOUT_SECONDS / 4  # an estimate by size that is longer leaves SageMaker's default too close
BOUNDS = (60, 3600)  # of both members of the API
STEP_SECONDS = 60
DEFAULT = "SageMaker's own"


@dataclass(frozen=True)
class Limit:
    """One of the two, and why it is so."""

    seconds: int | None
    """None leaves SageMaker's default."""
    because: str = ""
    """Empty where nothing is known."""


@dataclass(frozen=True)
class Timeouts:
    """ModelDataDownloadTimeoutInSeconds and ContainerStartupHealthCheckTimeoutInSeconds."""

    download: Limit
    startup: Limit

    def lines(self) -> list[str]:
        """For a person: each limit that somebody has thought about, with its reason."""
        named = {"download_timeout": self.download, "startup_timeout": self.startup}
        return [
            f"{name} {f'{limit.seconds} s' if limit.seconds else DEFAULT}: {limit.because}"
            for name, limit in named.items()
            if limit.because
        ]


def timeouts(endpoint: Endpoint, model: ServedModel) -> Timeouts:
    """The limits for one model; what the configuration says wins."""
    download, startup = _download(model), _startup(model)
    if download.seconds and not startup.seconds:
        startup = Limit(STARTUP_TIMEOUT_SECONDS, startup.because)
    given = "the configuration says so"
    return Timeouts(
        Limit(endpoint.download_timeout, given) if endpoint.download_timeout else download,
        Limit(endpoint.startup_timeout, given) if endpoint.startup_timeout else startup,
    )


def _download(model: ServedModel) -> Limit:
    if model.size_bytes is None:
        return Limit(None)
    seconds = model.size_bytes / DOWNLOAD_BYTES_PER_SECOND
    because = f"{model.size_bytes / 1e9:.1f} GB at {DOWNLOAD_BYTES_PER_SECOND / 1e6:.0f} MB/s"
    if model.measured:
        seconds += model.measured.unpack_seconds
        because += f" and {model.measured.unpack_seconds:.1f} s to unpack here"
    if seconds < SURE_SECONDS:
        return Limit(None)
    return Limit(rounded(SLOWER * seconds), f"{because}, x {SLOWER}")


def _startup(model: ServedModel) -> Limit:
    if model.measured:
        seconds = startup_seconds(model.measured.load_seconds)
        return Limit(
            seconds, f"loaded in {model.measured.load_seconds:.1f} s here ({model.measured.origin}), x {SLOWER}"
        )
    if model.size_bytes is None:
        return Limit(None)
    estimate = model.size_bytes / LOAD_BYTES_PER_SECOND
    if estimate < SURE_SECONDS:
        return Limit(None)
    because = f"{model.size_bytes / 1e9:.1f} GB at {LOAD_BYTES_PER_SECOND / 1e6:.0f} MB/s, x {SLOWER}"
    return Limit(rounded(SLOWER * estimate), because)


def startup_seconds(load_seconds: float) -> int | None:
    """The limit for a model that took so long to load here; None where SageMaker's default will do."""
    needed = SLOWER * load_seconds
    return None if needed <= STARTUP_TIMEOUT_SECONDS else rounded(needed)


def rounded(seconds: float) -> int:
    """Up to a full minute, within what the API takes: a measurement's noise makes no other configuration."""
    lowest, highest = BOUNDS
    return max(lowest, min(highest, math.ceil(seconds / STEP_SECONDS) * STEP_SECONDS))
