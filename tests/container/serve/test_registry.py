"""The multi-model contract, through both doors."""

import contextlib
import gc
import json
import linecache
import re
import shutil
import socket
import sys
import textwrap
import threading
import time
from urllib.parse import quote

import numpy as np
import pytest

from container.serve import memory
from container.serve import registry as registry_module
from container.serve.exchange import Request

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


def test_a_load_takes_no_body_that_is_large(door):
    answer = door.request("POST", "/models", b" " * 65537, {**JSON, "Content-Length": "65537"})
    assert (answer.status, json.loads(answer.body)) == (
        413,
        {"error": "The data value transmitted exceeds the capacity limit."},
    )


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
    door = open_models.open(kind, SLIPWAY_MODEL_MEMORY_BYTES="50000000")
    assert door.request("POST", "/models", open_models.write("first", ECHO), JSON).status == 200
    second = open_models.write("second", "raise SystemExit('loaded')")
    with (open_models.base / "second" / "model" / "weights").open("wb") as weights:
        weights.truncate(60_000_000)
    answer = door.request("POST", "/models", second, JSON)
    assert answer.status == 507
    assert "the model needs about 60 MB" in json.loads(answer.body)["error"]


def test_c118_a_model_that_grows_past_the_budget_is_507_and_gives_its_memory_back(open_models, kind):
    door = open_models.open(kind, SLIPWAY_MODEL_MEMORY_BYTES="50000000")
    assert door.request("POST", "/models", open_models.write("small", ECHO), JSON).status == 200
    body = open_models.write("grows", "def model_fn(model_dir): return b'x' * 100_000_000\n" + ECHO)
    before = memory.held()
    answer = door.request("POST", "/models", body, JSON)
    assert answer.status == 507
    assert re.match(r"the model took 1\d\d MB and \d\d MB were free", json.loads(answer.body)["error"])
    assert memory.held() < before + 50_000_000
    assert names(door) == ["small"]
    assert door.request("POST", "/models/small/invoke", b"1", JSON).status == 200


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
    for odd in ("limit=0", "limit=-1", f"limit={'9' * 5000}", "limit=%C2%B2", f"next_page_token={'9' * 5000}"):
        assert len(names(door, f"?{odd}")) == registry_module.PAGE


def test_c124_a_model_unloaded_between_two_pages_hides_no_other(door, open_models):
    url = json.loads(open_models.write("plain", ECHO))["url"]
    for name in "abcd":
        body = json.dumps({"model_name": name, "url": url}).encode()
        assert door.request("POST", "/models", body, JSON).status == 200
    page = json.loads(door.request("GET", "/models?limit=2").body)
    assert door.request("DELETE", "/models/a").status == 200
    assert names(door, f"?next_page_token={page['nextPageToken']}") == ["c", "d"]


@pytest.mark.parametrize(
    "name", ["a/b", "a.tar.gz", "f" * 64, "..", "a%b", "é ü", "a//b", "x/invoke", "a\nb", "/", "/a/"]
)
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


def test_c126_an_import_inside_a_function_finds_the_model_s_own_module(door, open_models):
    code = """
        def predict_fn(data, model):
            import helper
            from parts.one import NAME
            return [helper.NAME, NAME]
    """
    for name in ("first", "second"):
        body = open_models.write(name, code, helper=f"NAME = {name!r}")
        package = open_models.base / name / "model" / "code" / "parts"
        package.mkdir()
        (package / "one.py").write_text(f"from . import two\nNAME = 'parts of ' + two.{name}")
        (package / "two.py").write_text(f"{name} = {name!r}")
        assert door.request("POST", "/models", body, JSON).status == 200
    for _ in range(2):
        for name in ("first", "second"):
            answer = door.request("POST", f"/models/{name}/invoke", b"[]", JSON)
            assert json.loads(answer.body) == [name, f"parts of {name}"]
    assert not {"helper", "parts", "parts.one", "parts.two"} & set(sys.modules)


