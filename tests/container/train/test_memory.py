"""What becomes of memory that a step has freed, told by the kernel's own counts."""

import json
import subprocess
import sys

STEPS = """
import json, resource, sys
from container.train.memory import keep_free_memory, return_free_memory

PAGE, BUFFERS, BUFFER_PAGES = 4096, 8, 1_500

def pages_in_memory():
    return int(open("/proc/self/statm").read().split()[1])

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [b"x" * (BUFFER_PAGES * PAGE) for _ in range(BUFFERS)]
    del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if "keep" in sys.argv:
    keep_free_memory()
faults = [faults_of_a_step() for _ in range(6)]
kept = pages_in_memory()
return_free_memory()
print(json.dumps({"first": faults[0], "last": faults[-1], "given_back": (kept - pages_in_memory()) / BUFFER_PAGES}))
"""


def steps(*arguments):
    done = subprocess.run([sys.executable, "-c", STEPS, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_freed_memory_is_there_for_the_next_step_and_given_back_when_asked():
    by_default, kept = steps(), steps("keep")
    assert by_default["last"] > by_default["first"] / 2  # glibc gives most of it back: every step gets it anew
    assert kept["last"] < kept["first"] / 10
    assert kept["given_back"] > 7  # of 8 buffers
