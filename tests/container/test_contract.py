"""The contract module: paths, decoding and the metric line both sides agree on."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container import contract
from container.contract import OptMl, decode_hyperparameter, format_metric, metric_regex, truncate_utf8


def test_the_tree_lies_at_opt_ml_unless_the_environment_moves_it():
    assert OptMl.from_env({}).hyperparameters == Path("/opt/ml/input/config/hyperparameters.json")
    assert OptMl.from_env({"SAGEMAKER_BASE_DIR": ""}).model == Path("/opt/ml/model")
    assert OptMl.from_env({"SAGEMAKER_BASE_DIR": "/tmp/x"}).failure == Path("/tmp/x/output/failure")


@pytest.mark.parametrize(
    ("sent", "seen"),
    [("1", 1), ('"1"', "1"), ("adam", "adam"), ('"adam"', "adam"), ("true", True), ("True", "True"), ("007", "007")],
)
def test_c13_c14_a_hyperparameter_is_json_where_it_parses_and_else_itself(sent, seen):
    assert decode_hyperparameter(sent) == seen
    assert type(decode_hyperparameter(sent)) is type(seen)


@given(st.floats())
def test_c67_the_shipped_regex_finds_every_float_the_program_can_print(value):
    line = f"epoch=1 step=20 {format_metric('validation:accuracy', value)}"
    match = re.search(metric_regex("validation:accuracy"), line)
    assert match is not None
    found = float(match.group(1))
    assert math.isnan(found) if math.isnan(value) else math.isclose(found, value, rel_tol=1e-8)


def test_c67_a_metric_is_not_found_in_the_line_of_a_longer_name():
    assert re.search(metric_regex("loss"), "train:loss=0.5;") is None


def test_metric_regexes_fit_the_services_limits():
    assert all(len(metric_regex(name)) <= 500 for name in contract.BUILTIN_METRICS)
    assert len(contract.BUILTIN_METRICS) <= 40


@given(st.text(), st.integers(0, 50))
def test_c77_text_is_cut_to_bytes_but_never_inside_a_character(text, limit):
    cut = truncate_utf8(text, limit)
    assert len(cut.encode()) <= limit
    assert text.encode("utf-8", "replace").decode().startswith(cut)


def test_the_contract_imports_the_standard_library_only():
    code = "import sys, container.contract; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run(
            [sys.executable, "-S", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(contract.__file__).parents[1],
        ).stdout.split()
    )
    assert loaded - set(sys.stdlib_module_names) <= {"container", "__main__"}
