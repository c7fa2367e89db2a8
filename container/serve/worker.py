"""The gunicorn worker: uvicorn's, on uvloop and httptools, with only what this server needs switched on."""

import asyncio
import os
import signal
import socket
import sys
from typing import Any

from uvicorn import Server
from uvicorn_worker import UvicornWorker

from container.serve.bidirectional import MAX_MESSAGE_BYTES, websocket_protocol

from container.serve.protocol import Protocol

DRAIN_SECONDS = 0.5  # after SIGTERM new requests are still taken for so long: some are on their way already

PING_SECONDS = 60.0  # of a WebSocket, and five times that without an answer ends it: as SageMaker's side does


class DrainingServer(Server):
    """A uvicorn server that tells its clients before it closes their connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.loaded_app.draining = True
        await asyncio.gather(asyncio.sleep(DRAIN_SECONDS), self.config.loaded_app.conversations.drain())
        for server in self.servers:
            server.close()
        await asyncio.sleep(DRAIN_SECONDS / 5)  # a connection taken a moment ago has its request on the way
        await super().shutdown(sockets)


class Worker(UvicornWorker):
    """A serving process; gunicorn's master starts, replaces and drains it."""

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
    }

    async def _serve(self) -> None:
        while self.wsgi.service.should_wait():  # a replacement takes no requests while others can answer them
            await asyncio.sleep(0.05)
        self.config.app = self.wsgi
        server = DrainingServer(self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(1)

    async def callback_notify(self) -> None:
        """Called every moment by uvicorn: end with the master rather than linger as an orphan."""
        await super().callback_notify()
        if os.getppid() != self.ppid:
            os.kill(os.getpid(), signal.SIGTERM)
