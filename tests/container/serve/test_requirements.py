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


def write_wheel(directory, name="slipway_test_wheel", value=42):
    directory.mkdir()
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"VALUE = {value}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
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


def test_c108_vendored_wheels_are_installed_without_a_network(code_dir, monkeypatch):
    directory = code_dir("slipway_test_wheel")
    write_wheel(directory / "wheels")
    target = install_requirements(directory, {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    put_on_path(target)
    code = "import slipway_test_wheel; print(slipway_test_wheel.VALUE)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "42\n"


def test_c108_what_cannot_be_installed_is_named_with_its_file(code_dir):
    directory = code_dir("slipway-absent-package==9")
    (directory / "wheels").mkdir()
    with pytest.raises(
        RequirementsError, match=r"requirements.txt: slipway-absent-package==9 cannot be installed: ERROR"
    ):
        install_requirements(directory, {})


def test_c108_installing_can_be_forbidden(code_dir):
    with pytest.raises(RequirementsError, match="SLIPWAY_INSTALL_REQUIREMENTS=never forbids"):
        install_requirements(code_dir("slipway-absent-package"), {"SLIPWAY_INSTALL_REQUIREMENTS": "never"})


def test_c108_an_installation_without_end_is_stopped(code_dir, monkeypatch):
    directory = code_dir("slipway-absent-package")
    monkeypatch.setattr(requirements, "INSTALL_SECONDS", 0.2)
    monkeypatch.setattr(requirements, "pip_argv", lambda code_dir, target: ["sleep", "30"])
    with pytest.raises(RequirementsError, match=r"was not installed within 0\.2 s"):
        install_requirements(directory, {})
