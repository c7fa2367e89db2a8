"""Where a job of the built-in program stands: into a checkpoint, and back out of it as if nothing had happened."""

import logging
import time
from typing import Any

import torch
from torch import nn

from container.train.data import DataError
from container.train.job import Job
from container.train.metrics import Metrics

logger = logging.getLogger(__name__)

STATE = {"scaler", "generators", "step", "steps_per_epoch", "averaged", "architecture", "classes", "history"}
WHOLE = STATE | {"model", "optimizer"}
BEST = {"accuracy", "step", "model"}
OTHER_PREFIX = "use an empty checkpoint location (CheckpointConfig.S3Uri), or the image that wrote it"
ERROR_LETTERS = 300  # of torch's message, which may list every tensor


def save_checkpoint(job: Job) -> None:
    """Everything a job needs to go on as if nothing had happened. Called on every rank."""
    if job.checkpoints.directory is None:
        return
    with job.phases.measure("checkpoint"):
        generators = job.process.of_all(random_state(job.process.device))
        state = {
            "scaler": job.scaler.state_dict(),
            "generators": generators,
            "step": job.step,
            "steps_per_epoch": job.steps_per_epoch,
            "averaged": job.average.count if job.average else None,
            "architecture": job.signature.architecture,
            "classes": list(job.signature.classes),
            "history": job.metrics.history,
        }
        if job.sharded:
            job.sharded.save(job.step, networks(job), job.optimizer, state)
        elif job.process.is_first:
            weights = {"model": networks(job).state_dict(), "optimizer": job.optimizer.state_dict()}
            job.checkpoints.save(job.step, state | weights)
        job.saved_at = time.monotonic()


def networks(job: Job) -> nn.ModuleDict:
    """The network, and the average of its weights where there is one."""
    found = {"network": job.network} | ({"average": job.average.network} if job.average else {})
    return nn.ModuleDict(found)


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Dropout's and mixing's generators on this rank: CPU, then the GPU where there is one."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def resume(job: Job) -> None:
    """Continue from the newest whole checkpoint, on every rank; without one, start afresh.

    Raises:
        DataError: the checkpoint belongs to another network or optimizer, other classes, or an earlier build.
        CheckpointMismatchError: the same, under `parallel=fsdp`.
    """
    process = job.process
    state = job.sharded.load(networks(job), job.optimizer) if job.sharded else load_whole(job)
    if state is None:
        return
    require_keys(job, "sharded" if job.sharded else "last", state, STATE)
    job.scaler.load_state_dict(state["scaler"])
    if job.average:
        job.average.count = state["averaged"]
    # Another number of steps per epoch (the data has changed): the epoch counts, not the step.
    job.step = state["step"] * job.steps_per_epoch // state["steps_per_epoch"]
    if process.rank < len(state["generators"]):
        cpu, *gpu = state["generators"][process.rank]
        torch.set_rng_state(cpu)
        if gpu and process.device.type == "cuda":
            torch.cuda.set_rng_state(gpu[0], process.device)
    job.metrics = Metrics(job.environment.opt_ml.output_data / "metrics.jsonl", process.rank, state["history"])
    best = process.from_first(job.checkpoints.load("best") if process.is_first else None)
    if best is not None:
        require_keys(job, "best", best, BEST)
        job.best_accuracy, job.best_step, job.best_weights = best["accuracy"], best["step"], best["model"]
    if process.is_first:
        logger.info("resumed from the checkpoint of step %d of %d", job.step, job.total_steps)


def load_whole(job: Job) -> dict[str, Any] | None:
    """Rank 0's newest whole checkpoint into network and optimizer of every rank; returns the rest of it.

    Raises:
        DataError: it belongs to another network or optimizer, other classes, or an earlier build.
    """
    process = job.process
    state = process.from_first(job.checkpoints.load() if process.is_first else None)
    if state is None:
        return None
    require_keys(job, "last", state, WHOLE)
    average = "a moving average" if job.average else "no moving average"
    made = (state["architecture"], tuple(state["classes"]), state["averaged"] is not None)
    if made != (job.signature.architecture, job.signature.classes, job.average is not None):
        raise DataError(
            f"{name_of(job, 'last', state)} is of {made[0]} for classes {list(made[1])}, the job of "
            f"{job.signature.architecture} for {list(job.signature.classes)}, with {average}: {OTHER_PREFIX}"
        )
    try:
        networks(job).load_state_dict(state["model"])
        load_optimizer(job.optimizer, state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        problem = " ".join(str(error).split())[:ERROR_LETTERS]
        raise DataError(f"{name_of(job, 'last', state)} does not fit this job: {problem}: {OTHER_PREFIX}") from error
    return state


def require_keys(job: Job, kind: str, state: dict[str, Any], keys: set[str]) -> None:
    """Raise DataError where another build wrote the checkpoint, with other keys."""
    if missing := sorted(keys - state.keys()):
        raise DataError(
            f"{name_of(job, kind, state)} is of another build of the image: it has no {', '.join(missing)}: "
            f"{OTHER_PREFIX}"
        )


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state dict; raise ValueError where its groups lack what the next step reads: torch takes them as is."""
    wanted = [set(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for number, (names, group) in enumerate(zip(wanted, optimizer.param_groups, strict=True)):
        if missing := sorted(names - set(group)):
            raise ValueError(f"the optimizer's group {number} has no {', '.join(missing)}")


def name_of(job: Job, kind: str, state: dict[str, Any]) -> str:
    """For people: the checkpoint that `state` was read from."""
    step = f"{state['step']:09d}" if isinstance(state.get("step"), int) else "*"
    suffix = "" if kind == "sharded" else ".pt"
    return f"checkpoint {job.checkpoints.directory}/{kind}-{step}{suffix}"
