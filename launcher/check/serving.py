"""Checks of a serving container; what they can, they ask of one shared server in the platform's conditions."""

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from container.contract import (
    DEFAULT_PORT,
    SAFE_PORT_RANGE,
)
from launcher.check.bench import Bench, digests, first_answer, first_server, healthy_server
from launcher.check.http import Address, Answer, NoAnswer, connect_seconds
from launcher.check.started import Server, is_healthy, wait_until_healthy
from launcher.check.target import CheckFailed, NotJudged, wait_until
from launcher.local.containers import free_port

CODE_DIRECTORY = "code"  # of a model directory: the user's handlers
GARBAGE = b"\x00slipway check broke this file\xff"
EVERYWHERE = ("0.0.0.0", "::")
CONNECT_SECONDS = 0.25  # "Custom Inference Code with Hosting Services": accept within 250 ms
CONNECTS = 10
CONNECT_TRIES = 2  # this machine may be busy with something else, too
GIVE_UP_CONNECT_SECONDS = 3.0
BUSY_REQUESTS = 32
SETTLE_SECONDS = 5  # for the requests in work to end before the next check
PORTS = (9191, 9192)  # of two containers of one endpoint
SAFE_RANGES = ("10000-10009", "10010-10019")


# --- network and start ------------------------------------------------------------------------------------------------


def listens_everywhere(bench: Bench) -> None:
    """C82: read from the socket table, so that a server on loopback only is told apart from a dead one."""
    server = bench.once(first_server)

    def settled() -> bool:
        return server.running.exit_code is not None or bool(_addresses(server, server.port))

    wait_until(settled, bench.patience.startup)
    addresses = _addresses(server, server.port)
    verdict = "the endpoint fails with 'did not pass the ping health check'"
    if not addresses:
        raise CheckFailed(f"nothing listens on port {server.port} ({server.log_tail!r}); {verdict}")
    if not addresses & set(EVERYWHERE):
        raise CheckFailed(
            f"it listens on {min(addresses)}:{server.port} only, and SageMaker's probes come from outside; {verdict}"
        )


def _addresses(server: Server, port: int) -> set[str]:
    return {address for address, bound in server.running.listening() if bound == port}


@dataclass(frozen=True)
class Copy:
    """One of two copies in a network namespace."""

    port: int
    failure: str
    """Why it did not become healthy; "" if it did."""
    listening: frozenset[int]


def two_copies(bench: Bench) -> tuple[Copy, Copy]:
    """Two copies with ports of their own, as in a multi-container endpoint."""
    ports = PORTS if bench.target.is_image else (free_port(), free_port())
    first = bench.start_server({SAFE_PORT_RANGE: SAFE_RANGES[0]}, bench.model, ports=ports)
    second = bench.start_server({SAFE_PORT_RANGE: SAFE_RANGES[1]}, bench.model, ports=ports[1:], beside=first)
    try:
        return _look_at(first, bench), _look_at(second, bench)
    finally:
        second.running.remove()
        first.running.remove()


def _look_at(server: Server, bench: Bench) -> Copy:
    failure = ""
    try:
        wait_until_healthy(server, bench.patience.startup)
    except CheckFailed as error:
        failure = str(error)
    return Copy(server.port, failure, frozenset(port for _, port in server.running.listening()))


def binds_to_the_given_port(bench: Bench) -> None:
    """C83: SAGEMAKER_BIND_TO_PORT."""
    copy = bench.once(two_copies)[0]
    if copy.failure:
        raise CheckFailed(f"SAGEMAKER_BIND_TO_PORT={copy.port}: {copy.failure}")
    if DEFAULT_PORT in copy.listening - {copy.port}:
        raise CheckFailed(
            f"SAGEMAKER_BIND_TO_PORT={copy.port} and it listens on {DEFAULT_PORT} as well: another container's"
        )


def two_copies_serve_side_by_side(bench: Bench) -> None:
    """C128: two copies side by side."""
    copies = bench.once(two_copies)
    for copy in copies:
        if copy.failure:
            raise CheckFailed(f"with a copy beside it, on port {copy.port}: {copy.failure}")
    allowed = {copy.port for copy in copies} | {port for text in SAFE_RANGES for port in _range(text)}
    extra = (copies[0].listening | copies[1].listening) - allowed
    if extra:
        raise CheckFailed(
            f"port {min(extra)} is bound beside SAGEMAKER_BIND_TO_PORT and outside SAGEMAKER_SAFE_PORT_RANGE: the "
            "second container of a multi-container endpoint finds it taken"
        )


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last) + 1)


def accepts_while_busy(bench: Bench) -> None:
    """C84: a connect takes 250 ms at most, however busy."""
    request, server = bench.request, bench.server
    address = server.address
    with _busy(server, bench):
        time.sleep(0.2)
        for _ in range(CONNECT_TRIES):
            slowest = _slowest_connect(address)
            if slowest <= CONNECT_SECONDS:
                break
    if slowest > CONNECT_SECONDS:
        raise CheckFailed(
            f"with {BUSY_REQUESTS} requests of {len(request.body)} bytes in work a connect took {slowest * 1000:.0f} "
            "ms; the platform allows 250 ms and then fails the invocation"
        )


def _slowest_connect(address: Address) -> float:
    """Of ten, or the first that is too slow."""
    slowest = 0.0
    for _ in range(CONNECTS):
        try:
            slowest = max(slowest, connect_seconds(address, GIVE_UP_CONNECT_SECONDS))
        except NoAnswer:
            return GIVE_UP_CONNECT_SECONDS
        if slowest > CONNECT_SECONDS:
            return slowest
    return slowest


