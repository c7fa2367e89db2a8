"""The containers of one job, one per host, watched until their common end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launcher.local.containers import Container
from launcher.local.errors import JobFailed
from launcher.local.platform import SHUTDOWN_REASON, JobControl, stop_all

POLL_SECONDS = 0.1
PEER_GRACE_SECONDS = 5.0  # what the others get to end by themselves once one host has failed
PEER_STOP_SECONDS = 20.0  # and then from SIGTERM to SIGKILL
SHUTDOWN_STOP_SECONDS = 2.0


@dataclass(frozen=True)
class Outcome:
    """How the containers of a job ended."""

    secondary_status: str  # Completed, Failed, Stopped, MaxRuntimeExceeded, Interrupted
    failed_host: str = ""
    exit_code: int = 0


def supervise(
    containers: Mapping[str, Container],
    control: JobControl,
    deadline: float,
    stop_seconds: float,
    report: Callable[[str], None],
) -> Outcome:
    """Wait for the containers, and for what others ask of the job.

    Args:
        containers: by host.
        control: of the job.
        deadline: epoch seconds of MaxRuntimeInSeconds.
        stop_seconds: from SIGTERM to SIGKILL when the job is stopped.
        report: told `Interrupted` or `Stopping` before that happens.

    Raises:
        JobFailed: the server is going down.
    """
    everything = list(containers.values())
    while True:
        codes = {host: container.exit_code for host, container in containers.items()}
        failed = next((host for host, code in codes.items() if code), None)
        if failed is not None:
            return _end_peers(containers, failed)
        if all(code == 0 for code in codes.values()):
            return Outcome("Completed")
        if control.shutdown_requested:
            stop_all(everything, SHUTDOWN_STOP_SECONDS)
            raise JobFailed(SHUTDOWN_REASON)
        if control.interrupt_requested:
            report("Interrupted")
            stop_all(everything, 0)
            return Outcome("Interrupted")
        if control.stop_requested or time.time() >= deadline:
            report("Stopping")
            stop_all(everything, stop_seconds)
            return Outcome("Stopped" if control.stop_requested else "MaxRuntimeExceeded")
        control.wake.wait(POLL_SECONDS)
        control.wake.clear()


def _end_peers(containers: Mapping[str, Container], host: str) -> Outcome:
    """The first host that failed decides; its peers, which may wait for it forever, are ended."""
    exit_code = containers[host].exit_code or 1
    grace_ends = time.time() + PEER_GRACE_SECONDS
    for container in containers.values():
        container.wait(max(0.0, grace_ends - time.time()))
    stop_all([container for container in containers.values() if container.exit_code is None], PEER_STOP_SECONDS)
    return Outcome("Failed", host, exit_code)
