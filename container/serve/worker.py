"""The gunicorn worker: uvicorn's, on uvloop and httptools, with only what this server needs switched on."""

import os
import signal
from typing import Any

from uvicorn_worker import UvicornWorker


class Worker(UvicornWorker):
    """A serving process; gunicorn's master starts, replaces and drains it."""

    CONFIG_KWARGS: dict[str, Any] = {
        "loop": "uvloop",
        "http": "httptools",
        "ws": "none",
        "interface": "asgi3",
        "lifespan": "off",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
    }
    slot = 0

    async def callback_notify(self) -> None:
        """Called every moment by uvicorn: end with the master rather than linger as an orphan."""
        await super().callback_notify()
        if os.getppid() != self.ppid:
            os.kill(os.getpid(), signal.SIGTERM)
