"""How an endpoint's configurations come into service: started, given the traffic step by step, and taken back."""

import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.local.alarms import Alarms
from launcher.local.deployment import Deployment, deployed_members
from launcher.local.endpoint_metrics import EndpointMetrics
from launcher.local.errors import JobFailed
from launcher.local.platform import Platform
from launcher.local.rollout import RolloutPlan
from launcher.local.store import ENDPOINT, Document
from launcher.local.traffic import Traffic
from launcher.local.variant import variant_summary

logger = logging.getLogger(__name__)
BAKE_POLL_SECONDS = 0.1
RETAINED = ("DesiredInstanceCount", "DesiredWeight")


class RolledBack(Exception):
    """An update must be taken back; the text says why."""


@dataclass(frozen=True)
class Services:
    """What endpoints use beside the platform."""

    metrics: EndpointMetrics
    alarms: Alarms
    speed: float = 1.0
    """How many times shorter waits are; see `clock`."""


@dataclass(frozen=True)
class Update:
    """How an endpoint gets its next configuration."""

    plan: RolloutPlan = RolloutPlan()
    retained: Collection[str] = ()
    """Properties of the variants that stay: DesiredInstanceCount, DesiredWeight."""
    note: str | None = None
    """FailureReason of an endpoint that serves afterwards: why it does not serve what was asked for."""


