"""What the ranks of several hosts tell each other, through the store that torchrun's first host serves anyway.

Before the program: that all of them are there and that a collective goes through. When one fails: why, so that every
host ends with the cause and not with its echo.
"""

import dataclasses
import json
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from container import contract
from container.train.failure import RankError

CHECK_SECONDS = float(contract.PEER_TIMEOUT_SECONDS)  # the bound that hosts have to find each other
FAILURE_KEY = "failure"


class PeersUnreachable(Exception):
    """Some ranks of the job did not answer in time."""


def connect(address: str, port: int, timeout_seconds: float = CHECK_SECONDS) -> dist.Store:
    """A client of torchrun's store; our keys do not meet torch's or the program's."""
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout_seconds))
    return dist.PrefixStore("slipway", store)


def connect_rank(timeout_seconds: float = CHECK_SECONDS) -> dist.Store:
    """The store of the job this rank belongs to."""
    return connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout_seconds)


def check(store: dist.Store, rank: int, hosts: list[str], timeout_seconds: float = CHECK_SECONDS) -> None:
    """Meet all ranks, and add up one number with them over gloo.

    Args:
        store: shared by all ranks.
        rank: this one's.
        hosts: of each rank.
        timeout_seconds: for either.

    Raises:
        PeersUnreachable: names the ranks and hosts that did not come, or the interface that does not connect them.
    """
    began = time.monotonic()
    store.set(f"here/{rank}", hosts[rank])
    keys = [f"here/{other}" for other in range(len(hosts))]
    try:
        store.wait(keys, timedelta(seconds=timeout_seconds))
    except dist.DistError as error:
        missing = [f"rank {other} on {hosts[other]}" for other, key in enumerate(keys) if not store.check([key])]
        raise PeersUnreachable(f"{', '.join(missing)} did not start within {timeout_seconds:.0f} s") from error
    total = torch.ones(1)
    try:
        group = dist.ProcessGroupGloo(
            dist.PrefixStore("check", store), rank, len(hosts), timedelta(seconds=timeout_seconds)
        )
        group.allreduce([total]).wait()  # type: ignore[attr-defined]
    except RuntimeError as error:
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "of the default route")
        raise PeersUnreachable(
            f"all {len(hosts)} ranks are there, but an all-reduce over interface {interface} fails: {error}; do the "
            "hosts' security groups allow all traffic between them?"
        ) from error
    if rank == 0:
        seconds = time.monotonic() - began
        sys.stdout.write(f"{len(hosts)} ranks on {len(set(hosts))} hosts answer, after {seconds:.2f} s\n")


def publish(store: dist.Store, error: RankError) -> None:
    """Tell all hosts why this rank failed; the first to tell is believed, echoes are not told."""
    if not error.is_secondary:
        store.compare_set(FAILURE_KEY, "", json.dumps(dataclasses.asdict(error)))


def published(store: dist.Store) -> RankError | None:
    """The failure some rank has told, if any."""
    if not store.check([FAILURE_KEY]):
        return None
    return RankError(**json.loads(store.get(FAILURE_KEY)))
