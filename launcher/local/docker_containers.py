"""Starting a container with a Docker engine, the way the service does it."""

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.models.containers
import docker.types
import requests

from container.contract import BASE_DIR, BIND_TO_PORT, DEFAULT_PORT, SERVERLESS_IMAGE_BYTES, OptMl
from launcher.local.client import HOME_LABEL, LOCAL_IMAGES_FIX
from launcher.local.containers import LAST_LINES, ContainerSpec, ContainerStartError, Door
from launcher.local.logs import LineSplitter

START_SECONDS = 120  # per call to the engine; an engine under load is slow
NO_CONTACT = "com.docker.network.bridge.enable_icc"
NO_ADDRESSES_FIX = (
    "`docker network prune` removes those that nothing uses; default-address-pools in daemon.json adds some"
)


class DockerRuntime:
    """Runs the image itself: one container per host, `/opt/ml` bind-mounted.

    Hosts that must find each other have a network of their own. All others share one, in which no container reaches
    another: an engine has addresses for some 30 networks.
    """

    name = "docker"

    def __init__(self, home: Path) -> None:
        self._client = docker.from_env(timeout=START_SECONDS)
        self._labels = {HOME_LABEL: str(home)}
        self._mark = hashlib.sha256(str(home).encode()).hexdigest()[:8]  # other homes have jobs of the same name
        self._lock = threading.Lock()
        self._door = Door()
        self.listen_hosts = ("127.0.0.1", *bridge_addresses(self._client.networks.get("bridge").attrs))
        self._has_gpus = "nvidia" in self._client.info().get("Runtimes", {})

    def start(self, spec: ContainerSpec, write_line: Callable[[str], None]) -> "DockerContainer":
        with self._door.passing():
            return self._start(spec, write_line)

    def _start(self, spec: ContainerSpec, write_line: Callable[[str], None]) -> "DockerContainer":
        port = spec.port or DEFAULT_PORT
        options: dict[str, Any] = {
            "command": list(spec.command) or None,  # none: the image's own CMD
            "environment": dict(spec.environment) | ({BIND_TO_PORT: str(port)} if port != DEFAULT_PORT else {}),
            "labels": self._labels,
            "mounts": self._mounts(spec),
            "name": f"{spec.name}-{self._mark}",
            "shm_size": "1g",
            "extra_hosts": {"host.docker.internal": "host-gateway"},
        }
        if spec.argument == "serve":
            options["ports"] = {f"{port}/tcp": ("127.0.0.1", None)}
        if spec.memory_mb:  # serverless
            options["mem_limit"] = f"{spec.memory_mb}m"
            self._refuse_large(spec.image)
        elif self._has_gpus:
            options["device_requests"] = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]
        if spec.entrypoint:
            options["entrypoint"] = list(spec.entrypoint)
        try:
            network = self._ensure_network(spec)
            aliases = [spec.alias] if spec.network else None
            options["network"] = network
            options["networking_config"] = {network: self._client.api.create_endpoint_config(aliases=aliases)}
            container = self._client.containers.create(spec.image, **options)
        except docker.errors.ImageNotFound as error:
            raise ContainerStartError(
                f"Cannot find the requested image {spec.image} in this Docker engine: build or pull it. "
                f"{LOCAL_IMAGES_FIX}"
            ) from error
        except docker.errors.APIError as error:
            raise ContainerStartError(str(error.explanation or error)) from error
        return _started(DockerContainer(spec, container, port, write_line))

    def _refuse_large(self, image: str) -> None:
        with contextlib.suppress(docker.errors.ImageNotFound):  # told at the start
            size = self._client.images.get(image).attrs["Size"]
            if size > SERVERLESS_IMAGE_BYTES:
                raise ContainerStartError(
                    f"{image} has {size / 1e9:.1f} GB; a serverless endpoint's image at most 10 GB: build it with "
                    "torch for CPUs, see docs/images.md"
                )

    def _mounts(self, spec: ContainerSpec) -> list[docker.types.Mount]:
        mounts = [docker.types.Mount(str(BASE_DIR), str(spec.opt_ml.base), type="bind")]
        for path in spec.read_only:
            target = BASE_DIR / path.relative_to(spec.opt_ml.base)
            mounts.append(docker.types.Mount(str(target), str(path), type="bind", read_only=True))
        for mount in spec.mounts:
            target = BASE_DIR / mount.target.relative_to(spec.opt_ml.base)
            mounts.append(docker.types.Mount(str(target), str(mount.source), type="bind", read_only=mount.read_only))
        return mounts

    def _ensure_network(self, spec: ContainerSpec) -> str:
        """Its name; created where it is not there yet.

        Raises:
            ContainerStartError: this engine has no addresses left.
        """
        name = f"{spec.network or ('slipway-isolated' if spec.isolated else 'slipway')}-{self._mark}"
        options = {} if spec.network else {NO_CONTACT: "false"}
        with self._lock:
            if self._client.networks.list(names=[f"^{name}$"]):
                return name
            try:
                self._client.networks.create(name, internal=spec.isolated, labels=self._labels, options=options)
            except docker.errors.APIError as error:
                if "address pool" not in str(error):
                    raise
                raise ContainerStartError(f"{error.explanation}: {NO_ADDRESSES_FIX}") from error
        return name

    def seen_path(self, opt_ml: OptMl, path: Path) -> Path:
        """`/opt/ml/...`: that is where the tree is mounted."""
        return BASE_DIR / path.relative_to(opt_ml.base)

    def remove_network(self, network: str) -> None:
        for found in self._client.networks.list(names=[f"^{network}-{self._mark}$"]):
            with contextlib.suppress(docker.errors.APIError):
                found.remove()

    def remove_leftovers(self) -> None:
        label: dict[str, Any] = {"label": f"{HOME_LABEL}={self._labels[HOME_LABEL]}"}
        for container in self._client.containers.list(all=True, filters=label):
            with contextlib.suppress(docker.errors.APIError):
                container.remove(force=True)
        for network in self._client.networks.list(filters=label):
            with contextlib.suppress(docker.errors.APIError):
                network.remove()

    def close(self) -> None:
        self._door.close()
        self.remove_leftovers()

    def reclaim(self, directory: Path, image: str) -> None:
        """Hand root's files back to this user, with the image's own `chown`."""
        if os.getuid() == 0:
            return
        refusals = (docker.errors.APIError, docker.errors.ContainerError, ContainerStartError)
        with contextlib.suppress(*refusals), self._door.passing():
            self._client.containers.run(
                image,
                ["-R", f"{os.getuid()}:{os.getgid()}", "/reclaim"],
                entrypoint=["chown"],
                mounts=[docker.types.Mount("/reclaim", str(directory), type="bind")],
                labels=self._labels,
                network_mode="none",
                user="0",
                remove=True,
            )


