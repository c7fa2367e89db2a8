"""Every job: run in the order of creation, a few at a time, ended truly, and taken up by the next server."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from launcher.local.platform import JobControl, Platform
from launcher.local.processing import ProcessingJob
from launcher.local.store import JOBS, PROCESSING_JOB, TRAINING_JOB, TRANSFORM_JOB, Document, Kind
from launcher.local.training import TrainingJob
from launcher.local.training_request import next_transitions
from launcher.local.transform import TransformJob

logger = logging.getLogger(__name__)
DIED_REASON = "InternalServerError: the local SageMaker died while this job was running. Start the job again."
BEGUN = "Begun"  # of a job's document, and ours alone: from here on, a server that dies has broken the job


class Runner(Protocol):
    """One job of any kind."""

    def run(self, control: JobControl) -> None:
        """Run it to its end, which it writes into its document."""


RUNNERS: Mapping[Kind, Callable[[Platform, Document], Runner]] = {
    TRAINING_JOB: TrainingJob,
    TRANSFORM_JOB: TransformJob,
    PROCESSING_JOB: ProcessingJob,
}


class Jobs:
    """Runs at most `concurrency` jobs at a time; the others wait, `InProgress` as on the service."""

    def __init__(self, platform: Platform, concurrency: int) -> None:
        self._platform = platform
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="job")
        self._lock = threading.Lock()
        self._controls: dict[str, JobControl] = {}
        self._is_closed = False

    def submit(self, kind: Kind, document: Document) -> None:
        """Queue a job of the store; at the server's end it is left to the next one."""
        job, control = RUNNERS[kind](self._platform, document), JobControl()
        with self._lock:
            if self._is_closed:
                return
            self._controls[document[kind.arn]] = control
            self._executor.submit(self._run, kind, document, job, control)

    def control(self, arn: str) -> JobControl | None:
        """The job's control, or None once it has ended."""
        with self._lock:
            return self._controls.get(arn)

    def _run(self, kind: Kind, document: Document, job: Runner, control: JobControl) -> None:
        if control.shutdown_requested:  # it has only waited: the next server runs it
            return
        try:
            self._platform.store.update(kind, document[kind.name], **{BEGUN: True})
            job.run(control)
        except Exception:
            logger.exception("job %s", document[kind.arn])  # a defect of ours; the job's own end is written in `run`
        finally:
            with self._lock:
                del self._controls[document[kind.arn]]

    def shut_down(self) -> None:
        """End every job that runs now, and wait for that; those that wait stay in the store."""
        with self._lock:
            self._is_closed = True
            controls = list(self._controls.values())
        for control in controls:
            control.shut_down()
        self._executor.shutdown(wait=True)

    def restore(self) -> None:
        """Give a true end to the jobs that ran when the last server died, and queue those that waited."""
        found = [(document, kind) for kind in JOBS for document in self._platform.store.all(kind)]
        for document, kind in sorted(found, key=lambda item: item[0]["CreationTime"]):
            if document[kind.status] not in ("InProgress", "Stopping"):
                continue
            if document.get(BEGUN):
                self._platform.store.update(kind, document[kind.name], **died_members(kind, document, time.time()))
                continue
            self.submit(kind, document)
            control = self.control(document[kind.arn])
            if document[kind.status] == "Stopping" and control is not None:
                control.stop()


def died_members(kind: Kind, document: Document, now: float) -> dict[str, Any]:
    """The members of a document that say how its job ended."""
    members: dict[str, Any] = {kind.status: "Failed", "FailureReason": DIED_REASON}
    if kind is not TRAINING_JOB:
        return members | {kind.resource.removesuffix("Job") + "EndTime": now}
    transitions = next_transitions(document["SecondaryStatusTransitions"], "Failed", now)
    transitions[-1]["EndTime"] = now
    return members | {
        "SecondaryStatus": "Failed",
        "SecondaryStatusTransitions": transitions,
        "TrainingEndTime": now,
    }
