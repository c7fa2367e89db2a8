"""The multi-model contract, through both doors."""

import json
import shutil
import sys
import threading
import time
from urllib.parse import quote

import numpy as np
import pytest

from container.serve import registry as registry_module

JSON = {"Content-Type": "application/json"}
ECHO = "def predict_fn(data, model): return ['echo', data]"


@pytest.fixture(params=["FlaskDoor", "AsgiDoor"])
def kind(request):
    """One of conftest's doors."""
    conftest = next(
        module
        for name, module in sys.modules.items()
        if name.endswith("serve.conftest") and hasattr(module, "AsgiDoor")
    )
    return getattr(conftest, request.param)


@pytest.fixture
def door(open_models, kind):
    return open_models.open(kind)


def names(door, query=""):
    return [model["modelName"] for model in json.loads(door.request("GET", f"/models{query}").body)["models"]]


def test_c115_with_no_model_loaded_ping_is_200_and_the_list_is_empty(door):
    assert door.request("GET", "/ping").status == 200
    assert json.loads(door.request("GET", "/models").body) == {"models": []}


def test_c116_a_loaded_model_is_listed_described_and_served(door, open_models):
    assert door.request("POST", "/models", open_models.write("4f1d", ECHO), JSON).status == 200
    entry = {"modelName": "4f1d", "modelUrl": str(open_models.base / "4f1d" / "model")}
    assert json.loads(door.request("GET", "/models").body) == {"models": [entry]}
    assert json.loads(door.request("GET", "/models/4f1d").body) == entry
    answer = door.request("POST", "/models/4f1d/invoke", b"[1]", {**JSON, "X-Amzn-SageMaker-Target-Model": "a.tar.gz"})
    assert json.loads(answer.body) == ["echo", [1]]


def test_an_invocation_that_names_no_model_is_told_where_models_are_invoked(door):
    answer = door.request("POST", "/invocations", b"[1]", JSON)
    message = "this endpoint serves many models, each at POST /models/<name>/invoke"
    assert (answer.status, json.loads(answer.body)) == (404, {"error": message})


def test_c116_the_built_in_model_is_served_as_one_of_many(door, open_models, artifact):
    shutil.copytree(artifact, open_models.base / "m" / "model")
    assert door.request("POST", "/models", open_models.body("m"), JSON).status == 200
    body = json.dumps(np.zeros((1, 8, 8)).tolist()).encode()
    assert door.request("POST", "/models/m/invoke", body, JSON).status == 200


def test_c117_a_name_that_is_loaded_is_409(door, open_models):
    body = open_models.write("a", ECHO)
    assert [door.request("POST", "/models", body, JSON).status for _ in range(2)] == [200, 409]


@pytest.mark.parametrize("raised", ["MemoryError()", "RuntimeError('CUDA out of memory. Tried to allocate 9 GiB')"])
def test_c118_out_of_memory_in_a_load_is_507_and_leaves_nothing(door, open_models, raised):
    body = open_models.write("big", f"def model_fn(model_dir): raise {raised}")
    assert door.request("POST", "/models", body, JSON).status == 507
    assert names(door) == []
    assert door.request("GET", "/models/big").status == 404


def test_c118_a_model_over_the_memory_budget_is_507_before_it_is_loaded(open_models, kind):
    door = open_models.open(kind, SLIPWAY_MODEL_MEMORY_BYTES="10000")
    first = open_models.write("first", ECHO)
    second = open_models.write("second", "raise SystemExit('loaded')")
    (open_models.base / "second" / "model" / "weights").write_bytes(bytes(4000))
    assert door.request("POST", "/models", first, JSON).status == 200
    answer = door.request("POST", "/models", second, JSON)
    assert answer.status == 507
    assert "are free" in json.loads(answer.body)["error"]


def test_c119_an_unknown_name_is_404_everywhere(door):
    for method, path in (("GET", "/models/x"), ("DELETE", "/models/x"), ("POST", "/models/x/invoke")):
        answer = door.request(method, path, b"[]" if method == "POST" else b"", JSON)
        assert (answer.status, json.loads(answer.body)) == (404, {"error": "model 'x' is not loaded"})


def test_c120_an_unloaded_model_is_gone_and_may_be_loaded_again(door, open_models):
    body = open_models.write("a", ECHO)
    for _ in range(2):
        assert door.request("POST", "/models", body, JSON).status == 200
        assert door.request("DELETE", "/models/a").status == 200
        assert door.request("POST", "/models/a/invoke", b"[]", JSON).status == 404
    assert names(door) == []


