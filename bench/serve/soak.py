"""A soak: .venv/bin/python bench/serve/soak.py --minutes 10. Ends with 1 where a promise is broken.

Finds capacity, then holds 80 % of it while a serving process is killed (SIGKILL) every minute; checks every answer.
A request may be lost only where its connection was held by the process that was killed; it is then asked again. A
machine that others use has no fixed capacity: after every kill the clients run flat out for a few seconds, and the next
minute holds 80 % of what was reached there.

One process, the witness, is never killed, and answers from the first minute to the last: what it holds by itself
(anonymous and shared memory), and what the master holds, must be flat once it has warmed up. A sum over all processes
would not show that: each process that was just replaced warms up again, and the pages that processes share are counted
among fewer when one dies.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for container.serve

from running import RunningServer

from container.serve import memory

HANDLER = """
import os
import torch

def model_fn(model_dir):
    network = torch.nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.arange(1.0, 9.0).reshape(1, 8))
    return network

def predict_fn(data, model):
    with torch.inference_mode():
        value = model(torch.tensor([data["row"]], dtype=torch.float32)).item()
    return {"id": data["id"], "value": value, "pid": os.getpid()}
"""
SHARE = 0.8
BURST_SECONDS = 4.0
GRACE_SECONDS = 3.0  # so long after a kill a connection that nobody had answered on yet may break
SETTLE_SHARE = 0.2  # of the time, before memory counts
GROWTH_LIMIT = 0.03  # of the memory held, over the whole time
GROWTH_LIMIT_MB = 1.0  # less is no growth
FLAT_SECONDS = 150  # in a shorter run there is too little to tell a trend from warming up
READY = re.compile(r"^slipway_processes_ready (\S+)$", re.MULTILINE)


@dataclass
class Record:
    """What the clients saw; each client writes its own, and they are added up at the end."""

    answered: int = 0
    lost_with_their_process: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Pace:
    """How fast the clients go: requests a second all together, None for as fast as they can."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.rate: float | None = None
        self.stopped = False
        self.killed: dict[int, float] = {}
        """Process -> when it was killed."""


