"""Which part of a channel a rank reads, the same number of steps on every rank, and WebDataset tar shards."""

import contextlib
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import webdataset
from torch.utils.data import IterableDataset, get_worker_info

from container.train.environment import TrainingEnvironment
from container.train.files import ChannelError, list_files

Item = TypeVar("Item")

RELEASE_SECONDS = 1.0  # it takes microseconds
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Share:
    """One rank's part of what this host holds of a channel."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th item; the shares of all ranks are disjoint, complete, and differ in size by at most one."""
        return list(items[self.index :: self.count])


def channel_share(environment: TrainingEnvironment, channel: str, environ: Mapping[str, str]) -> Share:
    """This rank's share of the files that its host sees.

    Of a FullyReplicated channel every host has all files, and all ranks of the job share them. A ShardedByS3Key channel
    has been split over the hosts already: only the ranks of this host share its files.

    Args:
        environment: of the job.
        channel: its name.
        environ: with the RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE that torchrun sets; without them, one rank.
    """
    rank, world = (
        ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if environment.channel_is_sharded(channel) else ("RANK", "WORLD_SIZE")
    )
    return Share(int(environ.get(rank, 0)), int(environ.get(world, 1)))


def agreed_steps(steps: int) -> int:
    """The smallest number of steps that any rank can make; every rank must call this.

    Raises:
        ChannelError: on every rank, when one of them can make none: it names which.
    """
    with _cpu_group() as group:
        return _smallest(steps, group)


def equal_steps(batches: Iterable[Item]) -> Iterator[Item]:
    """The batches, as many on every rank as the rank with the fewest has, whatever their number.

        for images, labels in equal_steps(DataLoader(dataset, batch_size=64)):
            train_step()          # the collectives of DDP meet on every rank

    Ranks exchange one number per step, while the step computes; each is one batch ahead. Without a process group the
    batches come as they are.

    Raises:
        ChannelError: on every rank, when one of them has no batch at all: it names which.
    """
    iterator = iter(batches)
    current = list(itertools.islice(iterator, 1))
    with _cpu_group() as group:
        _smallest(len(current), group)
        while current:
            following = list(itertools.islice(iterator, 1))
            everyone_has_one = torch.tensor([len(following)])
            exchange = dist.all_reduce(everyone_has_one, dist.ReduceOp.MIN, group, async_op=True) if group else None
            yield current[0]
            if exchange is not None:
                exchange.wait()
                exchange = None
            _await_release(everyone_has_one)
            current = following if everyone_has_one.item() else []


