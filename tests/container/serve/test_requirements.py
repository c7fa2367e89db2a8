import os
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

from container.serve import requirements
from container.serve.requirements import RequirementsError, install_requirements, missing, put_on_path


@pytest.fixture
def code_dir(tmp_path):
    def write(text):
        (tmp_path / "requirements.txt").write_text(text)
        return tmp_path

    return write


def write_wheel(directory, name="slipway_test_wheel", value=42, needs=""):
    directory.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"VALUE = {value}\n")
        requires = f"Requires-Dist: {needs}\n" if needs else ""
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ("", []),
        ("# a comment\n\nnumpy\nFlask>=3  # why\n", []),
        (f"numpy=={metadata.version('numpy')}\n", []),
        ("numpy<1\n", ["numpy<1"]),
        ("absent-package\n", ["absent-package"]),
        ("absent-package; python_version < '3'\n", []),
        ("-r other.txt\n", ["-r other.txt"]),
        ("numpy @ https://example.com/numpy.whl\n", ["numpy @ https://example.com/numpy.whl"]),
    ],
)
def test_requirements_that_are_there_already_are_not_missing(text, lacking):
    assert missing(text) == lacking


def test_without_requirements_or_with_satisfied_ones_nothing_is_installed(tmp_path, code_dir):
    assert install_requirements(tmp_path, {}) is None
    assert install_requirements(code_dir("numpy"), {}) is None


def value_of(module, target, monkeypatch):
    """A module's VALUE, in a process that is started with `target` on its path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    put_on_path(target)
    code = f"import {module}; print({module}.VALUE)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_c108_vendored_wheels_are_installed_without_a_network_and_nothing_that_is_there(code_dir, monkeypatch):
    directory = code_dir("slipway_test_wheel")
    write_wheel(directory / "wheels", needs="torch>=2")  # no wheel of torch is there, and none is needed
    target = install_requirements(directory, {})
    assert value_of("slipway_test_wheel", target, monkeypatch) == "42\n"
    assert not list(target.glob("torch*"))


def test_c108_a_version_that_the_code_pins_goes_before_the_images_own(code_dir, monkeypatch):
    directory = code_dir("blinker==1.0")
    write_wheel(directory / "wheels", "blinker", 7)
    target = install_requirements(directory, {})
    assert value_of("blinker", target, monkeypatch) == "7\n"


@pytest.mark.parametrize(
    ("source", "requirement"),
    [
        ({"url": "u", "archive_info": {"hash": "sha256=ab"}}, "name @ u#sha256=ab"),
        ({"url": "u", "dir_info": {}}, "name @ u"),
        ({"url": "u", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}, "name @ git+u@c0ffee"),
    ],
)
def test_what_pip_found_is_installed_and_nothing_else(tmp_path, source, requirement):
    report = {"install": [{"metadata": {"name": "name"}, "download_info": source}]}
    assert requirements.install_argv(tmp_path, report)[-4:] == ["--no-deps", "--target", str(tmp_path), requirement]


def test_an_included_file_whose_requirements_are_met_installs_nothing(code_dir):
    directory = code_dir("-r other.txt")
    (directory / "other.txt").write_text("numpy\n")
    (directory / "wheels").mkdir()
    assert install_requirements(directory, {}) is None


def test_c108_what_cannot_be_installed_is_named_with_its_file(code_dir):
    directory = code_dir("slipway-absent-package==9")
    (directory / "wheels").mkdir()
    with pytest.raises(
        RequirementsError, match=r"requirements.txt: slipway-absent-package==9 cannot be installed: ERROR"
    ):
        install_requirements(directory, {})


def test_c108_without_a_network_the_reason_is_the_network(code_dir, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(RequirementsError, match=r"reaches no package index: .*Connection refused$"):
        install_requirements(code_dir("slipway-absent-package==9"), {})


def test_c108_installing_can_be_forbidden(code_dir):
    with pytest.raises(RequirementsError, match="SLIPWAY_INSTALL_REQUIREMENTS=never forbids"):
        install_requirements(code_dir("slipway-absent-package"), {"SLIPWAY_INSTALL_REQUIREMENTS": "never"})


def test_c108_an_installation_without_end_is_stopped(code_dir, monkeypatch):
    directory = code_dir("slipway-absent-package")
    monkeypatch.setattr(requirements, "INSTALL_SECONDS", 0.2)
    monkeypatch.setattr(requirements, "resolve_argv", lambda code_dir, report: ["sleep", "30"])
    with pytest.raises(RequirementsError, match=r"was not installed within 0\.2 s"):
        install_requirements(directory, {})
