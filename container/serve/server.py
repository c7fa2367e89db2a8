"""`python -m container serve`: decide how to serve on this machine, say so, and run gunicorn as this very process."""

import ctypes
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from container import contract, cuda, logs
from container.serve import emf, failures, printed, telemetry, tracing
from container.serve.asgi import Door
from container.serve.handlers import find_program
from container.serve.health import Health, State
from container.serve.master import CANNOT_LOAD, Master
from container.serve.metrics import Metrics
from container.serve.plan import (
    Machine,
    PlanError,
    ServerPlan,
    artifact_size,
    plan_server,
    read_machine,
)
from container.serve.registry import Registry
from container.serve.renewal import Renewal
from container.serve.requirements import install_requirements, put_on_path
from container.serve.service import Service

if TYPE_CHECKING:
    from container.serve.predictor import Predictor

logger = logging.getLogger(__name__)

USUAL_LEVEL = "20"
PR_SET_PDEATHSIG = 1  # prctl(2)
SAID_BY_THE_MASTER = ("Worker (pid:%s)", "Shutting down:", "Reason:")  # by ours, with what it means and last
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main() -> int:
    """Serve until SIGTERM; the exit status is the process's.

    Returns:
        1 where a setting is wrong or the port is taken; gunicorn ends the process itself otherwise, with 3 when the
        model cannot be loaded.
    """
    try:
        configure_logs()
        if logs.are_json(os.environ):
            printed.log_what_is_printed()
        opt_ml = contract.OptMl.from_env()
        machine = read_machine()
        check_cuda(machine)
        size = artifact_size(opt_ml.model)
        plan = plan_server(machine, os.environ, size)
        emf.Settings.from_env(os.environ)  # a bad one ends the server now
        check_port(plan.port)
        install(opt_ml)
    except Exception as error:  # of whatever kind: one line says what to do
        logger.error("%s", failures.describe(error))
        return 1
    logger.info("serving: %s (cores=%d memory=%.1fGiB gpus=%d artifact=%.1fMB)", *_figures(plan, machine, size))
    prepare_environment(plan)
    Gunicorn(plan, machine, opt_ml).run()
    return 0


def configure_logs() -> None:
    """Log as the environment says.

    Raises:
        PlanError: there is no such level; the logs are configured with the usual one.
    """
    level = os.environ.get(contract.CONTAINER_LOG_LEVEL) or USUAL_LEVEL
    try:
        logs.configure(os.environ, level, tracing.log_fields)
    except ValueError:
        logs.configure(os.environ, USUAL_LEVEL, tracing.log_fields)
        raise PlanError(
            f"{contract.CONTAINER_LOG_LEVEL}={level!r} is none of debug, info, warning, error, 10, …"
        ) from None


def install(opt_ml: contract.OptMl) -> None:
    """Install what the user's code asks for, once, before any process imports it."""
    program = find_program(opt_ml.model, os.environ)
    target = install_requirements(program.parent, os.environ) if program else None
    if target is not None:
        put_on_path(target)


def _figures(plan: ServerPlan, machine: Machine, size: int) -> tuple[Any, ...]:
    return plan.line(), machine.cores, machine.memory_bytes / 1024**3, machine.gpus, size / 1e6


class CudaError(Exception):
    """The container was given a GPU that this image cannot use."""


def check_cuda(machine: Machine) -> None:
    """Fail at once, and say why, where CUDA would fail in every process once torch is imported.

    Raises:
        CudaError: there is a GPU, and its driver is too old for the image, or the image is one for CPUs.
    """
    problem = cuda.cuda_problem(os.environ, "", cuda.torch_cuda_version()) if machine.gpus else None
    if problem:
        raise CudaError(problem)


class PortTaken(Exception):
    """Another process listens where this one should."""