@contextlib.contextmanager
def _cpu_group() -> Iterator[dist.ProcessGroup | None]:
    """All ranks, over a backend that reduces on the CPU; None where there is only this one.

    NCCL's answer would have to be waited for behind everything the GPU still computes.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield None
    elif "cpu:" in dist.get_backend_config():
        yield dist.group.WORLD
    else:
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)  # it would be a number for a rank outside, and there is none
        yield group
        dist.destroy_process_group(group)  # not after an error: a peer may never come to answer what is under way


def _smallest(steps: int, group: dist.ProcessGroup | None) -> int:
    counts = torch.zeros(dist.get_world_size() if group else 1, dtype=torch.int64)
    counts[dist.get_rank() if group else 0] = steps
    if group:
        dist.all_reduce(counts, group=group)
        _await_release(counts)
    empty = [str(rank) for rank, count in enumerate(counts.tolist()) if count == 0]
    if empty:
        raise ChannelError(
            f"no data for rank {', '.join(empty)}: the channel has fewer files than there are hosts or ranks. "
            "Split the data into more objects, use fewer hosts, or FullyReplicated instead of ShardedByS3Key"
        )
    return int(counts.min())


def _await_release(reduced: torch.Tensor) -> None:
    """Wait until gloo's own thread has let go of a tensor, which it does a moment after the answer is there.

    Were Python to drop it first, that thread would need the interpreter to free it; if the script has ended by then,
    while DDP keeps the process group alive, the process aborts ("terminate called without an active exception").
    """
    deadline = time.monotonic() + RELEASE_SECONDS
    while reduced._use_count() > 1 and time.monotonic() < deadline:  # type: ignore[attr-defined]  # not in the stubs
        time.sleep(0)


class TarShards(IterableDataset[dict[str, str]]):
    """The tar shards of a channel, in WebDataset's layout: files of one sample share a name and differ in suffix.

        shards = TarShards(channel_directory(environment, "train"), channel_share(environment, "train", os.environ))
        dataset = shards.samples(shuffle=1000).decode("torchrgb8").to_tuple("png", "cls")
        for epoch in range(3):
            shards.set_epoch(epoch)
            for images, labels in equal_steps(DataLoader(dataset, batch_size=64, num_workers=4)): ...

    Iterated itself, it gives the shards in the order of this epoch, as webdataset's pipelines take them.
    """

    def __init__(self, directory: Path, share: Share, seed: int = 0, resampled: bool = False) -> None:
        """Find the shards.

        Args:
            directory: of the channel.
            share: of this rank.
            seed: the order of shards and samples depends on it and on the epoch alone.
            resampled: draw from all shards of this host with replacement, on and on, rather than read each of this
                rank's once; then shards may be fewer than ranks, and `samples` needs a number.

        Raises:
            ChannelError: no shard, or none for this rank.
        """
        self.share, self.seed, self.resampled = share, seed, resampled
        found = [str(path) for path in list_files(directory, TAR_SUFFIXES)]
        self.urls = found if resampled else share.of(found)
        if not self.urls:
            raise ChannelError(
                f"{directory} has {len(found)} tar shard(s), and rank {share.index} of the {share.count} that share "
                "them gets none: write more and smaller ones, or set resampled=True"
                if found
                else f"{directory} has no tar shard ({', '.join(TAR_SUFFIXES)})"
            )
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by DataLoader's persistent workers

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew. Without this every epoch repeats the order of the first."""
        self._epoch.fill_(epoch)

    def rng(self, *purpose: object) -> random.Random:
        """Random numbers of this seed and epoch for one purpose."""
        return random.Random(f"{self.seed} {int(self._epoch)} {' '.join(map(str, purpose))}")

    def __iter__(self) -> Iterator[dict[str, str]]:
        worker, workers = _worker()
        if self.resampled:
            rng = self.rng("resample", self.share.index, worker)
            while True:
                yield {"url": rng.choice(self.urls)}
        order = list(self.urls)
        self.rng("shards").shuffle(order)
        yield from ({"url": url} for url in order[worker::workers])

    def samples(self, shuffle: int = 0, count: int | None = None) -> "webdataset.FluidWrapper":
        """A webdataset pipeline of undecoded samples: dicts of suffix -> bytes.

        Go on with its `decode`, `to_tuple`, `map`, `select`. Decode only what you trust: webdataset's basic decoder
        unpickles `.pkl` and `.pyd`.

        Args:
            shuffle: samples kept in memory, per worker, to draw the next one from; 0 keeps the order of the shard.
            count: samples of this rank and epoch, over all workers; every rank that has the same has equal steps.

        Raises:
            ValueError: `resampled` without `count` would never end.
        """
        if self.resampled and count is None:
            raise ValueError("resampled shards never end: give samples(count=...), this rank's samples per epoch")
        pipeline = webdataset.FluidWrapper(self).compose(webdataset.tarfile_to_samples())
        if shuffle:
            pipeline = pipeline.compose(_Shuffle(self, shuffle))
        return pipeline if count is None else pipeline.compose(_Limit(count))


@dataclass(frozen=True)
class _Shuffle:
    shards: TarShards
    size: int

    def __call__(self, samples: Iterable[Item]) -> Iterator[Item]:
        rng = self.shards.rng("samples", self.shards.share.index, _worker()[0])
        return webdataset.shuffle(self.size, initial=self.size, rng=rng)(samples)


@dataclass(frozen=True)
class _Limit:
    count: int

    def __call__(self, samples: Iterable[Item]) -> Iterator[Item]:
        worker, workers = _worker()
        return itertools.islice(samples, len(range(worker, self.count, workers)))


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
