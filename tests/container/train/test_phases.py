"""The launcher's last line says where the time went."""

import re
import time

from container.train.phases import PHASES_FILE, PROGRAM_FILE, phase_line
from container.train.runtime import Runtime


def test_a_job_ends_with_the_seconds_of_its_phases(training_job):
    job = training_job(script="print('hello')")
    assert job.run() == {"algo-1": 0}, job.log()
    seconds = r"\d+\.\d\d s"
    line = (
        rf"phases of algo-1: start {seconds}, peers {seconds}, imports {seconds}, program {seconds}; {seconds} in all"
    )
    assert re.search(line, job.log()), job.log()


def test_a_program_that_tells_its_phases_is_quoted(tmp_path):
    runtime, now = Runtime(tmp_path), time.time()
    runtime.write("launch.json", {"start": 0.25, "peers": 0.5, "at": now - 10, "hosts": ["algo-1"]})
    assert phase_line(runtime, now - 11).startswith("start 0.25 s, peers 0.50 s; 11.0")  # it never came to the program
    runtime.write(PROGRAM_FILE, now - 7)
    runtime.write(PHASES_FILE, {"data": 1.5, "train": 4.0, "export": 0.125})
    assert phase_line(runtime, now - 11).startswith(
        "start 0.25 s, peers 0.50 s, imports 3.00 s, data 1.50 s, train 4.00 s, export 0.12 s; 11.0"
    )