def check_port(port: int) -> None:
    """Fail at once where gunicorn would try for five seconds and then not say why.

    Raises:
        PortTaken: somebody listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            raise PortTaken(f"port {port} cannot be bound: {error.strerror}") from None


def prepare_environment(plan: ServerPlan) -> None:
    """Settings that libraries read when they are imported, and that the user's own subprocesses inherit."""
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, str(plan.torch_threads))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection is an open file; 1024 are soon gone
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # the model directory is read-only
    sys.dont_write_bytecode = True


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however it does: nobody would replace or stop it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(0)


class GunicornLogger(Logger):
    """gunicorn's and uvicorn's own lines, where and how ours go: uvicorn takes gunicorn's handlers over."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers = list(logging.getLogger().handlers)
        self.error_log.addFilter(lambda record: not str(record.msg).startswith(SAID_BY_THE_MASTER))


class Gunicorn(BaseApplication):
    """gunicorn with our plan; its master is this process, so that PID 1 gets SIGTERM and drains."""

    def __init__(self, plan: ServerPlan, machine: Machine, opt_ml: contract.OptMl) -> None:
        self.plan = plan
        self.machine = machine
        self.opt_ml = opt_ml
        self.health = Health(plan.processes)
        self.metrics = Metrics(2 * plan.processes) if plan.metrics else None  # a row per slot of health
        self.renewal = Renewal(self.health, plan.max_process_memory_bytes)
        self.slot = 0
        super().__init__()

    def run(self) -> None:
        Master(self).run()

    def load_config(self) -> None:
        plan = self.plan
        settings = {
            "bind": f"0.0.0.0:{plan.port}",
            "workers": plan.processes,
            "worker_class": "container.serve.worker.Worker",
            "timeout": 0,  # a slow prediction must not get its process killed; deadlines are the service's
            "graceful_timeout": plan.graceful_seconds,
            "keepalive": plan.keep_alive_seconds,
            "backlog": plan.backlog,
            "worker_tmp_dir": plan.worker_tmp_dir,
            "control_socket_disable": True,
            "loglevel": "warning",
            "logger_class": GunicornLogger,
            "pre_fork": self._before_fork,
            "post_fork": self._after_fork,
            "child_exit": lambda master, worker: master.ended(worker),
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def _before_fork(self, arbiter: Arbiter, worker: Any) -> None:
        worker.slot = self.health.claim()

    def _after_fork(self, arbiter: Arbiter, worker: Any) -> None:
        end_with_parent(arbiter.pid)
        self.slot = worker.slot

    def restarted(self) -> None:
        """Count a process that died and is replaced."""
        if self.metrics is not None:
            self.metrics.restarted()

    def load(self) -> Door:
        """The application of one process, which answers `/ping` at once and loads its model beside it."""
        faulthandler.enable()  # where native code crashes, the log has the line of Python that called it
        registry = self._registry() if self.plan.multi_model else None
        service = Service(self.plan, self.health, registry, self.metrics)
        if self.metrics is not None:
            self.metrics.enter(self.slot)
            telemetry.start(service, self.metrics, emf.Settings.from_env(os.environ))
        threading.Thread(target=self._load_model, args=(service,), name="load", daemon=True).start()
        return Door(service)

    def _registry(self) -> Registry:
        def load_one(directory: Path) -> "Predictor":
            from container.serve import load

            return load.load_isolated(directory, self.device(), os.environ, self.plan)

        return Registry(self.opt_ml.models, load_one, self.plan.model_memory_bytes)

    def _load_model(self, service: Service) -> None:
        try:
            from container.serve import load  # imports numpy and torch: after the socket answers

            predictor = load.serve_model(service, self.opt_ml.model, self.device(), os.environ)
        except BaseException as error:
            try:
                if self.health.fail(failures.describe(error, self.opt_ml.model)):  # else another process has said it
                    logger.info("the model could not be loaded", exc_info=error)
                self.health.mark(self.slot, State.FAILED)
                logging.shutdown()
            finally:
                os._exit(CANNOT_LOAD)  # a thread cannot end the process otherwise
        self.health.mark(self.slot, State.READY)
        if predictor is not None:
            load.tune(service, predictor, os.environ)

    def device(self) -> str:
        return f"cuda:{self.slot % self.machine.gpus}" if self.machine.gpus else "cpu"
