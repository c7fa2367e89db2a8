"""Loads the model into a service. Its own module because it imports numpy and may import torch, which takes seconds."""

import gc
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from container.serve.predictor import Predictor, load_predictor
from container.serve.service import Service

logger = logging.getLogger(__name__)


def load_model(service: Service, model_dir: Path, device: str, environ: Mapping[str, str]) -> Predictor:
    """Load what is in `model_dir` and have `service` answer with it.

    Raises:
        HandlerError: the user's file does not fit, or there is nothing to serve.
        ModelFormatError: the built-in artifact is damaged.
        Exception: whatever the user's code raises, or the warm-up request.
    """
    began = time.monotonic()
    plan = service.plan
    predictor = load_predictor(model_dir, environ, device, plan.default_accept, plan.torch_threads)
    loaded = time.monotonic()
    service.serve(predictor)
    _leave_out_of_collection()
    functions = ", ".join(predictor.functions.names()) or "built-in handlers"
    warmed = time.monotonic()
    logger.info("ready: %s on %s, loaded in %.1f s, warm-up %.2f s", functions, device, loaded - began, warmed - loaded)
    return predictor


def tune(predictor: Predictor) -> None:
    """Make a model that answers already faster, and say how; takes a second or two."""
    if done := predictor.tune():
        _leave_out_of_collection()
        logger.info("%s", done)


def _leave_out_of_collection() -> None:
    """What torch and the model allocated lives for ever: scanning it again costs 0.1 s now and then."""
    gc.collect()
    gc.freeze()
