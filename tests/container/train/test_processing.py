"""Processing jobs as the platform starts them: a process per host, with the configuration under /opt/ml/config."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from container.contract import OptMl
from container.train.environment import ConfigError
from container.train.files import ChannelError
from container.train.processing import processing_environment, whole_file
from launcher.local.opt_ml import write_processing_input

EXAMPLE = Path(__file__).parents[3] / "examples" / "train" / "processing" / "prepare.py"
ARN = "arn:aws:sagemaker:eu-west-1:111122223333:processing-job/prep"


@pytest.fixture
def hosts_of(tmp_path, monkeypatch):
    """Lays the trees of a job's hosts out: `hosts_of("algo-1", "algo-2")`, host -> tree; input `raw` is empty."""

    def build(*hosts, distribution="FullyReplicated"):
        raw = {"LocalPath": "/opt/ml/processing/input/raw", "S3DataDistributionType": distribution}
        output = {"OutputName": "clean", "S3Output": {"LocalPath": "/opt/ml/processing/output/clean"}}
        request = {
            "ProcessingJobName": "prep",
            "ProcessingInputs": [
                {"InputName": "raw", "S3Input": raw},
                {"InputName": "own", "AppManaged": True, "S3Input": None},
            ],
            "ProcessingOutputConfig": {"Outputs": [output]},
        }
        trees = {host: OptMl(tmp_path / host) for host in hosts}
        for host, tree in trees.items():
            write_processing_input(tree, request, ARN, host, hosts)
            (tree.processing / "input" / "raw").mkdir(parents=True, exist_ok=True)
        return trees

    return build


@pytest.fixture
def start():
    """Starts the role `process` on a host's tree; ends it when the test does."""
    started = []

    def begin(tree, script, *arguments, **environ):
        argv = [sys.executable, "-m", "container", "process", str(script), *arguments]
        environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(tree.base), **environ}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(argv, env=environ, stdout=pipe, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def environment_of(tree, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tree.base))
    return processing_environment()


def clean(tree):
    root = tree.processing / "output" / "clean"
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


def test_c81_hosts_share_the_work_by_their_place_in_sorted_order(hosts_of, monkeypatch):
    names = [f"algo-{number}" for number in range(12, 0, -1)]  # in whatever order the file has them
    environments = {host: environment_of(tree, monkeypatch) for host, tree in hosts_of(*names).items()}
    shares = {host: environment.share(range(30)) for host, environment in environments.items()}
    assert [shares[host][0] for host in sorted(names)] == list(range(12))  # algo-10 before algo-2
    assert sorted(number for share in shares.values() for number in share) == list(range(30))


def test_c81_what_the_platform_has_dealt_out_already_is_not_dealt_out_again(hosts_of, monkeypatch):
    for distribution, expected in (("FullyReplicated", ["b.txt"]), ("ShardedByS3Key", ["a.txt", "b.txt"])):
        tree = hosts_of("algo-1", "algo-2", distribution=distribution)["algo-2"]
        for name in ("a.txt", "b.txt", ".DS_Store"):
            (tree.processing / "input" / "raw" / name).touch()
        files = environment_of(tree, monkeypatch).input_files("raw")
        assert [path.name for path in files] == expected


def test_c81_the_example_does_each_picture_once_on_two_hosts(hosts_of, start):
    trees = hosts_of("algo-1", "algo-2")
    for tree in trees.values():
        for number in range(5):
            path = tree.processing / "input" / "raw" / "cats" / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 30 + number)).save(path)
    for process in [start(tree, EXAMPLE, "--pixels", "12") for tree in trees.values()]:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    first, second = (clean(tree) for tree in trees.values())
    assert (first, second) == (["cats/0.png", "cats/2.png", "cats/4.png"], ["cats/1.png", "cats/3.png"])
    with Image.open(trees["algo-1"].processing / "output" / "clean" / "cats" / "0.png") as picture:
        assert picture.size == (12, 12)
    assert not trees["algo-1"].exit_message.exists()


