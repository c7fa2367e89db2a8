"""What every job and endpoint of the local SageMaker shares, and the queue that runs jobs a few at a time."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from launcher.local.buckets import ACCOUNT, Buckets
from launcher.local.containers import Container, Runtime
from launcher.local.logs import Logs
from launcher.local.store import Kind, Store

logger = logging.getLogger(__name__)
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


class JobQueue:
    """Runs jobs in the order of their creation, at most `concurrency` at a time; the others wait as `Starting`."""

    def __init__(self, concurrency: int) -> None:
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="job")
        self._lock = threading.Lock()
        self._controls: dict[str, JobControl] = {}

    def submit(self, arn: str, run: Callable[[JobControl], None]) -> None:
        control = JobControl()
        with self._lock:
            self._controls[arn] = control
        self._executor.submit(self._run, arn, run, control)

    def control(self, arn: str) -> JobControl | None:
        """The job's control, or None once it has ended."""
        with self._lock:
            return self._controls.get(arn)

    def shut_down(self) -> None:
        """End every job now and wait for that."""
        with self._lock:
            controls = list(self._controls.values())
        for control in controls:
            control.shut_down()
        self._executor.shutdown(wait=True)

    def _run(self, arn: str, run: Callable[[JobControl], None], control: JobControl) -> None:
        try:
            run(control)
        except Exception:
            logger.exception("job %s", arn)  # a defect of ours; the job's own end is written in `run`
        finally:
            with self._lock:
                del self._controls[arn]


def stop_all(containers: Sequence[Container], grace_seconds: float) -> list[int]:
    """Stop containers together; each has the whole grace."""
    if not containers:
        return []
    with ThreadPoolExecutor(len(containers)) as executor:
        return list(executor.map(lambda container: container.stop(grace_seconds), containers))
