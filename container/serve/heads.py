"""What the HTTP parser lets through in the head of a request and the standards do not (RFC 9112, RFC 9110).

Two servers in a row must not read one request differently: what could be read in two ways is refused.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""

VERSIONS = ("1.1", "1.0")
HOST = re.compile(r"(?:[!$&-.0-;=A-Z_a-z~%]|\[[0-9A-Fa-f:.vV]+\])*")
"""uri-host [":" port] of RFC 3986, without its finer points: what cannot end a host's name early."""
LONGEST_HOST = 300


class BadHead(ValueError):
    """The head of a request is refused, and its connection closed."""


def combined(headers: Headers) -> dict[str, str]:
    """The values by name, without blanks around them; of a name that comes more than once a list (RFC 9110, 5.2)."""
    values = {name.decode("latin-1"): value.strip().decode("latin-1") for name, value in headers}
    if len(values) == len(headers):
        return values
    lists: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1"), value.strip().decode("latin-1")
        lists[key] = f"{lists[key]}, {text}" if key in lists else text
    return lists


def check(version: str, values: dict[str, str]) -> None:
    """Refuse a request that has no one host, is framed in a way that we do not know, or of another HTTP.

    Args:
        version: of HTTP, as the parser names it.
        values: as `combined` gives them.

    Raises:
        BadHead: it is.
    """
    _check(version, values.get("host"), values.get("transfer-encoding"))


@lru_cache(maxsize=64)  # a client says the same in each request; what is refused is not kept
def _check(version: str, host: str | None, coding: str | None) -> None:
    if version not in VERSIONS:
        raise BadHead(f"HTTP/{version} is not spoken here")
    if host is None:
        if version == "1.1":
            raise BadHead("a request of HTTP/1.1 needs a Host header")
    elif len(host) > LONGEST_HOST or not HOST.fullmatch(host):
        raise BadHead(f"Host names no host, or several: {host[:80]!r}")
    if coding is not None and coding.lower() != "chunked":
        raise BadHead(f"Transfer-Encoding {coding[:80]!r} is not chunked alone")


def without_upgrade(method: bytes, url: bytes, headers: Headers) -> bytes:
    """The head of a request of HTTP/1.1 that asks for no other protocol (RFC 9110, section 7.8, lets us ignore it)."""
    kept = (b"%b: %b\r\n" % header for header in headers if header[0] != b"upgrade")
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, url, b"".join(kept))
