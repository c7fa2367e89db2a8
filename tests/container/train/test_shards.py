"""Sharding over hosts and ranks, with real tar shards and real process groups."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from container.contract import OptMl
from container.train.environment import TrainingEnvironment, read_environment
from container.train.files import ChannelError
from container.train.shards import Share, TarShards, agreed_steps, channel_share, equal_steps
from launcher.local.opt_ml import write_training_input


def environment(base: Path, host: str, hosts: list[str], distribution: str = "FullyReplicated") -> TrainingEnvironment:
    source = {"S3DataSource": {"S3DataDistributionType": distribution}}
    request = {"InputDataConfig": [{"ChannelName": "train", "DataSource": source}]}
    write_training_input(OptMl(base), request, host, hosts)
    return read_environment(OptMl(base), {})


def torchrun(rank: int, world: int, local_rank: int, local_world: int) -> dict[str, str]:
    values = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_world}
    return {name: str(value) for name, value in values.items()}


def test_of_a_replicated_channel_every_rank_of_the_job_has_a_share(tmp_path):
    job = environment(tmp_path, "algo-2", ["algo-1", "algo-2"])
    assert channel_share(job, "train", torchrun(5, 8, 1, 4)) == Share(5, 8)


def test_c40_a_channel_sharded_by_key_is_not_split_over_the_hosts_again(tmp_path):
    job = environment(tmp_path, "algo-2", ["algo-1", "algo-2"], "ShardedByS3Key")
    assert channel_share(job, "train", torchrun(5, 8, 1, 4)) == Share(1, 4)


def test_on_one_host_sharded_by_key_is_all_of_it(tmp_path):
    job = environment(tmp_path, "algo-1", ["algo-1"], "ShardedByS3Key")
    assert channel_share(job, "train", torchrun(2, 4, 2, 4)) == Share(2, 4)
    assert channel_share(job, "train", {}) == Share(0, 1)


@pytest.mark.parametrize("distribution", ["FullyReplicated", "ShardedByS3Key"])
def test_every_file_is_read_by_one_rank_of_the_job(tmp_path, distribution):
    files = [f"{number}.tar" for number in range(11)]
    read = []
    for host in range(2):
        job = environment(tmp_path, f"algo-{host + 1}", ["algo-1", "algo-2"], distribution)
        seen = files if distribution == "FullyReplicated" else files[host::2]  # what the platform does
        for local_rank in range(3):
            read += channel_share(job, "train", torchrun(host * 3 + local_rank, 6, local_rank, 3)).of(seen)
    assert sorted(read) == sorted(files)


def write_shards(directory: Path, sizes: list[int]) -> Path:
    """Tar shards in WebDataset's layout: sample `<shard>-<number>` has a `.txt` and a `.cls`."""
    directory.mkdir(parents=True, exist_ok=True)
    for shard, size in enumerate(sizes):
        with tarfile.open(directory / f"{shard:03d}.tar", "w") as tar:
            for number in range(size):
                for suffix, data in (("txt", f"{shard}-{number}".encode()), ("cls", str(number % 2).encode())):
                    member = tarfile.TarInfo(f"{shard}-{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return directory


def keys(dataset) -> list[str]:
    return [sample["__key__"] for sample in dataset]


ALL = [f"{shard}-{number}" for shard in range(4) for number in range(5)]


def test_every_sample_is_read_once_over_all_ranks_and_workers(tmp_path):
    directory = write_shards(tmp_path / "train", [5, 5, 5, 5])
    read = []
    for rank in range(2):
        dataset = TarShards(directory, Share(rank, 2)).samples(shuffle=3)
        read += [key for batch in DataLoader(dataset, batch_size=None, num_workers=2) for key in [batch["__key__"]]]
    assert sorted(read) == sorted(ALL)


def test_samples_decode_through_webdatasets_own_pipeline(tmp_path):
    directory = write_shards(tmp_path / "train", [3])
    dataset = TarShards(directory, Share()).samples().decode().to_tuple("txt", "cls")
    texts, classes = next(iter(DataLoader(dataset, batch_size=3)))
    assert list(texts) == ["0-0", "0-1", "0-2"]
    assert classes.tolist() == [0, 1, 0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_depends_on_seed_and_epoch_alone(tmp_path, num_workers):
    directory = write_shards(tmp_path / "train", [5, 5, 5, 5])

    def read(shards, epoch):
        shards.set_epoch(epoch)
        loader = DataLoader(shards.samples(shuffle=5), batch_size=None, num_workers=num_workers)
        return keys(loader)

    shards = TarShards(directory, Share(), seed=1)
    first, second, again = read(shards, 0), read(shards, 1), read(shards, 0)
    assert sorted(first) == sorted(second) == sorted(ALL)
    assert first == again == read(TarShards(directory, Share(), seed=1), 0)
    assert len({tuple(first), tuple(second), tuple(ALL), tuple(read(TarShards(directory, Share(), seed=2), 0))}) == 4


def test_persistent_workers_see_the_epoch(tmp_path):
    shards = TarShards(write_shards(tmp_path / "train", [5, 5, 5, 5]), Share())
    loader = DataLoader(shards.samples(), batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in range(4):
        shards.set_epoch(epoch)
        orders.append(tuple(keys(loader)))
    assert len(set(orders)) > 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_c40_resampled_every_rank_gets_the_number_asked_for_from_fewer_shards_than_ranks(tmp_path, num_workers):
    directory = write_shards(tmp_path / "train", [2, 7])
    read = []
    for rank in range(3):
        dataset = TarShards(directory, Share(rank, 3), resampled=True).samples(shuffle=4, count=25)
        read.append(keys(DataLoader(dataset, batch_size=None, num_workers=num_workers)))
    assert [len(samples) for samples in read] == [25, 25, 25]
    assert len(set(map(tuple, read))) == 3


def test_c40_a_rank_without_a_shard_is_an_error_that_says_what_to_do(tmp_path):
    directory = write_shards(tmp_path / "train", [5, 5])
    with pytest.raises(ChannelError, match=r"has 2 tar shard\(s\), and rank 2 of the 4 .* gets none: .*resampled=True"):
        TarShards(directory, Share(2, 4))
    (tmp_path / "empty").mkdir()
    for resampled in (False, True):
        with pytest.raises(ChannelError, match=r"empty has no tar shard \(.tar, .tar.gz, .tgz\)"):
            TarShards(tmp_path / "empty", Share(), resampled=resampled)


def test_resampling_without_a_number_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"resampled shards never end: give samples\(count=...\)"):
        TarShards(write_shards(tmp_path / "train", [1]), Share(), resampled=True).samples()


def test_a_truncated_shard_is_an_error(tmp_path):
    directory = write_shards(tmp_path / "train", [5])
    shard = directory / "000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(tarfile.ReadError):
        list(TarShards(directory, Share()).samples())


def test_one_process_takes_all_its_batches():
    assert list(equal_steps(range(5))) == [0, 1, 2, 3, 4]
    assert agreed_steps(3) == 3
    with pytest.raises(ChannelError, match="no data for rank 0"):
        list(equal_steps([]))


# Rank r has sys.argv[1][r] batches; every rank sums over all ranks in every step, as DDP does.
STEPS = """
import json, os, sys
import torch, torch.distributed as dist
from container.train.files import ChannelError
from container.train.shards import agreed_steps, equal_steps
dist.init_process_group("gloo")
if sys.argv[2] == "nccl":  # as if the script had asked for NCCL alone, which reduces nothing on the CPU
    dist.get_backend_config = lambda: "cuda:nccl"
rank = dist.get_rank()
batches = json.loads(sys.argv[1])[rank]
steps = 0
answer = {}
try:
    for batch in equal_steps(iter(range(batches))):
        total = torch.tensor([batch])
        dist.all_reduce(total)
        assert total.item() == batch * dist.get_world_size()
        steps += 1
    for batch in equal_steps(range(5)):
        break  # on every rank at the same step, as after a stop that all agreed on
    answer = {"steps": steps, "agreed": agreed_steps(batches)}
except ChannelError as error:
    answer = {"error": str(error)}
print(json.dumps(answer), flush=True)
dist.destroy_process_group()
"""


def on_ranks(batches: list[int], port: int, backend: str) -> list[dict]:
    processes = []
    for rank in range(len(batches)):
        environ = os.environ | torchrun(rank, len(batches), rank, len(batches))
        environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-c", STEPS, json.dumps(batches), backend]
        processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
    return [json.loads(process.communicate(timeout=90)[0]) for process in processes]


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_c40_ranks_with_different_amounts_of_data_make_equal_steps(port, backend):
    assert on_ranks([7, 3], port, backend) == [{"steps": 3, "agreed": 3}] * 2


def test_c40_an_empty_shard_is_the_same_error_on_every_rank_and_no_deadlock(port):
    answers = on_ranks([4, 0], port, "gloo")
    assert answers[0] == answers[1]
    assert "no data for rank 1: the channel has fewer files than there are hosts" in answers[0]["error"]


def test_a_batch_comes_before_the_one_after_the_next_is_asked_for():
    asked = []

    def batches():
        for number in range(4):
            asked.append(number)
            yield torch.tensor(number)

    assert [(int(batch), asked[-1]) for batch in equal_steps(batches())] == [(0, 1), (1, 2), (2, 3), (3, 3)]


READS_SHARDS = """
import os, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from container.contract import OptMl
from container.train.environment import read_environment
from container.train.files import channel_directory
from container.train.shards import TarShards, channel_share, equal_steps
dist.init_process_group("gloo")
environment = read_environment(OptMl.from_env(), os.environ)
shards = TarShards(channel_directory(environment, "train"), channel_share(environment, "train", os.environ))
dataset = shards.samples(shuffle=5).decode().to_tuple("cls")
network = DistributedDataParallel(torch.nn.Linear(1, 1))
steps = 0
for (labels,) in equal_steps(DataLoader(dataset, batch_size=2)):
    network(labels.float().view(-1, 1)).sum().backward()
    steps += 1
print(f"shards={len(shards.urls)} steps={steps}", flush=True)
dist.destroy_process_group()
"""


def sharded_job(training_job, tmp_path: Path, sizes: list[list[int]]):
    """A job whose channel `train` the platform has split: per host the sizes of its shards."""
    job = training_job(hosts=len(sizes), script=READS_SHARDS, channels={"train": None})
    for host, shards in zip(job.hosts, sizes, strict=True):
        opt_ml = job.opt_ml(host)
        config = json.loads(opt_ml.input_data_config.read_text())
        config["train"]["S3DistributionType"] = "ShardedByS3Key"
        opt_ml.input_data_config.write_text(json.dumps(config))
        write_shards(opt_ml.channel("train"), shards)
    return job


@pytest.mark.slow
def test_c40_hosts_with_different_shards_train_in_equal_steps(training_job, tmp_path):
    job = sharded_job(training_job, tmp_path, [[4, 4, 4], [6]])
    assert job.run() == {"algo-1": 0, "algo-2": 0}, job.log("algo-1") + job.log("algo-2")
    assert "shards=3 steps=3" in job.log("algo-1")
    assert "shards=1 steps=3" in job.log("algo-2")


@pytest.mark.slow
def test_c40_a_host_whose_channel_is_empty_ends_the_job_with_the_reason(training_job, tmp_path):
    job = sharded_job(training_job, tmp_path, [[4], []])
    assert all(job.run().values())
    assert "ChannelError" in job.failure("algo-2")
    assert "has no tar shard" in job.failure("algo-2")
