"""Many models in one server: .venv/bin/python bench/serve/multi_model.py [--models 1000] [--cycles 1000].

What a load and unload leaves behind, what a resident model costs, whether a hit is as fast as with a single model
(interleaved rounds, CPU time of the server per request), how long a list and a swap take, and which load gets 507.

Hits are compared with a server of one process, too, as many models have one, and over one connection: under load a
single model answers several requests with one forward pass, and no server can do that for different models.
"""

import argparse
import itertools
import json
import random
import shutil
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from running import JSON, RunningServer

LAYERS, WIDTH = 8, 64
WEIGHTS_KB = LAYERS * (WIDTH * WIDTH + WIDTH) * 4 / 1024
CODE = f"""
import torch
from network import Network

def model_fn(model_dir):
    network = Network({LAYERS}, {WIDTH})
    network.load_state_dict(torch.load(f"{{model_dir}}/weights.pt", weights_only=True))
    return network
"""
NETWORK = """
import torch

class Network(torch.nn.Module):
    def __init__(self, layers, width):
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(layers)])

    def forward(self, rows):
        return self.layers(rows)
"""
ROWS = [[0.5] * WIDTH]


def write_models(base: Path, count: int) -> None:
    for number in range(count):
        directory = base / "models" / f"m{number}" / "model"
        write_model(directory, number)


def write_model(directory: Path, seed: int) -> None:
    (directory / "code").mkdir(parents=True)
    (directory / "code" / "inference.py").write_text(CODE)
    (directory / "code" / "network.py").write_text(NETWORK)
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
    torch.save({f"layers.{name}": value for name, value in layers.state_dict().items()}, directory / "weights.pt")


class Models(RunningServer):
    """A server of many models."""

    def __init__(self, base: Path, **environ: str) -> None:
        self.base = base
        super().__init__(base, SAGEMAKER_MULTI_MODEL="true", **environ)

    def load(self, name: str) -> int:
        url = str(self.base / "models" / name / "model")
        return self.request("POST", "/models", {"model_name": name, "url": url})[0]

    def unload(self, name: str) -> int:
        return self.request("DELETE", f"/models/{name}")[0]

    def invoke(self, name: str) -> int:
        return self.request("POST", f"/models/{name}/invoke", ROWS)[0]


def must(status: int, wanted: int = 200) -> None:
    if status != wanted:
        raise SystemExit(f"answered {status}, not {wanted}")


def cycles(base: Path, models: int, count: int) -> Iterator[tuple[str, str]]:
    """Growth over `count` loads and unloads, after as many as warm every pool up."""
    names = itertools.cycle(f"m{number}" for number in range(models))
    with Models(base) as server:

        def run(times: int) -> None:
            for name in itertools.islice(names, times):
                must(server.load(name))
                must(server.invoke(name))
                must(server.unload(name))

        run(100)
        before = {name: server.memory(name) for name in ("Private_Dirty:", "Rss:")}
        began = time.monotonic()
        run(count)
        seconds = time.monotonic() - began
        for name, value in before.items():
            after = server.memory(name)
            yield f"{name[:-1]} after {count} cycles", f"{value:.1f} -> {after:.1f} MB ({after / value - 1:+.2%})"
        yield "load + invoke + unload", f"{seconds / count * 1000:.1f} ms"


def resident(base: Path, models: int, rounds: int) -> Iterator[tuple[str, str]]:
    """Everything loaded at once, beside a server with the one model."""
    with Models(base) as many, RunningServer(base / "single", SAGEMAKER_MODEL_SERVER_WORKERS="1") as single:
        must(many.load("m0"))
        must(many.invoke("m0"))
        before, began = many.memory("Private_Dirty:"), time.monotonic()
        for number in range(1, models):
            must(many.load(f"m{number}"))
        seconds = time.monotonic() - began
        each = (many.memory("Private_Dirty:") - before) * 1024 / (models - 1)
        yield f"{models} models resident", f"{each:.0f} kB each, of which weights {WEIGHTS_KB:.0f} kB"
        yield "load", f"{seconds / (models - 1) * 1000:.1f} ms"
        began = time.monotonic()
        yield "list, all pages", f"{pages(many)} models in {(time.monotonic() - began) * 1000:.1f} ms"
        paths = [f"/models/m{number}/invoke" for number in range(models)]
        for path in paths:  # each once, so that both servers are as warm
            hits(many, [path], 1)
        hits(single, ["/invocations"], 500)
        rows = [
            (hits(single, ["/invocations"], 1500), hits(many, paths[:1], 1500), hits(many, paths, 1500))
            for _ in range(rounds)
        ]
        alone, same, drawn = (statistics.median(column) * 1000 for column in zip(*rows, strict=True))
        yield "CPU per hit, a single model", f"{alone:.3f} ms"
        yield f"  one of {models}, again and again", f"{same:.3f} ms, ratio {median_ratio(rows, 1):.2f}"
        yield "  drawn at random", f"{drawn:.3f} ms, ratio {median_ratio(rows, 2):.2f}"
        yield (
            "  of which caches: a bare forward pass",
            "{:.3f} ms of one, {:.3f} ms drawn at random".format(*bare(models)),
        )
        began = time.monotonic()
        for number in range(10):
            must(many.unload(f"m{number}"))
        yield f"unload among {models}", f"{(time.monotonic() - began) * 100:.1f} ms"


