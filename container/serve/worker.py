"""The gunicorn worker: uvicorn's, on uvloop and httptools, with only what this server needs switched on."""

import asyncio
import heapq
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from uvicorn import Config, Server
from uvicorn_worker import UvicornWorker

from container.serve.accept import Connections, Listener, refuse_handshakes
from container.serve.bidirectional import MAX_MESSAGE_BYTES, websocket_protocol
from container.serve.protocol import Protocol

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 0.5  # after SIGTERM new requests are still taken for so long: some are on their way already

REQUEST_SECONDS = 2.0  # and so long a connection is kept that was opened or answered last: another one may be coming

BEAT_SECONDS = 1.0

FILES_SHARE = 4  # one in so many of the files that may be open is for the model's and for large bodies,
MAX_FILES = 1024  # but no more than these
ROOM = 32  # connections that are closed at once where there is no room for another,
SILENT_SECONDS = 1.0  # of those whose turn it has been for longer than this

PING_SECONDS = 60.0  # of a WebSocket, and five times that without an answer ends it: as SageMaker's side does


class DrainingServer(Server):
    """A uvicorn server that tells its clients before it closes their connections, and shares them with its siblings."""

    def __init__(self, config: Config, slot: int) -> None:
        super().__init__(config)
        self.slot = slot

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but for how connections are accepted: by several processes, and none is lost at the end."""
        health = self.config.app.service.health  # type: ignore[union-attr]
        state, slot = self.server_state, self.slot
        state.connections = Connections(lambda count: health.connections.set(slot, count))

        def make_protocol() -> asyncio.Protocol:
            return Protocol(self.config, state, self.lifespan.state)

        def should_defer() -> bool:
            return len(state.connections) > health.connections.fewest(health.ready_slots())

        await self.lifespan.startup()
        self.servers: list[Any] = [
            Listener(listening, make_protocol, should_defer, self._has_room) for listening in sockets or []
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.loaded_app.draining = True
        await asyncio.gather(asyncio.sleep(DRAIN_SECONDS), self.config.loaded_app.conversations.drain())
        if self.config.loaded_app.service.health.stopping:  # else a sibling goes on with the same socket
            for listening in sockets or []:
                refuse_handshakes(listening)
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + REQUEST_SECONDS
        await asyncio.sleep(DRAIN_SECONDS / 5)
        while self._expects_a_request() and loop.time() < until:
            await asyncio.sleep(DRAIN_SECONDS / 10)
        await super().shutdown(sockets)

    def _expects_a_request(self) -> bool:
        return any(each.expects_a_request(REQUEST_SECONDS) for each in self._http_connections())

    def _http_connections(self) -> Iterator[Protocol]:
        return (each for each in self.server_state.connections if isinstance(each, Protocol))

    def _has_room(self) -> bool:
        """Whether one more connection leaves files enough for everything else; else silent ones are closed for it."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self.server_state.connections) < files - min(files // FILES_SHARE, MAX_FILES):
            return True
        silent = heapq.nlargest(ROOM, self._http_connections(), key=Protocol.silent_seconds)
        closed = [each for each in silent if each.silent_seconds() > SILENT_SECONDS]
        for each in closed:
            each.give_up()
        if closed:
            logger.warning("%d silent connections are closed, for %d files may be open", len(closed), files)
        return bool(closed)


class Worker(UvicornWorker):
    """A serving process; gunicorn's master starts, replaces and drains it."""

    slot: int
    """Of this process in `Health`; set before the fork."""

    CONFIG_KWARGS: dict[str, Any] = {
        "loop": "uvloop",
        "http": Protocol,
        "ws": websocket_protocol,
        "ws_max_size": MAX_MESSAGE_BYTES,
        "ws_ping_interval": PING_SECONDS,
        "ws_ping_timeout": 5 * PING_SECONDS,
        "interface": "asgi3",
        "lifespan": "off",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "callback_notify": None,  # `_beat` does it
    }

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, os._exit, 0)
        beating = loop.create_task(self._beat())
        while self.wsgi.service.should_wait():  # a replacement takes no requests while others can answer them
            await asyncio.sleep(0.05)
        self.config.app = self.wsgi
        server = DrainingServer(self.config, self.slot)
        await server.serve(sockets=self.sockets)
        beating.cancel()
        if not server.started:
            sys.exit(1)

    async def _beat(self) -> None:
        """Show the master that the event loop runs, also while it waits and while it drains."""
        while True:
            self.notify()
            await asyncio.sleep(BEAT_SECONDS)
