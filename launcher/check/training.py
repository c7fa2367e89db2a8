"""Checks of a training container."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from signal import SIGTERM

from container.contract import FAILURE_REASON_LIMIT, FIRST_HOST, TRAINING_JOB_ARN, TRAINING_JOB_NAME
from launcher.check.bench import Bench
from launcher.check.started import Arrangement, TrainingLayout, TrainingRun, handles_sigterm, write_json
from launcher.check.target import CheckFailed, NotJudged, Process, wait_for_end, wait_until

PROBE_ERROR = "ValueError"
PROBE_MESSAGE = "slipway check raised this"
NAMES_AN_ERROR = re.compile(r"\w*(Error|Exception|Exit|Interrupt)\b", re.IGNORECASE)
NAMES_SIGKILL = re.compile(r"SIGKILL|signal:? 9|-9\b|\b137\b|killed", re.IGNORECASE)


# --- hardships: what the service, or a simulator of it, may confront a job with ---------------------------------------


@dataclass(frozen=True)
class Hardship:
    """One unusual thing about a job's input, and what a container that stumbles over it costs."""

    arrange: Arrangement
    consequence: str
    needs_image: bool = False


def closed_configuration(layout: TrainingLayout) -> None:
    """Mode 0644, as seen in real jobs: only root can enter it."""
    layout.opt_ml.config.chmod(0o644)


def reserved_hyperparameters(layout: TrainingLayout) -> None:
    """What tuning and the SDK add to every job of theirs."""
    given = json.loads(layout.opt_ml.hyperparameters.read_text())
    added = {
        "_tuning_objective_metric": "validation:accuracy",
        "sagemaker_job_name": '"check"',
        "sagemaker_region": '"us-east-1"',
        "sagemaker_container_log_level": "20",
    }
    write_json(layout.opt_ml.hyperparameters, given | added)


def only_input_modes(layout: TrainingLayout) -> None:
    """Local mode's inputdataconfig.json."""
    channels = json.loads(layout.opt_ml.input_data_config.read_text())
    write_json(layout.opt_ml.input_data_config, {name: {"TrainingInputMode": "File"} for name in channels})


def manifest_beside_a_channel(layout: TrainingLayout) -> None:
    """A file that real jobs have been seen with."""
    names = [path.name for path in layout.mounts] or ["train"]
    for name in names:
        (layout.opt_ml.data / f"{name}-manifest").write_text("{}")


def only_the_hosts(layout: TrainingLayout) -> None:
    """Local mode's resourceconfig.json."""
    write_json(layout.opt_ml.resource_config, {"current_host": FIRST_HOST, "hosts": [FIRST_HOST]})


def unknown_resource_keys(layout: TrainingLayout) -> None:
    """One of an UltraServer, and one of the future."""
    described = json.loads(layout.opt_ml.resource_config.read_text())
    future = {"topology": [{"host": FIRST_HOST, "unit": "u-1"}], "a_future_key": {"nested": [1, None]}}
    write_json(layout.opt_ml.resource_config, described | future)


def unknown_configuration_files(layout: TrainingLayout) -> None:
    """Files of the platform, one of which is not even JSON."""
    (layout.opt_ml.config / "init-config.json").write_text("not JSON at all")
    (layout.opt_ml.config / "trainingjobconfig.json").write_text("{}")


def no_job_name(layout: TrainingLayout) -> None:
    """As under plain docker."""
    layout.environment.pop(TRAINING_JOB_NAME)
    layout.environment.pop(TRAINING_JOB_ARN)


def no_output_directories(layout: TrainingLayout) -> None:
    """Neither the model directory nor the output directory exists."""
    shutil.rmtree(layout.opt_ml.model)
    shutil.rmtree(layout.opt_ml.output)


def no_checkpoint_directory(layout: TrainingLayout) -> None:
    """As without CheckpointConfig."""
    if layout.opt_ml.checkpoints.exists():
        shutil.rmtree(layout.opt_ml.checkpoints)


def no_network(layout: TrainingLayout) -> None:
    """As under network isolation."""
    layout.network = False


# A job with everything that may be there, and one with everything missing that may be missing. Both run once; only if
# one fails does each hardship get a job of its own, to find the guilty one.
CROWDED = (reserved_hyperparameters, manifest_beside_a_channel, unknown_resource_keys, unknown_configuration_files)
# The closed directory comes last: whoever is not root cannot arrange anything in it afterwards.
BARE = (only_input_modes, only_the_hosts, no_job_name, no_output_directories, no_checkpoint_directory)
ISOLATED = (no_network, closed_configuration)

