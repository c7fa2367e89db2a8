"""How long a verb takes to start: CPU seconds of a fresh process, and what it imports longest.

    python bench/launcher/startup.py [--rounds 10] [--imports]

The bounds are 0.3 s for --help and 0.5 s for --dry-run.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
YAML = """
name: bench
role: jobs
training: {channels: {train: s3://bucket/train/}}
transform: {input: s3://bucket/test/, content_type: image/png}
"""
COMMANDS = {
    "--help": 0.3,
    "train --help": 0.3,
    "train --dry-run": 0.5,
    "transform --dry-run": 0.5,
    "deploy --dry-run": 0.5,
    "train --local --dry-run": 0.5,
    "config show --origin": 0.5,
}
LONGEST = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--imports", action="store_true", help="show what is imported longest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "launcher.yaml").write_text(YAML)
        print(f"{'':28}{'CPU s':>8}{'bound':>8}")
        for command, bound in COMMANDS.items():
            seconds = statistics.median(cpu_seconds(command, folder) for _ in range(options.rounds))
            print(f"{command:28}{seconds:>8.3f}{bound:>8.1f}")
            if options.imports:
                print("\n".join(f"    {line}" for line in imports(command, folder)))


def cpu_seconds(command: str, folder: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, "-m", "launcher", *command.split()]
    subprocess.run(argv, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imports(command: str, folder: str) -> list[str]:
    """`import time: self [us] | cumulative | module` of the modules with the most time of their own."""
    argv = [sys.executable, "-X", "importtime", "-m", "launcher", *command.split()]
    told = subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True).stderr
    lines = [line for line in told.splitlines() if line.startswith("import time:") and "self [us]" not in line]
    own = sorted(lines, key=lambda line: int(line.removeprefix("import time:").split("|")[0]), reverse=True)
    return own[:LONGEST]


if __name__ == "__main__":
    main()
