"""The operations on inference components."""

from collections.abc import Callable

from launcher.local.component import specification_summary
from launcher.local.endpoints import Endpoints
from launcher.local.errors import ValidationException
from launcher.local.platform import Platform
from launcher.local.resources import Resources
from launcher.local.store import ENDPOINT, ENDPOINT_CONFIG, INFERENCE_COMPONENT, MODEL, Document


class ComponentApi:
    """CreateInferenceComponent and its kin."""

    def __init__(self, platform: Platform, resources: Resources, endpoints: Endpoints) -> None:
        self._platform = platform
        self._resources = resources
        self._endpoints = endpoints

    def operations(self) -> dict[str, Callable[[Document], Document]]:
        """The operations by the API's names."""
        return {
            "CreateInferenceComponent": self._create,
            "UpdateInferenceComponent": self._update,
            "UpdateInferenceComponentRuntimeConfig": self._update_copies,
            "DeleteInferenceComponent": self._delete,
        }

    def _create(self, request: Document) -> Document:
        endpoint = self._resources.existing(ENDPOINT, request["EndpointName"])
        if endpoint["EndpointStatus"] != "InService":
            raise ValidationException(
                f"Endpoint {request['EndpointName']} is {endpoint['EndpointStatus']}; inference components can be "
                "created on an endpoint that is InService"
            )
        specification, variant = self._checked(request), self._host(endpoint, request)
        copies = request.get("RuntimeConfig", {}).get("CopyCount", 1)
        answer = self._resources.create(
            INFERENCE_COMPONENT,
            {
                "InferenceComponentName": request["InferenceComponentName"],
                "EndpointName": request["EndpointName"],
                "EndpointArn": endpoint["EndpointArn"],
                "VariantName": variant,
                "Requested": specification,  # as it was; what follows is how it is described
                "Specification": specification_summary(specification),
                "RuntimeConfig": {"DesiredCopyCount": copies, "CurrentCopyCount": 0},
                "Tags": request.get("Tags", []),
            },
            "Creating",
        )
        self._endpoints.place(request["InferenceComponentName"])
        return answer

    def _host(self, endpoint: Document, request: Document) -> str:
        """The variant that hosts a component.

        Raises:
            ValidationException: there is no such variant, or it has a model of its own.
        """
        config = self._resources.existing(ENDPOINT_CONFIG, endpoint["EndpointConfigName"])
        variants = {item["VariantName"]: item for item in config["ProductionVariants"]}
        name = request.get("VariantName") or next(iter(variants))
        if name not in variants:
            raise ValidationException(f'The variant name "{name}" does not exist.')
        if "ModelName" in variants[name]:
            raise ValidationException(
                f"Variant {name} has the model {variants[name]['ModelName']}; inference components need a variant "
                "without ModelName"
            )
        return str(name)

    def _checked(self, request: Document) -> Document:
        specification: Document | None = request.get("Specification")
        if specification is None:
            raise ValidationException("The local SageMaker needs Specification; it has no Specifications by instance")
        if "BaseInferenceComponentName" in specification:
            raise ValidationException("The local SageMaker has no adapter inference components")
        if ("ModelName" in specification) == ("Container" in specification):
            raise ValidationException("Specification needs either ModelName or Container")
        if "ComputeResourceRequirements" not in specification:
            raise ValidationException("Specification needs ComputeResourceRequirements")
        if "ModelName" in specification:
            self._resources.existing(MODEL, specification["ModelName"])
        return specification

    def _at_rest(self, request: Document) -> Document:
        document = self._resources.existing(INFERENCE_COMPONENT, request["InferenceComponentName"])
        if document["InferenceComponentStatus"] not in ("InService", "Failed"):
            raise ValidationException(
                f"Cannot update in-progress inference component {document['InferenceComponentArn']}."
            )
        return document

    def _update(self, request: Document) -> Document:
        document = self._at_rest(request)
        specification = self._checked(request) if "Specification" in request else None
        copies = request.get("RuntimeConfig", {}).get("CopyCount", document["RuntimeConfig"]["DesiredCopyCount"])
        self._endpoints.change_component(document, specification, copies)
        return document

    def _update_copies(self, request: Document) -> Document:
        document = self._at_rest(request)
        self._endpoints.change_component(document, None, request["DesiredRuntimeConfig"]["CopyCount"])
        return document

    def _delete(self, request: Document) -> Document:
        name = request["InferenceComponentName"]
        self._resources.existing(INFERENCE_COMPONENT, name)
        self._platform.store.update(INFERENCE_COMPONENT, name, InferenceComponentStatus="Deleting")
        self._endpoints.remove_component(name)
        return {}