def test_versions_of_one_architecture_share_its_code_and_nothing_else(door, open_models):
    code = """
        import numpy as np
        STATE = []
        def model_fn(model_dir):
            return lambda data: None
        def predict_fn(data, model):
            STATE.append(data)
            return [id(predict_fn.__code__), __file__, STATE]
    """
    answers = []
    for name in ("one", "two"):
        assert door.request("POST", "/models", open_models.write(name, code), JSON).status == 200
        answers.append(json.loads(door.request("POST", f"/models/{name}/invoke", f'"{name}"'.encode(), JSON).body))
    (code_of_one, file_of_one, seen_by_one), (code_of_two, file_of_two, seen_by_two) = answers
    assert code_of_one == code_of_two
    assert (seen_by_one, seen_by_two) == (["one"], ["two"])
    assert "/one/" in file_of_one
    assert "/two/" in file_of_two


def test_a_class_that_a_model_unpickles_is_the_one_its_code_imports(door, open_models):
    body = open_models.write(
        "pickled",
        """
        import pickle
        from net import Net
        def model_fn(model_dir):
            import net
            model = pickle.loads(pickle.dumps(Net()))
            assert isinstance(model, Net) and net.Net is Net
            return model
        def predict_fn(data, model): return model.name
        """,
        net="class Net:\n    name = 'net'",
    )
    assert door.request("POST", "/models", body, JSON).status == 200
    assert door.request("POST", "/models/pickled/invoke", b"[]", JSON).body == b"net"


def test_a_model_whose_requirements_are_not_met_is_400_and_says_which(door, open_models):
    body = open_models.write("a", "raise SystemExit('imported')")
    requirements = open_models.base / "a" / "model" / "code" / "requirements.txt"
    requirements.write_text("numpy>=1\nslipway-absent-package==9\n")
    answer = door.request("POST", "/models", body, JSON)
    assert answer.status == 400
    assert "[requirements]: requirements.txt asks for slipway-absent-package==9" in json.loads(answer.body)["error"]
    requirements.write_text("numpy>=1\n")
    (requirements.parent / "inference.py").write_text(ECHO)
    assert door.request("POST", "/models", body, JSON).status == 200


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_c120_load_and_unload_cycles_leave_no_object_behind(open_models, count):
    """Of real torch models, whose classes, modules and weights are cycles and caches of their own."""
    service = open_models.open(lambda service: service)
    code = """
        import torch
        from net import Net
        def model_fn(model_dir):
            return Net()
    """
    net = """
        import torch
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
            def forward(self, rows):
                return self.layers(rows)
    """
    bodies = [open_models.write(f"m{number}", code, net=textwrap.dedent(net)) for number in range(10)]
    rows = json.dumps([[0.0] * 64]).encode()
    invocation = Request("POST", "/invoke", {"content-type": "application/json"}, rows)

    def cycles(count):
        for number in range(count):
            name = f"m{number % 10}"
            assert service.registry.load(Request("POST", "/models", {}, bodies[number % 10])).status == 200
            assert service.invoke(invocation, name).status == 200
            assert service.registry.unload(name).status == 200
        memory.give_back()
        return len(gc.get_objects()), len(sys.modules), len(linecache.cache), memory.held()

    cycles(20)
    before = cycles(10)
    after = cycles(count)
    assert after[0] <= before[0] + 50
    assert after[1:3] == before[1:3]
    assert after[3] < before[3] * 1.05  # the allocator's own; bench/serve/multi_model.py measures a process alone


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
        (b'{"model_name": "a", "url": "\\u0000"}', "is no path"),
        (b'{"model_name": "a", "url": "' + b"x" * 5000 + b'"}', "is no path"),
    ],
)
def test_a_malformed_load_is_400(door, body, message):
    answer = door.request("POST", "/models", body, JSON)
    assert answer.status == 400
    assert message in json.loads(answer.body)["error"]


