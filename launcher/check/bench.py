"""What the checks share: the materials to test with, one server in the platform's conditions, a few training jobs."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from container import contract
from container.contract import DEFAULT_PORT, OptMl
from launcher.check.http import Answer, Request
from launcher.check.materials import Materials, Patience
from launcher.check.started import (
    Arrangement,
    Server,
    TrainingLayout,
    TrainingRun,
    wait_until_healthy,
)
from launcher.check.target import CheckFailed, Launch, NotJudged, Running, Target, wait_for_end, wait_until
from launcher.local.containers import free_port
from launcher.local.opt_ml import write_training_input

# What SDK v2 sends to a model without a script: empty strings, which mean unset.
EMPTY_SCRIPT_VARIABLES = {contract.PROGRAM: "", contract.SUBMIT_DIRECTORY: ""}
SERVE, TRAIN = "serve", "train"
JOB_NAME = "slipway-check"
T = TypeVar("T")


class Bench:
    """Starts what the checks look at, once where several can share it."""

    def __init__(
        self, target: Target, materials: Materials, directory: Path, roles: tuple[str, ...], patience: Patience
    ) -> None:
        self.target = target
        self.materials = materials
        self.roles = roles
        self.patience = patience
        self._directory = directory
        self._started: list[Running] = []
        self._made: dict[Callable[[Bench], Any], Any] = {}
        self._runs: dict[tuple[Arrangement, ...], TrainingRun] = {}
        self._trees = 0

    def need_image(self, why: str) -> None:
        """Raises NotJudged for a process."""
        if not self.target.is_image:
            raise NotJudged(f"{why}, which needs an image")

    # --- serving ----------------------------------------------------------------------------------------------------

    @property
    def request(self) -> Request:
        """Raises NotJudged where the user gave none."""
        if self.materials.request is None:
            raise NotJudged("no request that the model answers: give --request FILE --content-type TYPE")
        return self.materials.request

    @cached_property
    def model(self) -> Path | None:
        """The model directory; a copy where mounting it read-only is not possible."""
        if self.materials.model is None or self.target.is_image:
            return self.materials.model
        return Path(shutil.copytree(self.materials.model, self.new_directory("model"), dirs_exist_ok=True))

    @cached_property
    def model_before(self) -> dict[str, str]:
        """Digest of every file of a process's model directory, before the first server started."""
        return digests(self.model) if self.model and not self.target.is_image else {}

    def start(self, launch: Launch) -> Running:
        running = self.target.start(launch)
        self._started.append(running)
        return running

    def start_bare(self, *arguments: str) -> Running:
        """Start with these arguments and an empty `/opt/ml`."""
        return self.start(Launch(arguments, opt_ml=self.new_tree(), ports=(self._port(),)))

    def start_server(
        self,
        environment: Mapping[str, str] | None = None,
        model: Path | None = None,
        ports: tuple[int, ...] = (),
        beside: Server | None = None,
        tree: OptMl | None = None,
        hardened: bool = False,
    ) -> Server:
        """Start `serve` as the platform does; healthy or not is not yet known.

        Raises:
            CheckFailed: it cannot be started.
        """
        tree = tree or self.new_tree()
        ports = ports or (self._port(),)
        bind = {contract.BIND_TO_PORT: str(ports[0])} if ports[0] != DEFAULT_PORT else {}
        launch = Launch(
            (SERVE,),
            {**(EMPTY_SCRIPT_VARIABLES if environment is None else environment), **bind},
            opt_ml=tree,
            mounts={Path("model"): model} if model else {},
            ports=ports,
            beside=beside.running if beside else None,
            hardened=hardened,
        )
        return Server(self.start(launch), ports[0], tree)

    def once(self, make: "Callable[[Bench], T]") -> T:
        """What `make` returns or raises for this bench; made on the first call, however many checks ask for it."""
        if make not in self._made:
            try:
                self._made[make] = make(self)
            except (CheckFailed, NotJudged) as failure:
                self._made[make] = failure
        made = self._made[make]
        if isinstance(made, (CheckFailed, NotJudged)):
            raise made
        return made

    @property
    def server(self) -> Server:
        """The shared server, for checks that are about something else than its start.

        Raises:
            NotJudged: it does not start.
            CheckFailed: it did, and has ended since.
        """
        try:
            server = self.once(healthy_server)
        except CheckFailed as failure:
            raise NotJudged("the server does not start, see C3") from failure
        if server.running.exit_code is not None:
            raise CheckFailed(f"the server has ended meanwhile, with exit code {server.running.exit_code}")
        return server

    def answering_server(self) -> Server:
        """The shared server, known to answer the request.

        Raises:
            NotJudged: there is no request, or it is not answered with success.
        """
        request, server = self.request, self.server
        answer = server.invoke(request)
        if not answer.is_success:
            raise NotJudged(f"the given request is answered {answer}: give one that the model answers with 200")
        return server

    def serves(self, environment: Mapping[str, str] | None = None, writable_model: bool = False) -> bool:
        """Whether a server of its own becomes healthy, and answers the request if there is one."""
        server = None
        try:
            if writable_model and self.model:
                server = self._start_writable(self.model)
            else:
                server = self.start_server(environment, self.model)
            wait_until_healthy(server, self.patience.startup)
            return self.materials.request is None or server.invoke(self.materials.request).is_success
        except CheckFailed:
            return False
        finally:
            if server:
                server.running.remove()

    def _start_writable(self, model: Path) -> Server:
        port, tree = self._port(), self.new_tree()
        shutil.copytree(model, tree.model)
        return Server(self.start(Launch((SERVE,), EMPTY_SCRIPT_VARIABLES, opt_ml=tree, ports=(port,))), port, tree)

    def _port(self) -> int:
        return DEFAULT_PORT if self.target.is_image else free_port()

    # --- training ---------------------------------------------------------------------------------------------------

    def train(self, *arrangements: Arrangement) -> TrainingRun:
        """Run a training job to its end; one that takes too long is killed.

        Raises:
            CheckFailed: it cannot be started.
        """
        running, opt_ml = self.start_training(self.materials.hyperparameters, *arrangements)
        code = wait_for_end(running, self.patience.training)
        return self.end_training(running, opt_ml, code)

    def start_training(self, hyperparameters: Mapping[str, str], *arrangements: Arrangement) -> tuple[Running, OptMl]:
        """Start `train` on a tree as the service lays it out, changed by the arrangements in their order.

        Raises:
            CheckFailed: it cannot be started.
        """
        opt_ml = self.new_tree()
        request = {
            "HyperParameters": dict(hyperparameters),
            "InputDataConfig": [{"ChannelName": name} for name in self.materials.channels],
            "CheckpointConfig": {},
        }
        write_training_input(opt_ml, request, contract.FIRST_HOST, [contract.FIRST_HOST])
        for written in (opt_ml.model, opt_ml.output, opt_ml.output_data, opt_ml.checkpoints):
            written.chmod(0o777)  # whom they belong to on the service is not known: another user is not judged by it
        layout = TrainingLayout(
            opt_ml,
            {
                contract.TRAINING_JOB_NAME: JOB_NAME,
                contract.TRAINING_JOB_ARN: f"arn:aws:sagemaker:us-east-1:111122223333:training-job/{JOB_NAME}",
            },
            {opt_ml.channel(name).relative_to(opt_ml.base): path for name, path in self.materials.channels.items()},
        )
        for arrangement in arrangements:
            arrangement(layout)
        launch = Launch((TRAIN,), layout.environment, opt_ml=opt_ml, mounts=layout.mounts, network=layout.network)
        return self.start(launch), opt_ml

    def end_training(self, running: Running, opt_ml: OptMl, exit_code: int | None) -> TrainingRun:
        """Take the container away and hand its files to this user."""
        logs = running.logs()
        running.remove()
        opt_ml.config.chmod(0o755)
        self.target.reclaim(opt_ml.base)
        return TrainingRun(opt_ml, exit_code, logs)

    def shared_training(self, arrangements: tuple[Arrangement, ...]) -> TrainingRun:
        """A job with these arrangements; run once, however many checks ask for it."""
        if arrangements not in self._runs:
            self._runs[arrangements] = self.train(*arrangements)
        return self._runs[arrangements]

    @property
    def plain_training(self) -> TrainingRun:
        """A job as the service would start it, with nothing unusual."""
        return self.shared_training(())

    def is_underway(self, running: Running) -> bool:
        """Wait until a training job is in its loop; False if it ends before."""

        def shows_progress() -> bool:
            return running.exit_code is not None or "loss" in running.logs().lower()

        wait_until(shows_progress, self.patience.underway)
        return running.exit_code is None

    def start_long_training(self) -> tuple[Running, OptMl]:
        """Start a job that lasts long enough for its end to tell something.

        Raises:
            NotJudged: how to make one is not known.
        """
        if not self.materials.long_hyperparameters:
            raise NotJudged("no job that lasts minutes, to be stopped: give --long-hyperparameter NAME=VALUE")
        return self.start_training({**self.materials.hyperparameters, **self.materials.long_hyperparameters})

    def long_training(self) -> tuple[Running, OptMl]:
        """A job in its loop.

        Raises:
            NotJudged: there is none, or it ended before it could be stopped.
        """
        running, opt_ml = self.start_long_training()
        if self.is_underway(running):
            return running, opt_ml
        run = self.end_training(running, opt_ml, running.exit_code)
        raise NotJudged(f"{run}, before it could be stopped: make it longer with --long-hyperparameter")

    # --- both -------------------------------------------------------------------------------------------------------

    def new_tree(self) -> OptMl:
        """An empty `/opt/ml` for one container."""
        self._trees += 1
        opt_ml = OptMl(self._directory / f"host-{self._trees}")
        opt_ml.base.mkdir(parents=True)
        return opt_ml

    def new_directory(self, name: str) -> Path:
        """An empty directory that lives as long as the bench."""
        directory = self._directory / name
        directory.mkdir(parents=True)
        return directory

    def close(self) -> None:
        """Remove every container and every file."""
        for running in self._started:
            running.remove()
        with contextlib.suppress(NotJudged):  # then what root wrote stays in the temporary directory
            self.target.reclaim(self._directory)
        shutil.rmtree(self._directory, ignore_errors=True)


def first_server(bench: Bench) -> Server:
    """The shared server, healthy or not: model read-only, script variables empty.

    Raises:
        CheckFailed: it cannot be started.
    """
    _ = bench.model_before
    return bench.start_server(model=bench.model)


def healthy_server(bench: Bench) -> Server:
    """The shared server.

    Raises:
        CheckFailed: it does not become healthy.
    """
    return wait_until_healthy(bench.once(first_server), bench.patience.startup)


def first_answer(bench: Bench) -> Answer | CheckFailed:
    """To a request sent right after the first healthy `/ping`."""
    try:
        return bench.once(healthy_server).invoke(bench.request)
    except CheckFailed as failure:
        return failure


def digests(directory: Path) -> dict[str, str]:
    """Path below the directory -> SHA-256 of each file."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
