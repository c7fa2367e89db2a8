"""The entry point is driven as the image runs it: a process with arguments."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import container

SOURCE = Path(container.__file__).parent
ENTRY = [sys.executable, "-m", "container"]


def run(*argv: str, entry: list[str] = ENTRY, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*entry, *argv], capture_output=True, text=True, timeout=30, check=False, **options)


def test_c4_another_first_argument_is_executed_as_a_command():
    done = run("printf", "%s-%s", "a b", "$HOME")
    assert (done.returncode, done.stdout) == (0, "a b-$HOME")


def test_c4_an_unknown_command_ends_at_once_with_the_usage():
    done = run("no-such-command")
    assert done.returncode == 127
    assert "cannot execute 'no-such-command'" in done.stderr
    assert "train | serve | process SCRIPT | COMMAND" in done.stderr


def test_c74_no_argument_is_a_usage_error_and_not_a_server():
    done = run()
    assert done.returncode == 64
    assert "no argument was given" in done.stderr


def test_a_role_that_the_image_does_not_hold_is_named(tmp_path):
    package = tmp_path / "container"
    package.mkdir()
    for name in ("__init__.py", "__main__.py", "contract.py", "cuda.py"):
        (package / name).write_text((SOURCE / name).read_text())
    without_site = [sys.executable, "-S", "-m", "container"]  # an editable install would find the missing role
    done = run("serve", entry=without_site, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 64
    assert "this image cannot serve" in done.stderr


def test_c11_a_command_takes_the_place_of_the_entry_point_and_gets_its_signals():
    shell = "trap 'echo stopped; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen([*ENTRY, "sh", "-c", shell], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopped\n"
    assert process.wait(5) == 7


def test_the_entry_point_imports_nothing_heavy():
    code = (
        "import sys, container.__main__; print([m for m in ('torch', 'numpy', 'boto3', 'flask') if m in sys.modules])"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"after {time.perf_counter() - started:.1f} s"
