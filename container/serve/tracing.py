"""Whose request this thread is working on, so that every line it logs can be found by what the caller sent with it."""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from container import contract

TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
"""W3C Trace Context, section 3.2; versions above 00 may append parts."""
AMZN_TRACE = re.compile(r"(?=.*\bRoot=1-([0-9a-f]{8})-([0-9a-f]{24})(?:;|$))[\w=;:.,/+-]{1,512}", re.ASCII)

LOGGED = {
    "inference_id": contract.INFERENCE_ID_HEADER.lower(),
    "custom_attributes": contract.CUSTOM_ATTRIBUTES_HEADER.lower(),
    "target_model": contract.TARGET_MODEL_HEADER.lower(),
    "target_variant": contract.TARGET_VARIANT_HEADER.lower(),
    "target_container": contract.TARGET_CONTAINER_HEADER.lower(),
}
"""Field of a log line -> SageMaker's header."""

_THREAD = threading.local()


@dataclass(frozen=True)
class Trace:
    """The caller's trace; what the caller did not send, or sent malformed, is empty."""

    traceparent: str = ""
    amzn_trace_id: str = ""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits: of `traceparent`, else of X-Ray's root."""
        if self.traceparent:
            return self.traceparent[3:35]
        match = AMZN_TRACE.fullmatch(self.amzn_trace_id)
        return match[1] + match[2] if match else ""


def trace_of(headers: Mapping[str, str]) -> Trace:
    """The trace that a request's headers carry; names in lower case."""
    traceparent = headers.get("traceparent", "")
    match = TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[1] == "00" and match[5]):
        traceparent = ""
    amzn = headers.get("x-amzn-trace-id", "")
    return Trace(traceparent, amzn if AMZN_TRACE.fullmatch(amzn) else "")


def enter(headers: Mapping[str, str] | None) -> None:
    """From here on this thread works on the request of these headers; None: on nobody's.

    Nothing is read from them before a line is logged: most requests log none.
    """
    _THREAD.headers = headers


@contextmanager
def working_on(headers: Mapping[str, str]) -> Iterator[None]:
    """`enter` for the length of a block."""
    enter(headers)
    try:
        yield
    finally:
        enter(None)


def log_fields() -> dict[str, str]:
    """What a line that this thread logs says about its request."""
    headers = getattr(_THREAD, "headers", None)
    if headers is None:
        return {}
    trace = trace_of(headers)
    fields = {"trace_id": trace.trace_id, "traceparent": trace.traceparent, "amzn_trace_id": trace.amzn_trace_id}
    fields |= {name: headers.get(header, "") for name, header in LOGGED.items()}
    return {name: value for name, value in fields.items() if value and value.isprintable()}
