"""Ranks of several hosts: who is missing is named, and the cause of a failure is told once."""

import threading

import pytest
import torch.distributed as dist

from container.train import peers
from container.train.failure import RankError


@pytest.fixture
def store():
    return dist.HashStore()


def failed(type="ValueError", message="bad", rank=1):
    return RankError(rank=rank, host="algo-2", time=1.0, type=type, message=message)


def test_ranks_that_do_not_come_are_named_with_their_hosts(store):
    with pytest.raises(peers.PeersUnreachable, match=r"^rank 1 on algo-1, rank 2 on algo-2 did not start within 0 s"):
        peers.check(store, 0, ["algo-1", "algo-1", "algo-2"], 0.05)


def test_ranks_that_come_but_cannot_add_up_name_the_interface(store, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    store.set("here/1", "algo-2")
    with pytest.raises(peers.PeersUnreachable, match="an all-reduce over interface no-such-interface fails"):
        peers.check(store, 0, ["algo-1", "algo-2"], 0.2)


def test_two_ranks_meet(store, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    hosts = ["algo-1", "algo-2"]
    other = threading.Thread(target=peers.check, args=(store, 1, hosts, 20))
    other.start()
    peers.check(store, 0, hosts, 20)
    other.join(20)
    assert not other.is_alive()


def test_the_first_failure_told_is_believed_and_an_echo_is_not_told(store):
    peers.publish(store, failed("RuntimeError", "Connection closed by peer"))
    assert peers.published(store) is None
    peers.publish(store, failed())
    peers.publish(store, failed(message="later"))
    assert peers.published(store) == failed()
