"""Pipe channels through real FIFOs: a process plays the platform and writes one after the other."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from container.contract import OptMl
from container.train import pipe
from container.train.environment import read_environment
from container.train.files import ChannelError
from container.train.pipe import PipeChannel
from launcher.local.opt_ml import write_training_input

FORK = multiprocessing.get_context("fork")


def record(payload: bytes) -> bytes:
    return b"\x0a\x23\xd7\xce" + len(payload).to_bytes(4, "little") + payload + bytes(-len(payload) % 4)


def stream_epochs(path: Path, epochs: Sequence[Sequence[bytes]]) -> None:
    """What the platform does: the next epoch's FIFO comes when the reader has closed the last one."""
    for epoch, pieces in enumerate(epochs):
        fifo = Path(f"{path}_{epoch}")
        os.mkfifo(fifo)
        try:
            with fifo.open("wb", buffering=0) as file:
                for piece in pieces:
                    file.write(piece)
        except BrokenPipeError:
            continue  # closed early


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Callable[[Sequence[Sequence[bytes]]], Path]]:
    """Starts the platform for channel `train`; gives the channel's path."""
    processes = []

    def start(epochs: Sequence[Sequence[bytes]]) -> Path:
        processes.append(FORK.Process(target=stream_epochs, args=(tmp_path / "train", epochs), daemon=True))
        processes[-1].start()
        return tmp_path / "train"

    yield start
    for process in processes:
        process.terminate()
        process.join()


