"""Checks of a container that many models share (multi-model endpoints)."""

import json
import shutil
from urllib.parse import quote

from container.contract import BASE_DIR, MULTI_MODEL
from launcher.check.bench import Bench
from launcher.check.http import Answer, send
from launcher.check.started import Server, wait_until_healthy
from launcher.check.target import CheckFailed, NotJudged

LABEL = "com.amazonaws.sagemaker.capabilities.multi-models"
MODEL = "4f1d2c0aa0"  # the platform's names are opaque
TOO_LARGE = "00m0de1"
UNKNOWN = "never-loaded"


def start_multi_model_server(bench: Bench) -> Server:
    """A server in multi-model mode, with the model unpacked where the platform does it.

    Raises:
        NotJudged: the image does not claim to serve many models.
        CheckFailed: it does not become healthy.
    """
    if bench.target.is_image and bench.target.image().labels.get(LABEL) != "true":
        raise NotJudged(f"the image has no label {LABEL}=true: MultiModel mode is refused before it starts")
    if not bench.target.is_image and not bench.materials.multi_model:
        raise NotJudged("multi-model mode is judged where it was asked for: --only mme")
    tree = bench.new_tree()
    for name, model in ((MODEL, bench.materials.model), (TOO_LARGE, bench.materials.out_of_memory_model)):
        if model:
            shutil.copytree(model, tree.models / name / "model")
    return wait_until_healthy(bench.start_server({MULTI_MODEL: "true"}, tree=tree), bench.patience.startup)


def starts_without_a_model(bench: Bench) -> None:
    """C115: asked before any model is loaded: the check below loads one."""
    bench.once(start_multi_model_server)
    models = _listed(_ask(bench, "GET", "/models"))
    if models:
        raise CheckFailed(f"GET /models lists {models} before anything was loaded")


def loads_a_model(bench: Bench) -> None:
    """C116: POST /models loads, lists and serves."""
    _need_model(bench)
    answer = _load(bench, MODEL)
    if answer.status != 200:
        raise CheckFailed(f"POST /models is {answer}; the caller's invocation fails with a ModelError")
    url = _url(bench, MODEL)
    described = _ask(bench, "GET", f"/models/{MODEL}")
    if described.status != 200 or _json(described).get("modelName") != MODEL:
        raise CheckFailed(
            f"after POST /models GET /models/{MODEL} is {described}; the platform loads it again and again"
        )
    listed = _listed(_ask(bench, "GET", "/models"))
    if {"modelName": MODEL, "modelUrl": url} not in [
        {name: entry.get(name) for name in ("modelName", "modelUrl")} for entry in listed
    ]:
        raise CheckFailed(f"GET /models lists {listed}, without modelName {MODEL!r} and modelUrl {url!r}")
    if bench.materials.request is not None:
        request = bench.materials.request
        invoked = _ask(bench, "POST", f"/models/{MODEL}/invoke", request.body, request.headers)
        if not invoked.is_success:
            raise CheckFailed(
                f"POST /models said 200 and the invocation is {invoked}: it answered before the model could serve"
            )


def loading_twice_is_409(bench: Bench) -> None:
    """C117: loading twice is 409."""
    _need_model(bench)
    _load(bench, MODEL)
    answer = _load(bench, MODEL)
    if answer.status != 409:
        raise CheckFailed(f"POST /models with a name that is loaded is {answer}, not 409")


def no_memory_is_507(bench: Bench) -> None:
    """C118: out of memory is 507."""
    if bench.materials.out_of_memory_model is None:
        raise NotJudged("no model here runs out of memory: give --out-of-memory-model DIR")
    answer = _load(bench, TOO_LARGE)
    if answer.status != 507:
        raise CheckFailed(
            f"loading a model that runs out of memory is {answer}, not 507: the platform does not make room"
        )
    if _ask(bench, "GET", f"/models/{TOO_LARGE}").status != 404:
        raise CheckFailed("a model whose loading failed with 507 stays registered: the platform believes it is there")


def unknown_model_is_404(bench: Bench) -> None:
    """C119: an unknown model is 404."""
    cases = (("GET", ""), ("DELETE", ""), ("POST", "/invoke"))
    for method, suffix in cases:
        answer = _ask(bench, method, f"/models/{UNKNOWN}{suffix}", b"{}" if method == "POST" else None)
        if answer.status != 404:
            raise CheckFailed(
                f"{method} /models/{UNKNOWN}{suffix} is {answer}, not 404: the platform then never loads it"
            )


def _need_model(bench: Bench) -> None:
    if bench.materials.model is None:
        raise NotJudged("no model to load: give --model DIR")


def _url(bench: Bench, name: str) -> str:
    base = BASE_DIR if bench.target.is_image else _server(bench).opt_ml.base
    return str(base / "models" / name / "model")


def _load(bench: Bench, name: str) -> Answer:
    body = json.dumps({"model_name": name, "url": _url(bench, name)}).encode()
    return _ask(bench, "POST", "/models", body, {"Content-Type": "application/json"})


def _ask(
    bench: Bench, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    return send(_server(bench).address, method, quote(path), body, headers)


def _server(bench: Bench) -> Server:
    try:
        return bench.once(start_multi_model_server)
    except CheckFailed as failure:
        raise NotJudged("the server does not start in multi-model mode, see C115") from failure


def _json(answer: Answer) -> dict:
    try:
        value = json.loads(answer.body)
    except ValueError as error:
        raise CheckFailed(f"the answer is {answer}, not JSON") from error
    if not isinstance(value, dict):
        raise CheckFailed(f"the answer is {answer}, not a JSON object")
    return value


def _listed(answer: Answer) -> list[dict]:
    models = _json(answer).get("models")
    if answer.status != 200 or not isinstance(models, list):
        raise CheckFailed(
            f'GET /models is {answer}, not 200 with {{"models": [...]}}; the platform cannot tell what is loaded'
        )
    return models
