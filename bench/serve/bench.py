"""Our server beside its peers in the same run: .venv/bin/python bench/serve/bench.py [--rounds 3] [--only echo,mlp].

Needs bench/serve/setup.sh once, and about eight minutes. Rounds are interleaved, the order of servers is turned round
in every second one, and every answer is checked before it is timed. Peers decode and encode with what we use (orjson,
numpy on the body, torchvision) and do not batch; `WxT` is W processes of T torch threads. `quick` is our server told
that the handler never waits. Numbers of one run are compared with each other only. The last lines hold the run against
what the project wants to reach.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES = {
    "echo": [("echo", "application/json", connections) for connections in (1, 8, 64)],
    "mlp": [("mlp_json", "application/json", 8), ("mlp_npy", "application/x-npy", 8)],
    "resnet18": [("resnet18", "image/jpeg", connections) for connections in (1, 4, 16)],
}
BARS = {"echo": ["echo@8", "echo@64"], "mlp": ["mlp_json@8", "mlp_npy@8"], "resnet18": []}
BODIES = 8


@dataclass
class Contender:
    """A way to serve: argv, environment, and the figures measured."""

    name: str
    argv: list[str]
    environ: dict[str, str] = field(default_factory=dict)
    cells: dict[str, list[dict]] = field(default_factory=dict)


def contenders(model: str, data: Path, cache: Path, port: int) -> list[Contender]:
    peers = str(cache / "peers" / "bin" / "python")
    common = {"BENCH_MODEL": model, "BENCH_DATA": str(data), "PYTHONPATH": f"{HERE / 'peers'}:{ROOT}"}
    gunicorn = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "--log-level", "warning"]

    def flask(name: str, workers: int, threads: int) -> Contender:
        limits = {"BENCH_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        return Contender(name, [*gunicorn, "-w", str(workers), "flask_app:app"], common | limits)

    def mosec(workers: int, threads: int) -> Contender:
        argv = [peers, str(HERE / "peers" / "mosec_app.py"), "--port", str(port), "--timeout", "60000"]
        limits = {"BENCH_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), "BENCH_WORKERS": str(workers)}
        return Contender(f"mosec {workers}x{threads}", argv, common | limits)

    ours = {"SAGEMAKER_BASE_DIR": str(data / model), "SAGEMAKER_BIND_TO_PORT": str(port), "PYTHONPATH": str(ROOT)}
    listed = [
        Contender("slipway", [sys.executable, "-m", "container", "serve"], ours),
        mosec(2, 1),
        flask("flask 2x1", 2, 1),
    ]
    if model == "echo":  # its handler is a function of the user's
        listed.append(Contender("quick", listed[0].argv, {**ours, "SLIPWAY_QUICK_HANDLERS": "true"}))
    if model == "resnet18":
        listed += [mosec(1, 2), flask("flask 1x2", 1, 2)]
    return listed


def run_round(contender: Contender, model: str, data: Path, port: int, seconds: int) -> None:
    began = time.monotonic()
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **contender.environ}
    with subprocess.Popen(
        contender.argv, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            workload, kind, _ = CASES[model][0]
            wait_for_answers(port, data, workload, kind, 1)
            record(contender, "first answer s", {"value": time.monotonic() - began})
            wait_for_answers(port, data, workload, kind, 30)
            for workload, kind, connections in CASES[model]:
                check(port, data, workload, kind)
                load(port, data, workload, kind, connections, 1)
                before = cpu_seconds(process.pid)
                cell = load(port, data, workload, kind, connections, seconds)
                cell["cpu_ms"] = (cpu_seconds(process.pid) - before) / max(1, cell["requests"]) * 1000
                record(contender, f"{workload}@{connections}", cell)
            record(contender, "PSS MB", {"value": proportional_memory(process.pid)})
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def run_round_again(contender: Contender, model: str, data: Path, port: int, seconds: int) -> None:
    """A round; of a peer, which may have failed requests, once more. Ours may not."""
    cells = {name: list(values) for name, values in contender.cells.items()}
    try:
        run_round(contender, model, data, port, seconds)
    except RequestsFailed as error:
        if contender.name in ("slipway", "quick"):
            raise SystemExit(f"slipway, {error}") from error
        print(f"{contender.name}, {error}; this round of it is run again")
        contender.cells = cells
        run_round(contender, model, data, port, seconds)


def record(contender: Contender, cell: str, value: dict) -> None:
    contender.cells.setdefault(cell, []).append(value)


def post(port: int, body: bytes, kind: str) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def wait_for_answers(port: int, data: Path, workload: str, kind: str, count: int) -> None:
    """Wait until so many answers came in a row: the second process may load longer than the first."""
    body = (data / "bodies" / workload / "00").read_bytes()
    in_a_row = 0
    for _ in range(6000):
        try:
            post(port, body, kind)
            in_a_row += 1
        except (urllib.error.HTTPError, OSError):
            in_a_row = 0
            time.sleep(0.01)
        if in_a_row == count:
            return
    raise SystemExit("the server did not answer within a minute")


EXPECTED: dict[tuple[str, int], object] = {}


def check(port: int, data: Path, workload: str, kind: str) -> None:
    """Every server gives the answers that the first one gave."""
    for index in range(BODIES):
        answer = json.loads(post(port, (data / "bodies" / workload / f"{index:02}").read_bytes(), kind))
        if not agree(EXPECTED.setdefault((workload, index), answer), answer):
            raise SystemExit(f"{workload}: body {index} got another answer than before")


def agree(one: object, other: object) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return abs(one - other) < 1e-3  # type: ignore[operator]
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
    return one == other


class RequestsFailed(Exception):
    """Not every request of a load got its answer; a figure of such a load says nothing."""


def load(port: int, data: Path, workload: str, kind: str, connections: int, seconds: int) -> dict:
    environ = {
        **os.environ,
        "WRK_BODIES": str(data / "bodies" / workload),
        "WRK_TYPE": kind,
        "WRK_COUNT": str(BODIES),
    }
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", str(HERE / "post.lua")]
    output = subprocess.run(
        [*argv, f"http://127.0.0.1:{port}"], env=environ, capture_output=True, text=True, check=True
    ).stdout
    figures = json.loads(output.partition("WRK ")[2])
    if figures["failed"]:
        raise RequestsFailed(f"{workload}@{connections}: {figures['failed']} of {figures['requests']} requests failed")
    return {**figures, "value": figures["requests"] / figures["us"] * 1e6}


def process_tree(pid: int) -> list[int]:
    """A process and all below it."""
    found, pids = [], [pid]
    while pids:
        found.append(pids.pop())
        for task in Path(f"/proc/{found[-1]}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and all below it have taken."""
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in process_tree(pid)]
    return sum(int(stat[11]) + int(stat[12]) for stat in fields) / os.sysconf("SC_CLK_TCK")


