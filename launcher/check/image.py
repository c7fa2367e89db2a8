"""Checks that read an image's configuration and files, and how it starts."""

import re
import time

from container.contract import ACCEPT_BIND_TO_PORT_LABEL, BASE_DIR, COMPAT_DIR, SERVERLESS_IMAGE_BYTES
from launcher.check.bench import SERVE, TRAIN, Bench, healthy_server
from launcher.check.started import handles_sigterm, tail, wait_until_healthy
from launcher.check.target import (
    EXECUTABLE_NOT_FOUND,
    CannotStart,
    CheckFailed,
    ImageFacts,
    NotJudged,
    Running,
    wait_for_end,
    wait_until,
)
from launcher.check.training import largest_child, stopped_training

UNKNOWN_COMMAND = "slipway-no-such-command"
SHELL_OPTIONS = re.compile(r"-\w*c$")  # -c, -lc, -ec: what follows is a script
ZOMBIE_SECONDS = 2
READ_PROCESSES = 'for file in /proc/[0-9]*/stat; do read -r line 2>/dev/null < "$file" && echo "$line"; done; true'
NVIDIA_DRIVER = "/proc/driver/nvidia/version"


def entrypoint_is_absolute(bench: Bench) -> None:
    """C1: ENTRYPOINT is a JSON array with an absolute path."""
    entrypoint = bench.target.image().entrypoint
    if not entrypoint:
        raise NotJudged("the image has no ENTRYPOINT: `train` or `serve` must then be on PATH, see C2 and C3")
    if len(entrypoint) > 1 and entrypoint[0].endswith("sh") and SHELL_OPTIONS.match(entrypoint[1]):
        raise CheckFailed(
            f"ENTRYPOINT {list(entrypoint)} is the shell form: the argument `train` or `serve` is dropped and SIGTERM "
            "stops at the shell; SageMaker kills such a container after the grace period. Use a JSON array"
        )
    if not entrypoint[0].startswith("/"):
        raise CheckFailed(
            f"ENTRYPOINT starts with {entrypoint[0]!r}, which depends on PATH and the working directory; a job fails "
            "with 'executable file not found in $PATH' where they differ"
        )


def train_starts(bench: Bench) -> None:
    """C2: `train` starts the training program."""
    _need_something_to_run(bench.plain_training.exit_code, bench.plain_training.logs, TRAIN)


def serve_starts(bench: Bench) -> None:
    """C3: `serve` becomes healthy."""
    bench.once(healthy_server)


def unknown_argument_ends(bench: Bench) -> None:
    """C4: an unknown argument is executed or refused."""
    limit = bench.patience.usage_error + bench.patience.engine
    try:
        running = bench.start_bare(UNKNOWN_COMMAND)
    except CannotStart:
        return  # the engine itself says that there is no such command
    code = wait_for_end(running, limit)
    if code is None:
        raise CheckFailed(
            f"`{UNKNOWN_COMMAND}` as the argument still runs after {limit:.0f} s: a job with a mistyped command would "
            "be billed until its time limit"
        )
    if code == 0:
        raise CheckFailed(f"`{UNKNOWN_COMMAND}` as the argument ends with 0: such a job would be Completed")
    if not running.logs().strip():
        raise CheckFailed(f"`{UNKNOWN_COMMAND}` as the argument ends with {code} and says nothing")


def nothing_below_opt_ml(bench: Bench) -> None:
    """C5: nothing lies below /opt/ml."""
    hidden = [path for path in bench.target.image().files if path.startswith(f"{BASE_DIR}/")]
    if hidden:
        raise CheckFailed(f"the image holds {_some(hidden)}: SageMaker's mounts hide it, and the program misses it")


def no_driver(bench: Bench) -> None:
    """C6: no part of the NVIDIA driver."""
    files = bench.target.image().files
    libraries = [path for path in files if "libcuda.so" in path and "compat" not in path]
    if libraries:
        raise CheckFailed(
            f"the image holds {_some(libraries)}, a part of NVIDIA's driver: on a GPU host CUDA fails with "
            "'Driver/library version mismatch'"
        )
    modules = [path for path in files if path.rpartition("/")[2].startswith("nvidia") and not path.endswith(".so")]
    kernel = [path for path in modules if ".ko" in path or re.search(r"nvidia-(driver|dkms|kernel)", path)]
    if kernel:
        raise CheckFailed(f"the image holds {_some(kernel)}: the driver is the host's, and this one clashes with it")


def starts_without_gpu(bench: Bench) -> None:
    """C10: it starts without GPU."""
    if _gpu_driver():
        raise NotJudged("this machine has an NVIDIA driver")
    if SERVE in bench.roles:
        environment = bench.server.running.first_process_file("environ")
        path = environment.partition("LD_LIBRARY_PATH=")[2].partition("\0")[0]
        if str(COMPAT_DIR) in path:
            raise CheckFailed(
                f"LD_LIBRARY_PATH={path} has the compatibility libraries though there is no driver: on a host with a "
                "newer driver CUDA fails with error 803"
            )
    if TRAIN in bench.roles and not bench.plain_training.succeeded:
        raise CheckFailed(f"{bench.plain_training}, on a machine without GPU; jobs on CPU instances fail")


