"""The resources of the local SageMaker: one JSON file each, `state/<kind>/<name>.json`.

A resource's document has the shape of its Describe answer (members of the request, plus status, ARN and times as epoch
seconds). Members that the answer does not have are ours and are dropped when it is serialised.
"""

import copy
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """How one resource kind calls its members, in the API's own names."""

    resource: str  # "TrainingJob"; CreateTrainingJob, DescribeTrainingJob, ... follow
    arn_type: str  # "training-job"
    list_member: str  # "TrainingJobSummaries"
    status: str = ""  # "TrainingJobStatus"; "" where the kind has none
    words: str = ""  # what the service calls it in messages

    @property
    def name(self) -> str:
        return self.resource + "Name"

    @property
    def arn(self) -> str:
        return self.resource + "Arn"


TRAINING_JOB = Kind("TrainingJob", "training-job", "TrainingJobSummaries", "TrainingJobStatus", "training job")
TRANSFORM_JOB = Kind("TransformJob", "transform-job", "TransformJobSummaries", "TransformJobStatus", "transform job")
PROCESSING_JOB = Kind(
    "ProcessingJob", "processing-job", "ProcessingJobSummaries", "ProcessingJobStatus", "processing job"
)
MODEL = Kind("Model", "model", "Models", words="model")
ENDPOINT_CONFIG = Kind("EndpointConfig", "endpoint-config", "EndpointConfigs", words="endpoint configuration")
ENDPOINT = Kind("Endpoint", "endpoint", "Endpoints", "EndpointStatus", "endpoint")
INFERENCE_COMPONENT = Kind(
    "InferenceComponent",
    "inference-component",
    "InferenceComponents",
    "InferenceComponentStatus",
    "inference component",
)
JOBS = (TRAINING_JOB, TRANSFORM_JOB, PROCESSING_JOB)
KINDS = (*JOBS, MODEL, ENDPOINT_CONFIG, ENDPOINT, INFERENCE_COMPONENT)


class Store:
    """Every resource by kind and name, in memory and on disk; safe to use from any thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.RLock()
        self._documents: dict[tuple[str, str], Document] = {}
        for kind in KINDS:
            for path in (directory / kind.arn_type).glob("*.json"):
                document = json.loads(path.read_text())
                self._documents[kind.arn_type, document[kind.name]] = document

    def create(self, kind: Kind, document: Document, on_taken: Callable[[Document], Exception]) -> None:
        """Add a resource.

        Raises:
            Exception: what `on_taken` makes of the resource that has the name already.
        """
        with self._lock:
            taken = self._documents.get((kind.arn_type, document[kind.name]))
            if taken is not None:
                raise on_taken(taken)
            self._documents[kind.arn_type, document[kind.name]] = copy.deepcopy(document)
            self._write(kind, document[kind.name])

    def find(self, kind: Kind, name: str) -> Document | None:
        """A copy of the resource, or None."""
        with self._lock:
            return copy.deepcopy(self._documents.get((kind.arn_type, name)))

    def all(self, kind: Kind) -> list[Document]:
        """Copies of every resource of a kind, oldest first."""
        with self._lock:
            found = [
                copy.deepcopy(document)
                for (arn_type, _), document in self._documents.items()
                if arn_type == kind.arn_type
            ]
        return sorted(found, key=lambda document: (document["CreationTime"], document[kind.name]))

    def update(self, kind: Kind, name: str, **members: Any) -> Document:
        """Set members of a resource; those set to None go. LastModifiedTime moves to now.

        Raises:
            KeyError: the resource has been deleted.
        """
        with self._lock:
            document = self._documents[kind.arn_type, name]
            document.update(copy.deepcopy(members), LastModifiedTime=time.time())
            for member in [member for member, value in members.items() if value is None]:
                del document[member]
            self._write(kind, name)
            return copy.deepcopy(document)

    def delete(self, kind: Kind, name: str) -> None:
        with self._lock:
            del self._documents[kind.arn_type, name]
            self._path(kind, name).unlink(missing_ok=True)

    def _write(self, kind: Kind, name: str) -> None:
        path = self._path(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._documents[kind.arn_type, name], indent=1))
        temporary.replace(path)

    def _path(self, kind: Kind, name: str) -> Path:
        return self._directory / kind.arn_type / f"{name}.json"
