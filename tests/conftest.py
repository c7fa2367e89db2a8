"""What all tests share: how they run side by side, which are skipped, a real browser, a data set out of a package."""

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
BROWSER = shutil.which("chromium")
MOST_WORKERS = 8  # the longest files bound what more would save
WORKER_BYTES = 3 * 1024**3  # a test's jobs: up to four processes with torch


def pytest_xdist_auto_num_workers() -> int | None:
    """How many tests `make test` runs at a time: one more than cores, as a test often waits for a process."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)) + 1, MOST_WORKERS, memory // WORKER_BYTES))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CI runs everything: without an engine its Docker tests fail, they are not skipped."""
    if os.environ.get("CI"):
        return
    if not os.environ.get("SLOW"):
        _skip(items, "slow", "takes long: SLOW=1 make test, or CI, runs it")
    if any(item.get_closest_marker("docker") for item in items):
        reason = _why_no_engine()
        if reason is not None:
            _skip(items, "docker", reason)


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_engine() -> str | None:
    if shutil.which("docker") is None:
        return "no docker client on PATH"
    answer = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode:
        return f"no Docker engine answers: {answer.stderr.strip().splitlines()[-1:]}"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many were skipped for which reason, in one line each."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], AbstractContextManager]:
    """`with alone("image"):` lets one test at a time in, of all that run side by side."""
    base = tmp_path_factory.getbasetemp()
    return lambda what: FileLock((base if worker_id == "master" else base.parent) / f"{what}.lock")


@pytest.fixture(scope="session")
def built_image(alone: Callable[[str], AbstractContextManager]) -> Callable[[str], str]:
    """Builds one of our two images as the README says, once for all that run side by side; its name."""
    base, network = os.environ.get("SLIPWAY_BASE_IMAGE"), os.environ.get("SLIPWAY_BUILD_NETWORK")
    options = [*(["--build-arg", f"BASE_IMAGE={base}"] if base else []), *(["--network", network] if network else [])]

    def build(role: str) -> str:
        image = f"slipway-{role}:local"
        argv = ["docker", "build", "--quiet", *options, "-f", f"Dockerfile.{role}", "-t", image, "."]
        with alone("images") as lock:
            done = Path(f"{lock.lock_file}.{role}")
            if not done.exists():
                built = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, timeout=1500)
                advice = "SLIPWAY_BASE_IMAGE names a base that need not be pulled"
                assert built.returncode == 0, f"{' '.join(argv)} failed; {advice}:\n{built.stderr}"
                done.touch()
        return image

    return build


@pytest.fixture(scope="session")
def digits(alone: Callable[[str], AbstractContextManager]) -> Path:
    """UCI handwritten digits as image folders: `train/<class>/*.png` and `test/<class>/*.png`, 8x8 grey."""
    from launcher.demo import write_digits

    with alone("digits") as lock:
        directory = Path(lock.lock_file).with_suffix("")
        if not directory.exists():
            write_digits(directory.with_suffix(".part"))
            directory.with_suffix(".part").rename(directory)
    return directory


@pytest.fixture(scope="session")
def stepping_script() -> str:
    """A script whose ranks meet in every step; a rank that finds a file `end` among its host's outputs runs it."""
    return """
import os, pathlib, signal, time
import torch, torch.distributed as dist
from container.train import Health
dist.init_process_group("gloo")
with Health() as health:
    for step in range(100_000):
        time.sleep(0.05)
        dist.all_reduce(torch.ones(1))
        health.step()
        if step == 20:
            print("training", flush=True)
        end = pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "end")
        if end.exists():
            exec(end.read_text())
"""


class Browser:
    """A page of a headless chromium; commands and answers are JSON between zero bytes on file descriptors 3 and 4."""

    def __init__(self, directory):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        script = f"exec {BROWSER} --headless --no-sandbox --disable-gpu --disable-dev-shm-usage"
        script += f" --remote-debugging-pipe --user-data-dir={directory} about:blank 3<&{commands} 4>&{answers}"
        self._process = subprocess.Popen(
            ["bash", "-c", script], pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session = {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def _call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            while b"\0" not in self._buffer:
                assert select.select([self._answers], [], [], max(0, deadline - time.monotonic()))[0], method
                piece = os.read(self._answers, 65536)
                assert piece, "the browser has ended"
                self._buffer += piece
            message, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(message)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url):
        self._call("Page.navigate", url=url)

    def run(self, script):
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key):
        """A key of the keyboard, as a person presses it."""
        text = {"Enter": "\r", "Tab": ""}.get(key, key)
        code = {"Enter": 13, "Tab": 9, " ": 32}.get(key, ord(key[0]))
        for kind, typed in (("keyDown", {"text": text} if text else {}), ("keyUp", {})):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    def wait(self, script):
        """Until it is true; a page that is not there yet has no elements to ask."""
        script = f"(() => {{ try {{ return {script} }} catch (error) {{ return null }} }})()"
        deadline = time.monotonic() + 60
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"))
            time.sleep(0.05)
        return value

    def close(self):
        self._call("Browser.close")
        os.close(self._commands)
        self._process.wait(60)
        os.close(self._answers)


@pytest.fixture
def browser(tmp_path):
    """A headless browser's page, driven through its debugging pipe."""
    if not BROWSER and not os.environ.get("CI"):
        pytest.skip("no chromium: apt-get install chromium")
    page = Browser(tmp_path / "browser")
    yield page
    page.close()
