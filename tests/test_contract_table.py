"""docs/contract.md says what is proven, and is right about it."""

import importlib.util
import re
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("contract_table", Path(__file__).with_name("contract_table.py"))
assert SPEC is not None
contract_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(contract_table)


def test_the_contract_table_names_exactly_the_tests_that_exist():
    document = contract_table.DOCUMENT.read_text()
    assert contract_table.rendered(document) == document, "run: python tests/contract_table.py"


def test_the_contract_table_has_every_statement_once():
    numbers = [
        int(number) for number in re.findall(r"^\| C(\d+) \|", contract_table.DOCUMENT.read_text(), re.MULTILINE)
    ]
    assert numbers == list(range(1, 148))


def test_no_test_proves_a_statement_that_does_not_exist():
    assert set(contract_table.tests_by_check()) <= set(range(1, 148))