def bridge_addresses(network: Mapping[str, Any]) -> list[str]:
    """This machine's IPv4 addresses on the default bridge, which `host.docker.internal` means to a container."""
    configs = [config for config in network["IPAM"]["Config"] if ":" not in config["Subnet"]]
    return [config.get("Gateway") or str(next(ip_network(config["Subnet"]).hosts())) for config in configs]


def by_digest(reference: str, image: Mapping[str, Any]) -> str:
    """`repository@sha256:…` of an image: its registry's digest, or its own id where it was never pushed.

    Args:
        reference: what was asked for, with a tag or a digest.
        image: as the engine describes it.
    """
    tagged = reference.partition("@")[0]
    repository = tagged.rpartition(":")[0] if ":" in tagged.rpartition("/")[2] else tagged
    pushed = [digest for digest in image.get("RepoDigests") or [] if digest.startswith(f"{repository}@")]
    return pushed[0] if pushed else f"{repository}@{image['Id']}"


def _started(container: "DockerContainer") -> "DockerContainer":
    try:
        container.start()
    except docker.errors.APIError as error:
        container.remove()
        raise ContainerStartError(str(error.explanation or error)) from error
    except BaseException:  # the engine does not answer: it may have started it all the same
        container.remove()
        raise
    return container


class DockerContainer:
    """One container of the engine; it is removed when it has ended."""

    def __init__(
        self,
        spec: ContainerSpec,
        container: docker.models.containers.Container,
        port: int,
        write_line: Callable[[str], None],
    ) -> None:
        self.spec = spec
        self.image = spec.image
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.address = ("127.0.0.1", 0)
        self._container = container
        self._port = port
        self._write_line = write_line
        self._exit_code = 0
        self._ended = threading.Event()

    def start(self) -> None:
        """Start it and follow its log.

        Raises:
            docker.errors.APIError: the engine refuses, for instance because there is no such executable.
        """
        self._container.start()
        self._container.reload()
        image = self._container.image
        if image is not None:
            self.image = by_digest(self.spec.image, image.attrs)
        published = self._container.attrs["NetworkSettings"]["Ports"].get(f"{self._port}/tcp")
        if published:
            self.address = ("127.0.0.1", int(published[0]["HostPort"]))
        else:  # an internal network publishes nothing, but this machine is on its bridge
            (network,) = self._container.attrs["NetworkSettings"]["Networks"].values()
            self.address = (network["IPAddress"], self._port)
        threading.Thread(target=self._follow, name=f"log {self.spec.name}", daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        return self._exit_code if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int | None:
        self._ended.wait(timeout)
        return self.exit_code

    def stop(self, grace_seconds: float) -> int:
        self._signal("SIGTERM")
        if not self._ended.wait(grace_seconds):
            self._signal("SIGKILL")
            self._ended.wait()
        return self._exit_code

    def remove(self) -> None:
        with contextlib.suppress(docker.errors.APIError):
            self._container.remove(force=True)

    def _signal(self, name: str) -> None:
        with contextlib.suppress(docker.errors.APIError):  # it has ended meanwhile
            self._container.kill(name)

    def _follow(self) -> None:
        def keep(line: str) -> None:
            self.last_lines.append(line)
            self._write_line(line)

        splitter = LineSplitter(keep)
        with contextlib.suppress(docker.errors.APIError, requests.RequestException):
            for data in self._container.logs(stream=True, follow=True):
                splitter.feed(data)
        splitter.close()
        self._exit_code = self._wait_for_exit_code()
        self.remove()
        self._ended.set()

    def _wait_for_exit_code(self) -> int:
        while True:
            try:
                return int(self._container.wait(timeout=START_SECONDS)["StatusCode"])
            except docker.errors.APIError:
                return 137  # somebody removed the container under us
            except requests.RequestException:
                continue  # still running: the engine had nothing to say for so long
