import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[3] / "bench" / "serve" / "soak.py"


@pytest.mark.slow
def test_half_a_minute_at_80_percent_of_capacity_loses_nothing_but_what_killed_processes_held():
    argv = [sys.executable, str(SOAK), "--minutes", "0.5", "--kill-every", "10"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^processes killed +[1-9]$", done.stdout, re.MULTILINE)
    assert re.search(r"^violations +0$", done.stdout, re.MULTILINE)