def test_c120_unload_gives_the_memory_back(door, open_models):
    body = open_models.write(
        "heavy",
        """
        def model_fn(model_dir): return bytearray(150_000_000)
        def predict_fn(data, model): return len(model)
        """,
    )
    before = resident()
    for _ in range(3):
        assert door.request("POST", "/models", body, JSON).status == 200
        assert door.request("POST", "/models/heavy/invoke", b"[]", JSON).body == b"150000000"
        assert resident() > before + 100_000_000
        assert door.request("DELETE", "/models/heavy").status == 200
        assert resident() < before + 50_000_000


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_c122_of_concurrent_loads_of_one_name_exactly_one_is_200(open_models, kind):
    body = open_models.write("a", "import time; time.sleep(0.3)\n" + ECHO)
    door = open_models.open(kind)
    statuses = []
    threads = [
        threading.Thread(target=lambda: statuses.append(door.request("POST", "/models", body, JSON).status))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(statuses) == [200, 409, 409, 409]


def test_c123_a_delete_during_an_invocation_lets_it_finish(open_models, kind, in_background):
    body = open_models.write("slow", "import time\ndef predict_fn(data, model): time.sleep(1); return 'mine'")
    door = open_models.open(kind)
    assert door.request("POST", "/models", body, JSON).status == 200
    running = in_background(door.request, "POST", "/models/slow/invoke", b"[]", JSON)
    time.sleep(0.3)
    deleted = in_background(door.request, "DELETE", "/models/slow")
    time.sleep(0.2)
    assert door.request("POST", "/models/slow/invoke", b"[]", JSON).status == 404
    assert running().body == b"mine"
    assert deleted().status == 200


def test_c124_paging_returns_each_of_250_models_once(door, open_models, monkeypatch):
    source = open_models.write("shared", ECHO)
    url = json.loads(source)["url"]
    for number in range(250):
        body = json.dumps({"model_name": f"m{number}", "url": url}).encode()
        assert door.request("POST", "/models", body, JSON).status == 200
    seen, query = [], ""
    for _ in range(10):
        page = json.loads(door.request("GET", f"/models{query}").body)
        seen += [model["modelName"] for model in page["models"]]
        if "nextPageToken" not in page:
            break
        query = f"?next_page_token={page['nextPageToken']}"
    assert seen == [f"m{number}" for number in range(250)]
    assert len(names(door, "?limit=7")) == 7
    assert len(names(door, "?limit=1000")) == registry_module.PAGE


@pytest.mark.parametrize("name", ["a/b", "a.tar.gz", "f" * 64, "..", "a%b", "é ü", "a//b", "x/invoke"])
def test_c125_any_name_survives_the_round_trip(open_models, kind, name):
    url = json.loads(open_models.write("plain", ECHO))["url"]
    door = open_models.open(kind)
    body = json.dumps({"model_name": name, "url": url}).encode()
    assert door.request("POST", "/models", body, JSON).status == 200
    assert names(door) == [name]
    # A server hands its application the decoded path; quoting it is the test client's business only.
    path = f"/models/{quote(name, safe='') if type(door).__name__ == 'FlaskDoor' else name}"
    assert json.loads(door.request("GET", path).body)["modelName"] == name
    assert json.loads(door.request("POST", f"{path}/invoke", b"1", JSON).body) == ["echo", 1]
    assert door.request("DELETE", path).status == 200


def test_c126_modules_of_one_name_do_not_leak_between_models(door, open_models):
    code = "import helper\ndef predict_fn(data, model): return helper.NAME"
    for name in ("first", "second"):
        assert (
            door.request("POST", "/models", open_models.write(name, code, helper=f"NAME = {name!r}"), JSON).status
            == 200
        )
    assert door.request("POST", "/models/first/invoke", b"[]", JSON).body == b"first"
    assert door.request("POST", "/models/second/invoke", b"[]", JSON).body == b"second"
    assert "helper" not in sys.modules
    assert not [path for path in sys.path if path.startswith(str(open_models.base))]


def test_c127_out_of_memory_in_an_invocation_is_507(door, open_models):
    body = open_models.write("a", "def predict_fn(data, model): raise MemoryError")
    assert door.request("POST", "/models", body, JSON).status == 200
    assert door.request("POST", "/models/a/invoke", b"[]", JSON).status == 507


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected"),
        (b'{"model_name": "a"}', "expected"),
        (b'{"model_name": 1, "url": "/x"}', "expected"),
        (b'{"model_name": "", "url": "/x"}', "0 characters"),
        (b'{"model_name": "a", "url": "/etc"}', "is not below"),
        (b'{"model_name": "a", "url": "../../etc"}', "is not below"),
        (b'{"model_name": "a", "url": "\\u0000"}', "is not below"),
    ],
)
def test_a_malformed_load_is_400(door, body, message):
    answer = door.request("POST", "/models", body, JSON)
    assert answer.status == 400
    assert message in json.loads(answer.body)["error"]


def test_a_load_from_a_directory_that_is_not_there_is_400(door, open_models):
    answer = door.request("POST", "/models", open_models.body("absent"), JSON)
    assert (answer.status, "is no directory" in json.loads(answer.body)["error"]) == (400, True)


@pytest.mark.parametrize("code", ["1 / 0", "def predict_fn(): pass", "import sys; sys.exit(1)", ""])
def test_a_broken_model_is_500_without_its_trace_and_leaves_nothing(door, open_models, code, caplog):
    answer = door.request("POST", "/models", open_models.write("bad", code), JSON)
    assert answer.status == 500
    assert "Traceback" not in answer.body.decode()
    assert "serve cannot start" in caplog.text
    assert names(door) == []


def test_in_single_model_mode_there_are_no_model_routes(open_door, artifact):
    assert open_door(artifact).request("GET", "/models").status == 404
