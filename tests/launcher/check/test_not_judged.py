"""What cannot be told is "not judged", with the reason, and never a pass."""

import pytest

from launcher.check import image
from launcher.check.http import Request
from launcher.check.suite import FAILED, NOT_JUDGED

REQUEST = Request(b'{"a": 1}', "application/json")
NO_DATA_NEEDED = {"FAKE_NEEDS_DATA": "0"}

# Checks, what is unusual about the target or the materials, and the reason that must be given.
CASES = [
    (("C7", "C12", "C69", "C142"), {}, "needs an image"),
    (("C1",), {"facts": {"entrypoint": ()}}, "no ENTRYPOINT"),
    (("C84", "C86", "C90", "C94", "C97", "C99", "C100", "C101"), {"request": None, "slow_request": None}, "--request"),
    (("C85", "C91", "C92", "C131"), {"faults": ("serve-fails",)}, "does not start, see C3"),
    (("C104", "C106"), {"faults": ("serve-fails",)}, "does not serve otherwise either"),
    (("C90", "C93", "C94"), {"request": Request(b"{", "application/json")}, "answered 400"),
    (("C101",), {"slow_request": Request(b"{", "application/json")}, "answered 400"),
    (("C86",), {"request": Request(b"{", "application/json")}, "never answered with success"),
    (("C93",), {"request": Request(b"", "image/png")}, "means nothing for image/png"),
    (("C87",), {"slow_request": None}, "--slow-request"),
    (("C87",), {"slow_request": REQUEST}, "were answered before"),
    (("C133", "C134"), {"line_request": None}, "not a type of one record per line"),
    (("C88", "C104"), {"model": None}, "--model DIR"),
    (("C11", "C46", "C51", "C52", "C54"), {"long_hyperparameters": {}}, "give --long-hyperparameter"),
    (("C46", "C51"), {"faults": ("crashes",)}, "before it could be stopped"),
    (("C54",), {"faults": ("crashes",)}, "within a second"),
    (("C16", "C23"), {"faults": ("crashes",)}, "see C41"),
    (("C15", "C47", "C49"), {"faults": ("crashes",)}, "see C41"),
    (("C22",), {"scripts": False}, "needs data"),
    (("C22",), {"scripts": False, "channels": {}}, "needs data"),
    (("C41",), {"channels": {}}, "--train-data DIR"),
    (("C42",), {"scripts": False, "environment": NO_DATA_NEEDED}, "succeeds without its data"),
    (("C43",), {"faults": ("no-failure-file",)}, "see C42"),
    (("C46",), {"faults": ("single-process",)}, "a single process"),
    (("C115", "C119"), {"multi_model": False}, "--only mme"),
    (("C116", "C117"), {"model": None}, "no model to load"),
    (("C116", "C119"), {"faults": ("serve-fails",)}, "see C115"),
    (("C118",), {"out_of_memory_model": None}, "--out-of-memory-model"),
]


@pytest.mark.parametrize(("numbers", "unusual", "reason"), CASES, ids=lambda value: str(value)[:30])
def test_what_cannot_be_told_is_not_judged(judge, numbers, unusual, reason):
    for result in judge(*numbers, **unusual).values():
        assert result.outcome == NOT_JUDGED, result
        assert reason in result.message


def test_a_model_of_nothing_but_code_cannot_be_broken(judge, tmp_path):
    (tmp_path / "handlers" / "code").mkdir(parents=True)
    (tmp_path / "handlers" / "code" / "inference.py").touch()
    result = judge("C88", model=tmp_path / "handlers")["C88"]
    assert (result.outcome, "no model file to break" in result.message) == (NOT_JUDGED, True)


def test_a_machine_with_a_driver_cannot_tell_how_an_image_starts_without(judge, tmp_path, monkeypatch):
    (tmp_path / "version").touch()
    monkeypatch.setattr(image, "NVIDIA_DRIVER", str(tmp_path / "version"))
    assert judge("C10")["C10"].outcome == NOT_JUDGED


def test_compatibility_libraries_without_a_driver_fail(judge):
    result = judge("C10", environment={"LD_LIBRARY_PATH": "/usr/local/cuda/compat:/usr/lib"})["C10"]
    assert result.outcome == FAILED
    assert "error 803" in result.message


def test_training_that_does_not_start_on_a_cpu_fails(judge):
    result = judge("C10", faults=("crashes",), roles=("train",))["C10"]
    assert result.outcome == FAILED
    assert "CPU instances fail" in result.message


def test_a_program_without_its_data_must_name_an_error(judge):
    result = judge("C43", faults=("vague-failure",), scripts=False)["C43"]
    assert result.outcome == FAILED
    assert "names no error" in result.message


def test_a_server_that_ended_meanwhile_fails_the_checks_that_follow(judge):
    results = judge("C99", "C100", faults=("dies-on-disconnect",))
    assert results["C100"].outcome == FAILED
    assert "has ended meanwhile" in results["C100"].message


def test_hyperparameters_may_start_a_job_of_hours(judge):
    """Without any hyperparameters it still runs when the check has seen enough: it started."""
    results = judge("C15", hyperparameters={}, environment={"FAKE_STEPS": "2000"})
    assert results["C15"].outcome == "passed"


def test_no_execution_parameters_are_fine(judge):
    assert judge("C131", faults=("no-execution-parameters",))["C131"].outcome == "passed"


def test_a_container_that_cannot_be_started_is_told_once(judge, monkeypatch):
    monkeypatch.setattr("launcher.check.process_target.sys.executable", "/no/such/python")
    monkeypatch.setattr("sys.executable", "/no/such/python")
    results = judge("C2", "C3", "C16", "C41", "C85", "C101")
    outcomes = {number: result.outcome for number, result in results.items()}
    assert outcomes == {
        "C2": FAILED,
        "C3": FAILED,
        "C16": NOT_JUDGED,
        "C41": NOT_JUDGED,
        "C85": NOT_JUDGED,
        "C101": NOT_JUDGED,
    }
    assert "cannot be started" in results["C2"].message
    assert "see C2 or C3" in results["C41"].message
