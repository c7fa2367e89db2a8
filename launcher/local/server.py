"""The server's process: `python -m launcher.local.server HOME`."""

import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launcher.local import artifacts
from launcher.local.admin import Admin
from launcher.local.alarms import Alarms
from launcher.local.autoscaling import Autoscaler, teach_moto
from launcher.local.buckets import Buckets
from launcher.local.client import ALIVE, AWS_CONFIG, DEFAULT_REGION, RUNTIME_VARIABLE, LocalServer
from launcher.local.clock import SPEED_VARIABLE, Heartbeat, read_speed, tick_seconds
from launcher.local.containers import Runtime
from launcher.local.endpoint_metrics import EndpointMetrics
from launcher.local.endpoints import Endpoints
from launcher.local.faults import Faults
from launcher.local.gateway import Gateway
from launcher.local.http_server import bind, create_http_server
from launcher.local.jobs import Jobs
from launcher.local.journal import Journal
from launcher.local.logs import TRAINING_GROUP, Logs
from launcher.local.metrics import MetricScanner
from launcher.local.platform import Platform
from launcher.local.process_containers import ProcessRuntime
from launcher.local.runtime_api import RuntimeApi
from launcher.local.sagemaker_api import SageMakerApi
from launcher.local.store import TRAINING_JOB, Store
from launcher.local.updater import Services

logger = logging.getLogger(__name__)
CONCURRENCY_VARIABLE = "SLIPWAY_LOCAL_JOBS"  # how many jobs run at once; the others wait
DEFAULT_CONCURRENCY = 2
INSTANCES_VARIABLE = "SLIPWAY_LOCAL_INSTANCES"  # how many instances of one variant run at most
DEFAULT_INSTANCES = 4
HOME_WATCH_SECONDS = 2.0
STOP_SECONDS = 45.0  # endpoints and batch jobs have 30 s of grace
RESTORED_JOBS = 100  # whose metrics are looked for in their logs when the server starts


def main() -> int:
    """Serve until SIGTERM, SIGINT, or until the home directory is gone."""
    home = Path(sys.argv[1]).resolve()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    alive = _hold_alive_lock(home)
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or DEFAULT_REGION
    runtime = choose_runtime(home, os.environ.get(RUNTIME_VARIABLE, ""), os.environ.get("PYTHONPATH"))
    server = LocalSageMaker(home, region, runtime, read_limits(os.environ))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        server.start()
        while not ended.wait(HOME_WATCH_SECONDS):
            if not (home / "server.json").exists():
                logger.warning("%s is gone: ending", home)
                break
    finally:
        server.stop()
    alive.close()
    return 0


def _hold_alive_lock(home: Path) -> IO[bytes]:
    file = (home / ALIVE).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"Another local SageMaker runs in {home}")
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    return file


def choose_runtime(home: Path, wanted: str, python_path: str | None) -> Runtime:
    """Docker where an engine answers, else processes; `wanted` overrides.

    Raises:
        SystemExit: `wanted` is neither, or it is docker and no engine answers.
    """
    if wanted not in ("", "docker", "process"):
        sys.exit(f"{RUNTIME_VARIABLE}={wanted!r} is neither 'docker' nor 'process'")
    if wanted != "process":
        import docker.errors  # takes 0.2 s, and processes do without

        from launcher.local.docker_containers import DockerRuntime

        try:
            return DockerRuntime(home)
        except docker.errors.DockerException as error:
            if wanted == "docker":
                sys.exit(f"{RUNTIME_VARIABLE}=docker, and no Docker engine answers: {error}")
    return ProcessRuntime(home / "jobs", home / "process-home", python_path)


@dataclass(frozen=True)
class Limits:
    """What this machine shall bear, and how long it shall wait."""

    jobs: int
    instances: int
    speed: float


def read_limits(environ: Mapping[str, str]) -> Limits:
    """The limits that the environment asks for."""
    return Limits(
        jobs=int(environ.get(CONCURRENCY_VARIABLE) or DEFAULT_CONCURRENCY),
        instances=int(environ.get(INSTANCES_VARIABLE) or DEFAULT_INSTANCES),
        speed=read_speed(environ.get(SPEED_VARIABLE)),
    )