@pytest.fixture(autouse=True)
def marks_of_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which FIFO has a reader is noted in the job's runtime directory, else in the machine's temporary one."""
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("SLIPWAY_RUNTIME_DIR", str(tmp_path / "runtime"))


EPOCHS = [[record(b"%d-%d" % (epoch, number)) for number in range(3)] for epoch in range(3)]


def test_each_pass_reads_the_next_epochs_fifo(platform):
    channel = PipeChannel(platform(EPOCHS), records=True, decode=bytes.decode, timeout_seconds=20)
    assert [list(channel) for _ in range(3)] == [[f"{epoch}-{number}" for number in range(3)] for epoch in range(3)]
    assert channel.epoch == 3


def test_c35_the_reader_waits_for_a_fifo_that_does_not_exist_yet(tmp_path):
    channel = PipeChannel(tmp_path / "train", records=True, timeout_seconds=20)
    late = threading.Timer(0.3, stream_epochs, (tmp_path / "train", EPOCHS[:1]))
    late.start()
    assert not (tmp_path / "train_0").exists()
    assert list(channel) == [b"0-0", b"0-1", b"0-2"]
    late.join()


def test_c35_a_fifo_that_never_comes_is_an_error_that_names_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(pipe, "SAY_SECONDS", 0.0)
    caplog.set_level("INFO")
    with pytest.raises(ChannelError, match=r"train_0 did not appear within 0 s: .* still open\?"):
        list(PipeChannel(tmp_path / "train", records=True, timeout_seconds=0.1))
    assert f"waiting for {tmp_path}/train_0" in caplog.text


def test_a_fifo_that_nobody_writes_to_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "train_0")
    with pytest.raises(
        ChannelError, match=r"train_0: no writer opened it \(has another process read it\?\) within 0 s"
    ):
        list(PipeChannel(tmp_path / "train", records=True, timeout_seconds=0.1))


def test_a_platform_that_stalls_between_two_records_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "train_0")
    channel = PipeChannel(tmp_path / "train", records=True, timeout_seconds=0.5)
    writers: list[int] = []
    opening = threading.Thread(target=lambda: writers.append(os.open(tmp_path / "train_0", os.O_WRONLY)))
    opening.start()
    records = iter(channel)
    feeding = threading.Thread(target=lambda: (opening.join(), os.write(writers[0], record(b"first"))))
    feeding.start()
    assert next(records) == b"first"
    with pytest.raises(ChannelError, match="train_0: no byte came within 0 s"):
        next(records)
    os.close(writers[0])


def test_an_epoch_without_data_is_empty_and_the_next_one_follows(platform):
    channel = PipeChannel(platform([[], [record(b"a")]]), records=True, timeout_seconds=20)
    assert list(channel) == []
    assert list(channel) == [b"a"]


def test_c38_a_fifo_closed_early_is_followed_by_the_next_epochs(platform):
    endless = [record(bytes(100_000))] * 200  # more than any pipe holds: the platform is stopped by the close
    channel = PipeChannel(platform([endless, endless, [record(b"last")]]), records=True, timeout_seconds=20)
    for _ in range(2):
        for number, payload in enumerate(channel):
            assert payload == bytes(100_000)
            if number == 2:
                break
    assert list(channel) == [b"last"]


def test_c37_a_platform_that_dies_inside_a_record_is_an_error(platform):
    channel = PipeChannel(platform([[record(b"whole"), record(b"never whole")[:-5]]]), records=True, timeout_seconds=20)
    records = iter(channel)
    assert next(records) == b"whole"
    with pytest.raises(ChannelError, match="train: RecordIO ends at .* inside of a record, .*: its writer failed"):
        next(records)


def test_c37_objects_that_were_not_wrapped_as_records_are_an_error_that_says_so(platform):
    channel = PipeChannel(platform([[b"5.1,3.5,1.4,0.2,setosa\n"]]), records=True, timeout_seconds=20)
    with pytest.raises(ChannelError, match="record 0 at byte 0 starts with .*: was .* made with RecordWrapperType"):
        list(channel)


def test_c36_a_record_larger_than_buffer_and_pipe_arrives_whole(platform):
    payload = os.urandom(3 * pipe.BUFFER_BYTES + 1)
    channel = PipeChannel(platform([[record(payload), record(b"x")]]), records=True, timeout_seconds=20)
    assert list(channel) == [payload, b"x"]


def test_raw_bytes_come_in_pieces_of_one_size(platform):
    data = os.urandom(2 * pipe.BUFFER_BYTES + 10)
    channel = PipeChannel(platform([[data[:7], data[7:]]]), records=False, timeout_seconds=20)
    pieces = list(channel)
    assert [len(piece) for piece in pieces] == [pipe.BUFFER_BYTES, pipe.BUFFER_BYTES, 10]
    assert b"".join(pieces) == data


def test_a_fifo_opens_as_a_file_of_lines(platform):
    channel = PipeChannel(platform([[b"1,2\n3,", b"4\n"], [b"5,6\n"]]), records=False, timeout_seconds=20)
    for expected in ([b"1,2\n", b"3,4\n"], [b"5,6\n"]):
        with channel.open() as file:
            assert list(file) == expected


@pytest.mark.parametrize(("start_method", "workers", "epochs"), [("fork", 2, 3), ("spawn", 1, 1)])
def test_c39_of_several_dataloader_workers_one_reads_and_every_epoch_is_whole(platform, start_method, workers, epochs):
    channel = PipeChannel(platform(EPOCHS), records=True, decode=bytes.decode, timeout_seconds=60)
    loader = DataLoader(channel, batch_size=2, num_workers=workers, multiprocessing_context=start_method)
    for epoch in range(epochs):
        assert list(loader) == [[f"{epoch}-0", f"{epoch}-1"], [f"{epoch}-2"]]
    assert channel.epoch == epochs


def test_c39_persistent_workers_go_on_to_the_next_epoch(platform):
    channel = PipeChannel(platform(EPOCHS), records=True, decode=bytes.decode, timeout_seconds=20)
    loader = DataLoader(channel, batch_size=3, num_workers=2, persistent_workers=True)
    assert [list(loader) for _ in range(3)] == [[[f"{epoch}-{number}" for number in range(3)]] for epoch in range(3)]


def test_c38_a_dataloader_left_early_goes_on_with_the_next_epoch(platform):
    endless = [record(bytes(100_000))] * 500
    channel = PipeChannel(platform([endless, [record(b"last")]]), records=True, timeout_seconds=20)
    for _ in DataLoader(channel, batch_size=None, num_workers=2):
        break
    assert list(DataLoader(channel, batch_size=None, num_workers=2)) == [b"last"]


READER = """
import json, sys
from pathlib import Path
from container.train.files import ChannelError
from container.train.pipe import PipeChannel
try:
    print(json.dumps([record.decode() for record in PipeChannel(Path(sys.argv[1]), True, timeout_seconds=30)]))
except ChannelError as error:
    print(json.dumps(str(error)))
