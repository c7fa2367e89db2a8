"""A new project trains, serves and passes its own test as it was written."""

import json
import os
import shlex
import subprocess
import sys

import click
import pytest

from launcher import cli, scaffold
from launcher.settings import load


@pytest.mark.parametrize("template", ["tables", pytest.param("images", marks=pytest.mark.slow)])
def test_a_new_project_passes_its_own_test(template, tmp_path):
    scaffold.write_project(tmp_path / "mine", template)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path / "mine", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_code_that_is_there_gets_its_settings_and_nothing_else(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    for name in ("src/train.py", "src/inference.py", "README.md", ".gitignore"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "data").mkdir()
    assert cli.main(["init", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"-> {tmp_path}/launcher.yaml\nnext: ")
    assert all((tmp_path / name).read_text() == "mine" for name in ("README.md", ".gitignore"))
    config = load(tmp_path / "launcher.yaml").config
    assert (str(config.training.code), config.training.program, str(config.endpoint.code)) == ("src", "train.py", "src")
    assert config.training.channels["train"].source == "data"
    assert cli.main(["init", str(tmp_path)]) == 2
    assert "launcher.yaml is there already" in capsys.readouterr().err


def test_settings_for_code_say_what_is_not_there(tmp_path):
    (tmp_path / "fit.py").write_text("mine")
    assert cli.main(["init", str(tmp_path)]) == 0
    assert "train.py   # there is none: name the script to run" in (tmp_path / "launcher.yaml").read_text()
    config = load(tmp_path / "launcher.yaml").config
    assert (str(config.training.code), config.endpoint.code) == (".", None)
    assert (tmp_path / ".gitignore").read_text().startswith(".launcher/")


def test_an_empty_directory_can_be_adopted_when_asked(tmp_path):
    assert cli.main(["init", str(tmp_path / "new"), "--template", "own"]) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [".gitignore", "launcher.yaml"]


def commands_of(project, heading):
    """The commands that the project's README tells to type below a heading."""
    block = (project / "README.md").read_text().partition(f"## {heading}")[2].split("```")[1]
    return [shlex.split(line) for line in block.strip().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("template", scaffold.template_names())
def test_the_readme_of_a_new_project_can_be_followed_word_for_word(template, tmp_path):
    project = tmp_path / "mine"
    scaffold.write_project(project, template)
    environment = {**os.environ, "SLIPWAY_LOCAL_RUNTIME": "process"}
    _, *commands = commands_of(project, "On this machine")  # the first is the test above
    told = ""
    try:
        for _, *words in commands:
            command = [sys.executable, *words]
            done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
            told += done.stdout
    finally:
        subprocess.run([sys.executable, "-m", "launcher", "local", "down"], cwd=project, env=environment, check=True)
    for outcome in ("-> trained mine-", "endpoint mine is in service", "-> transformed mine-", "deleted the endpoint"):
        assert outcome in told


@pytest.mark.parametrize("template", scaffold.template_names())
def test_every_command_of_a_projects_readme_is_one(template, tmp_path):
    scaffold.write_project(tmp_path / "mine", template)
    test, *local = commands_of(tmp_path / "mine", "On this machine")
    assert test == ["python", "-m", "pytest"]
    for start, *words in [*local, *commands_of(tmp_path / "mine", "On AWS")]:
        assert [start, *words[:2]] == ["python", "-m", "launcher"]
        command, rest = cli.cli, words[2:]
        while isinstance(command, click.Group):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(command.name, rest)


@pytest.mark.slow
def test_a_new_project_trains_transforms_and_serves_locally(tmp_path):
    scaffold.write_project(tmp_path / "wines", "tables")

    def launcher(*arguments):
        environment = {**os.environ, "SLIPWAY_LOCAL_RUNTIME": "process"}
        command = [sys.executable, "-m", "launcher", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path / "wines", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        job = json.loads(launcher("train", "--local", "--json"))
        assert job["metrics"]["validation:accuracy"] > 0.8
        launcher("transform", "--local", "--json")
        deployed = launcher("deploy", job["name"], "--local")
        assert "is in service" in deployed
        assert "next: python -m launcher invoke sample.json --local" in deployed
        sampled = json.loads(launcher("invoke", "sample.json", "--local"))
        assert [max(range(3), key=row.__getitem__) for row in sampled] == [0, 1, 2]
        answer = launcher("invoke", "data/transform/wines.csv", "--local", "--accept", "text/csv")
        assert len(answer.splitlines()) == 36
        assert launcher("deploy", job["name"], "--local").count("keep ") == 3
        assert "update Endpoint" in launcher("deploy", "--local", "--set", "endpoint.environment.A=1")
        assert "serves" in launcher("rollback", "--local")
        assert launcher("deploy", job["name"], "--local").count("keep ") == 3
        assert launcher("endpoints", "reap", "--local", "--dry-run") == "-> nothing to delete\n"
        assert "deleted the endpoint" in launcher("delete", "wines", "--local")
    finally:
        launcher("local", "down")


def test_init_writes_a_valid_configuration_and_says_what_is_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "my_first project", "--template", "tables"]) == 0
    assert "next: cd my_first project && python -m launcher train --local" in capsys.readouterr().out
    assert load(tmp_path / "my_first project" / "launcher.yaml").config.name == "my-first-project"


def test_init_never_writes_over_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launcher.yaml").write_text("mine")
    assert cli.main(["init"]) == 2
    assert "launcher.yaml is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["launcher.yaml"]


@pytest.mark.parametrize(("folder", "name"), [("a b", "a-b"), ("___", "project"), ("x" * 60, "x" * 40)])
def test_a_projects_name_is_one_sagemaker_takes(folder, name, tmp_path):
    assert scaffold.project_name(tmp_path / folder) == name
