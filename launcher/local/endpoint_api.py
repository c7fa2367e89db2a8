"""The operations on endpoints and their configurations."""

from collections.abc import Callable

from launcher.local.alarms import Alarms
from launcher.local.endpoints import Endpoints
from launcher.local.errors import ValidationException
from launcher.local.hosting_checks import check_endpoint_config
from launcher.local.platform import Platform
from launcher.local.resources import Resources
from launcher.local.rollout import RolloutPlan, rollout_plan
from launcher.local.store import ENDPOINT, ENDPOINT_CONFIG, INFERENCE_COMPONENT, MODEL, Document
from launcher.local.updater import RETAINED, Update


class EndpointApi:
    """CreateEndpointConfig, CreateEndpoint, UpdateEndpoint and their kin."""

    def __init__(self, platform: Platform, resources: Resources, endpoints: Endpoints, alarms: Alarms) -> None:
        self._platform = platform
        self._resources = resources
        self._endpoints = endpoints
        self._alarms = alarms

    def operations(self) -> dict[str, Callable[[Document], Document]]:
        """The operations by the API's names."""
        return {
            "CreateEndpointConfig": self._create_endpoint_config,
            "CreateEndpoint": self._create_endpoint,
            "UpdateEndpoint": self._update_endpoint,
            "UpdateEndpointWeightsAndCapacities": self._update_weights,
            "DeleteEndpoint": self._delete_endpoint,
        }

    def _create_endpoint_config(self, request: Document) -> Document:
        for variant in request["ProductionVariants"] + request.get("ShadowProductionVariants", []):
            if "ModelName" in variant:
                self._resources.existing(MODEL, variant["ModelName"])
        check_endpoint_config(self._platform, request)
        return self._resources.create(ENDPOINT_CONFIG, request)

    def _create_endpoint(self, request: Document) -> Document:
        config = self._resources.existing(ENDPOINT_CONFIG, request["EndpointConfigName"])
        deployment = request.pop("DeploymentConfig", None)
        self._plan(deployment, config)
        kept = {"LastDeploymentConfig": deployment} if deployment else {}
        answer = self._resources.create(ENDPOINT, request | kept, "Creating")
        self._endpoints.deploy(request["EndpointName"], request["EndpointConfigName"], Update())
        return answer

    def _plan(self, deployment: Document | None, config: Document) -> RolloutPlan:
        """The plan of a DeploymentConfig.

        Raises:
            ValidationException: it cannot be kept, or names an alarm that is not there.
        """
        variants = config["ProductionVariants"]
        if deployment and any("ServerlessConfig" in variant for variant in variants):
            raise ValidationException("DeploymentConfig is not for serverless endpoints.")
        plan = rollout_plan(deployment or {}, sum(variant.get("InitialInstanceCount", 1) for variant in variants))
        missing = self._alarms.missing(plan.alarms)
        if missing:
            raise ValidationException(f"Could not find the CloudWatch alarm {', '.join(missing)}; create it first")
        return plan

    def _update_endpoint(self, request: Document) -> Document:
        config = self._resources.existing(ENDPOINT_CONFIG, request["EndpointConfigName"])
        document = self._endpoint_at_rest(request)
        deployment = request.get("DeploymentConfig")
        if deployment is None and request.get("RetainDeploymentConfig"):
            deployment = document.get("LastDeploymentConfig")
        plan = self._plan(deployment, config)
        retained = set(RETAINED) if request.get("RetainAllVariantProperties") else set()
        retained -= {item["VariantPropertyType"] for item in request.get("ExcludeRetainedVariantProperties", [])}
        kept = {"LastDeploymentConfig": deployment} if deployment else {}
        self._platform.store.update(ENDPOINT, request["EndpointName"], EndpointStatus="Updating", **kept)
        update = Update(plan, retained)
        self._endpoints.deploy(request["EndpointName"], request["EndpointConfigName"], update)
        return document

    def _update_weights(self, request: Document) -> Document:
        document = self._endpoint_at_rest(request)
        known = {variant["VariantName"] for variant in document.get("ProductionVariants", [])}
        desired = request["DesiredWeightsAndCapacities"]
        for item in desired:
            if item["VariantName"] not in known:
                raise ValidationException(f'The variant name "{item["VariantName"]}" does not exist.')
        endpoint = self._endpoints.find(request["EndpointName"])
        if endpoint is not None:
            endpoint.set_weights(desired)
            counts = {item["VariantName"]: item["DesiredInstanceCount"] for item in desired if is_count(item)}
            if counts:
                endpoint.scale(counts)
        return document

    def _endpoint_at_rest(self, request: Document) -> Document:
        document = self._resources.existing(ENDPOINT, request["EndpointName"])
        status, arn = document["EndpointStatus"], document["EndpointArn"]
        if status == "Failed":
            raise ValidationException(
                f'Cannot update endpoint "{arn}": DeleteEndpoint is the only operation for one that is Failed.'
            )
        if status not in ("InService", "UpdateRollbackFailed"):
            raise ValidationException(f'Cannot update in-progress endpoint "{arn}".')
        return document

    def _delete_endpoint(self, request: Document) -> Document:
        document = self._resources.existing(ENDPOINT, request["EndpointName"])
        if document["EndpointStatus"] == "Deleting":
            raise ValidationException(f'Cannot update in-progress endpoint "{document["EndpointArn"]}".')
        hosted = [
            item["InferenceComponentName"]
            for item in self._platform.store.all(INFERENCE_COMPONENT)
            if item["EndpointName"] == request["EndpointName"]
        ]
        if hosted:
            raise ValidationException(
                f"Endpoint {request['EndpointName']} hosts inference components; delete them first: {', '.join(hosted)}"
            )
        self._platform.store.update(ENDPOINT, request["EndpointName"], EndpointStatus="Deleting")
        self._endpoints.delete(request["EndpointName"])
        return {}


def is_count(desired: Document) -> bool:
    """Whether a DesiredWeightAndCapacity asks for a number of instances."""
    return "DesiredInstanceCount" in desired
