"""With SLIPWAY_LOG_FORMAT=json every line of the container is one JSON object, whoever wrote it."""

import json
import re

from container.contract import metric_regex
from container.train.lines import json_line

SCRIPT = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
print('says "hello" — ж')
print("val:loss=0.25;")
logging.warning("careful")
for step in range(50):
    print(f"\\r{step}%", end="", file=sys.stderr)
print(file=sys.stderr)
os.write(1, b"a native library's line\\n")
if os.environ["RANK"] == "1":
    raise ValueError("bad")
"""


def test_every_line_of_all_ranks_is_json_with_host_rank_level_and_message(training_job):
    job = training_job(gpus=2, script=SCRIPT)
    job.environ["SLIPWAY_LOG_FORMAT"] = "json"
    assert job.run() == {"algo-1": 1}, job.log()
    lines = [json.loads(line) for line in job.log().splitlines()]
    assert all(line["host"] == "algo-1" and line["time"].endswith("Z") and line["level"] for line in lines[1:])
    said = [(line.get("rank"), line["level"], line["message"]) for line in lines]
    assert (0, "INFO", 'says "hello" — ж') in said
    assert (1, "WARNING", "careful") in said
    assert (None, "INFO", "a native library's line") in said
    assert (1, "WARNING", "ValueError: bad") in said
    assert any(
        rank is None and level == "ERROR" and "job failed: ValueError: bad" in text for rank, level, text in said
    )
    assert sum("%" in text for _, _, text in said) <= 6
    assert re.findall(metric_regex("val:loss"), job.log()) == ["0.25", "0.25"]


def test_a_shell_scripts_lines_are_json_too(training_job):
    job = training_job(hyperparameters={"sagemaker_program": "run.sh"}, channels={"code": None})
    (job.opt_ml().channel("code") / "run.sh").write_text("echo on stdout\necho on stderr >&2\nexit 3")
    job.environ["SLIPWAY_LOG_FORMAT"] = "json"
    assert job.run() == {"algo-1": 3}
    messages = [json.loads(line)["message"] for line in job.log().splitlines()]
    assert {"on stdout", "on stderr"} <= set(messages)


def test_a_line_that_names_its_level_has_it():
    def level_and_message(text):
        line = json.loads(json_line(text, "INFO", {}))
        return line["level"], line["message"]

    assert level_and_message("2026-11-21 11:43:48,808 ERROR job failed") == ("ERROR", "job failed")
    assert level_and_message("WARNING: careful") == ("WARNING", "careful")
    assert level_and_message("E1121 11:43:48.677000 13015 torch/x.py:1] failed") == (
        "ERROR",
        "13015 torch/x.py:1] failed",
    )
    assert level_and_message("INFORMATION") == ("INFO", "INFORMATION")
    assert level_and_message("Epoch 1") == ("INFO", "Epoch 1")
