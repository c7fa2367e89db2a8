"""What every job and endpoint of the local SageMaker shares."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from launcher.local.buckets import ACCOUNT, Buckets
from launcher.local.containers import Container, Runtime
from launcher.local.logs import Logs
from launcher.local.store import Kind, Store

T = TypeVar("T")
SHUTDOWN_REASON = "InternalServerError: the local SageMaker was stopped while this job was running. Start it again."


@dataclass(frozen=True)
class Platform:
    """The local SageMaker's parts, made once by the server."""

    home: Path
    region: str
    store: Store
    buckets: Buckets
    logs: Logs
    runtime: Runtime
    aws_environment: dict[str, str]  # how a container reaches this server
    max_instances: int = 4  # of one variant, however many are asked for: this is one machine

    @property
    def jobs_directory(self) -> Path:
        return self.home / "jobs"

    def arn(self, kind: Kind, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{ACCOUNT}:{kind.arn_type}/{name}"

    def credentials(self, isolated: bool) -> dict[str, str]:
        """The AWS variables of a container: none under network isolation, as on the service."""
        return {"AWS_REGION": self.region} | ({} if isolated else self.aws_environment)


@dataclass
class JobControl:
    """What others ask of a running job; its thread looks whenever `wake` is set."""

    wake: threading.Event = field(default_factory=threading.Event)
    stop_requested: bool = False
    interrupt_requested: bool = False
    shutdown_requested: bool = False

    def stop(self) -> None:
        self.stop_requested = True
        self.wake.set()

    def interrupt(self) -> None:
        """End the host as a spot reclaim does: at once."""
        self.interrupt_requested = True
        self.wake.set()

    def shut_down(self) -> None:
        self.shutdown_requested = True
        self.wake.set()


def together(items: Sequence[T], act: Callable[[T], object]) -> None:
    """Do something with all items at once.

    Raises:
        Exception: what the first one raised, after all have ended.
    """
    with ThreadPoolExecutor(max(1, len(items))) as executor:
        futures = [executor.submit(act, item) for item in items]
    for future in futures:
        future.result()


def stop_all(containers: Sequence[Container], grace_seconds: float) -> list[int]:
    """Stop containers together; each has the whole grace."""
    if not containers:
        return []
    with ThreadPoolExecutor(len(containers)) as executor:
        return list(executor.map(lambda container: container.stop(grace_seconds), containers))
