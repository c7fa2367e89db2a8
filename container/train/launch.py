"""One per host: reads the job, starts torchrun over every host and GPU, passes signals on, and tells how it ended."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from container import contract, cuda, logs
from container.contract import OptMl
from container.train import failure, lines
from container.train.cluster import Cluster, be_found, decide_cluster, network_interface, torchrun_argv, wait_for_hosts
from container.train.environment import TrainingEnvironment, masked, read_environment, sm_variables, user_arguments
from container.train.health import rules_from_env
from container.train.phases import phase_line
from container.train.program import Program, check_builtin_job, find_program
from container.train.runtime import Runtime
from container.train.supervise import (
    LINGER_SECONDS,
    STOP_SECONDS,
    STOP_SIGNALS,
    Stopped,
    StopRequest,
    Watch,
    planned_stop,
)
from container.train.verdict import Ending, conclude

logger = logging.getLogger(__name__)


def main() -> int:
    """Train as `/opt/ml` says; the exit status of the container."""
    started = time.time()
    log_as_wanted(os.environ)
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
        logger.exception("the job failed before or after its program")
        failure.write_failure(opt_ml, f"{type(error).__name__}: {error}")
        return 1


def log_as_wanted(environ: Mapping[str, str], host: str = "") -> None:
    """This process's own lines, as text or JSON."""
    if lines.are_json(environ):
        logs.configure(environ, logging.INFO, lambda: {"host": host})
    else:
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")


def train(opt_ml: OptMl, environ: Mapping[str, str], stop: StopRequest, started: float) -> int:
    """Everything between reading the files and the exit status.

    Args:
        opt_ml: this host's tree.
        environ: the process environment.
        stop: filled by the signal handler.
        started: when the container started, seconds since the epoch.
    """
    environment = read_environment(opt_ml, environ)
    log_as_wanted(environ, environment.current_host)
    logging.getLogger().setLevel(environment.reserved_hyperparameters.get(contract.LOG_LEVEL_HYPERPARAMETER, 20))
    for directory in (opt_ml.model, opt_ml.output_data):
        directory.mkdir(parents=True, exist_ok=True)
    logger.info("hyperparameters %s", masked(environment.hyperparameters))
    os.environ.update(cache_variables(environ))  # pip, which installs a script's requirements, inherits them
    check_cuda(environment, environ)
    rules_from_env()  # whose errors are told before torch is loaded
    program = find_program(environment, environ)
    if program.kind == "builtin":
        if not environment.is_training_host:
            logger.info("%s is in none of the groups that train: nothing to do", environment.current_host)
            return 0
        check_builtin_job(environment)  # seconds before torch is loaded
    cluster = decide_cluster(environment, environ, program)
    waited = time.time()
    with tempfile.TemporaryDirectory(prefix="slipway-") as runtime_dir, contextlib.ExitStack() as until_the_end:
        if len(cluster.hosts) > 1 and contract.MASTER_ADDR not in environ:
            until_the_end.enter_context(be_found())
            wait_for_hosts(cluster.hosts, cluster.peer_timeout_seconds)
        runtime = Runtime(Path(runtime_dir))
        phases = {"start": waited - started, "peers": time.time() - waited, "at": time.time()}
        runtime.write("launch.json", phases | {"hosts": cluster.hosts})
        variables = rank_environment(environment, environ, program, cluster, runtime)
        limit = environ.get(contract.MAX_RUNTIME_SECONDS)
        stop.interrupts = False
        process = start(environment, program, cluster, variables)
        watch = Watch(
            process=process,
            ranks=0 if program.kind == "command" else cluster.processes_per_host,
            runtime=runtime,
            stop=stop,
            deadline=planned_stop(started, float(limit) if limit else None),
            stop_seconds=float(environ.get(contract.STOP_SECONDS_VARIABLE) or STOP_SECONDS),
            linger_seconds=float(environ.get(contract.LINGER_SECONDS_VARIABLE) or LINGER_SECONDS),
        )
        with lines.as_json(process.stdout, environment.current_host):
            code = watch.wait()
        logger.info("phases of %s: %s", environment.current_host, phase_line(runtime, started))
        required = environ.get(contract.REQUIRE_MODEL, "").lower() in ("1", "true")
        ending = Ending(code, stop.signal, stop.planned, required, stop.overdue_seconds)
        return conclude(environment, program, cluster, runtime, ending)


class CudaUnusable(Exception):
    """The machine has a GPU, and this image cannot use it."""