CONSEQUENCES: dict[str, Hardship] = {
    "C7": Hardship(closed_configuration, "a job fails at once with a permission error", needs_image=True),
    "C16": Hardship(
        reserved_hyperparameters, "every tuning job, and every job of the SDK, fails in the argument parser"
    ),
    "C19": Hardship(only_input_modes, "local mode's jobs fail"),
    "C21": Hardship(manifest_beside_a_channel, "a job with a manifest fails or trains on it"),
    "C23": Hardship(only_the_hosts, "local mode's jobs fail"),
    "C24": Hardship(unknown_resource_keys, "jobs fail on the day SageMaker adds a key"),
    "C30": Hardship(unknown_configuration_files, "jobs fail: SageMaker leaves files of its own there"),
    "C33": Hardship(no_job_name, "training under plain docker fails"),
    "C48": Hardship(no_output_directories, "a job fails at its end, with the model lost"),
    "C58": Hardship(no_checkpoint_directory, "every job without CheckpointConfig fails"),
    "C69": Hardship(no_network, "jobs with EnableNetworkIsolation fail, or hang until their time limit", True),
}


def survives(number: str) -> Callable[[Bench], None]:
    """The check that training succeeds in spite of a hardship."""
    hardship = CONSEQUENCES[number]

    def check(bench: Bench) -> None:
        if hardship.needs_image:
            bench.need_image("only a container can be confined so")
        if _together(bench, hardship.arrange).succeeded:
            return
        if not bench.plain_training.succeeded:
            raise NotJudged("a job without anything unusual does not succeed either, see C41")
        alone = bench.train(hardship.arrange)
        if not alone.succeeded:
            raise CheckFailed(f"{alone}, and it succeeds otherwise; {hardship.consequence}")

    return check


def _together(bench: Bench, arrange: Arrangement) -> TrainingRun:
    if arrange in CROWDED:
        return bench.shared_training(CROWDED)
    return bench.shared_training(BARE + (ISOLATED if bench.target.is_image else ()))


# --- configuration ----------------------------------------------------------------------------------------------------


def starts_without_hyperparameters(bench: Bench) -> None:
    """C15: no hyperparameters."""

    def remove(layout: TrainingLayout) -> None:
        layout.opt_ml.hyperparameters.unlink()

    running, opt_ml = bench.start_training({}, remove)
    still_runs = bench.is_underway(running)
    run = bench.end_training(running, opt_ml, None if still_runs else running.exit_code)
    if still_runs or run.succeeded:
        return
    if not bench.plain_training.succeeded:
        raise NotJudged("a job with hyperparameters does not succeed either, see C41")
    raise CheckFailed(f"{run} without hyperparameters.json; a job that sets none fails")


def runs_without_channels(bench: Bench) -> None:
    """C22: no inputdataconfig.json."""

    def remove(layout: TrainingLayout) -> None:
        layout.opt_ml.input_data_config.unlink()
        layout.mounts.clear()
        if bench.materials.scripts:
            write_script(layout, "print('no data needed')")

    if not bench.materials.scripts and (bench.materials.channels or not bench.plain_training.succeeded):
        raise NotJudged("the program needs data")
    run = bench.train(remove)
    if not run.succeeded:
        raise CheckFailed(f"{run} without inputdataconfig.json; a job that has no channel fails")


def write_script(layout: TrainingLayout, source: str) -> None:
    """Put a user's script where `train` finds it."""
    layout.opt_ml.code.mkdir()
    (layout.opt_ml.code / "train.py").write_text(source)


# --- result -----------------------------------------------------------------------------------------------------------


def success_leaves_artifacts(bench: Bench) -> None:
    """C41: success: exit code 0 and a model."""
    run = _need_data(bench)
    if not run.succeeded:
        raise CheckFailed(f"{run}; the job is Failed")
    if not any(path.is_file() for path in run.opt_ml.model.glob("*")):
        raise CheckFailed(
            "no file lies directly in the model directory: model.tar.gz has no model that hosting could load"
        )


def _need_data(bench: Bench) -> TrainingRun:
    run = bench.plain_training
    if not run.succeeded and not bench.materials.channels:
        raise NotJudged(f"{run}; does it need data? give --train-data DIR, and --hyperparameter NAME=VALUE")
    return run


def failed_training(bench: Bench) -> TrainingRun:
    """A job whose program raises: our probe script, or the user's program without its data."""

    def starve(layout: TrainingLayout) -> None:
        layout.mounts.clear()
        write_json(layout.opt_ml.input_data_config, {})

    def raise_error(layout: TrainingLayout) -> None:
        write_script(layout, f"raise {PROBE_ERROR}({PROBE_MESSAGE!r})")

    return bench.train(raise_error if bench.materials.scripts else starve)


def failure_is_told(bench: Bench) -> None:
    """C42: failure: exit code and output/failure."""
    run = bench.once(failed_training)
    if run.succeeded and not bench.materials.scripts:
        raise NotJudged("the program succeeds without its data: nothing here makes it fail")
    if run.succeeded:
        raise CheckFailed("a script that raises ends with exit code 0: the job is Completed, with no model")
    if run.exit_code is None:
        raise CheckFailed(f"{run}; it would be billed until its time limit")
    if run.failure is None:
        raise CheckFailed(
            f"{run}, and there is no output/failure: FailureReason says 'AlgorithmError: , exit code' only"
        )


