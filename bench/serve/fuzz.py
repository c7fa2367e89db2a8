"""Bodies that mean harm, against a running server: .venv/bin/python bench/serve/fuzz.py [--count 10000] [--seed 0].

For each content type `count` bodies of `bodies.py`: good ones mutated where their parser looks, cut off, or nothing but
random bytes. The server is `--url`'s, or one that is started here: `--server` names its model. A 5xx, an answer with a
trace, one that takes half a minute, an error that is no JSON, a connection that breaks, a process that dies and memory
that grows by a gigabyte are defects; each is kept with its seed, and the exit status is 1.
"""

import argparse
import http.client
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for container.model

from bodies import SHAPE, fuzzed, seeds
from running import RunningServer

CONNECTIONS = 4
ALLOWED = {200, 400, 406, 413, 415}
LONGEST_SECONDS = 30.0  # on a machine that others use; alone the worst takes two
GROWTH_MB = 1000.0
RESTARTS = re.compile(r"^slipway_process_restarts_total (\S+)$", re.MULTILINE)
RESIDENT = re.compile(r"^slipway_process_resident_memory_bytes\S* (\S+)$", re.MULTILINE)
MODULE = """
import torch
def model_fn(model_dir): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""
ECHO = "def predict_fn(data, model): return data"


@dataclass
class Row:
    """What became of the bodies of one content type."""

    statuses: Counter = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """The slowest answer's."""


def defect(status: int, answer: bytes) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if status not in ALLOWED:
        return f"status {status}: {answer[:200]!r}"
    if b"Traceback" in answer or b'File \\"/' in answer:
        return f"a trace in the answer: {answer[:200]!r}"
    if status == 200:
        return ""
    try:
        error = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        return f"an error that is no JSON: {answer[:200]!r}"
    return "" if error and len(answer) <= 2048 else f"an error of {len(answer)} bytes"


def run(target: str, kind: str, numbers: range, seed: int) -> Row:
    """Send the bodies of these numbers over one connection, opened again where the server closed it."""
    row = Row()
    address, _, path = target.partition("/")
    connection = http.client.HTTPConnection(address, timeout=60)
    for number in numbers:
        body = fuzzed(kind, random.Random(f"{seed}/{kind}/{number}"))
        began = time.monotonic()
        try:
            connection.request("POST", f"/{path}", body, {"Content-Type": kind})
            answer = connection.getresponse()
            found = defect(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            row.statuses["broken"] += 1
            found = f"no answer: {error!r}"
        else:
            row.statuses[answer.status] += 1
        seconds = time.monotonic() - began
        row.seconds = max(row.seconds, seconds)
        if not found and seconds > LONGEST_SECONDS:
            found = f"{seconds:.1f} s for {len(body)} bytes"
        if found:
            row.defects.append(f"{kind} seed {seed} body {number}: {found}")
    connection.close()
    return row


def figures(target: str) -> tuple[float, float]:
    """How many processes of the server have died so far, and MB that the living hold."""
    connection = http.client.HTTPConnection(target.partition("/")[0], timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    restarts = RESTARTS.search(text)
    if restarts is None:
        raise SystemExit("the server shows no /metrics: is SLIPWAY_METRICS=false set?")
    return float(restarts[1]), sum(map(float, RESIDENT.findall(text))) / 1e6


def fuzz(target: str, kinds: list[str], count: int, seed: int) -> Iterator[tuple[str, Row, float]]:
    """Per content type what became of its bodies, and the MB that the server holds after them."""
    _, held_first = figures(target)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for kind in kinds:
            before, _ = figures(target)
            parts = [range(start, count, CONNECTIONS) for start in range(CONNECTIONS)]
            row = Row()
            for part in pool.map(lambda part, kind=kind: run(target, kind, part, seed), parts):
                row.statuses += part.statuses
                row.defects += part.defects
                row.seconds = max(row.seconds, part.seconds)
            restarts, held = figures(target)
            if restarts != before:
                row.defects.append(f"{kind} seed {seed}: a process died")
            if held - held_first > GROWTH_MB:
                row.defects.append(f"{kind} seed {seed}: {held:.0f} MB are held, {held_first:.0f} MB at first")
            yield kind, row, held


def write_classifier(model: Path) -> None:
    """A classifier of small grey images with random weights."""
    import torch

    from container.model import ModelSignature, build_network, save_model

    torch.manual_seed(0)
    classes = tuple("abcdefghij")
    save_model(
        model,
        build_network("convnet", len(classes), SHAPE),
        ModelSignature("convnet", classes, *SHAPE, (0.5,), (0.25,)),
    )


def write_code(model: Path, code: str) -> None:
    (model / "code").mkdir(parents=True)
    (model / "code" / "inference.py").write_text(code)


@contextmanager
def own_server(name: str) -> Iterator[str]:
    """Where a server that is started here takes invocations."""
    write, environ, path = SERVERS[name]
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "ml" / ("models/fuzzed" if environ.get("SAGEMAKER_MULTI_MODEL") else "model")
        write(model)
        with RunningServer(Path(directory) / "ml", **environ) as server:
            if environ.get("SAGEMAKER_MULTI_MODEL"):
                loaded = server.request("POST", "/models", {"model_name": "fuzzed", "url": str(model)})
                assert loaded[0] == 200, loaded
            yield f"127.0.0.1:{server.port}{path}"


SERVERS: dict[str, tuple[Callable[[Path], None], dict[str, str], str]] = {
    "classifier": (write_classifier, {}, "/invocations"),
    "module": (lambda model: write_code(model, MODULE), {}, "/invocations"),
    "echo": (lambda model: write_code(model, ECHO), {}, "/invocations"),
    "placeholders": (write_classifier, {"SLIPWAY_RECORD_PLACEHOLDERS": "true"}, "/invocations"),
    "module with placeholders": (
        lambda model: write_code(model, MODULE),
        {"SLIPWAY_RECORD_PLACEHOLDERS": "true"},
        "/invocations",
    ),
    "many models": (write_classifier, {"SAGEMAKER_MULTI_MODEL": "true"}, "/models/fuzzed/invoke"),
}
"""What is served, the server's environment, and the path of its invocations."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a server that runs, with the path of its invocations if that is another one")
    parser.add_argument(
        "--server", choices=SERVERS, default="classifier", help="what is started where no --url is given"
    )
    parser.add_argument("--kind", action="append", help="this content type alone; may be repeated")
    parser.add_argument("--count", type=int, default=10_000, help="bodies per content type")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = arguments.kind or list(seeds())
    if arguments.url:
        url = urlsplit(arguments.url)
        return table(url.netloc + (url.path.rstrip("/") or "/invocations"), kinds, arguments)
    with own_server(arguments.server) as target:
        return table(target, kinds, arguments)


def table(target: str, kinds: list[str], arguments: argparse.Namespace) -> int:
    """Print a row per content type as it is done; 1 where there was a defect."""
    defects: list[str] = []
    print(f"{'Content-Type':34} {'bodies':>7} {'slowest':>8} {'held':>8}  statuses")
    for kind, row, held in fuzz(target, kinds, arguments.count, arguments.seed):
        statuses = " ".join(f"{status}:{number}" for status, number in sorted(row.statuses.items(), key=str))
        print(f"{kind:34} {row.statuses.total():7} {row.seconds:6.2f} s {held:5.0f} MB  {statuses}", flush=True)
        defects += row.defects
    for line in defects[:50]:
        print(line)
    print(f"{len(defects)} defects")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
