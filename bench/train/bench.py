"""What the training container costs over doing it by hand, as ratios within one run.

    python bench/train/bench.py [PART ...]

Without names every part but `deadline`, which waits 105 s for a script that does not stop. Everything alternates, so
that whatever else the machine does hits both sides; medians are printed. `gpu` needs a GPU, `docker` the image.
A part that fails or hangs does not end the others; the exit status is 1 then.
"""

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu import gpu
from jobs import TRAIN, alternate, free_port, job_tree
from loop import docker_hosts, memory, scaling, steady
from recovery import checkpoint, deadline, kills, stop

PART_SECONDS = 600  # the longest takes a third of it on two quiet cores


def startup(base: Path) -> None:
    """Seconds from starting `train` to the first line of the user's script."""
    script = "import time, os, sys\nopen(os.environ['FIRST_LINE'], 'w').write(repr(time.time()))\n"
    host = "localhost"  # the toolkit waits until the name resolves
    opt_ml = job_tree(base, host, [host], {"sagemaker_program": "train.py"}, {"code": None})
    code = opt_ml.channel("code")
    (code / "train.py").write_text(script)
    opt_ml.code.mkdir()
    (opt_ml.code / "train.py").write_text(script)
    first_line = base / "first-line"
    environ = os.environ | {"FIRST_LINE": str(first_line), "SAGEMAKER_BASE_DIR": str(opt_ml.base)}

    def measure(*argv: str, more: dict[str, str] | None = None) -> float:
        began = time.time()
        answer = subprocess.run(argv, env=environ | (more or {}), cwd=code, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return float(first_line.read_text()) - began

    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", f"--master-port={free_port()}")
    toolkit = "from sagemaker_training.cli.train import main; main()"
    bare, ours, stock = alternate(
        lambda: measure(*torchrun, "train.py"),
        lambda: measure(*TRAIN),
        lambda: measure(sys.executable, "-c", toolkit, more={"SAGEMAKER_PROGRAM": "train.py"}),
    )
    code_line = "import time; t = time.time(); import container.train.launch; print(time.time() - t)"
    (imports,) = alternate(lambda: float(subprocess.check_output([sys.executable, "-c", code_line])))
    print(f"start to the script's first line: torchrun {bare:.2f} s, ours {ours:.2f} s:", end=" ")
    print(f"{ours / bare:.2f}, {ours - bare:+.2f} s (bar: +0.3 s)")
    print(f"  sagemaker-training, which starts plain python without torchrun: {stock:.2f} s")
    print(f"  our modules' import before the ranks start: {imports:.3f} s (bar: 0.1 s)")


PARTS = {
    "startup": startup,
    "steady": steady,
    "memory": memory,
    "scaling": scaling,
    "docker": docker_hosts,
    "checkpoint": checkpoint,
    "stop": stop,
    "kills": kills,
    "gpu": gpu,
    "deadline": deadline,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="default: all but deadline")
    chosen = parser.parse_args().part or [name for name in PARTS if name != "deadline"]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {time.strftime('%F')}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # run_part ends what it started
    failed = 0
    for name in chosen:
        began = time.monotonic()
        # A process each: what one part leaves in memory or in torch's settings is nothing to the next.
        with tempfile.TemporaryDirectory(prefix="bench-train-", ignore_cleanup_errors=True) as base:
            code = f"import bench; from pathlib import Path; bench.PARTS[{name!r}](Path({base!r}))"
            environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
            status = run_part(code, environ)
        failed += status != 0
        print(
            f"  ({name}: {time.monotonic() - began:.0f} s{'' if status == 0 else f', FAILED: {status}'})",
            flush=True,
        )
    sys.exit(1 if failed else 0)


def run_part(code: str, environ: dict[str, str]) -> int | str:
    """Its exit status; one that hangs is ended with all that it started, so that the others have their turn."""
    part = subprocess.Popen([sys.executable, "-c", code], env=environ, start_new_session=True)
    try:
        return part.wait(PART_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done within {PART_SECONDS} s"
    finally:  # also after an interrupt, and after a failure that left a rank behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(part.pid, signal.SIGKILL)
        part.wait()


if __name__ == "__main__":
    main()
