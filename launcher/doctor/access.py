"""Access to AWS: credentials and where requests go."""

import configparser
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from launcher.doctor.machine import Machine
from launcher.findings import Finding

ROLE_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def credentials(machine: Machine) -> Iterator[Finding]:
    """Whether the AWS clients would find any; they are not tried."""
    environ = machine.environ
    if environ.get("AWS_ACCESS_KEY_ID"):
        if not environ.get("AWS_SECRET_ACCESS_KEY"):
            detail = "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"
            yield Finding("credentials", "fail", detail, "set both, or neither and AWS_PROFILE")
        else:
            yield Finding("credentials", "ok", "in the environment (AWS_ACCESS_KEY_ID)")
        return
    given = [name for name in ROLE_VARIABLES if environ.get(name)]
    if given:
        yield Finding("credentials", "ok", f"of a role ({given[0]})")
        return
    yield _profile(machine)


def _profile(machine: Machine) -> Finding:
    home = Path(machine.environ.get("HOME") or "~").expanduser()
    files = [
        Path(machine.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials"),
        Path(machine.environ.get("AWS_CONFIG_FILE") or home / ".aws" / "config"),
    ]
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(files)
    except configparser.Error as error:
        return Finding("credentials", "fail", " ".join(str(error).split()), f"edit {files[0]} or {files[1]}")
    profiles = {name.removeprefix("profile ").strip() for name in parser.sections()}
    wanted = machine.environ.get("AWS_PROFILE")
    if wanted and wanted not in profiles:
        known = f"; there are: {', '.join(sorted(profiles))}" if profiles else ""
        detail = f"AWS_PROFILE={wanted} is in neither {files[0]} nor {files[1]}{known}"
        return Finding("credentials", "fail", detail, f"aws configure --profile {wanted}, or unset AWS_PROFILE")
    if wanted or "default" in profiles:
        return Finding("credentials", "ok", f"profile {wanted or 'default'}")
    if profiles:
        detail = f"no default profile; there are: {', '.join(sorted(profiles))}"
        return Finding("credentials", "warn", detail, "set AWS_PROFILE")
    return Finding("credentials", "warn", "none; --local, --dry-run and demo need none", "for AWS: aws configure sso")


def endpoint(machine: Machine) -> Iterator[Finding]:
    """Whether AWS_ENDPOINT_URL sends requests elsewhere."""
    url = machine.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return
    parts = urlsplit(url)
    if parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        yield Finding("endpoint", "warn", f"every AWS request goes to {url}", "unset AWS_ENDPOINT_URL to reach AWS")
        return
    try:
        socket.create_connection((parts.hostname, parts.port or 80), timeout=1).close()
    except OSError:
        detail = f"AWS_ENDPOINT_URL={url} and nobody listens there"
        yield Finding("endpoint", "fail", detail, "python -m launcher local up, or unset AWS_ENDPOINT_URL")
    else:
        yield Finding("endpoint", "ok", f"every AWS request goes to the local server at {url}")
