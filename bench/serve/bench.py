"""Our server beside its peers in the same run: .venv/bin/python bench/serve/bench.py [--rounds 3] [--only echo,mlp].

Needs bench/serve/setup.sh once. Rounds are interleaved, the order of servers is turned round in every second one, and
every answer is checked before it is timed. Numbers of one run are compared with each other only.
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
                cell = load(port, data, workload, kind, connections, 1) and load(
                    port, data, workload, kind, connections, seconds
                )
                record(contender, f"{workload}@{connections}", cell)
            record(contender, "PSS MB", {"value": proportional_memory(process.pid)})
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


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
        raise SystemExit(f"{workload}: {figures['failed']} requests failed")
    return {"value": figures["requests"] / figures["us"] * 1e6, "p50": figures["p50"], "p99": figures["p99"]}


def proportional_memory(pid: int) -> float:
    """PSS of a process and all below it, in MB."""
    total, pids = 0.0, [pid]
    while pids:
        pid = pids.pop()
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1024
    return total


def limit(data: Path, seconds: int) -> float:
    argv = [sys.executable, str(HERE / "limit.py"), str(data), str(seconds)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return float(subprocess.run(argv, env=environ, capture_output=True, text=True, check=True).stdout)


def report(model: str, listed: list[Contender], limits: list[float]) -> None:
    """Medians over the rounds; the ratio is our server's against each peer, round by round."""
    ours = listed[0]
    print(f"\n{model}: median of {len(ours.cells['PSS MB'])} rounds (p50/p99 ms); ratio = ours/peer, median of rounds")
    for cell in ours.cells:
        print(f"  {cell}")
        for contender in listed:
            rows = contender.cells[cell]
            values = [row["value"] for row in rows]
            line = f"    {contender.name:12} {statistics.median(values):10.2f}"
            if "p50" in rows[0]:
                p50, p99 = (statistics.median(row[name] for row in rows) / 1000 for name in ("p50", "p99"))
                line += f"  ({p50:.2f}/{p99:.2f})"
            if contender is not ours:
                ratios = [mine["value"] / theirs for mine, theirs in zip(ours.cells[cell], values, strict=True)]
                line += f"  ratio {statistics.median(ratios):.2f}  [{min(ratios):.2f}..{max(ratios):.2f}]"
            print(line)
    if limits:
        print(f"  in-process decode + forward, a thread per core: {statistics.median(limits):.2f} images/s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "slipway-bench")
    parser.add_argument("--contenders", default="", help="names, comma separated; ours always runs")
    arguments = parser.parse_args()
    data = arguments.cache / "data"
    subprocess.run(
        [sys.executable, str(HERE / "workloads.py"), str(data)], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    for model in arguments.only.split(","):
        port = free_port()
        listed = contenders(model, data, arguments.cache, port)
        if arguments.contenders:
            listed = [one for one in listed if one.name in ("slipway", *arguments.contenders.split(","))]
        limits = []
        for number in range(arguments.rounds):
            for contender in listed if number % 2 == 0 else reversed(listed):
                run_round(contender, model, data, port, arguments.seconds)
            if model == "resnet18":
                limits.append(limit(data, arguments.seconds))
        report(model, listed, limits)


if __name__ == "__main__":
    main()
