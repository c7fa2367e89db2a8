"""One per host: reads the job, starts torchrun over every host and GPU, passes signals on, and tells how it ended."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from container import contract
from container.contract import OptMl
from container.train import failure
from container.train.environment import (
    TrainingEnvironment,
    masked,
    read_environment,
    sm_variables,
    usable_cores,
    user_arguments,
)
from container.train.failure import RankError
from container.train.program import Program, check_builtin_job, find_program
from container.train.runtime import RANK_MODULE, Runtime

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
STOP_SECONDS = 105.0  # after SIGTERM; the platform sends SIGKILL after 120 s, and traces must be written before
LINGER_SECONDS = 60.0  # torchrun waits 300 s for hosts that will never answer once its own ranks are done
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PeersMissing(Exception):
    """Hosts of the job whose names did not resolve in time."""


class Stopped(BaseException):
    """The platform asked for a stop while nothing ran yet that could be saved."""


class StopRequest:
    """The first stop signal of this process."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.interrupts = True
        """Whether it raises `Stopped`: before training starts, whatever is waited for is given up."""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            if self.interrupts:
                raise Stopped


@dataclass(frozen=True)
class Cluster:
    """Who takes part in the process group, seen from this host."""

    hosts: tuple[str, ...]
    host_rank: int
    processes_per_host: int
    master_address: str
    master_port: int
    hosts_on_this_machine: int = 1

    @property
    def threads_per_process(self) -> int:
        """This process's share of the cores."""
        return max(1, usable_cores() // (self.processes_per_host * self.hosts_on_this_machine))


def main() -> int:
    """Train as `/opt/ml` says; the exit status of the container."""
    started = time.time()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    stop = StopRequest()
    for number in STOP_SIGNALS:
        signal.signal(number, stop.on_signal)
    opt_ml = OptMl.from_env()
    try:
        return train(opt_ml, dict(os.environ), stop, started)
    except Stopped:
        logger.info("stopped before training began: nothing to save")
        return 128 + (stop.signal or signal.SIGTERM)
    except Exception as error:
        logger.exception("the job cannot start")
        failure.write_failure(opt_ml, f"{type(error).__name__}: {error}")
        return 1


def train(opt_ml: OptMl, environ: dict[str, str], stop: StopRequest, started: float) -> int:
    """Everything between reading the files and the exit status.

    Args:
        opt_ml: this host's tree.
        environ: the process environment.
        stop: filled by the signal handler.
        started: when the container started, seconds since the epoch.
    """
    environment = read_environment(opt_ml, environ)
    logging.getLogger().setLevel(environment.reserved_hyperparameters.get(contract.LOG_LEVEL_HYPERPARAMETER, 20))
    for directory in (opt_ml.model, opt_ml.output_data):
        directory.mkdir(parents=True, exist_ok=True)
    program = find_program(environment, environ)
    if program.kind == "builtin" and environment.is_training_host:
        check_builtin_job(environment)  # seconds before torch is loaded
    logger.info("hyperparameters %s", masked(environment.hyperparameters))
    if not environment.is_training_host and program.kind == "builtin":
        logger.info("%s is in none of the groups that train: nothing to do", environment.current_host)
        return 0
    cluster = decide_cluster(environment, environ, program)
    waited = time.time()
    if contract.MASTER_ADDR not in environ:
        timeout = float(environ.get(contract.PEER_TIMEOUT_SECONDS_VARIABLE) or contract.PEER_TIMEOUT_SECONDS)
        wait_for_names(cluster.hosts, timeout)
    with tempfile.TemporaryDirectory(prefix="slipway-") as runtime_dir:
        runtime = Runtime(Path(runtime_dir))
        runtime.write("launch.json", {"start": waited - started, "peers": time.time() - waited, "at": time.time()})
        variables = rank_environment(environment, environ, program, cluster, runtime)
        stop.interrupts = False
        code = supervise(start(environment, program, cluster, variables), program, cluster, runtime, stop)
        return conclude(environment, cluster, runtime, code, stop)


def decide_cluster(environment: TrainingEnvironment, environ: dict[str, str], program: Program) -> Cluster:
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
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_names(
    hosts: Sequence[str],
    timeout_seconds: float,
    resolve: Callable[[str, None], object] = socket.getaddrinfo,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until every host's name resolves; at the start of a job they may not for a while.

    Raises:
        PeersMissing: names the hosts that did not within `timeout_seconds`.
    """
    if len(hosts) == 1:
        return
    deadline = time.monotonic() + timeout_seconds
    pause, missing = 0.1, list(hosts)
    while missing := [host for host in missing if not _resolves(host, resolve)]:
        if time.monotonic() >= deadline:
            raise PeersMissing(
                f"{', '.join(missing)} did not resolve within {timeout_seconds:.0f} s: the host did not start, "
                "or the network (VPC, security group) hides it"
            )
        if pause >= 1:
            logger.info("waiting for the name of %s", ", ".join(missing))
        sleep(pause)
        pause = min(pause * 2, 10.0)


def _resolves(host: str, resolve: Callable[[str, None], object]) -> bool:
    try:
        resolve(host, None)
    except OSError:
        return False
    return True


def torchrun_argv(cluster: Cluster, program: Program, arguments: Sequence[str], timeout_seconds: float) -> list[str]:
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
        f"--rdzv-conf=timeout={timeout_seconds:.0f}",
        "--no-python",
        *(sys.executable, "-u", "-P", "-m", RANK_MODULE, program.kind, program.name, *arguments),
    ]


def start(
    environment: TrainingEnvironment, program: Program, cluster: Cluster, variables: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start torchrun, or the user's command, in a session of its own: only we pass signals on."""
    arguments = [] if program.kind == "builtin" else user_arguments(environment.hyperparameters)
    if program.kind == "command":
        argv = (
            ["/bin/sh", program.name, *arguments] if program.name.endswith(".sh") else [f"./{program.name}", *arguments]
        )
    else:
        timeout = float(variables.get(contract.PEER_TIMEOUT_SECONDS_VARIABLE) or contract.PEER_TIMEOUT_SECONDS)
        argv = torchrun_argv(cluster, program, arguments, timeout)
    logger.info(
        "starting %s: %d host(s) x %d process(es), %d thread(s) each, master %s:%d",
        program.name,
        len(cluster.hosts),
        cluster.processes_per_host,
        cluster.threads_per_process,
        cluster.master_address,
        cluster.master_port,
    )
    return subprocess.Popen(argv, env=variables, cwd=program.directory, start_new_session=True)


def rank_environment(
    environment: TrainingEnvironment, environ: dict[str, str], program: Program, cluster: Cluster, runtime: Runtime
) -> dict[str, str]:
    """The environment of torchrun and of every rank."""
    variables = environ | sm_variables(environment, program.user_entry_point)
    variables |= {
        contract.RUNTIME_DIR_VARIABLE: str(runtime.directory),
        contract.sm_variable("master_addr"): cluster.master_address,
        contract.sm_variable("master_port"): str(cluster.master_port),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the user's code may lie in a read-only channel
    }
    variables.setdefault("OMP_NUM_THREADS", str(cluster.threads_per_process))
    if program.kind == "command":
        variables |= {"RANK": str(cluster.host_rank), "WORLD_SIZE": str(len(cluster.hosts)), "LOCAL_RANK": "0"}
        variables |= {"MASTER_ADDR": cluster.master_address, "MASTER_PORT": str(cluster.master_port)}
    if len(cluster.hosts) > 1:
        interface = network_interface(environment.network_interface, [name for _, name in socket.if_nameindex()])
        variables.setdefault("GLOO_SOCKET_IFNAME", interface)
        variables.setdefault("NCCL_SOCKET_IFNAME", interface)
    return variables


def network_interface(named: str, present: Sequence[str]) -> str:
    """The interface SageMaker names where the machine has it, else its first real one."""
    if named in present:
        return named
    chosen = next((name for name in present if name != "lo"), "lo")
    logger.warning("network interface %s does not exist here (%s): using %s", named, ", ".join(present), chosen)
    return chosen


def supervise(
    process: subprocess.Popen[bytes], program: Program, cluster: Cluster, runtime: Runtime, stop: StopRequest
) -> int:
    """Wait for torchrun or the command; pass a stop on to every rank at once.

    Returns:
        Its exit code, negative for a signal; 0 when this host's ranks are done but other hosts keep torchrun waiting.
    """
    stopped_at = done_at = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_SECONDS)
        now = time.monotonic()
        if stop.signal is not None and stopped_at is None:
            stopped_at = now
            deliver_stop(process, program, runtime, stop.signal)
        if stopped_at is not None and now - stopped_at > STOP_SECONDS:
            logger.error("%d rank(s) did not stop within %.0f s: killed", len(runtime.live_ranks()), STOP_SECONDS)
            _end(process, runtime)
        if runtime.done_ranks == cluster.processes_per_host and program.kind != "command":
            done_at = done_at or now
            if now - done_at > LINGER_SECONDS:
                logger.warning("this host is done, and others did not end within %.0f s", LINGER_SECONDS)
                _end(process, runtime)
                return 0


def deliver_stop(process: subprocess.Popen[bytes], program: Program, runtime: Runtime, number: int) -> None:
    """Tell the program to stop.

    Ranks are told directly, not through torchrun: it would leave them 30 s. Where none runs yet torchrun is ended, and
    a rank that it may just be starting finds the stop request.
    """
    logger.info("%s: asking the program to save and stop", signal.Signals(number).name)
    runtime.stop_request.touch()
    if program.kind == "command":
        os.killpg(process.pid, number)
    elif runtime.signal_ranks(number) == 0 and runtime.done_ranks == 0:
        process.send_signal(signal.SIGTERM)


def _end(process: subprocess.Popen[bytes], runtime: Runtime) -> None:
    runtime.kill_ranks()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def conclude(environment: TrainingEnvironment, cluster: Cluster, runtime: Runtime, code: int, stop: StopRequest) -> int:
    """The container's exit status; writes the failure file, if there is one to write, last."""
    runtime.kill_ranks()  # only where torchrun itself was killed is one left
    errors = collect_errors(environment, cluster, runtime, code)
    if code == 0:
        finish_artifacts(environment.opt_ml)
        return 0
    failure.write_traces(environment.opt_ml, environment.current_host, errors)
    if stop.signal is not None and all(_is_stop(error) for error in errors):
        logger.info("stopped; the program did not handle the signal, so whatever it saved before is what there is")
        return 128 + stop.signal
    cause = failure.first_cause(errors)
    assert cause is not None  # collect_errors leaves none out
    text = failure.reason(cause)
    logger.error("job failed: %s", text)
    failure.write_failure(environment.opt_ml, text)
    return cause.exit_code if cause.exit_code > 0 else 128 - cause.exit_code


def collect_errors(environment: TrainingEnvironment, cluster: Cluster, runtime: Runtime, code: int) -> list[RankError]:
    """What the ranks recorded, and torchrun's word on those that could not."""
    errors = failure.recorded(runtime.directory)
    known = {error.rank for error in errors}
    host = environment.current_host
    for end in runtime.read("torchrun.json", []):
        if end["rank"] not in known:
            errors.append(RankError(end["rank"], host, end["time"], "", "", exit_code=end["exit_code"]))
    if code != 0 and not errors:
        rank = cluster.host_rank * cluster.processes_per_host
        errors.append(RankError(rank, host, time.time(), "", "", exit_code=code))
    return errors


def _is_stop(error: RankError) -> bool:
    """Whether a rank ended merely because it was told to."""
    stop_codes = {code for number in STOP_SIGNALS for code in (-number, 128 + number)}
    return error.exit_code in stop_codes or error.type == "KeyboardInterrupt"


def finish_artifacts(opt_ml: OptMl) -> None:
    """After success: no failure file, and no symlinks, which hosting refuses, among the artifacts."""
    opt_ml.failure.unlink(missing_ok=True)
    for link in [path for path in opt_ml.model.rglob("*") if path.is_symlink()]:
        target = link.resolve()
        link.unlink()
        if target.is_dir():
            shutil.copytree(target, link)
        elif target.is_file():
            shutil.copy2(target, link)
        else:
            logger.warning("%s pointed nowhere and is not part of the artifact", link)
