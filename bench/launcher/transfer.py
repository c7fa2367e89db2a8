"""Moving and packing files: the launcher against `aws s3 cp` and Python's own tarfile, on this machine.

    python bench/launcher/transfer.py [--rounds 3] [--files 500] [--large-mb 256]

Starts a local SageMaker of its own (runtime: processes) in a temporary directory and uses its S3, so that both sides
talk to the same server; the sides take turns. Printed are medians of the CPU seconds of the sending process (that of
the server left out), of the wall seconds, and their ratio to `aws s3 cp`.
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AWS = Path(sys.executable).with_name("aws")
BUCKET = "s3://bench"
LAUNCHER = """
import sys
from pathlib import Path
from launcher.aws import Aws
from launcher import data
action, path, uri = sys.argv[1:]
getattr(data, action)(Aws("us-east-1"), *((Path(path), uri) if action == "upload" else (uri, Path(path))))
"""
PACKERS = {
    "tarfile + gzip, level 9 (its default)": "tarfile.open({target!r}, 'w:gz').add({source!r}, 'm')",
    "tarfile + gzip, level 1": "tarfile.open({target!r}, 'w:gz', compresslevel=1).add({source!r}, 'm')",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=500, help="small ones, of 20 KB")
    parser.add_argument("--large-mb", type=int, default=256)
    options = parser.parse_args()
    os.environ["SLIPWAY_LOCAL_RUNTIME"] = "process"
    from launcher.local import client

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        try:
            environment = client.up(work / "home").environment()
            os.environ.update(environment)
            transfers(work, options)
        finally:
            client.down(work / "home")
        packing(work, options)


def transfers(work: Path, options: argparse.Namespace) -> None:
    many, large = work / "many", work / "large"
    many.mkdir()
    large.mkdir()
    source = random.Random(0)
    for number in range(options.files):
        (many / f"{number:05d}.bin").write_bytes(source.randbytes(20_000))
    (large / "weights.bin").write_bytes(source.randbytes(1_000_000) * options.large_mb)
    run([AWS, "s3", "mb", BUCKET])
    print(f"{'':28}{'launcher':>20}{'aws s3 cp':>20}{'ratio':>16}")
    print(f"{'':28}{'CPU s      wall s':>20}{'CPU s      wall s':>20}{'CPU    wall':>16}")
    for name, directory in ((f"{options.files} files of 20 KB", many), (f"1 file of {options.large_mb} MB", large)):
        for action in ("upload", "download"):
            compare(f"{action} {name}", directory, action, work / "got", options.rounds)


def compare(name: str, directory: Path, action: str, got: Path, rounds: int) -> None:
    ours, theirs = [], []
    for number in range(rounds):
        mine, other = f"{BUCKET}/{directory.name}/launcher/{number}/", f"{BUCKET}/{directory.name}/aws/{number}/"
        shutil.rmtree(got, ignore_errors=True)
        if action == "upload":
            ours.append(run([sys.executable, "-c", LAUNCHER, "upload", directory, mine]))
            theirs.append(run([AWS, "s3", "cp", "--quiet", "--recursive", directory, other]))
        else:
            ours.append(run([sys.executable, "-c", LAUNCHER, "download", got / "launcher", mine]))
            theirs.append(run([AWS, "s3", "cp", "--quiet", "--recursive", other, got / "aws"]))
            assert sizes(got / "launcher") == sizes(got / "aws") == sizes(directory)
    (cpu, wall), (their_cpu, their_wall) = median(ours), median(theirs)
    figures = f"{cpu:>9.2f}{wall:>11.2f}{their_cpu:>9.2f}{their_wall:>11.2f}"
    print(f"{name:28}{figures}{cpu / their_cpu:>9.2f}{wall / their_wall:>7.2f}")


def sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def packing(work: Path, options: argparse.Namespace) -> None:
    """The launcher's `repack` copies an archive's members into another one, with the code beside them."""
    weights, code = work / "weights.bin", work / "code"
    numbers = random.Random(0)
    weights.write_bytes(bytes(int(abs(numbers.gauss(0, 40))) % 256 for _ in range(1_000_000)) * (options.large_mb // 4))
    code.mkdir()
    (code / "inference.py").write_text("")
    target = work / "packed.tar.gz"
    run(
        [
            sys.executable,
            "-c",
            f"import tarfile; tarfile.open({str(target)!r}, 'w:gz', compresslevel=1).add({str(weights)!r}, 'm')",
        ]
    )
    print(f"\npacking {options.large_mb // 4} MB{'':40}CPU s      size  times as fast")
    base = 0.0
    for name, statement in PACKERS.items():
        made = work / "made.tar.gz"
        cpu, _ = run(
            [sys.executable, "-c", "import tarfile; " + statement.format(target=str(made), source=str(weights))]
        )
        base = base or cpu
        print(f"   {name:50}{cpu:>6.2f}{made.stat().st_size / 1e6:>7.1f} MB{base / cpu:>10.1f}")
    statement = "from pathlib import Path; from launcher.packing import repack; repack(*map(Path, {}))"
    made = work / "ours.tar.gz"
    cpu, _ = run([sys.executable, "-c", statement.format([str(target), str(code), str(made)])])
    name = "launcher.packing.repack (unpacks and packs)"
    print(f"   {name:50}{cpu:>6.2f}{made.stat().st_size / 1e6:>7.1f} MB{base / cpu:>10.1f}")


def run(argv: list[object]) -> tuple[float, float]:
    """CPU and wall seconds of a command and its children."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(part) for part in argv], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def median(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(cpu for cpu, _ in pairs), statistics.median(wall for _, wall in pairs)


if __name__ == "__main__":
    main()
