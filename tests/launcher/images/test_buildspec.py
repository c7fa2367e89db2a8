"""buildspec.yml, run phase by phase as CodeBuild does, against the real registry."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

BASE_IMAGE = os.environ.get("SLIPWAY_BASE_IMAGE") or "slipway-base:bookworm"
ROOT = Path(__file__).parents[3]
SPEC = yaml.safe_load((ROOT / "buildspec.yml").read_text())
DOCKERFILE = (
    'FROM scratch\nCOPY requirements /r\nCOPY container/contract.py /c/\nENTRYPOINT ["/python", "-m", "container"]\n'
)


@pytest.fixture
def checkout(tmp_path, registry_host, image_names):
    """This project with tiny Dockerfiles; its environment is the one the tests run in."""
    for name in ("container", "launcher", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "README.md").write_text("")
    repositories = {"training": image_names("train"), "serving": image_names("serve")}
    for kind, name in (("train", "Dockerfile.train"), ("serve", "Dockerfile.serve")):
        (tmp_path / name).write_text(f"{DOCKERFILE}LABEL kind={kind}\n")
    settings = {"images": {"registry": registry_host, **{kind: {"repository": r} for kind, r in repositories.items()}}}
    (tmp_path / "launcher.yaml").write_text(yaml.safe_dump(settings))
    # instead of a new environment of 700 MB: `$PYTHON -m venv .venv` gives the one there is, and pip only looks
    (tmp_path / "python").write_text(f"#!/bin/sh\nln -s {ROOT / '.venv'} .venv\n")
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def run_phase(name, directory, succeeding=True, contract=False):
    """A phase's commands in one shell, as CodeBuild runs them: the first that fails ends the phase."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        **SPEC["env"]["variables"],
        "PYTHON": str(directory / "python"),
        "PIP_DRY_RUN": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # as pip reads it: without isolation
        "CODEBUILD_BUILD_SUCCEEDING": str(int(succeeding)),
    }
    lines = [line.replace("min_free_gb=20", "min_free_gb=1") for line in SPEC["phases"][name]["commands"]]
    if not contract:
        lines = [line.replace(" --contract", "") for line in lines]
    script = "\n".join(["set -e", *lines])
    shell = SPEC["env"]["shell"]
    return subprocess.run(
        [shell, "-c", script], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.docker
def test_the_phases_build_check_and_push_both_images(checkout, registry_host, image_names):
    for name in SPEC["phases"]:
        done = run_phase(name, checkout)
        assert done.returncode == 0, f"{name}: {done.stdout}\n{done.stderr}"
    (artifact,) = SPEC["artifacts"]["files"]
    pushed = json.loads((checkout / artifact).read_text())
    assert pushed.keys() == {"training", "serving"}
    for kind, name in (("training", "train"), ("serving", "serve")):
        assert pushed[kind]["uri"].startswith(f"{registry_host}/{image_names(name)}@sha256:")


@pytest.mark.docker
@pytest.mark.slow
def test_an_image_that_breaks_the_contract_fails_the_build_unless_it_is_somebody_elses(checkout):
    shutil.copy(ROOT / "tests" / "launcher" / "check" / "fake_container.py", checkout / "container")
    argv = ["/usr/bin/python3", "/fake_container.py", "--fault", "crashes"]
    lines = [f"FROM {BASE_IMAGE}", "COPY container/fake_container.py /", f"ENTRYPOINT {json.dumps(argv)}"]
    for name in ("Dockerfile.train", "Dockerfile.serve"):
        (checkout / name).write_text("\n".join(lines) + "\n")
    run_phase("install", checkout)
    done = run_phase("build", checkout, contract=True)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "broken M (the platform's contract)" in done.stdout
    settings = yaml.safe_load((checkout / "launcher.yaml").read_text())
    for kind, name in (("training", "Dockerfile.train"), ("serving", "Dockerfile.serve")):
        settings["images"][kind]["dockerfile"] = name
    (checkout / "launcher.yaml").write_text(yaml.safe_dump(settings))
    done = run_phase("build", checkout, contract=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is your own: python -m launcher check ") == 2


@pytest.mark.docker
def test_after_a_failed_build_nothing_is_pushed(checkout):
    run_phase("install", checkout)
    assert run_phase("post_build", checkout, succeeding=False).returncode != 0
    assert not (checkout / "images.json").exists()


def test_the_buildspec_holds_no_logic_of_its_own():
    commands = [line for phase in SPEC["phases"].values() for line in phase["commands"]]
    allowed = ("$PYTHON -m venv", ".venv/bin/python -m pip install", ".venv/bin/python -m launcher ", "test ")
    assert [line for line in commands if not line.startswith(allowed)] == []
