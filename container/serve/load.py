"""Loads the model into a service. Its own module because it imports numpy and may import torch, which takes seconds."""

import dataclasses
import gc
import importlib
import logging
import math
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

from container import contract
from container.serve import memory
from container.serve.batch_size import agree, fitting_batch_size
from container.serve.batcher import use_cores
from container.serve.call import Call
from container.serve.exchange import Request, ServeError
from container.serve.failures import told_while_slow
from container.serve.handlers import find_program
from container.serve.modules import PrivateModules
from container.serve.plan import MAX_BATCH_SIZE, ServerPlan, is_true
from container.serve.predictor import Place, Predictor, load_predictor
from container.serve.quick import QUICK_BESIDE_OTHERS_SECONDS, QUICK_SECONDS
from container.serve.requirements import check_requirements
from container.serve.service import Service
from container.serve.sessions import SessionStore
from container.serve.vision import import_torchvision

logger = logging.getLogger(__name__)

TUNE = "SLIPWAY_TUNE"
START_SECONDS = 0.8  # of looking for a faster form before the server is ready, where that is enough
QUIET_SECONDS = 1.0  # without a request, and the server may measure,
STILL_QUIET_SECONDS = 0.1  # and goes on with each further batch after so long without one


def serve_model(service: Service, model_dir: Path, device: str, environ: Mapping[str, str]) -> Predictor | None:
    """Load what is in `model_dir` and have `service` answer with it; in multi-model mode the platform loads later.

    Raises:
        HandlerError: the user's file does not fit, or there is nothing to serve.
        ModelFormatError: the built-in artifact is damaged.
        Exception: whatever the user's code raises, or the warm-up request.
    """
    began = time.monotonic()
    plan = service.plan
    if service.registry is not None:
        import_torchvision()
        importlib.import_module("container.serve.model_loader")  # and torch with it: no caller should wait for that
        service.serve_registry()
        _leave_out_of_collection()
        logger.info("ready: no model loaded yet, imports took %.1f s", time.monotonic() - began)
        return None
    with told_while_slow():
        predictor = load_predictor(model_dir, environ, place_of(plan, device))
        loaded = time.monotonic()
        service.serve(predictor)
        warmed = time.monotonic()
        if is_tuned(device, environ):
            tune_at_start(predictor, plan)
    _leave_out_of_collection()
    functions = ", ".join(predictor.functions.names()) or "built-in handlers"
    seconds = loaded - began, warmed - loaded, time.monotonic() - warmed
    logger.info("ready: %s on %s, loaded in %.1f s, warm-up %.2f s, tuning %.2f s", functions, device, *seconds)
    return predictor


def place_of(plan: ServerPlan, device: str) -> Place:
    """What a predictor needs to know of the plan."""
    sessions = SessionStore(Path(plan.sessions_path), plan.session_seconds)
    quick_seconds = QUICK_SECONDS if plan.compute_threads == 1 else QUICK_BESIDE_OTHERS_SECONDS
    return Place(device, plan.default_accept, plan.torch_threads, sessions, quick_seconds)


def load_isolated(model_dir: Path, device: str, environ: Mapping[str, str], plan: ServerPlan) -> Predictor:
    """One of several models of a process: its modules are its own, whatever the others call theirs.

    Raises:
        RequirementsError: its code asks for packages that are not there; nothing can be installed for one model alone.
        Exception: as `load_predictor`.
    """
    environ = {name: value for name, value in environ.items() if name != contract.SUBMIT_DIRECTORY}
    program = find_program(model_dir, environ)
    modules = PrivateModules(program.parent if program else model_dir / "code")
    if program:
        check_requirements(program.parent)
    place = dataclasses.replace(place_of(plan, device), modules=modules)
    with modules.visible():
        predictor = load_predictor(model_dir, environ, place)
    weakref.finalize(predictor, modules.forget)
    if (warm_up := predictor.warm_up()) is not None:
        body, content_type = warm_up
        call = Call(
            Request("POST", contract.INVOCATIONS_PATH, {"content-type": content_type}, body), lambda response: None
        )
        call.data = predictor.decode(call)
        predictor.encode(predictor.predict([call])[0], call)
    return predictor


def is_tuned(device: str, environ: Mapping[str, str]) -> bool:
    """Whether to look for a faster form: on CPUs unless switched off; on GPUs, where it was not measured, if asked."""
    return is_true(environ, TUNE) if environ.get(TUNE) else device == "cpu"


def is_measured(environ: Mapping[str, str]) -> bool:
    """Whether to look for the batch that is worth forming: on every device unless switched off or said."""
    return not environ.get(MAX_BATCH_SIZE) and (is_true(environ, TUNE) or not environ.get(TUNE))


def tune_at_start(predictor: Predictor, plan: ServerPlan) -> None:
    """Look for a faster form before the server is ready, where that takes no more than a moment."""

    def tune_on_all_cores() -> None:
        use_cores(plan.compute_threads * plan.torch_threads)  # nobody else computes yet
        tune_network(predictor, START_SECONDS)

    # On a thread that ends: OpenMP's helpers end with it, and do not get in the way of those of the batches.
    thread = threading.Thread(target=tune_on_all_cores, name="tune")
    thread.start()
    thread.join()


def tune(service: Service, predictor: Predictor, environ: Mapping[str, str]) -> None:
    """Make a model that answers already faster, and say how; takes seconds. A failure leaves it as it is.

    It begins in a quiet moment: beside requests it would halve what they get, and measure them rather than the model.
    """
    tuned, measured = is_tuned(predictor.defaults.device, environ), is_measured(environ)
    if not tuned and not measured:
        return
    service.wait_for_quiet(QUIET_SECONDS)
    done = tuned and tune_network(predictor)
    if measured:
        limit_batch(service, predictor)
    if done:
        gc.unfreeze()  # the network as it was loaded may be garbage by now
    _leave_out_of_collection()


def tune_network(predictor: Predictor, within: float = math.inf) -> bool:
    """Look for a faster form of the network, and say what was found; whether there was time for that."""
    try:
        done = predictor.tune(within)
    except RuntimeError as error:  # the GPU's memory does not hold another form beside the first
        logger.warning("the model is served as it was loaded: %s", error)
        return False
    if done:
        logger.info("%s", done)
    return bool(done)


def limit_batch(service: Service, predictor: Predictor) -> None:
    """Find by measuring how many requests should share a batch, where the model has an example to measure with."""
    plan, model = service.plan, predictor.defaults
    records = [] if predictor.warm_up() is None else model.examples(plan.max_batch_size)
    if len(records) < 2 or model.batch_key(records[0]) is None:
        return
    try:
        together, alone = model.predict(records[:3]), [model.predict([record])[0] for record in records[:3]]
        if all(agree(one, other) for one, other in zip(together, alone, strict=True)) and model.batch_key(records[0]):
            size, line = fitting_batch_size(
                model.predict,
                records,
                plan.max_process_memory_bytes,
                plan.compute_threads,
                lambda: service.wait_for_quiet(STILL_QUIET_SECONDS),
            )
        else:
            model.predict_alone()
            size, line = 1, "one record at a time is served: a batch was not answered as single records are"
    except (RuntimeError, MemoryError, ServeError) as error:  # an example like the model's own that it does not take
        logger.warning("batches are not measured: %s", error)
        return
    service.limit_batch(size)
    logger.info("%s", line)


def _leave_out_of_collection() -> None:
    """What lives for ever now, torch and the one model, is never scanned again: that costs 0.1 s each time."""
    memory.give_back()  # what loading and comparing took: 80 MB for a ResNet-18
    gc.freeze()
