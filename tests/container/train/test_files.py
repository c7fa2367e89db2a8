"""Channels and their files on trees as SageMaker lays them out."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from container.contract import OptMl
from container.train.environment import TrainingEnvironment, read_environment
from container.train.files import ChannelError, channel_directory, list_files, replace_links
from launcher.local.opt_ml import write_training_input


@pytest.fixture
def environment(tmp_path: Path) -> TrainingEnvironment:
    """A job with channel `train` in File mode and `stream` in Pipe mode."""
    opt_ml = OptMl(tmp_path)
    channels = [{"ChannelName": "train"}, {"ChannelName": "stream", "InputMode": "Pipe"}]
    write_training_input(opt_ml, {"InputDataConfig": channels}, "algo-1", ["algo-1"])
    return read_environment(opt_ml, {})


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_c21_a_manifest_beside_a_channel_is_no_channel(environment):
    write(environment.opt_ml.data, "train-manifest")
    assert channel_directory(environment, "train") == environment.opt_ml.data / "train"
    with pytest.raises(ChannelError, match=r"no channel 'train-manifest'; its channels are 'stream', 'train'"):
        channel_directory(environment, "train-manifest")


@pytest.mark.parametrize("mode", ["File", "FastFile", "SomethingNew"])
def test_c20_every_mode_but_pipe_is_a_directory(environment, mode):
    environment.opt_ml.input_data_config.write_text(json.dumps({"train": {"TrainingInputMode": mode}}))
    job = read_environment(environment.opt_ml, {})
    assert channel_directory(job, "train") == environment.opt_ml.data / "train"


def test_a_pipe_channel_has_no_directory(environment):
    with pytest.raises(ChannelError, match="'stream' has TrainingInputMode Pipe: read it with PipeChannel"):
        channel_directory(environment, "stream")


def test_noise_is_no_data(tmp_path):
    root = tmp_path / "train"
    data = ["3/0001.png", "7/0002.PNG", "_background_noise_/a.png"]
    noise = [".DS_Store", "3/.DS_Store", "3/._0001.png", ".ipynb_checkpoints/0001-checkpoint.png", "_SUCCESS"]
    noise += ["7/.ipynb_checkpoints/a.png", "_committed_123", "_started_123", "3_$folder$", "__MACOSX/3/0001.png"]
    noise += ["Thumbs.db", "_temporary/0/part.png", "train-manifest"]
    write(root, *data, *noise)
    assert [path.relative_to(root).as_posix() for path in list_files(root)] == data


def test_suffixes_choose_files_whatever_their_case(tmp_path):
    write(tmp_path, "b.PNG", "a.png", "c.txt", "d.tar.gz")
    assert [path.name for path in list_files(tmp_path, (".png", ".tar.gz"))] == ["a.png", "b.PNG", "d.tar.gz"]


def test_an_empty_channel_has_no_files_and_a_file_is_no_channel(tmp_path):
    assert list_files(tmp_path) == []
    write(tmp_path, "file")
    with pytest.raises(ChannelError, match="is not a directory"):
        list_files(tmp_path / "file")


# Python reports every file it opens for writing, and every directory entry it makes, to audit hooks.
READS_A_CHANNEL = """
import sys
from pathlib import Path
root = Path(sys.argv[1])
def refuse(event, arguments):
    writes = event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink")
    if event == "open" and isinstance(arguments[2], int):
        writes = bool(arguments[2] & 0o1103)  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
    if writes and str(arguments[0]).startswith(str(root)):
        sys.exit(f"{event} {arguments}")
sys.addaudithook(refuse)
from container.train.files import list_files
from container.train.manifest import AugmentedManifestFile
from container.train.shards import Share, TarShards
from container.train.tabular import read_csv
assert len(list_files(root)) == 4
assert len(read_csv(root / "table").features) == 2
assert len(list(TarShards(root, Share()).samples(shuffle=10))) == 1
assert AugmentedManifestFile(root / "m.manifest", "s3://b/p", root / "table")[0] == {"a-ref": b"1,2\\n3,4\\n"}
"""


def test_c20_a_read_only_channel_is_read_and_nothing_is_written_below_it(tmp_path):
    root = tmp_path / "train"
    write(root, "table/t.csv", "tars/1.cls")
    (root / "table/t.csv").write_text("1,2\n3,4\n")
    (root / "m.manifest").write_text('{"a-ref": "s3://b/p/t.csv"}\n')
    with tarfile.open(root / "tars/a.tar", "w") as tar:
        tar.add(root / "tars/1.cls", "1.cls")
    for directory in (root / "tars", root / "table", root):
        directory.chmod(0o555)  # does not stop root; the audit hook does
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    done = subprocess.run([sys.executable, "-c", READS_A_CHANNEL, root], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before


def test_links_become_what_they_point_at_and_dangling_ones_nothing(tmp_path):
    model, cache = tmp_path / "model", tmp_path / "cache"
    for directory in (model, cache):
        directory.mkdir()
    (cache / "weights.pt").write_text("w")
    for link, target in ((model / "cached", cache), (model / "gone", tmp_path / "gone"), (cache / "lost", "nowhere")):
        link.symlink_to(target)
    replace_links(model)
    assert {path.name: path.is_symlink() for path in model.rglob("*")} == {"cached": False, "weights.pt": False}
