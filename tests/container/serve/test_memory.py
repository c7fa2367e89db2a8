import subprocess
import sys

import pytest

from container.serve import memory


def test_what_is_available_is_what_the_cgroup_leaves_its_idle_files_included(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP_2", tmp_path)
    machine = memory.available()
    (tmp_path / "memory.max").write_text("30000000\n")
    (tmp_path / "memory.current").write_text("20000000\n")
    (tmp_path / "memory.stat").write_text("anon 15000000\ninactive_file 4000000\nactive_file 1000000\n")
    assert memory.available() == 14_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() > machine / 2


def test_version_1_of_the_cgroup_is_understood(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP_2", tmp_path / "absent")
    monkeypatch.setattr(memory, "CGROUP_1", tmp_path)
    (tmp_path / "memory.limit_in_bytes").write_text("30000000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("20000000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 2000000\n")
    assert memory.limit_of_cgroup() == "30000000"
    assert memory.available() == 12_000_000


def test_held_memory_is_what_this_process_took_and_gives_back():
    before = memory.held()
    taken = bytearray(b"x" * 50_000_000)
    assert memory.held() > before + 40_000_000
    del taken
    memory.give_back()
    assert memory.held() < before + 20_000_000
    with pytest.raises(OSError, match="4194304"):
        memory.held(2**22)


def test_past_its_bound_a_process_gets_a_memory_error_instead_of_being_killed():
    code = """
from container.serve import memory
memory.bound_growth(100_000_000)
bytearray(60_000_000)
try:
    bytearray(200_000_000)
except MemoryError:
    memory.bound_growth(400_000_000)
    bytearray(200_000_000)
    print("refused, then granted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused, then granted\n"