@contextlib.contextmanager
def _busy(server: Server, bench: Bench) -> Iterator[None]:
    """Requests in work from `BUSY_REQUESTS` clients at once."""
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            with contextlib.suppress(NoAnswer):
                server.invoke(bench.request)

    threads = [threading.Thread(target=keep_asking, daemon=True) for _ in range(BUSY_REQUESTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        deadline = time.monotonic() + SETTLE_SECONDS
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))


# --- /ping ------------------------------------------------------------------------------------------------------------


def ping_is_200(bench: Bench) -> None:
    """C85: GET /ping is 200 within 2 s."""
    answer = bench.server.ping()
    if answer.status != 200:
        raise CheckFailed(f"GET /ping is {answer}; the instance is replaced")


def ping_waits_for_the_model(bench: Bench) -> None:
    """C86: the first request is sent right after the first 200: a server that said so too early cannot answer it."""
    server, first = bench.server, bench.once(first_answer)
    if isinstance(first, Answer) and first.is_success:
        return
    if not wait_until(lambda: server.invoke(bench.request).is_success, bench.patience.late_model):
        raise NotJudged(f"the given request is never answered with success ({first})")
    raise CheckFailed(
        f"/ping was 200 while the model was not ready (the first request: {first}, a later one: 200): the endpoint "
        "takes traffic that it cannot serve"
    )


def broken_model_is_told(bench: Bench) -> None:
    """C88: a broken model ends it, or keeps it unhealthy."""
    if bench.model is None:
        raise NotJudged("no model to break: give --model DIR")
    broken = bench.new_directory("broken-model")
    if not break_model(bench.model, broken):
        raise NotJudged("the model directory holds nothing but code/: there is no model file to break")
    server = bench.start_server(model=broken)
    try:

        def settled() -> bool:
            return server.running.exit_code is not None or is_healthy(server)

        wait_until(settled, bench.patience.broken_model)
        code, log = server.running.exit_code, server.log_tail
        if code == 0:
            raise CheckFailed(f"with a broken model serve ends with 0: {log!r}")
        if code is None and is_healthy(server):
            raise CheckFailed(
                "/ping is 200 with a broken model: the endpoint becomes InService, every invocation fails, and no "
                "update is rolled back"
            )
        if not log:
            raise CheckFailed("with a broken model serve is not healthy, and its log does not say why")
    finally:
        server.running.remove()


def break_model(model: Path, broken: Path) -> bool:
    """Write a model directory of the same files, garbage but for the user's code; False if there is nothing else."""
    files = [path.relative_to(model) for path in model.rglob("*") if path.is_file()]
    garbage = [path for path in files if path.parts[0] != CODE_DIRECTORY]
    for path in files:
        (broken / path).parent.mkdir(parents=True, exist_ok=True)
        if path in garbage:
            (broken / path).write_bytes(GARBAGE)
        else:
            shutil.copy(model / path, broken / path)
    return bool(garbage)


def post_ping_is_get_ping(bench: Bench) -> None:
    """C89: POST /ping is GET /ping."""
    answer = bench.server.ping("POST")
    if answer.status != 200:
        raise CheckFailed(f"POST /ping is {answer}, GET is 200; the guide names both, so a probe may be either")


# --- the platform's file system ---------------------------------------------------------------------------------------


def model_directory_stays_untouched(bench: Bench) -> None:
    """C104: the model directory is read-only."""
    if bench.model is None:
        raise NotJudged("no model directory: give --model DIR")
    if _shared_serves(bench):
        if bench.target.is_image:
            return  # the mount is read-only
        written = sorted(set(digests(bench.model).items()) ^ set(bench.model_before.items()))
        if written:
            raise CheckFailed(f"it wrote {written[0][0]} into the model directory, which is read-only on SageMaker")
        return
    _blame(
        bench.serves(writable_model=True), "with a read-only model directory, as on SageMaker, and with a writable one"
    )


def empty_script_variables_are_unset(bench: Bench) -> None:
    """C106: empty SAGEMAKER_PROGRAM is unset."""
    if _shared_serves(bench):
        return
    _blame(
        bench.serves(environment={}),
        "with SAGEMAKER_PROGRAM and SAGEMAKER_SUBMIT_DIRECTORY empty, as the SDK sends them, and without them",
    )


def _shared_serves(bench: Bench) -> bool:
    try:
        server = bench.once(healthy_server)
        return bench.materials.request is None or server.invoke(bench.materials.request).is_success
    except CheckFailed:
        return False


def _blame(serves_otherwise: bool, conditions: str) -> None:
    if not serves_otherwise:
        raise NotJudged("the server does not serve otherwise either, see C3")
    first, _, second = conditions.partition(", and ")
    raise CheckFailed(
        f"it does not serve {first}; {second} it does. The endpoint fails with 'did not pass the ping health check'"
    )


def serves_on_serverless(bench: Bench) -> None:
    """C142: another user, read-only root, no /dev/shm."""
    bench.need_image("only a container can be confined so")
    server = bench.start_server(model=bench.model, hardened=True)
    try:
        wait_until_healthy(server, bench.patience.startup)
        if bench.materials.request is not None and not (answer := server.invoke(bench.materials.request)).is_success:
            raise CheckFailed(f"a request is answered {answer}")
    except CheckFailed as failure:
        raise CheckFailed(
            f"as another user, on a read-only root, with /tmp only and no /dev/shm: {failure}"
        ) from failure
    finally:
        server.running.remove()
