"""The SageMaker API: JSON 1.1 in, the operations over the store and the platform, JSON 1.1 out."""

import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from launcher.local.alarms import Alarms
from launcher.local.checks import (
    check_processing_job,
    check_training_job,
    check_transform_job,
)
from launcher.local.component_api import ComponentApi
from launcher.local.endpoint_api import EndpointApi
from launcher.local.endpoints import Endpoints
from launcher.local.errors import (
    ResourceInUse,
    SerializationException,
    UnknownOperation,
    ValidationException,
)
from launcher.local.hosting_checks import check_model
from launcher.local.jobs import Jobs
from launcher.local.platform import Platform
from launcher.local.resources import Resources
from launcher.local.search import search
from launcher.local.service_model import serialize, service_model, validate_request
from launcher.local.store import (
    JOBS,
    KINDS,
    MODEL,
    PROCESSING_JOB,
    TRAINING_JOB,
    TRANSFORM_JOB,
    Document,
    Kind,
)
from launcher.local.training_request import next_transitions, with_selected_instances

TARGET_PREFIX = "SageMaker."
DEFAULT_PAGE = 10  # "The default value is 10"
SORT_MEMBERS = {"CreationTime": "CreationTime", "LastModifiedTime": "LastModifiedTime"}


class SageMakerApi:
    """Every operation of the control plane that the local SageMaker has."""

    def __init__(self, platform: Platform, jobs: Jobs, endpoints: Endpoints, alarms: Alarms) -> None:
        self._platform = platform
        self._store = platform.store
        self._jobs = jobs
        self._resources = Resources(platform)
        self._model = service_model("sagemaker")
        self._operations: dict[str, Callable[[Document], Document]] = {
            "CreateTrainingJob": self._create_training_job,
            "CreateTransformJob": self._create_transform_job,
            "CreateProcessingJob": self._create_processing_job,
            "CreateModel": self._create_model,
            "AddTags": self._add_tags,
            "ListTags": self._list_tags,
            "DeleteTags": self._delete_tags,
            "Search": self._search,
            **ComponentApi(platform, self._resources, endpoints).operations(),
            **EndpointApi(platform, self._resources, endpoints, alarms).operations(),
        }
        for kind in KINDS:
            self._operations[f"Describe{kind.resource}"] = partial(self._describe, kind)
            self._operations[f"List{kind.resource}s"] = partial(self._list, kind)
            self._operations.setdefault(f"Delete{kind.resource}", partial(self._delete, kind))
        for kind in JOBS:
            self._operations[f"Stop{kind.resource}"] = partial(self._stop, kind)

    def answer(self, operation_name: str, body: bytes) -> Document:
        """The response of one operation.

        Raises:
            ServiceError: what the client shall see.
        """
        operation = self._operations.get(operation_name)
        if operation is None:
            raise UnknownOperation(
                f"The local SageMaker has no operation {operation_name}; it has {', '.join(sorted(self._operations))}"
            )
        try:
            request = json.loads(body or b"{}")
        except ValueError as error:
            raise SerializationException(f"The body of {operation_name} is no JSON: {error}") from error
        modeled = self._model.operation_model(operation_name)
        if modeled.input_shape is not None:
            validate_request(modeled.input_shape, request)
        return serialize(modeled.output_shape, operation(request))

    # --- create -----------------------------------------------------------------------------------------------------

    def _create_training_job(self, request: Document) -> Document:
        check_training_job(self._platform, request)
        request = with_selected_instances(request)
        transitions = next_transitions([], "Starting", time.time())
        extra = {"SecondaryStatus": "Starting", "SecondaryStatusTransitions": transitions}
        return self._run(TRAINING_JOB, request | extra)

    def _create_transform_job(self, request: Document) -> Document:
        self._resources.existing(MODEL, request["ModelName"])
        check_transform_job(self._platform, request)
        return self._run(TRANSFORM_JOB, request)

    def _create_processing_job(self, request: Document) -> Document:
        check_processing_job(self._platform, request)
        return self._run(PROCESSING_JOB, request)

    def _run(self, kind: Kind, request: Document) -> Document:
        answer = self._resources.create(kind, request, "InProgress")
        self._jobs.submit(kind, self._resources.existing(kind, request[kind.name]))
        return answer

    def _create_model(self, request: Document) -> Document:
        check_model(self._platform, request)
        return self._resources.create(MODEL, request)

    # --- change -----------------------------------------------------------------------------------------------------

    def _stop(self, kind: Kind, request: Document) -> Document:
        document = self._resources.existing(kind, request[kind.name])
        control = self._jobs.control(document[kind.arn])
        if document[kind.status] not in ("InProgress", "Stopping") or control is None:
            raise ValidationException(
                f"The request was rejected because the {kind.words} is in status {document[kind.status]}."
            )
        self._store.update(kind, request[kind.name], **{kind.status: "Stopping"})
        control.stop()
        return {}

    # --- read -------------------------------------------------------------------------------------------------------

    def _describe(self, kind: Kind, request: Document) -> Document:
        return self._resources.existing(kind, request[kind.name])

    def _list(self, kind: Kind, request: Document) -> Document:
        found = [document for document in self._store.all(kind) if is_listed(kind, document, request)]
        if request.get("SortBy") == "Name":
            found.sort(key=lambda document: document[kind.name])
        elif request.get("SortBy") == "Status":
            found.sort(key=lambda document: document[kind.status])
        if request.get("SortOrder", "Descending") == "Descending":
            found.reverse()
        return page(kind.list_member, found, request)

    def _search(self, request: Document) -> Document:
        if request["Resource"] != TRAINING_JOB.resource:
            raise ValidationException(f"The local SageMaker searches TrainingJob only, not {request['Resource']}")
        found = search(self._store.all(TRAINING_JOB), request)
        total = {"Value": len(found), "Relation": "EqualTo"}
        return page("Results", [{TRAINING_JOB.resource: document} for document in found], request) | {
            "TotalHits": total
        }

    # --- delete -----------------------------------------------------------------------------------------------------

    def _delete(self, kind: Kind, request: Document) -> Document:
        document = self._resources.existing(kind, request[kind.name])
        if kind in JOBS and document[kind.status] in ("InProgress", "Stopping"):
            raise ResourceInUse(f"The {kind.words} {request[kind.name]} is {document[kind.status]}; stop it first.")
        self._store.delete(kind, request[kind.name])
        return {}

    # --- tags -------------------------------------------------------------------------------------------------------

    def _tagged(self, request: Document) -> tuple[Kind, Document]:
        arn_type, _, name = request["ResourceArn"].rpartition(":")[2].partition("/")
        kind = next((kind for kind in KINDS if kind.arn_type == arn_type), None)
        document = self._store.find(kind, name) if kind else None
        if kind is None or document is None:
            raise ValidationException(f"Could not find resource {request['ResourceArn']}")
        return kind, document

    def _add_tags(self, request: Document) -> Document:
        kind, document = self._tagged(request)
        tags = {tag["Key"]: tag["Value"] for tag in document.get("Tags", []) + request["Tags"]}
        merged = [{"Key": key, "Value": value} for key, value in tags.items()]
        if len(merged) > 50:
            raise ValidationException(
                f"A resource has at most 50 tags; {request['ResourceArn']} would have {len(merged)}"
            )
        self._store.update(kind, document[kind.name], Tags=merged)
        return {"Tags": merged}

    def _list_tags(self, request: Document) -> Document:
        _, document = self._tagged(request)
        return {"Tags": document.get("Tags", [])}

    def _delete_tags(self, request: Document) -> Document:
        kind, document = self._tagged(request)
        left = [tag for tag in document.get("Tags", []) if tag["Key"] not in request["TagKeys"]]
        self._store.update(kind, document[kind.name], Tags=left)
        return {}


