import pytest

from container.model import ModelFormatError
from container.serve.failures import describe
from container.serve.handlers import HandlerError
from container.serve.requirements import RequirementsError


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "out-of-memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "out-of-memory"),
        (RuntimeError("Error(s) in loading state_dict for Net"), "wrong-architecture"),
        (RuntimeError("The NVIDIA driver is too old: CUDA driver version is insufficient"), "no-cuda-driver"),
        (ModuleNotFoundError("No module named 'x'"), "missing-dependency"),
        (ImportError("cannot import name"), "wrong-version"),
        (PermissionError(13, "Permission denied", "/x"), "permission"),
        (FileNotFoundError(2, "No such file", "/x"), "missing-file"),
        (ModelFormatError("x"), "bad-model"),
        (HandlerError("x"), "bad-handler"),
        (SystemExit(0), "exit"),
        (RequirementsError("x cannot be installed: Temporary failure in name resolution"), "requirements"),
        (KeyError("weights"), "handler-error"),
    ],
)
def test_a_failure_has_a_cause_and_a_fix_in_one_line(error, cause):
    line = describe(error)
    assert f"[{cause}]" in line
    assert "; fix: " in line
    assert "\n" not in line


def test_a_long_message_of_several_lines_becomes_one_short_line():
    line = describe(ValueError("a\nb" * 5000))
    assert "\n" not in line
    assert len(line) < 1200