HALFWAY = """
import sys, time
from container.train import processing_environment, whole_file

clean = processing_environment().output("clean")
with whole_file(clean / "first.txt") as file:
    file.write_text("whole")
with whole_file(clean / "second.txt") as file:
    file.write_text("half")
    print("halfway", flush=True)
    time.sleep(600)
"""
DEAF = """
import pathlib, signal, subprocess, sys, time
from container.train import processing_environment
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
clean = processing_environment().output("clean")
(clean / ".partial-1-rows.csv").write_text("half")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("halfway", child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_c79_a_stop_ends_the_script_and_leaves_whole_files(hosts_of, start, tmp_path, number):
    tree = hosts_of("algo-1")["algo-1"]
    (tmp_path / "prep.py").write_text(HALFWAY)
    process = start(tree, tmp_path / "prep.py")
    assert process.stdout.readline() == "halfway\n"
    process.send_signal(number)
    process.send_signal(number)  # a second one breaks into nothing
    output, _ = process.communicate(timeout=25)
    assert process.returncode == 128 + signal.SIGINT, output  # as Python ends itself after a KeyboardInterrupt
    assert clean(tree) == ["first.txt"]
    assert not tree.exit_message.exists()  # a stop is no failure


def test_c79_a_script_that_does_not_listen_is_killed_with_all_it_has_started(hosts_of, start, tmp_path):
    tree = hosts_of("algo-1")["algo-1"]
    (tmp_path / "prep.py").write_text(DEAF)
    process = start(tree, tmp_path / "prep.py", SLIPWAY_STOP_SECONDS="0.2")
    child = int(process.stdout.readline().split()[1])
    process.terminate()
    output, _ = process.communicate(timeout=25)
    assert process.returncode == 128 + signal.SIGKILL, output
    assert "rows.csv was never finished, and is removed" in output
    assert clean(tree) == []
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "a child of the script lives on"
        time.sleep(0.02)


def test_c80_links_among_the_outputs_become_what_they_point_at(hosts_of, start, tmp_path):
    tree = hosts_of("algo-1")["algo-1"]
    (tmp_path / "prep.sh").write_text(
        'cd "$SAGEMAKER_BASE_DIR/processing/output/clean" && mkdir d && echo 1 > d/rows.csv && '
        "ln -s d/rows.csv latest.csv && ln -s d all && ln -s nowhere lost"
    )
    process = start(tree, "sh", str(tmp_path / "prep.sh"))
    output, _ = process.communicate(timeout=25)
    assert process.returncode == 0, output
    assert clean(tree) == ["all/rows.csv", "d/rows.csv", "latest.csv"]
    assert not any(path.is_symlink() for path in (tree.processing / "output").rglob("*"))
    assert "lost pointed nowhere" in output


def test_c77_c78_a_failure_leaves_the_exception_as_exit_message_of_its_host(hosts_of, start, tmp_path):
    tree = hosts_of("algo-1", "algo-2")["algo-2"]
    (tmp_path / "prep.py").write_text("raise ValueError('no rows: ' + 'ü' * 600)")
    process = start(tree, tmp_path / "prep.py")
    process.communicate(timeout=25)
    assert process.returncode == 1
    message = tree.exit_message.read_bytes()
    assert message.decode().startswith("algo-2: ValueError: no rows: üüü")
    assert len(message) in (1023, 1024)


def test_c77_a_message_of_the_scripts_own_stands(hosts_of, start, tmp_path):
    tree = hosts_of("algo-1")["algo-1"]
    tree.exit_message.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "prep.py").write_text(f"open({str(tree.exit_message)!r}, 'w').write('mine'); raise SystemExit(4)")
    process = start(tree, tmp_path / "prep.py")
    process.communicate(timeout=25)
    assert (process.returncode, tree.exit_message.read_text()) == (4, "mine")


def test_c78_a_script_that_is_killed_fails_the_job(hosts_of, start, tmp_path):
    tree = hosts_of("algo-1")["algo-1"]
    (tmp_path / "prep.py").write_text("import os; os.kill(os.getpid(), 9)")
    process = start(tree, tmp_path / "prep.py")
    process.communicate(timeout=25)
    assert process.returncode == 137
    assert "nothing on standard error (killed by signal 9 (SIGKILL))" in tree.exit_message.read_text()


def test_c75_c76_configuration_with_null_members_is_read_and_names_are_checked(hosts_of, monkeypatch):
    environment = environment_of(hosts_of("algo-1")["algo-1"], monkeypatch)
    assert (environment.job_name, environment.current_host, environment.hosts) == ("prep", "algo-1", ("algo-1",))
    assert list(environment.inputs) == ["raw"]
    with pytest.raises(ChannelError, match="no input 'row'; its inputs are raw"):
        environment.input("row")
    with pytest.raises(ChannelError, match="no output 'raw'; its outputs are clean"):
        environment.output("raw")
    environment.opt_ml.processing_resource_config.write_text('{"current_host": "algo-1", "hosts": null}')
    with pytest.raises(ConfigError, match="resourceconfig.json has no 'hosts'"):
        processing_environment()


def test_a_file_whose_writer_fails_is_not_there(tmp_path):
    (tmp_path / "rows.csv").write_text("earlier")

    def fail():
        with whole_file(tmp_path / "rows.csv") as file:
            assert (file.parent, file.suffix) == (tmp_path, ".csv")
            file.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def test_no_script_and_no_job_end_with_what_is_missing(start, tmp_path):
    for arguments, code, words in (([], 64, "process needs a script"), (["prep.py"], 1, "has no 'current_host'")):
        argv = [sys.executable, "-m", "container", "process", *arguments]
        environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(tmp_path)}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=25, check=False)
        assert done.returncode == code
        assert words in done.stdout + done.stderr