def check_cuda(environment: TrainingEnvironment, environ: Mapping[str, str]) -> None:
    """Say in time what would otherwise be an error deep in torch, or training on the CPU of a GPU machine.

    Raises:
        CudaUnusable: names the reason.
    """
    is_local = environ.get(contract.LOCAL) == "true"
    instance_type = "" if is_local else environment.resource_config.get("current_instance_type", "")
    problem = cuda.cuda_problem(environ, instance_type, cuda.torch_cuda_version())
    if problem is not None:
        raise CudaUnusable(problem)


def start(
    environment: TrainingEnvironment, program: Program, cluster: Cluster, variables: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start torchrun, or the user's command, in a session of its own: only we pass signals on."""
    arguments = [] if program.kind == "builtin" else user_arguments(environment.hyperparameters)
    if program.kind == "command":
        interpreter = ["/bin/sh", program.name] if program.name.endswith(".sh") else [f"./{program.name}"]
        argv = [*interpreter, *arguments]
    else:
        argv = torchrun_argv(cluster, program, arguments)
    logger.info(
        "starting %s: %d host(s) x %d process(es), %d thread(s) each, master %s:%d",
        *(program.name, len(cluster.hosts), cluster.processes_per_host, cluster.threads_per_process),
        *(cluster.master_address, cluster.master_port),
    )
    output, errors = (subprocess.PIPE, subprocess.STDOUT) if lines.are_json(variables) else (None, None)
    return subprocess.Popen(
        argv, env=variables, cwd=program.directory, start_new_session=True, stdout=output, stderr=errors
    )


def rank_environment(
    environment: TrainingEnvironment, environ: Mapping[str, str], program: Program, cluster: Cluster, runtime: Runtime
) -> dict[str, str]:
    """The environment of torchrun and of every rank."""
    variables = {**environ, **sm_variables(environment, program.user_entry_point)}
    variables |= {
        contract.RUNTIME_DIR_VARIABLE: str(runtime.directory),
        contract.sm_variable("master_addr"): cluster.master_address,
        contract.sm_variable("master_port"): str(cluster.master_port),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the user's code may lie in a read-only channel
    }
    if program.kind == "builtin" and "health" in environment.hyperparameters:
        variables[contract.HEALTH_VARIABLE] = str(environment.hyperparameters["health"])
    variables.setdefault("OMP_NUM_THREADS", str(cluster.threads_per_process))
    # Spinning threads cost an idle machine nothing and a shared one, such as with DataLoader workers, most of its time.
    variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if program.kind == "command":
        variables |= {"RANK": str(cluster.host_rank), "WORLD_SIZE": str(len(cluster.hosts)), "LOCAL_RANK": "0"}
        variables |= {"MASTER_ADDR": cluster.master_address, "MASTER_PORT": str(cluster.master_port)}
    network = network_variables(environment) if len(cluster.hosts) > 1 else {}
    for name, value in (network | cache_variables(environ)).items():
        variables.setdefault(name, value)
    if network:
        logger.info("network %s", " ".join(f"{name}={variables[name]}" for name in network))
    return variables


def network_variables(environment: TrainingEnvironment, devices: Path = Path("/dev/infiniband")) -> dict[str, str]:
    """What gloo, NCCL and libfabric must be told about this host's network: only what applies to it.

    Args:
        environment: names the interface.
        devices: where EFA adapters appear ("Run Training with EFA").
    """
    interface = network_interface(environment.network_interface, [name for _, name in socket.if_nameindex()])
    variables = {"GLOO_SOCKET_IFNAME": interface}
    if environment.num_gpus:
        variables["NCCL_SOCKET_IFNAME"] = interface
    if any(devices.glob("uverbs*")):
        variables |= {"FI_PROVIDER": "efa", "RDMAV_FORK_SAFE": "1"}
        if environment.resource_config.get("current_instance_type", "").startswith(("ml.p4d", "ml.p4de", "ml.trn1")):
            variables["FI_EFA_USE_DEVICE_RDMA"] = "1"
    return variables


def cache_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Caches in the one directory that a warm pool keeps between jobs; nothing where there is no warm pool.

    Each is a cache its owner can lose: another job's or a damaged entry is downloaded or compiled again.
    """
    directory = environ.get(contract.WARM_POOL_CACHE_DIR)
    if not directory:
        return {}
    owners = {
        "PIP_CACHE_DIR": "pip",
        "TORCH_HOME": "torch",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "HF_HOME": "huggingface",
    }
    return {variable: str(Path(directory) / "slipway-1" / name) for variable, name in owners.items()}
