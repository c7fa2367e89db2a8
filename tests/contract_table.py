"""Which statements of SageMaker's contract have tests: `python tests/contract_table.py` rewrites docs/contract.md.

A test that proves statement C13 carries `c13` in its name. The statements themselves stand in docs/contract.md.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "contract.md"
ROW = re.compile(r"^\| C(\d+) \| ([MS]) \| (.*?) \| .* \|$")


def tests_by_check() -> dict[int, list[str]]:
    """Check number -> the files, relative to tests/, that hold a test of it."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in re.findall(r"^ *(?:async )?def (test_c\d\w*)", path.read_text(), re.MULTILINE):
            for number in re.match(r"test((?:_c\d+)+)", name).group(1).split("_c")[1:]:
                found[int(number)].add(path.relative_to(ROOT / "tests").as_posix())
    return {number: sorted(files) for number, files in found.items()}


def rendered(document: str) -> str:
    """The document with its last column filled from the tests."""
    covered = tests_by_check()
    lines = []
    for line in document.splitlines():
        row = ROW.match(line)
        if row:
            number, level, statement = int(row[1]), row[2], row[3]
            files = ", ".join(f"`{name}`" for name in covered.get(number, []))
            line = f"| C{number} | {level} | {statement} | {files or '-'} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(rendered(DOCUMENT.read_text()))
    sys.stdout.write(f"{len(tests_by_check())} statements have tests\n")
