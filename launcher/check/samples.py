"""Materials for our own images and code: a model made by the image itself, a few pictures, scripts that fail on cue."""

import json
from dataclasses import replace
from pathlib import Path

from container.contract import OptMl
from launcher.check.bench import SERVE, TRAIN
from launcher.check.http import Request
from launcher.check.materials import Materials
from launcher.check.target import CheckFailed, Launch, Target, wait_for_end

OUR_IMAGES = {"slipway-train": TRAIN, "slipway-serve": SERVE}
TITLE_LABEL = "org.opencontainers.image.title"
MAKE_SECONDS = 120
SIDE = 8  # pixels
IMAGES_PER_CLASS = 8
# Run in the container, which has torch; a laptop that only launches does not.
MAKE_MODEL = f"""
import torch
from container.contract import OptMl
from container.model import ModelSignature, build_network, save_model
torch.manual_seed(0)
signature = ModelSignature("convnet", ("cat", "dog"), 1, {SIDE}, {SIDE}, (0.5,), (0.5,))
save_model(OptMl.from_env().model, build_network("convnet", 2, signature.image_shape), signature)
"""
SLOW_MODEL = """
import time
def model_fn(model_dir):
    return 3.0
def transform_fn(model, data, content_type, accept):
    time.sleep(model)
    return "done", "text/plain"
"""
OUT_OF_MEMORY_MODEL = """
def model_fn(model_dir):
    raise MemoryError("slipway check")
"""


def our_role(target: Target) -> str | None:
    """`train` or `serve` for one of our images, or one derived from it; None for anybody else's."""
    return OUR_IMAGES.get(target.image().labels.get(TITLE_LABEL, ""))


def training_materials(directory: Path, given: Materials) -> Materials:
    """What the user gave, completed with a data set of two classes and hyperparameters for seconds and for hours."""
    channels = given.channels or {"train": write_pictures(directory / "pictures")}
    return replace(
        given,
        channels=channels,
        hyperparameters={"epochs": "1", **given.hyperparameters},
        long_hyperparameters={"epochs": "100000", **given.long_hyperparameters},
        scripts=True,
    )


def write_pictures(directory: Path) -> Path:
    """Grey PNGs of noise in the folders `dark` and `light`; the same ones every time."""
    import random

    from PIL import Image

    noise = random.Random(0)
    for name, level in (("dark", 0), ("light", 128)):
        (directory / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            pixels = bytes(level + noise.randrange(128) for _ in range(SIDE * SIDE))
            Image.frombytes("L", (SIDE, SIDE), pixels).save(directory / name / f"{number}.png")
    return directory


def serving_materials(directory: Path, given: Materials, target: Target) -> Materials:
    """What the user gave, completed with an untrained model, requests, and models that are slow or too large.

    Raises:
        CheckFailed: the container cannot make the model.
    """
    if given.model is not None:
        return given
    image = json.dumps({"instances": [[[0] * SIDE] * SIDE]}).encode()
    return replace(
        given,
        model=make_model(directory / "sample", target),
        request=Request(image, "application/json"),
        line_request=Request(b",".join([b"0"] * SIDE * SIDE), "text/csv"),
        slow_model=write_handlers(directory / "slow-model", SLOW_MODEL),
        slow_request=Request(b"{}", "application/json"),
        out_of_memory_model=write_handlers(directory / "out-of-memory-model", OUT_OF_MEMORY_MODEL),
    )


def make_model(base: Path, target: Target) -> Path:
    """Have the container save an untrained network, as training would.

    Raises:
        CheckFailed: it cannot.
    """
    opt_ml = OptMl(base)
    opt_ml.model.mkdir(parents=True)
    running = target.start(Launch(("python", "-c", MAKE_MODEL), opt_ml=opt_ml, network=False))
    try:
        if wait_for_end(running, MAKE_SECONDS) != 0:
            raise CheckFailed(f"the container could not make a sample model: {running.logs()[-500:]}")
    finally:
        running.remove()
    target.reclaim(base)
    return opt_ml.model


def write_handlers(directory: Path, source: str) -> Path:
    """A model directory that holds nothing but a user's handlers."""
    (directory / "code").mkdir(parents=True)
    (directory / "code" / "inference.py").write_text(source)
    return directory
