"""Which process takes a new connection: the one that holds the fewest.

All processes wait on one listening socket. Left alone, the first that wakes takes every connection that waits, and the
other cores have nothing to do for as long as these connections live, which may be for ever.
"""

import asyncio
import contextlib
import ctypes
import errno
import logging
import mmap
import socket
import struct
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

DEFER_SECONDS = 0.002  # a process with more connections than another gives way for so long, and then takes it
NO_ROOM_SECONDS = 1.0
SO_ATTACH_FILTER = 26  # socket(7)
KEEP_NOTHING = struct.pack("@HBBI", 0x06, 0, 0, 0)  # struct sock_filter: BPF_RET, and none of the packet's bytes


class Counts:
    """How many connections each process holds, in memory that the master shares with all of them."""

    def __init__(self, slots: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * slots)).cast("I")

    def set(self, slot: int, count: int) -> None:
        self._counts[slot] = count

    def fewest(self, slots: list[int]) -> int:
        return min((self._counts[slot] for slot in slots), default=0)


def refuse_handshakes(listening: socket.socket) -> None:
    """Let no connection into the queue of a socket any more; those in it can still be accepted, in every process.

    Between the last accept and the close another one could come in, and would be broken. A filter drops its packets
    instead; its client is refused a second later, when it tries again and the socket is closed.
    """
    instruction = ctypes.create_string_buffer(KEEP_NOTHING)
    program = struct.pack("@HP", 1, ctypes.addressof(instruction))  # struct sock_fprog
    with contextlib.suppress(OSError):  # not every sandbox's kernel has filters
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class Connections(set[Any]):
    """uvicorn's set of open connections, whose size the other processes see."""

    def __init__(self, publish: Callable[[int], None]) -> None:
        super().__init__()
        self._publish = publish
        publish(0)

    def add(self, connection: Any) -> None:
        super().add(connection)
        self._publish(len(self))

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._publish(len(self))


class Listener:
    """Accepts connections one at a time, and gives way to processes that hold fewer. In a uvloop server's place."""

    def __init__(
        self,
        listening: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        should_defer: Callable[[], bool],
        has_room: Callable[[], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = listening
        self._make_protocol = make_protocol
        self._should_defer = should_defer
        self._has_room = has_room
        self._opening: set[asyncio.Task[Any]] = set()
        self._closed = False
        listening.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Take the connections that wait, and no more: those left in the queue of a closed socket are broken."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        while self._accept():
            pass
        self._socket.close()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for: uvicorn has waited for the connections."""

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket.fileno(), self._on_connection)

    def _pause(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._loop.call_later(seconds, then)

    def _on_connection(self) -> None:
        if self._should_defer():
            self._pause(DEFER_SECONDS, self._accept_anyway)
        else:
            self._accept()

    def _accept_anyway(self) -> None:
        if not self._closed:
            self._listen()
            self._accept()

    def _accept(self) -> bool:
        """Take one connection, if one waits; returns whether one did."""
        if not self._closed and not self._has_room():
            self._wait_for_room("each that is open is in use")
            return False
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another process was faster
            return False
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            self._wait_for_room(f"{error.strerror}")
            return False
        connection.setblocking(False)
        opening = self._loop.create_task(self._open(connection))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        return True

    def _wait_for_room(self, reason: str) -> None:
        logger.error("no connection can be accepted for %g s: %s", NO_ROOM_SECONDS, reason)
        self._pause(NO_ROOM_SECONDS, self._listen)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # it was gone again
            connection.close()