def sigterm_is_handled(bench: Bench) -> None:
    """C11: SIGTERM reaches PID 1's handler."""
    if TRAIN in bench.roles:
        handled, grace = bench.once(stopped_training).handles_sigterm, bench.patience.training_stop
    else:
        handled, grace = handles_sigterm(bench.server.running), bench.patience.serving_stop
    if not handled:
        raise CheckFailed(
            f"PID 1 has no handler for SIGTERM, which the kernel then drops: the program never hears that it is being "
            f"stopped, and SIGKILL follows after {grace:.0f} s"
        )


def zombies_are_reaped(bench: Bench) -> None:
    """C12: PID 1 waits for orphaned processes, or ends when its main child does, and they with it."""
    bench.need_image("only a container has a PID 1 of its own")
    if SERVE in bench.roles and not _leaves_zombies(bench.server.running):
        return
    running = _to_be_killed(bench)
    try:
        main_child = largest_child(running.processes()) if _leaves_zombies(running) else None
        if main_child is None:
            return  # it waits for them, or is the program itself
        running.kill(main_child)
        if wait_for_end(running, bench.patience.serving_stop) is None:
            raise CheckFailed(
                f"PID 1 neither waits for orphaned children nor ends with {main_child.command[:80]!r}: zombies pile "
                "up, and a container whose program died goes on, billed and useless"
            )
    finally:
        running.remove()


def _to_be_killed(bench: Bench) -> Running:
    if SERVE not in bench.roles:
        return bench.long_training()[0]
    return wait_until_healthy(bench.start_server(model=bench.model), bench.patience.startup).running


def _leaves_zombies(running: Running) -> bool:
    running.execute("/bin/sh", "-c", "sleep 0.1 & exit 0")  # its parent ends first: it becomes a child of PID 1
    time.sleep(0.5)
    return not wait_until(lambda: not _zombies(running), ZOMBIE_SECONDS)


def _zombies(running: Running) -> list[str]:
    """Names of PID 1's dead children, by the shell's own means: an image need not have `ps`, and Docker hides them."""
    _, output = running.execute("/bin/sh", "-c", READ_PROCESSES)
    found = []
    for line in output.splitlines():
        name, _, rest = line.partition("(")[2].rpartition(")")
        if rest.split()[:2] == ["Z", "1"]:
            found.append(name)
    return found


def without_argument_it_is_a_usage_error(bench: Bench) -> None:
    """C74: no argument is a usage error."""
    limit = 30 if bench.patience.engine else bench.patience.usage_error
    try:
        running = bench.start_bare()
    except CannotStart:
        return  # nothing to run: the job fails at once, and says so
    code = wait_for_end(running, limit)
    if code is None:
        raise CheckFailed(
            f"without an argument it still runs after {limit:.0f} s: a processing job, which passes none, would be "
            "billed until its time limit"
        )
    if code == 0:
        raise CheckFailed(
            "without an argument it ends with 0: a processing job would be Completed and have done nothing"
        )


def label_accept_bind_to_port(bench: Bench) -> None:
    """C129: label accept-bind-to-port."""
    value = bench.target.image().labels.get(ACCEPT_BIND_TO_PORT_LABEL)
    if value != "true":
        raise CheckFailed(
            f"label {ACCEPT_BIND_TO_PORT_LABEL} is {value!r}, not 'true': CreateModel of several containers fails "
            "with 'does not contain required Docker label(s)'"
        )


def fits_serverless(bench: Bench) -> None:
    """C144: at most 10 GB."""
    size = bench.target.image().size_bytes
    if size > SERVERLESS_IMAGE_BYTES:
        raise CheckFailed(f"the image has {size / 1e9:.1f} GB: a serverless endpoint refuses more than 10 GB")


def manifest_is_single_platform(bench: Bench) -> None:
    """manifest: one platform, no list of manifests."""
    facts: ImageFacts = bench.target.image()
    if "index" in facts.media_type or "manifest.list" in facts.media_type:
        raise CheckFailed(
            f"the image is a {facts.media_type}, a list of manifests: SageMaker refuses it with 'unsupported manifest "
            "media type'. Build with `--platform linux/amd64 --provenance=false`"
        )


def platform_is_sagemakers(bench: Bench) -> None:
    """platform: built for linux/amd64."""
    platform = bench.target.image().platform
    if platform not in ("linux/amd64", "linux/arm64"):
        raise CheckFailed(f"the image is for {platform}: SageMaker's instances run linux/amd64, Graviton's linux/arm64")
    if platform == "linux/arm64":
        raise CheckFailed(
            "the image is for linux/arm64: instances other than Graviton's end it with 'exec format error'. Build with "
            "`--platform linux/amd64`"
        )


def user_is_root(bench: Bench) -> None:
    """user: runs as root."""
    user = bench.target.image().user
    if user.partition(":")[0] not in ("", "0", "root"):
        raise CheckFailed(
            f"USER is {user!r}: hosting expects root, and a training job's configuration directory is closed to others"
        )


def _need_something_to_run(code: int | None, logs: str, argument: str) -> None:
    if code in EXECUTABLE_NOT_FOUND:
        raise CheckFailed(
            f"`{argument}` ends with {code}: {tail(logs)!r}; the job fails with 'executable file not found'"
        )


def _gpu_driver() -> bool:
    try:
        with open(NVIDIA_DRIVER):
            return True
    except OSError:
        return False


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
