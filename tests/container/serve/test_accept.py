import asyncio
import errno
import os
import socket

import pytest

from container.serve.accept import Connections, Counts, Listener, refuse_handshakes


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


class Process:
    """What a serving process is to its siblings: a slot, and the connections it holds."""

    def __init__(self, listening, counts, slot, slots):
        self.held = Connections(lambda count: counts.set(slot, count))
        self.listener = Listener(
            listening.dup(),
            self.make_protocol,
            lambda: len(self.held) > counts.fewest(list(range(slots))),
            lambda: True,
        )

    def make_protocol(self):
        process = self

        class Held(asyncio.Protocol):
            def connection_made(self, transport):
                process.held.add(self)
                transport.write(b"hello")

            def connection_lost(self, error):
                process.held.discard(self)

        return Held()


async def connect(listening):
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    assert await reader.readexactly(5) == b"hello"
    return writer


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def test_connections_are_shared_evenly_and_anew_when_some_have_closed(listening):
    async def main():
        counts = Counts(2)
        first, second = Process(listening, counts, 0, 2), Process(listening, counts, 1, 2)
        clients = [await connect(listening) for _ in range(8)]
        assert (len(first.held), len(second.held)) == (4, 4)
        for client in clients:
            client.close()
        await until(lambda: not first.held and not second.held)
        clients = [await connect(listening) for _ in range(4)]
        assert (len(first.held), len(second.held)) == (2, 2)
        first.listener.close()
        clients += [await connect(listening) for _ in range(4)]
        assert (len(first.held), len(second.held)) == (2, 6)
        second.listener.close()

    asyncio.run(main())


def test_a_connection_that_no_other_process_takes_is_taken_all_the_same(listening):
    async def main():
        listener = Listener(
            listening.dup(), Process(listening, Counts(1), 0, 1).make_protocol, lambda: True, lambda: True
        )
        for _ in range(3):
            (await connect(listening)).close()
        listener.close()

    asyncio.run(main())


class Exhausted:
    """A listening socket of a process that has no descriptors left at first."""

    def __init__(self, listening):
        self.socket = listening
        self.failures = [errno.EMFILE]

    def accept(self):
        if self.failures:
            number = self.failures.pop()
            raise OSError(number, os.strerror(number))
        return self.socket.accept()

    def close(self):
        self.socket.close()

    def fileno(self):
        return self.socket.fileno()

    def setblocking(self, flag):
        self.socket.setblocking(flag)


def test_without_descriptors_it_waits_and_says_so_and_goes_on(listening, caplog, monkeypatch):
    monkeypatch.setattr("container.serve.accept.NO_ROOM_SECONDS", 0.01)

    async def main():
        make = Process(listening, Counts(1), 0, 1)
        make.listener.close()
        listener = Listener(Exhausted(listening.dup()), make.make_protocol, lambda: False, lambda: True)
        (await connect(listening)).close()
        listener.close()

    asyncio.run(main())
    assert "no connection can be accepted for 0.01 s: Too many open files" in caplog.text


def test_without_room_it_waits_and_says_so_and_goes_on(listening, caplog, monkeypatch):
    monkeypatch.setattr("container.serve.accept.NO_ROOM_SECONDS", 0.01)

    async def main():
        make, room = Process(listening, Counts(1), 0, 1), [True, False]
        make.listener.close()
        listener = Listener(listening.dup(), make.make_protocol, lambda: False, lambda: room.pop())
        room.insert(0, True)
        (await connect(listening)).close()
        listener.close()

    asyncio.run(main())
    assert "no connection can be accepted for 0.01 s: each that is open is in use" in caplog.text


def test_connections_that_wait_when_the_last_process_stops_are_taken_and_later_ones_are_refused():
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = listening.getsockname()
            process = Process(listening, Counts(1), 0, 1)
        clients = [socket.create_connection(address, timeout=30) for _ in range(5)]  # the loop has had no turn yet
        process.listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        await until(lambda: len(process.held) == 5)
        for client in clients:
            assert client.recv(5) == b"hello"
            client.close()

    asyncio.run(main())


def test_no_connection_enters_a_queue_that_is_closed_and_those_in_it_are_still_accepted(listening):
    address = listening.getsockname()
    with socket.create_connection(address, timeout=30) as before:
        refuse_handshakes(listening)
        late = socket.socket()
        late.setblocking(False)
        assert late.connect_ex(address) == errno.EINPROGRESS
        taken, _ = listening.accept()
        taken.sendall(b"hello")
        assert before.recv(5) == b"hello"
        taken.close()
    listening.settimeout(0.2)
    with pytest.raises(TimeoutError):
        listening.accept()
    late.close()