class LocalSageMaker:
    """Every part of the server, put together."""

    def __init__(self, home: Path, region: str, runtime: Runtime, limits: Limits) -> None:
        self._home = home
        listeners = bind(runtime.listen_hosts, last_port(home))
        url = f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
        self.local = LocalServer(url, os.getpid(), home, runtime.name, region)
        self.platform = Platform(
            home=home,
            region=region,
            store=Store(home / "state"),
            buckets=Buckets(home, region),
            logs=Logs(home, region),
            runtime=runtime,
            aws_environment=container_environment(self.local),
            max_instances=limits.instances,
        )
        self._jobs = Jobs(self.platform, limits.jobs)
        services = Services(EndpointMetrics(region, limits.speed), Alarms(region, limits.speed), limits.speed)
        self._endpoints = Endpoints(self.platform, services)
        teach_moto()
        autoscaler = Autoscaler(region, limits.speed, services.alarms, self._endpoints)
        beats = [self._endpoints.put_gauges, services.alarms.evaluate, autoscaler.act]
        self._heartbeat = Heartbeat(tick_seconds(limits.speed), beats)
        self._gateway = Gateway(
            SageMakerApi(self.platform, self._jobs, self._endpoints, services.alarms),
            RuntimeApi(self._endpoints, self.platform.buckets),
            self.platform.buckets,
            Admin(self.local, self.platform, self._jobs, Faults()),
            Journal(home / "moto.jsonl"),
        )
        self._server = create_http_server(self._gateway, listeners)

    def start(self) -> None:
        """Bring back what an earlier server left, then listen."""
        self.platform.runtime.remove_leftovers()
        artifacts.remove_tree(self.platform.jobs_directory)
        self.platform.buckets.restore()
        self.platform.logs.restore()
        self._gateway.restore()
        restore_metrics(self.platform)
        self._jobs.restore()
        self._endpoints.start()
        threading.Thread(target=self._server.run, name="http", daemon=True).start()
        self._heartbeat.start()
        state = {
            "url": self.local.url,
            "pid": self.local.pid,
            "runtime": self.local.runtime,
            "region": self.local.region,
        }
        (self._home / AWS_CONFIG).write_text("[default]\n")
        temporary = self._home / "server.json.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(self._home / "server.json")
        logger.info("listening at %s, runtime %s", self.local.url, self.local.runtime)

    def stop(self) -> None:
        """End every job and every container: with their grace, and at the latest before `down` loses its patience."""
        ends = [threading.Thread(target=end) for end in (self._jobs.shut_down, self._endpoints.shut_down)]
        for thread in ends:
            thread.start()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in ends:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.platform.runtime.close()
        self._heartbeat.stop()
        self._server.close()


def restore_metrics(platform: Platform) -> None:
    """Find the newest training jobs' metrics in their logs again, as CloudWatch had them."""
    for document in platform.store.all(TRAINING_JOB)[-RESTORED_JOBS:]:
        definitions = document["AlgorithmSpecification"].get("MetricDefinitions", [])
        scanner = MetricScanner(definitions, document["TrainingJobName"], platform.region)
        for seconds, line in platform.logs.lines(TRAINING_GROUP, document["TrainingJobName"]):
            scanner.scan(line, seconds)


def container_environment(server: LocalServer) -> dict[str, str]:
    """How a container reaches this server; from inside Docker, 127.0.0.1 is the container itself."""
    of_this_machine = ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "SAGEMAKER_VALIDATE_ROLE")
    environment = {name: value for name, value in server.environment().items() if value and name not in of_this_machine}
    if server.runtime == "docker":
        environment["AWS_ENDPOINT_URL"] = server.url.replace("127.0.0.1", "host.docker.internal")
    return environment


def last_port(home: Path) -> int:
    """The port of this home's last server, or 0."""
    try:
        return int(json.loads((home / "server.json").read_text())["url"].rpartition(":")[2])
    except (OSError, ValueError, KeyError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
