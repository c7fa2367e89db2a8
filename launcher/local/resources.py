"""Creating and finding the resources of the API, in the service's words."""

import time

from launcher.local.errors import ResourceInUse, ServiceError, ValidationException
from launcher.local.platform import Platform
from launcher.local.store import JOBS, Document, Kind


class Resources:
    """The store, as the API's operations see it."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def create(self, kind: Kind, request: Document, status: str = "") -> Document:
        """Add a resource made of a Create request; the answer, with its ARN.

        Raises:
            ServiceError: the name is taken.
        """
        now = round(time.time(), 3)  # clients send times back in milliseconds
        arn = self._platform.arn(kind, request[kind.name])
        document = {**request, kind.arn: arn, "CreationTime": now, "LastModifiedTime": now}
        if kind.status:
            document[kind.status] = status
        self._platform.store.create(kind, document, lambda taken: self._taken(kind, taken))
        return {kind.arn: arn}

    def _taken(self, kind: Kind, taken: Document) -> ServiceError:
        if kind in JOBS:
            return ResourceInUse(
                "Job name must be unique within an AWS account and region, and a "
                f"{kind.words} with this name already exists ({taken[kind.arn]})"
            )
        return ValidationException(f'Cannot create already existing {kind.words} "{taken[kind.arn]}".')

    def existing(self, kind: Kind, name: str) -> Document:
        """A copy of a resource's document.

        Raises:
            ValidationException: there is none.
        """
        document = self._platform.store.find(kind, name)
        if document is None:
            if kind in JOBS:
                raise ValidationException(f"Requested resource not found. (no {kind.words} named {name})")
            raise ValidationException(f'Could not find {kind.words} "{self._platform.arn(kind, name)}".')
        return document