def proportional_memory(pid: int) -> float:
    """PSS of a process and all below it, in MB."""
    total = 0.0
    for one in process_tree(pid):
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1024
    return total


def limit(data: Path, seconds: int) -> float:
    argv = [sys.executable, str(HERE / "limit.py"), str(data), str(seconds)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return float(subprocess.run(argv, env=environ, capture_output=True, text=True, check=True).stdout)


def report(model: str, listed: list[Contender], limits: list[float]) -> None:
    """Medians over the rounds, and beside each peer ours against it, round by round."""
    ours = listed[0]
    rounds = len(ours.cells["PSS MB"])
    print(f"\n{model}: medians of {rounds} rounds (p50/p99 ms; the server's CPU ms per request)")
    for cell, mine in ours.cells.items():
        print(f"  {cell}")
        for contender in listed:
            rows = contender.cells[cell]
            line = f"    {contender.name:12} {median(rows, 'value'):10.2f}"
            if "p50" in rows[0]:
                p50, p99 = median(rows, "p50") / 1000, median(rows, "p99") / 1000
                line += f"  ({p50:.2f}/{p99:.2f}; {median(rows, 'cpu_ms'):.3f})"
            if contender is not ours:
                line += f"  ours/this {spread(ratios(mine, rows))}"
            print(line)
        if limits and "p50" in mine[0]:
            print(f"    in process   {statistics.median(limits):10.2f}  ours/this {spread(against(mine, limits))}")


def median(rows: list[dict], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def ratios(mine: list[dict], theirs: list[dict]) -> list[float]:
    return against(mine, [row["value"] for row in theirs])


def against(mine: list[dict], values: list[float]) -> list[float]:
    return [row["value"] / value for row, value in zip(mine, values, strict=True)]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}..{max(values):.2f}]"


