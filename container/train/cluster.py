"""Who trains together: hosts, ranks, the rendezvous address, and the wait until the other hosts can be found."""

import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from container import contract
from container.train.environment import TrainingEnvironment, usable_cores
from container.train.program import Program
from container.train.runtime import RANK_MODULE

logger = logging.getLogger(__name__)


class PeersMissing(Exception):
    """Hosts of the job that could not be found in time."""


@dataclass(frozen=True)
class Cluster:
    """Who takes part in the process group, seen from this host."""

    hosts: tuple[str, ...]
    host_rank: int
    processes_per_host: int
    master_address: str
    master_port: int
    hosts_on_this_machine: int = 1
    peer_timeout_seconds: float = contract.PEER_TIMEOUT_SECONDS
    """How long to wait for the other hosts."""

    @property
    def threads_per_process(self) -> int:
        """This process's share of the cores."""
        return max(1, usable_cores() // (self.processes_per_host * self.hosts_on_this_machine))


def decide_cluster(environment: TrainingEnvironment, environ: Mapping[str, str], program: Program) -> Cluster:
    """Hosts, ranks and rendezvous address.

    The master is the first of the sorted hosts; `gethostname()` is not asked, SageMaker's machines answer it with
    anything. A host outside the training groups runs the user's script in a process group of its own.
    """
    hosts = environment.training_hosts if environment.is_training_host else (environment.current_host,)
    processes = 1 if program.kind == "command" else max(1, environment.num_gpus)
    overridden = environ.get(contract.MASTER_ADDR)
    if overridden:
        address, port = overridden, int(environ[contract.MASTER_PORT_VARIABLE])
    elif len(hosts) == 1:
        address, port = "127.0.0.1", _free_port()
    else:
        address, port = hosts[0], contract.DEFAULT_MASTER_PORT
    return Cluster(
        hosts=hosts,
        host_rank=hosts.index(environment.current_host),
        processes_per_host=processes,
        master_address=address,
        master_port=port,
        hosts_on_this_machine=len(hosts) if overridden in ("127.0.0.1", "localhost") else 1,
        peer_timeout_seconds=float(
            environ.get(contract.PEER_TIMEOUT_SECONDS_VARIABLE) or contract.PEER_TIMEOUT_SECONDS
        ),
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def be_found(port: int = contract.PEER_PORT) -> contextlib.AbstractContextManager[socket.socket | None]:
    """Listen, so that the other hosts see that this one is there: the kernel answers, nothing need be accepted."""
    try:
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:  # containers that share the machine's network: whoever came first answers for all
        logger.warning("port %d, where other hosts look for this one: %s", port, error.strerror)
        return contextlib.nullcontext()


def wait_for_hosts(
    hosts: Sequence[str],
    timeout_seconds: float,
    reach: Callable[[str], object] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until every host's name resolves and its launcher listens; at the start of a job either may take a while.

    Raises:
        PeersMissing: names the hosts that did not within `timeout_seconds`, and what was wrong with each.
    """
    reach = reach or _connect
    deadline = time.monotonic() + timeout_seconds
    pause, missing = 0.1, dict.fromkeys(hosts, "")
    while missing := {host: problem for host in missing if (problem := _problem(host, reach))}:
        told = ", ".join(f"{host} ({problem})" for host, problem in missing.items())
        if time.monotonic() >= deadline:
            raise PeersMissing(
                f"not there after {timeout_seconds:.0f} s: {told}. The host did not start, or the network (VPC, "
                "security group) hides it"
            )
        if pause >= 1:
            logger.info("waiting for %s", told)
        sleep(pause)
        pause = min(pause * 2, 10.0)


def _connect(host: str) -> None:
    socket.create_connection((host, contract.PEER_PORT), timeout=5).close()


def _problem(host: str, reach: Callable[[str], object]) -> str:
    try:
        reach(host)
    except socket.gaierror:
        return "its name does not resolve"
    except OSError as error:
        return f"no connection: {error.strerror or error}"
    return ""


def torchrun_argv(cluster: Cluster, program: Program, arguments: Sequence[str]) -> list[str]:
    """How torchrun is started on this host: a static rendezvous at the master.

    `-P` keeps the user's directory off torchrun's own import path: a user's `queue.py` is none of its business.
    """
    return [
        *(sys.executable, "-P", "-m", "container.train.agent"),
        f"--nnodes={len(cluster.hosts)}",
        f"--nproc-per-node={cluster.processes_per_host}",
        f"--node-rank={cluster.host_rank}",
        f"--master-addr={cluster.master_address}",
        f"--master-port={cluster.master_port}",
        f"--rdzv-conf=timeout={max(1, cluster.peer_timeout_seconds):.0f}",
        "--no-python",
        *(sys.executable, "-u", "-P", "-m", RANK_MODULE, program.kind, program.name, *arguments),
    ]


def network_interface(named: str, present: Sequence[str]) -> str:
    """The interface SageMaker names where the machine has it, else its first real one."""
    if named in present:
        return named
    chosen = next((name for name in present if name != "lo"), "lo")
    logger.warning("network interface %s does not exist here (%s): using %s", named, ", ".join(present), chosen)
    return chosen