def failure_names_the_error(bench: Bench) -> None:
    """C43: FailureReason names the error."""
    run = bench.once(failed_training)
    if run.succeeded or run.failure is None:
        raise NotJudged("there is no failure file, see C42")
    start = run.failure[:FAILURE_REASON_LIMIT]
    if bench.materials.scripts and not (PROBE_ERROR in start and PROBE_MESSAGE in start):
        raise CheckFailed(f"FailureReason would be {start[:200]!r}, without {PROBE_ERROR!r} and its message")
    if not NAMES_AN_ERROR.search(start):
        raise CheckFailed(f"FailureReason would be {start[:200]!r}, which names no error")


def killed_worker_is_told(bench: Bench) -> None:
    """C46: a killed worker fails the job."""
    running, opt_ml = bench.long_training()
    worker = largest_child(running.processes())
    if worker is None:
        bench.end_training(running, opt_ml, running.exit_code)
        raise NotJudged("the job is a single process: when it is killed, nobody is left to say so")
    running.kill(worker)
    code = wait_for_end(running, bench.patience.training_stop)
    run = bench.end_training(running, opt_ml, code)
    if code == 0:
        raise CheckFailed(
            f"{worker.command[:80]!r} was killed, and the job ends with 0: it is Completed, with a broken model"
        )
    if code is None:
        raise CheckFailed(f"{worker.command[:80]!r} was killed, and the job goes on: it is billed until its time limit")
    if not NAMES_SIGKILL.search(run.failure or ""):
        raise CheckFailed(
            f"FailureReason would be {(run.failure or '')[:200]!r}, which does not say that SIGKILL ended it"
        )


def largest_child(processes: list[Process]) -> Process | None:
    """The process that holds the most memory besides the first: the one that trains."""
    return max(processes[1:], key=lambda process: process.resident_kib, default=None)


def no_failure_file_after_success(bench: Bench) -> None:
    """C47: success leaves no output/failure."""
    run = _successful(bench)
    if run.failure is not None:
        raise CheckFailed(f"a successful job leaves output/failure with {run.failure[:100]!r}")


def no_symlinks(bench: Bench) -> None:
    """C49: no symbolic links in the model."""
    run = _successful(bench)
    links = [str(path.relative_to(run.opt_ml.model)) for path in run.opt_ml.model.rglob("*") if path.is_symlink()]
    if links:
        raise CheckFailed(f"the model directory holds symbolic links ({links[0]}): creating a model from it fails")


def _successful(bench: Bench) -> TrainingRun:
    run = bench.plain_training
    if not run.succeeded:
        raise NotJudged("no job succeeds, see C41")
    return run


# --- stop -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoppedTraining:
    """What became of a job that got SIGTERM in its loop."""

    handles_sigterm: bool
    exit_code: int | None
    """None where it did not end in time."""
    saved: tuple[str, ...]
    """Files below the checkpoint and model directories."""


def stopped_training(bench: Bench) -> StoppedTraining:
    """Stop a job in its loop.

    Raises:
        NotJudged: there is no job that lasts long enough.
    """
    running, opt_ml = bench.long_training()
    handles = handles_sigterm(running)
    running.signal(SIGTERM)
    code = wait_for_end(running, bench.patience.training_stop)
    run = bench.end_training(running, opt_ml, code)
    roots = (run.opt_ml.checkpoints, run.opt_ml.model)
    saved = tuple(str(path) for root in roots for path in root.rglob("*") if path.is_file())
    return StoppedTraining(handles, code, saved)


def stop_saves(bench: Bench) -> None:
    """C51: SIGTERM: saved, and ended in 120 s."""
    stopped = bench.once(stopped_training)
    if stopped.exit_code is None:
        raise CheckFailed(
            f"SIGTERM did not end training within {bench.patience.training_stop:.0f} s: SIGKILL follows, and what was "
            "not saved is lost"
        )
    if not stopped.saved:
        raise CheckFailed("SIGTERM ended training, and neither a checkpoint nor a model was left: all work is lost")


def stop_is_clean(bench: Bench) -> None:
    """C52: SIGTERM: exit code 0."""
    stopped = bench.once(stopped_training)
    if stopped.exit_code != 0:
        raise CheckFailed(f"SIGTERM ended training with {stopped.exit_code}, not 0: the job may be reported as Failed")


def early_stop_is_quick(bench: Bench) -> None:
    """C54: SIGTERM at the start: ended in 10 s."""
    running, opt_ml = bench.start_long_training()
    wait_until(lambda: running.processes() or running.exit_code is not None, 10)
    if wait_for_end(running, 1) is not None:
        raise NotJudged("training ended within a second")
    running.signal(SIGTERM)
    code = wait_for_end(running, bench.patience.early_stop)
    bench.end_training(running, opt_ml, code)
    if code is None:
        raise CheckFailed(
            f"SIGTERM in its first second did not end training within {bench.patience.early_stop:.0f} s: stopping a "
            "job started by mistake costs its whole start-up"
        )