def verdicts(model: str, listed: list[Contender], limits: list[float]) -> list[str]:
    """What issue 4 asks for, and what this run reached; ratios are medians over the rounds."""
    ours, peers = listed[0], {contender.name: contender for contender in listed[1:]}
    lines = []

    def hold(what: str, reached: list[float], bar: float, at_least: bool = True) -> None:
        value = statistics.median(reached)
        met = value >= bar if at_least else value <= bar
        sign = ">=" if at_least else "<="
        lines.append(f"  {'reached' if met else 'MISSED '} {what}: {spread(reached)}, wanted {sign} {bar:g}")

    for cell in BARS[model]:
        if "mosec 2x1" in peers:
            hold(f"{cell} / mosec", ratios(ours.cells[cell], peers["mosec 2x1"].cells[cell]), 2.0)
    if model != "resnet18" or not peers:
        return lines
    for cell in (f"resnet18@{connections}" for connections in (1, 4, 16)):
        best = [
            max(row["value"] for row in rows) for rows in zip(*(p.cells[cell] for p in peers.values()), strict=True)
        ]
        hold(f"{cell} / best peer of the round", against(ours.cells[cell], best), 1.0)
        if not cell.endswith("@1"):
            hold(f"{cell} / in process", against(ours.cells[cell], limits), 0.9)
    tail = [row["p99"] / row["p50"] for row in ours.cells["resnet18@16"]]
    hold("resnet18@16 p99 / p50", tail, 2.0, at_least=False)
    quickest = [
        min(row["value"] for row in rows)
        for rows in zip(*(p.cells["first answer s"] for p in peers.values()), strict=True)
    ]
    hold("first answer / quickest peer", against(ours.cells["first answer s"], quickest), 1.0, at_least=False)
    if "flask 2x1" in peers:
        hold("PSS / flask 2x1", ratios(ours.cells["PSS MB"], peers["flask 2x1"].cells["PSS MB"]), 0.8, at_least=False)
    return lines


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each load; ResNet-18 gets one more")
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "slipway-bench")
    parser.add_argument("--contenders", default="", help="names, comma separated; ours always runs")
    arguments = parser.parse_args()
    data = arguments.cache / "data"
    subprocess.run(
        [sys.executable, str(HERE / "workloads.py"), str(data)], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    conclusions = []
    for model in arguments.only.split(","):
        seconds = arguments.seconds + (model == "resnet18")
        port = free_port()
        listed = contenders(model, data, arguments.cache, port)
        if arguments.contenders:
            listed = [one for one in listed if one.name in ("slipway", *arguments.contenders.split(","))]
        limits = []
        for number in range(arguments.rounds):
            for contender in listed if number % 2 == 0 else reversed(listed):
                run_round_again(contender, model, data, port, seconds)
            if model == "resnet18":
                limits.append(limit(data, seconds))
        report(model, listed, limits)
        conclusions += verdicts(model, listed, limits)
    print("\nissue 4 asks for")
    print("\n".join(conclusions))


if __name__ == "__main__":
    main()
