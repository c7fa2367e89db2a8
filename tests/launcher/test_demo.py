"""The demo trains, scores and serves for real, and fails where answers differ from the trained model's own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from launcher import demo
from launcher.config import Config
from launcher.digits import write_digits
from launcher.errors import ConfigError, JobFailed
from launcher.settings import load

EXPECTED = {"3/a.png": demo.Prediction("3", (0.1, 0.9)), "4/b.png": demo.Prediction("4", (0.8, 0.2))}


def test_the_digits_become_grey_pngs_split_by_class(digits):
    images = sorted(digits.glob("*/*/*.png"))
    assert len(images) == 1797
    assert len(list(digits.glob("test/*/*.png"))) == 360
    assert {path.parent.name for path in digits.glob("test/*/*")} == set("0123456789")
    with Image.open(images[0]) as image:
        assert (image.mode, image.size) == ("L", (8, 8))


def test_writing_the_digits_again_changes_nothing(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*.png")}
    write_digits(digits)
    assert before == {path: path.stat().st_mtime_ns for path in digits.rglob("*.png")}


def test_predictions_are_read_from_the_training_jobs_table(tmp_path):
    (tmp_path / "p.csv").write_text("file,label,predicted,p:3,p:4\n3/a.png,3,3,0.1,0.9\n4/b.png,3,4,0.8,0.2\n")
    assert demo.read_predictions(tmp_path / "p.csv") == EXPECTED


def test_equal_answers_agree():
    demo.compare("here", EXPECTED, dict(EXPECTED))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"3/a.png": EXPECTED["3/a.png"]}, "answers for 1 of 2 images; first differing: 4/b.png"),
        ({**EXPECTED, "4/b.png": demo.Prediction("3", (0.8, 0.2))}, "4/b.png is 3 with"),
        ({**EXPECTED, "4/b.png": demo.Prediction("4", (0.7998, 0.2002))}, "and the trained model said 4"),
    ],
)
def test_answers_that_differ_fail_the_demo(answers, message):
    with pytest.raises(JobFailed, match=message):
        demo.compare("here", EXPECTED, answers)


def test_the_demos_configuration_is_the_examples_own():
    assert isinstance(load(demo.CONFIG_FILE).config, Config)


def test_outside_a_checkout_the_demo_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "CONFIG_FILE", tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="the demo runs in a checkout of the project"):
        demo.Demonstration(None, json_wanted=True)


@pytest.mark.docker
def test_an_image_that_is_missing_is_named_before_minutes_pass():
    with pytest.raises(ConfigError, match="there is no image slipway-test-none:1 .* build both with `make images`"):
        demo._need_image("slipway-test-none:1")


def test_the_example_runs_as_its_first_lines_say(tmp_path):
    folder = shutil.copytree(demo.CONFIG_FILE.parent, tmp_path / "digits", ignore=shutil.ignore_patterns("data"))
    subprocess.run([sys.executable, "make_data.py"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    assert len(list((folder / "data").rglob("*.png"))) == 1797
    for verb in ("train", "transform", "deploy"):
        command = [sys.executable, "-m", "launcher", verb, "--dry-run", "--local"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_the_demo_runs_as_processes_and_leaves_what_it_says(tmp_path):
    command = [sys.executable, "-m", "launcher", "demo", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["accuracy"] >= 0.97
    assert report["batch_rows"] == report["endpoint"]["requests"] == 360
    assert list(report["phases"])[0] == "start"
    assert all((tmp_path / path).exists() for path in report["files"].values())
    assert report["next"].startswith("python -m launcher deploy digits-")
    assert "-> InService" in done.stderr
    status = subprocess.run(
        [sys.executable, "-m", "launcher", "local", "status"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "it is not running" in status.stdout
    assert Path(tmp_path / ".launcher" / "demo" / "demo.json").exists()