def median_ratio(rows: list[tuple[float, ...]], column: int) -> float:
    return statistics.median(row[column] / row[0] for row in rows)


def pages(server: RunningServer) -> int:
    count, query = 0, ""
    while True:
        page = json.loads(server.request("GET", f"/models{query}")[1])
        count += len(page["models"])
        if "nextPageToken" not in page:
            return count
        query = f"?next_page_token={page['nextPageToken']}"


def hits(server: RunningServer, paths: list[str], count: int) -> float:
    """CPU seconds of the server per request, one connection, paths drawn at random."""
    body, draw = json.dumps(ROWS).encode(), random.Random(0)
    connection = server.connect()
    before = server.cpu_seconds()
    for _ in range(count):
        connection.request("POST", draw.choice(paths), body, JSON)
        answer = connection.getresponse()
        answer.read()
        must(answer.status)
    connection.close()
    return (server.cpu_seconds() - before) / count


def bare(models: int, count: int = 3000) -> tuple[float, float]:
    """CPU milliseconds of a forward pass without a server: of one network again and again, and of one of many.

    Weights and code objects of a thousand networks are in no cache: whoever serves them pays for that.
    """
    networks = [torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]) for _ in range(models)]
    row, draw = torch.tensor(ROWS), random.Random(0)
    seconds = []
    with torch.inference_mode():
        for most in (1, models):
            for network in networks:
                network(row)
            began = time.thread_time()
            for _ in range(count):
                networks[draw.randrange(most)](row)
            seconds.append((time.thread_time() - began) / count * 1000)
    return seconds[0], seconds[1]


def swapped(base: Path, models: int, requests: int) -> Iterator[tuple[str, str]]:
    """As the platform does it: a 404 loads, a 507 unloads the one not used for longest."""
    budget_mb = max(8, int(models * 0.1 * 2 * WEIGHTS_KB / 1024))
    loaded: OrderedDict[str, None] = OrderedDict()
    refused = swaps = 0
    most = 0
    draw = random.Random(1)
    with Models(base, SLIPWAY_MODEL_MEMORY_BYTES=str(budget_mb * 1_000_000)) as server:
        before = server.memory("Private_Dirty:")
        began = time.monotonic()
        for _ in range(requests):
            name = f"m{min(models - 1, int(draw.paretovariate(0.5)) - 1)}"
            if server.invoke(name) == 404:
                swaps += 1
                while (status := server.load(name)) == 507:
                    refused += 1
                    must(server.unload(loaded.popitem(last=False)[0]))
                must(status)
                must(server.invoke(name))
            loaded[name] = None
            loaded.move_to_end(name)
            most = max(most, len(loaded))
        seconds = time.monotonic() - began
        grown = server.memory("Private_Dirty:") - before
    yield f"budget of {budget_mb} MB", f"holds {most} models, {grown:.1f} MB; {refused} loads got 507 first"
    yield f"{requests} requests for {models} models", f"{swaps} loads, {seconds / requests * 1000:.1f} ms a request"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=2000, help="with swapping")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        write_models(base, arguments.models)
        shutil.copytree(base / "models" / "m0" / "model", base / "single" / "model")
        rows = itertools.chain(
            cycles(base, arguments.models, arguments.cycles),
            resident(base, arguments.models, arguments.rounds),
            swapped(base, arguments.models, arguments.requests),
        )
        for name, value in rows:
            print(f"{name:36} {value}", flush=True)


if __name__ == "__main__":
    main()
