"""The HTTP server: waitress, set for long invocations and large bodies, on loopback addresses."""

import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

import waitress.channel
import waitress.server
import waitress.task

THREADS = 64  # an invocation holds one for up to 60 s
SETTINGS: dict[str, Any] = {
    "threads": THREADS,
    "max_request_body_size": 2**40,
    "channel_timeout": 3600,
    "connection_limit": 1000,
    "ident": None,
}
USER_METADATA = re.compile(rb"(?m)^X-Amz-Meta-[^:\r]+")


class Task(waitress.task.WSGITask):
    """Waitress capitalises header names; S3's user metadata are lower case, and clients take them as they are."""

    def build_response_header(self) -> bytes:
        header: bytes = super().build_response_header()
        return USER_METADATA.sub(lambda match: match[0].lower(), header)


class Channel(waitress.channel.HTTPChannel):
    """A connection whose answers go through `Task`."""

    task_class = Task

    def send_continue(self) -> None:
        """Waitress then waits for a body, also where none comes: boto3 asks before it sends an empty file, too."""
        completed = self.request.completed
        super().send_continue()
        self.request.completed = completed


def create_http_server(application: Callable[..., Any], listeners: Sequence[socket.socket]) -> Any:
    """A server with `run` and `close`, on sockets that are bound."""
    dispatchers: dict[int, Any] = {}
    server = waitress.server.create_server(application, map=dispatchers, sockets=list(listeners), **SETTINGS)
    for dispatcher in dispatchers.values():
        if isinstance(dispatcher, waitress.server.BaseWSGIServer):
            dispatcher.channel_class = Channel
    return server


def bind(hosts: Sequence[str], wanted_port: int) -> list[socket.socket]:
    """One listening socket per address, all on one port: the wanted one, so that exported variables stay right, or any.

    Raises:
        OSError: the first address has no free port.
    """
    first, *others = hosts
    listeners = [_listener(first, wanted_port) or _listener(first, 0)]
    if listeners[0] is None:
        raise OSError(f"no free port on {first}")
    port = listeners[0].getsockname()[1]
    listeners += [_listener(host, port) for host in others]  # a container that needs no AWS runs without them
    return [listener for listener in listeners if listener is not None]


def _listener(host: str, port: int) -> socket.socket | None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        return None
    return listener