"""


def test_c39_of_two_processes_one_reads_the_fifo_and_the_other_is_told(platform, tmp_path):
    command = [sys.executable, "-c", READER, str(tmp_path / "train")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    platform(EPOCHS[:1])
    answers = [json.loads(reader.communicate(timeout=60)[0]) for reader in readers]
    refusal = next(answer for answer in answers if isinstance(answer, str))
    assert [answer for answer in answers if answer != refusal] == [["0-0", "0-1", "0-2"]]
    assert "train_0 has one reader, and that is process" in refusal
    assert "use FastFile" in refusal


def test_c39_what_was_read_is_not_read_again_by_a_reader_that_comes_late(platform):
    path = platform(EPOCHS[:1])
    assert len(list(PipeChannel(path, records=True, timeout_seconds=20))) == 3
    with pytest.raises(ChannelError, match=f"that is process {os.getpid()}"):
        list(PipeChannel(path, records=True, timeout_seconds=20))


def test_c39_without_the_launcher_two_readers_at_once_are_told_apart_too(platform, monkeypatch):
    monkeypatch.delenv("SLIPWAY_RUNTIME_DIR")
    path = platform(EPOCHS[:2])
    first = iter(PipeChannel(path, records=True, timeout_seconds=20))
    assert next(first) == b"0-0"
    with pytest.raises(ChannelError, match=f"that is process {os.getpid()}"):
        list(PipeChannel(path, records=True, timeout_seconds=20))
    assert list(first) == [b"0-1", b"0-2"]
    status = Path(f"{path}_0").stat()
    (Path(tempfile.gettempdir()) / f"slipway-fifo-{status.st_dev}-{status.st_ino}").unlink()


def test_memory_stays_bounded_however_long_the_epoch_is(tmp_path):
    """256 MiB pass through a reader whose memory may grow by a few."""
    script = """
import resource, sys
from pathlib import Path
from container.train.pipe import PipeChannel
records = iter(PipeChannel(Path(sys.argv[1]), True, len, timeout_seconds=30))
total = next(records)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total += sum(records)
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    reader = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "train")], stdout=subprocess.PIPE, text=True
    )
    stream_epochs(tmp_path / "train", [[record(bytes(1024**2))] * 256])
    total, grown_kilobytes = map(int, reader.communicate(timeout=60)[0].split())
    assert total == 256 * 1024**2
    assert grown_kilobytes < 16 * 1024


def test_c19_c35_the_environment_says_path_and_framing(tmp_path):
    opt_ml = OptMl(tmp_path)
    channels = [
        {"ChannelName": "records", "InputMode": "Pipe", "RecordWrapperType": "RecordIO"},
        {"ChannelName": "raw", "InputMode": "Pipe"},
        {"ChannelName": "files"},
    ]
    write_training_input(opt_ml, {"InputDataConfig": channels}, "algo-1", ["algo-1"])
    bare = json.loads(opt_ml.input_data_config.read_text()) | {"bare": {"TrainingInputMode": "Pipe"}}
    opt_ml.input_data_config.write_text(json.dumps(bare))  # what simulators write
    environment = read_environment(opt_ml, {})
    framed = {name: PipeChannel.from_environment(environment, name).records for name in ("records", "raw", "bare")}
    assert framed == {"records": True, "raw": False, "bare": False}
    assert PipeChannel.from_environment(environment, "raw").path == opt_ml.data / "raw"
    with pytest.raises(ChannelError, match=r"'files' has TrainingInputMode File: read the files in .*/files, or set"):
        PipeChannel.from_environment(environment, "files")
    with pytest.raises(ChannelError, match="no channel 'other'"):
        PipeChannel.from_environment(environment, "other")


def test_c39_two_ranks_of_a_host_that_read_one_channel_fail_the_job_with_the_reason(training_job):
    script = """
import os
from container.contract import OptMl
from container.train.environment import read_environment
from container.train.pipe import PipeChannel
channel = PipeChannel.from_environment(read_environment(OptMl.from_env(), os.environ), "train", timeout_seconds=60)
print("records", len(list(channel)))
"""
    job = training_job(script=script, channels={"train": None}, gpus=2)
    config = {"train": {"TrainingInputMode": "Pipe", "RecordWrapperType": "RecordIO"}}
    config["code"] = {"TrainingInputMode": "File"}
    job.opt_ml().input_data_config.write_text(json.dumps(config))
    (job.opt_ml().data / "train").rmdir()
    job.start()
    stream = FORK.Process(target=stream_epochs, args=(job.opt_ml().data / "train", EPOCHS[:1]), daemon=True)
    stream.start()
    assert job.wait() == {"algo-1": 1}
    stream.terminate()
    stream.join()
    assert "train_0 has one reader, and that is process" in job.failure()
    assert "use FastFile" in job.failure()
