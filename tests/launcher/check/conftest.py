"""The fake container as a target, what it needs to be judged, and a way to run single checks on it."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.check.bench import Bench
from launcher.check.http import Request
from launcher.check.materials import Materials, Patience
from launcher.check.process_target import ProcessTarget
from launcher.check.suite import Result, run_checks
from launcher.check.table import CHECKS
from launcher.check.target import ImageFacts

FAKE = Path(__file__).with_name("fake_container.py")
# Short where a broken target makes the check wait.
HURRY = Patience(
    startup=1.5,
    training=3,
    underway=3,
    training_stop=2,
    early_stop=1,
    serving_stop=2,
    usage_error=1,
    engine=0,
    broken_model=1.5,
    late_model=3,
)
# A good one ends when it is done, however busy this machine is.
CALM = replace(HURRY, startup=60, training=60, training_stop=30, early_stop=30, serving_stop=30, usage_error=30)
GOOD_FACTS = ImageFacts(
    entrypoint=("/usr/bin/python3", "/fake_container.py"),
    command=("train",),
    user="",
    labels={
        "com.amazonaws.sagemaker.capabilities.accept-bind-to-port": "true",
        "com.amazonaws.sagemaker.capabilities.multi-models": "true",
    },
    size_bytes=10**9,
    platform="linux/amd64",
    media_type="application/vnd.docker.distribution.manifest.v2+json",
    files=("/usr/local/cuda/compat/libcuda.so.1",),
)


class FakeTarget(ProcessTarget):
    """The fake as a process, with an image's facts for the checks that read nothing else."""

    def __init__(self, faults: tuple[str, ...], facts: ImageFacts, environment: dict[str, str]) -> None:
        options = [word for fault in faults for word in ("--fault", fault)]
        super().__init__((sys.executable, str(FAKE), *options), environment)
        self.facts = facts

    def image(self) -> ImageFacts:
        return self.facts


@pytest.fixture
def materials(tmp_path: Path) -> Materials:
    model, too_large, data = tmp_path / "model", tmp_path / "too-large", tmp_path / "data"
    for directory in (model, too_large, data):
        directory.mkdir()
    (model / "model.json").write_text("{}")
    (too_large / "too-large").touch()
    return Materials(
        model=model,
        request=Request(json.dumps({"a": 1}).encode(), "application/json"),
        slow_request=Request(json.dumps({"sleep": 1}).encode(), "application/json"),
        line_request=Request(b"1,2", "text/csv"),
        out_of_memory_model=too_large,
        channels={"train": data},
        hyperparameters={"steps": "2"},
        long_hyperparameters={"steps": "2000"},
        scripts=True,
        multi_model=True,
    )


Judge = Callable[..., dict[str, Result]]


@pytest.fixture
def judge(materials: Materials, tmp_path: Path) -> Judge:
    """Runs checks by number on a fake with faults: `judge("C82", faults=("loopback",))`; number -> result."""

    def run(
        *numbers: str,
        faults: tuple[str, ...] = (),
        facts: dict | None = None,
        environment: dict | None = None,
        roles: tuple[str, ...] = ("train", "serve"),
        patience: Patience | None = None,
        **changes: object,
    ) -> dict[str, Result]:
        target = FakeTarget(faults, replace(GOOD_FACTS, **(facts or {})), environment or {})
        bench = Bench(
            target, replace(materials, **changes), tmp_path / "bench", roles, patience or (HURRY if faults else CALM)
        )
        try:
            wanted = [check for check in CHECKS if check.number in numbers or not numbers]
            results = run_checks(wanted, bench, lambda result: None)
        finally:
            bench.close()
        return {result.check.number: result for result in results}

    return run
