"""Errors on demand: the next calls of an operation fail as a test wants, quotas and throttling included."""

import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

from launcher.local.errors import ServiceError, ValidationException


class InjectedError(ServiceError):
    """An error that a test asked for."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Faults:
    """The errors that wait for their operation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[InjectedError]] = defaultdict(deque)

    def add(self, fault: Mapping[str, Any]) -> None:
        """Let an operation fail: `{"operation", "code", "message", "status" (400), "times" (1)}`.

        Raises:
            ValidationException: a member is missing.
        """
        try:
            error = InjectedError(fault["code"], fault["message"], fault.get("status", 400))
            operation, times = fault["operation"], fault.get("times", 1)
        except KeyError as missing:
            raise ValidationException(f"A fault needs operation, code and message; {missing} is missing") from missing
        with self._lock:
            self._waiting[operation].extend([error] * times)

    def check(self, operation: str) -> None:
        """Fail as asked.

        Raises:
            InjectedError: one waits for this operation.
        """
        with self._lock:
            waiting = self._waiting[operation]
            error = waiting.popleft() if waiting else None
        if error is not None:
            raise error