class Client(threading.Thread):
    """One connection after another, one request after another, each checked."""

    def __init__(self, number: int, port: int, pace: Pace) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.pace = number, port, pace
        self.record = Record()
        self._random = random.Random(number)
        self._connection: socket.socket | None = None
        self._process: int | None = None

    def run(self) -> None:
        due, step = time.monotonic(), 0
        while not self.pace.stopped:
            rate = self.pace.rate
            now = time.monotonic()
            if rate is None:
                due = now
            elif due > now:
                time.sleep(min(due - now, 0.5))
                continue
            elif now - due > 1.0:  # the machine was busy elsewhere: what was missed is not sent later all at once
                due = now
            step += 1
            self._ask(f"{self.number}-{step}")
            due += self.pace.clients / rate if rate else 0.0

    def _ask(self, name: str) -> None:
        row = [self._random.randrange(100) for _ in range(8)]
        body = json.dumps({"id": name, "row": row}).encode()
        wanted = {"id": name, "value": float(sum((index + 1) * value for index, value in enumerate(row)))}
        while not self.pace.stopped:
            began = time.monotonic()
            try:
                status, answer = self._exchange(body)
            except OSError as error:
                self._lost(name, error)
                continue
            self.record.seconds.append(time.monotonic() - began)
            if status != 200:
                self.record.violations.append(f"{name}: {status} {answer[:200]!r}")
                return
            found = json.loads(answer)
            self._process = found.pop("pid")
            if found != wanted:
                self.record.violations.append(f"{name}: wrong answer {answer[:200]!r}")
            self.record.answered += 1
            return

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._process = None
            self._connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
        )
        head, rest = b"", b""
        while b"\r\n\r\n" not in head:
            head += self._receive()
        head, _, rest = head.partition(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(rest) < int(headers[b"content-length"]):
            rest += self._receive()
        if headers.get(b"connection") == b"close":
            self._hang_up()
        return int(head.split(b" ", 2)[1]), rest

    def _receive(self) -> bytes:
        assert self._connection is not None
        piece = self._connection.recv(65536)
        if not piece:
            raise ConnectionResetError("the server hung up")
        return piece

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _lost(self, name: str, error: OSError) -> None:
        process, self._connection = self._process, None
        killed = self.pace.killed
        if process is None:
            excused = any(time.monotonic() - when < GRACE_SECONDS for when in killed.values())
        else:
            excused = process in killed
        if excused:
            self.record.lost_with_their_process += 1
        else:
            self.record.violations.append(f"{name}: lost with process {process}, which lives: {error!r}")


@dataclass(frozen=True)
class Trend:
    """What a process held after the settling, and by how much more at the end, by least squares; in MB."""

    level: float
    growth: float

    def is_flat(self) -> bool:
        return self.growth <= max(GROWTH_LIMIT_MB, GROWTH_LIMIT * self.level)

    def __str__(self) -> str:
        share = self.growth / self.level if self.level else 0.0
        return f"{self.level:.1f} MB, {self.growth:+.2f} MB ({share:+.2%}) over the time"


class Watch(threading.Thread):
    """Asks `/ping` twice a second and reads the memory of every process."""

    def __init__(self, server: RunningServer, pace: Pace) -> None:
        super().__init__(daemon=True)
        self.server, self.pace = server, pace
        self.witness = server.workers()[0]
        self.stopped = threading.Event()
        self.held: dict[int, list[tuple[float, float]]] = {}
        """Process -> seconds since the start, and MB that only it accounts for."""
        self.slowest = self.unready_seconds = 0.0
        self.violations: list[str] = []

    def run(self) -> None:
        began = time.monotonic()
        while not self.stopped.wait(0.5):
            asked = time.monotonic()
            for pid in (self.server.process.pid, *self.server.workers()):
                with contextlib.suppress(OSError):  # it has ended
                    if held := memory.held(pid):  # else it ends
                        self.held.setdefault(pid, []).append((asked - began, held / 1e6))
            try:
                status, _ = self.server.request("GET", "/ping")
            except OSError as error:
                if not self._just_killed(asked):
                    self.violations.append(f"/ping: {error!r}")
                continue
            self.slowest = max(self.slowest, time.monotonic() - asked)
            if status != 200:
                self.unready_seconds += 0.5

    def _just_killed(self, when: float) -> bool:
        return any(abs(when - killed) < GRACE_SECONDS for killed in self.pace.killed.values())

    def now(self) -> float:
        """MB that the processes hold that live."""
        living = (self.server.process.pid, *self.server.workers())
        return sum(self.held[pid][-1][1] for pid in living if pid in self.held)

    def trend(self, pid: int, settle: float) -> Trend:
        """Of a process after `settle` seconds."""
        points = [(when, size) for when, size in self.held.get(pid, []) if when > settle]
        if len(points) < 10:
            return Trend(points[-1][1] if points else 0.0, 0.0)
        slope = statistics.linear_regression(*zip(*points, strict=True)).slope
        return Trend(statistics.median(size for _, size in points), slope * (points[-1][0] - points[0][0]))

    def replacements(self) -> list[float]:
        """MB that each of the others held at last."""
        return [
            points[-1][1] for pid, points in self.held.items() if pid not in (self.witness, self.server.process.pid)
        ]


def burst(clients: list[Client], pace: Pace) -> float:
    """Answers a second when everybody goes as fast as they can."""
    pace.rate = None
    before, began = sum(client.record.answered for client in clients), time.monotonic()
    time.sleep(BURST_SECONDS)
    return (sum(client.record.answered for client in clients) - before) / (time.monotonic() - began)


def soak(server: RunningServer, seconds: float, kill_every: float, count: int) -> int:
    pace = Pace(count)
    watch = Watch(server, pace)
    clients = [Client(number, server.port, pace) for number in range(count)]
    for thread in (*clients, watch):
        thread.start()
    print(
        f"{'minute':>6} {'capacity/s':>10} {'held/s':>8} {'killed':>8} {'ready after':>11} {'held MB':>8}", flush=True
    )
    end = time.monotonic() + seconds
    began = time.monotonic()
    while (left := end - time.monotonic()) > BURST_SECONDS + 1:
        capacity = burst(clients, pace)
        pace.rate = SHARE * capacity
        before, since = sum(client.record.answered for client in clients), time.monotonic()
        time.sleep(max(1.0, min(kill_every, left) - BURST_SECONDS))
        held = (sum(client.record.answered for client in clients) - before) / (time.monotonic() - since)
        victim, ready_after = kill_one(server, pace) if end - time.monotonic() > BURST_SECONDS + 1 else ("-", "-")
        size = watch.now()
        minute = (time.monotonic() - began) / 60
        print(f"{minute:6.1f} {capacity:10.0f} {held:8.0f} {victim:>8} {ready_after:>11} {size:8.1f}", flush=True)
    pace.stopped = True
    watch.stopped.set()
    for thread in (*clients, watch):
        thread.join(60)
    return verdict(clients, watch, pace, seconds)


def kill_one(server: RunningServer, pace: Pace) -> tuple[str, str]:
    """Kill the process that came last, and wait for another to be ready in its place."""
    victim, count = server.workers()[-1], len(server.workers())
    pace.killed[victim] = began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    while victim in server.workers() or ready_processes(server) < count:
        if time.monotonic() - began > 60:
            return str(victim), "never"
        time.sleep(0.1)
    return str(victim), f"{time.monotonic() - began:.1f} s"


def ready_processes(server: RunningServer) -> int:
    """By `/metrics`; 0 where the connection broke."""
    try:
        found = READY.search(server.request("GET", "/metrics")[1].decode())
    except OSError:
        return 0
    return int(float(found[1])) if found else 0


def verdict(clients: list[Client], watch: Watch, pace: Pace, seconds: float) -> int:
    records = [client.record for client in clients]
    latencies = sorted(value for record in records for value in record.seconds)
    answered = sum(record.answered for record in records)
    lost = sum(record.lost_with_their_process for record in records)
    violations = [line for record in records for line in record.violations] + watch.violations
    trends = {
        "the witness": watch.trend(watch.witness, seconds * SETTLE_SHARE),
        "the master": watch.trend(watch.server.process.pid, seconds * SETTLE_SHARE),
    }
    if lost > len(pace.killed) * len(clients):
        violations.append(f"{lost} lost requests are more than {len(pace.killed)} killed processes can have held")
    if seconds >= FLAT_SECONDS:
        violations += [f"{name} grew: {trend}" for name, trend in trends.items() if not trend.is_flat()]
    if watch.unready_seconds:
        violations.append(f"/ping was not 200 for {watch.unready_seconds:.1f} s while a process answered")
    if watch.slowest > 2.0:
        violations.append(f"/ping took {watch.slowest:.1f} s")
    p50, p99 = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.99))
    rows = {
        "answered, every one checked": f"{answered}",
        "processes killed": f"{len(pace.killed)}",
        "lost with the killed process": f"{lost}, each asked again",
        "latency p50 / p99": f"{p50:.1f} / {p99:.1f} ms",
        "/ping, slowest / seconds not 200": f"{watch.slowest * 1000:.0f} ms / {watch.unready_seconds:.1f} s",
        **{f"memory of {name}": str(trend) for name, trend in trends.items()},
        "memory of the others at last": ", ".join(f"{size:.1f}" for size in watch.replacements()) + " MB",
        "violations": f"{len(violations)}",
    }
    for name, value in rows.items():
        print(f"{name:34} {value}")
    for line in violations[:20]:
        print(f"VIOLATION {line}")
    return 1 if violations else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kill-every", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        (base / "model" / "code").mkdir(parents=True)
        (base / "model" / "code" / "inference.py").write_text(HANDLER)
        with RunningServer(base, SAGEMAKER_MODEL_SERVER_WORKERS="2") as server:
            return soak(server, arguments.minutes * 60, arguments.kill_every, arguments.clients)


if __name__ == "__main__":
    sys.exit(main())