def test_a_load_from_a_directory_that_is_not_there_is_400(door, open_models):
    answer = door.request("POST", "/models", open_models.body("absent"), JSON)
    assert (answer.status, "is no directory" in json.loads(answer.body)["error"]) == (400, True)
    (open_models.base / "loop").symlink_to("loop")
    loop = json.dumps({"model_name": "a", "url": str(open_models.base / "loop")}).encode()
    answer = door.request("POST", "/models", loop, JSON)
    assert (answer.status, "is no path" in json.loads(answer.body)["error"]) == (400, True)


@pytest.mark.parametrize("code", ["1 / 0", "def predict_fn(): pass", "import sys; sys.exit(1)", ""])
def test_a_broken_model_is_500_without_its_trace_and_leaves_nothing(door, open_models, code, caplog):
    answer = door.request("POST", "/models", open_models.write("bad", code), JSON)
    assert answer.status == 500
    assert "Traceback" not in answer.body.decode()
    assert "serve cannot start" in caplog.text
    assert names(door) == []


def test_in_single_model_mode_there_are_no_model_routes(open_door, artifact):
    assert open_door(artifact).request("GET", "/models").status == 404


def test_while_a_load_does_not_end_others_are_told_and_everything_else_goes_on(
    open_models, kind, in_background, monkeypatch, caplog
):
    monkeypatch.setattr(registry_module, "LOAD_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(registry_module, "SLOW_SECONDS", 0.05)
    door = open_models.open(kind)
    assert door.request("POST", "/models", open_models.write("echo", ECHO), JSON).status == 200
    began, gate = open_models.base / "began", open_models.base / "gate"
    endless = open_models.write(
        "endless",
        f"""
        import pathlib, time
        pathlib.Path({str(began)!r}).touch()
        while not pathlib.Path({str(gate)!r}).exists():
            time.sleep(0.01)
        """,
    )
    loading = in_background(door.request, "POST", "/models", endless, JSON)
    other = open_models.write("other", ECHO)
    while not began.exists():
        time.sleep(0.01)
    answer = door.request("POST", "/models", endless, JSON)
    assert answer.status == 409
    assert json.loads(answer.body) == {"error": "model 'endless' is being loaded"}
    answer = door.request("POST", "/models", other, JSON)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert re.fullmatch(r"model 'endless' has been loading for \d+ s; try again", json.loads(answer.body)["error"])
    assert re.search(r"model 'endless' is slow to load \[slow-load\] \S+/inference.py:[45]: it has been", caplog.text)
    assert names(door) == ["echo"]
    assert door.request("POST", "/models/echo/invoke", b"1", JSON).status == 200
    assert door.request("DELETE", "/models/echo").status == 200
    gate.touch()
    assert loading().status == 500, "a model without functions"
    assert door.request("POST", "/models", other, JSON).status == 200


def test_models_that_load_for_ever_leave_the_list_and_the_metrics_alone(start_server, tmp_path):
    server = start_server(SAGEMAKER_MULTI_MODEL="true")
    code = tmp_path / "ml0" / "models" / "endless" / "model" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text("import time\ntime.sleep(10_000)")
    server.wait_ready()

    def open_files():
        text = server.request("GET", "/metrics", timeout=20).body.decode()
        return float(re.search(r"^slipway_process_open_fds\S* (\S+)$", text, re.MULTILINE)[1])

    before = open_files()
    with contextlib.ExitStack() as connections:
        for number in range(30):  # more than any pool has threads
            body = json.dumps({"model_name": f"m{number}", "url": str(code.parent)}).encode()
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(b"POST /models HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        deadline = time.monotonic() + 30
        while open_files() < before + 30:
            assert time.monotonic() < deadline
        for path in ("/models", "/openapi.json", "/ping"):
            assert server.request("GET", path, timeout=20).status == 200, path
    server.process.kill()  # it would wait for the loads
    server.process.wait()