class Updater:
    """Changes what one endpoint runs; its methods that start or end instances are called one after the other."""

    def __init__(
        self, platform: Platform, services: Services, name: str, traffic: Traffic, ended: threading.Event
    ) -> None:
        self._platform = platform
        self._services = services
        self._name = name
        self._traffic = traffic
        self._ended = ended
        self.deployments: list[Deployment] = []
        """Whatever may have containers, with traffic or without."""

    # --- deployments ------------------------------------------------------------------------------------------------

    def deploy(self, config: Document, update: Update) -> None:
        """Start a configuration's variants, and move the traffic to them as the plan says."""
        old = self._traffic.in_service
        fresh = Deployment(self._platform, self._services.metrics, self._name, config, self._ended)
        self.deployments.append(fresh)
        fresh.retain(self._document().get("ProductionVariants", []), update.retained)
        try:
            self._roll_out(old, fresh, update.plan)
        except (JobFailed, RolledBack) as error:
            self._roll_back(old, fresh, str(error))
            return
        self._keep_only(fresh)
        self.update(**deployed_members(fresh) | {"FailureReason": update.note})

    def _roll_out(self, old: Deployment | None, fresh: Deployment, plan: RolloutPlan) -> None:
        """Bring the new deployment into service beside the old one, which may be stopped afterwards.

        Raises:
            JobFailed: the new one did not start.
            RolledBack: an alarm went off, or the time is over.
        """
        deadline = time.monotonic() + plan.timeout_seconds / self._services.speed
        self._tell(fresh, "Creating", 0.0)
        if old is None or not plan.rolling:
            fresh.start()
        for share in plan.shares if old is not None else (1.0,):
            if plan.rolling and old is not None:
                fresh.resize(share)
            self._tell(fresh, "ActivatingTraffic", share)
            self._traffic.move((share, fresh), (1 - share, old))
            if plan.rolling and old is not None:
                old.resize(1 - share)
            if old is not None:
                self._tell(fresh, "Baking", share)
                self._bake(plan.wait_seconds, plan, deadline)
        self._bake(plan.termination_wait_seconds if old is not None else 0.0, plan, deadline)

    def _bake(self, seconds: float, plan: RolloutPlan, deadline: float) -> None:
        """Wait, looking at the alarms.

        Raises:
            RolledBack: one of them is in ALARM, or the update's time is over.
        """
        end = time.monotonic() + seconds / self._services.speed
        while True:
            ringing = self._services.alarms.ringing(plan.alarms)
            if ringing:
                raise RolledBack(f"One or more configured alarms went into ALARM state: {', '.join(ringing)}.")
            if time.monotonic() > deadline:
                raise RolledBack(f"The deployment did not end within its {plan.timeout_seconds:g} seconds.")
            left = end - time.monotonic()
            if left <= 0 or self._ended.wait(min(left, BAKE_POLL_SECONDS)):
                return

    def _roll_back(self, old: Deployment | None, fresh: Deployment, reason: str) -> None:
        """Let the old deployment serve alone again; a first deployment that fails, fails the endpoint."""
        if old is None:
            self._traffic.move()
            self._end(fresh)
            self.update(EndpointStatus="Failed", FailureReason=reason, PendingDeploymentSummary=None)
            return
        self.update(EndpointStatus="RollingBack", FailureReason=reason)
        try:
            old.start()  # all of it: a rolling update has taken instances away
        except JobFailed as error:
            for deployment in (old, fresh):
                if deployment not in self._traffic.deployments:
                    self._end(deployment)
            text = f"{reason} The rollback failed: {error}"
            self.update(EndpointStatus="UpdateRollbackFailed", FailureReason=text, PendingDeploymentSummary=None)
            return
        self._traffic.move((1.0, old))
        self._keep_only(old)
        self.update(**deployed_members(old) | {"FailureReason": reason})

    def _keep_only(self, serving: Deployment) -> None:
        """End all others: after a rollback that failed there may have been two of them."""
        for deployment in [item for item in self.deployments if item is not serving]:
            self._end(deployment, drain=True)

    def _end(self, deployment: Deployment, drain: bool = False) -> None:
        deployment.stop(drain)
        self.deployments.remove(deployment)

    # --- weights and capacities -------------------------------------------------------------------------------------

    def set_weights(self, deployment: Deployment, desired: Sequence[Mapping[str, Any]]) -> None:
        """Move traffic between the variants."""
        for item in desired:
            variant = deployment.find(item["VariantName"])
            if variant is not None and "DesiredWeight" in item:
                variant.weight = float(item["DesiredWeight"])
        self.update(ProductionVariants=[variant_summary(variant) for variant in deployment.variants])

    def scale(self, counts: Mapping[str, int]) -> None:
        """Give variants so many instances each; where one does not start, its variant stays as it was."""
        deployment, reason = self._traffic.in_service, None
        variants = deployment.variants if deployment is not None else []
        for variant in variants:
            before = variant.asked
            try:
                variant.scale_to(counts.get(variant.name, before))
            except JobFailed as error:
                variant.asked, reason = before, str(error)
        summaries = [variant_summary(variant) for variant in variants]
        self.update(EndpointStatus="InService", ProductionVariants=summaries, FailureReason=reason)

    # --- what clients see -------------------------------------------------------------------------------------------

    def _document(self) -> Document:
        return self._platform.store.find(ENDPOINT, self._name) or {}

    def _tell(self, fresh: Deployment, status: str, share: float) -> None:
        """PendingDeploymentSummary: what an update is doing."""
        speed = self._services.speed
        message = f"{share:.0%} of the traffic" + (f"; waits are {speed:g} times shorter" if speed != 1 else "")
        summary = {
            "EndpointConfigName": fresh.config["EndpointConfigName"],
            "ProductionVariants": [variant_summary(variant, status, message) for variant in fresh.variants],
            "StartTime": self._document().get("PendingDeploymentSummary", {}).get("StartTime", time.time()),
        }
        self.update(PendingDeploymentSummary=summary)

    def update(self, **members: Any) -> None:
        """Set members of the endpoint's document; None removes one. At the end it stays as the next server needs it."""
        if self._ended.is_set():
            return
        present = self._document()
        kept = {name: value for name, value in members.items() if value is not None or name in present}
        self._platform.store.update(ENDPOINT, self._name, **kept)

    def on_defect(self, reason: str) -> None:
        """Say so when a change broke off: what serves goes on serving."""
        status = "Failed" if self._traffic.in_service is None else "InService"
        self.update(EndpointStatus=status, FailureReason=reason, PendingDeploymentSummary=None)