def is_listed(kind: Kind, document: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Whether a resource passes the filters of a List request."""
    text, status = request.get("NameContains"), request.get("StatusEquals")
    if text and text.lower() not in document[kind.name].lower():
        return False
    if status and document[kind.status] != status:
        return False
    for member in ("EndpointName", "VariantName"):
        if request.get(f"{member}Equals", document.get(member)) != document.get(member):
            return False
    for member, time_member in SORT_MEMBERS.items():
        if document[time_member] < request.get(f"{member}After", float("-inf")):
            return False
        if document[time_member] > request.get(f"{member}Before", float("inf")):
            return False
    return True


def page(member: str, found: list[Document], request: Mapping[str, Any]) -> Document:
    """The part of what was found that a request asks for, and a token for the next."""
    start = decode_token(request.get("NextToken"))
    end = start + request.get("MaxResults", DEFAULT_PAGE)
    answer: Document = {member: found[start:end]}
    if end < len(found):
        answer["NextToken"] = base64.b64encode(str(end).encode()).decode()
    return answer


def decode_token(token: str | None) -> int:
    """The offset that a NextToken stands for.

    Raises:
        ValidationException: not a token of ours.
    """
    try:
        return int(base64.b64decode(token or base64.b64encode(b"0"), validate=True))
    except (ValueError, binascii.Error) as error:
        raise ValidationException("Invalid pagination token") from error
