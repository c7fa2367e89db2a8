"""How a job ended on this host: exit status, failure file, traces, and artifacts that hosting accepts."""

import dataclasses
import logging
import time
from dataclasses import dataclass

from container import contract
from container.contract import OptMl
from container.train import failure
from container.train.cluster import Cluster
from container.train.environment import TrainingEnvironment
from container.train.failure import RankError
from container.train.files import replace_links
from container.train.program import Program
from container.train.runtime import Runtime
from container.train.supervise import STOP_SIGNALS

logger = logging.getLogger(__name__)


class NoModel(Exception):
    """Training went through and left no model although the job demands one."""


@dataclass(frozen=True)
class Ending:
    """How the program ended."""

    code: int
    """Of torchrun or the command; negative for a signal."""
    stop_signal: int | None
    planned: bool
    """Stopped by ourselves, ahead of the time limit."""
    requires_model: bool = False
    """Whether success without a model is a failure."""
    overdue_seconds: float = 0.0
    """After the stop signal, when the program had not ended and was killed; 0 where it was not."""


def conclude(
    environment: TrainingEnvironment, program: Program, cluster: Cluster, runtime: Runtime, ending: Ending
) -> int:
    """The container's exit status; writes the failure file, if there is one to write, last.

    Raises:
        NoModel: success without a model, where the job demands one.
    """
    runtime.kill_ranks()  # only where torchrun itself was killed is one left
    if ending.code == 0:
        finish_artifacts(environment.opt_ml)
        if cluster.host_rank == 0:
            check_model(environment.opt_ml, ending.requires_model)
        return 0
    errors = collect_errors(environment, program, cluster, runtime, ending.code)
    if ending.overdue_seconds:
        errors = [_overdue(error, runtime, program, ending.overdue_seconds) for error in errors]
    if ending.stop_signal is not None and all(_is_stop(error) or error.is_secondary for error in errors):
        logger.info("stopped; the program did not handle the signal, so whatever it saved before is what there is")
        return 0 if ending.planned else 128 + ending.stop_signal
    failure.write_traces(environment.opt_ml, environment.current_host, errors, runtime.stacks())
    cause = failure.first_cause(errors)
    assert cause is not None  # collect_errors leaves none out
    if cause.trace and not cause.type:
        logger.error("Python stacks of rank %d:\n%s", cause.rank, cause.trace)
    text = failure.reason(cause)
    logger.error("job failed: %s", text)
    failure.write_failure(environment.opt_ml, text)
    return cause.exit_code if cause.exit_code > 0 else 128 - cause.exit_code


def check_model(opt_ml: OptMl, required: bool) -> None:
    """A job that leaves no model may mean it (a study, a pre-processing); more often its script saved elsewhere.

    Raises:
        NoModel: the directory is empty and a model is required.
    """
    if any(path.is_file() for path in opt_ml.model.rglob("*")):
        return
    if required:
        raise NoModel(
            f"training ended well but left nothing in {opt_ml.model}: save there ({contract.sm_variable('model_dir')})"
        )
    logger.warning("%s is empty: the job will have no model artifact", opt_ml.model)


def collect_errors(
    environment: TrainingEnvironment, program: Program, cluster: Cluster, runtime: Runtime, code: int
) -> list[RankError]:
    """What the ranks recorded, and torchrun's word on those that could not."""
    errors = failure.recorded(runtime.directory)
    known = {error.rank for error in errors}
    host = environment.current_host
    stacks, code_dir = runtime.stacks(), str(program.directory) if program.directory else None
    for end in runtime.read("torchrun.json", []):
        if end["rank"] not in known:
            stack = stacks.get(end["rank"], "")
            place = failure.location_in_stack(stack, code_dir)
            errors.append(RankError(end["rank"], host, end["time"], "", "", place, stack, end["exit_code"]))
    if code != 0 and not errors:
        rank = cluster.host_rank * cluster.processes_per_host
        errors.append(RankError(rank, host, time.time(), "", "", exit_code=code))
    return errors


def _overdue(error: RankError, runtime: Runtime, program: Program, seconds: float) -> RankError:
    """A rank that we killed did not run out of memory: it did not stop."""
    if error.type:
        return error
    code_dir = str(program.directory) if program.directory else None
    place = failure.location_in_stack(runtime.stacks().get(error.rank, ""), code_dir)
    message = f"not ended {seconds:g} s after the stop signal, and killed: what it had not saved is lost"
    return dataclasses.replace(error, type="StopTimeout", message=message, location=place, exit_code=-9)


def _is_stop(error: RankError) -> bool:
    """Whether a rank ended merely because it was told to."""
    stop_codes = {code for number in STOP_SIGNALS for code in (-number, 128 + number)}
    return error.exit_code in stop_codes or error.type == "KeyboardInterrupt"


def finish_artifacts(opt_ml: OptMl) -> None:
    """After success: no failure file, and no symlinks, which hosting refuses, among the artifacts."""
    opt_ml.failure.unlink(missing_ok=True)
    replace_links(opt_ml.model)
