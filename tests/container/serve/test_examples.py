"""Every folder of examples/serve does what its README says: make.py is run, the server started, the requests sent."""

import argparse
import codecs
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples" / "serve"
FOLDERS = sorted(path.parent.name for path in EXAMPLES.glob("*/make.py"))
# Seconds to start, each.
WITH_TORCH = {"classifier", "pytorch-toolkit", "torchscript", "torch-export", "weights-and-signature"}
CURL = argparse.ArgumentParser()
CURL.add_argument("url")
CURL.add_argument("-N", action="store_true")
CURL.add_argument("-H", action="append", default=[])
CURL.add_argument("--data-binary", "-d", dest="data")


def requests(readme):
    """(curl's arguments, the answer) of each indented block; `…` stands for any text."""
    lines = [line[4:] if line.startswith("    ") else "" for line in readme.read_text().splitlines()]
    blocks = re.split(r"^(?=curl )", "\n".join(lines), flags=re.MULTILINE)
    for block in blocks[1:]:
        command, _, answer = block.partition("\n")
        command = re.sub(r"\$'(.*)'", lambda match: shlex.quote(codecs.decode(match[1], "unicode_escape")), command)
        yield CURL.parse_args(shlex.split(command)[1:]), answer.strip()


def send(server, arguments, folder):
    headers = dict(header.split(": ") for header in arguments.H)
    data = arguments.data
    body = (folder / data[1:]).read_bytes() if data.startswith("@") else data.encode()
    return server.request("POST", arguments.url.removeprefix("localhost:8080"), body, headers).body.decode().strip()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in WITH_TORCH else name for name in FOLDERS]
)
def test_an_example_answers_as_its_readme_says(name, tmp_path, start_server):
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("ml", "*.png"))
    subprocess.run([sys.executable, "make.py"], cwd=folder, check=True)
    server = start_server(folder / "ml" / "model", SAGEMAKER_MODEL_SERVER_WORKERS="1").wait_ready()
    expected = list(requests(folder / "README.md"))
    assert expected
    for arguments, answer in expected:
        pattern = ".+".join(map(re.escape, answer.split("…")))
        assert re.fullmatch(pattern, send(server, arguments, folder))
    assert not list((folder / "ml").rglob("__pycache__"))


def test_every_example_is_in_the_table():
    table = (EXAMPLES / "README.md").read_text()
    assert sorted(re.findall(r"^\| \[[\w-]+\]\(([\w-]+)/README\.md\)", table, re.MULTILINE)) == FOLDERS
