"""The serving image under plain `docker run`, in the places SageMaker puts it: read-only, non-root, side by side."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from container.model import ModelSignature, build_network, save_model

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    directory.chmod(0o755)  # readable for other users, as the files SageMaker unpacks are
    signature = ModelSignature("convnet", ("cat", "dog"), 1, 8, 8, (0.5,), (0.5,))
    save_model(directory, build_network("convnet", 2, signature.image_shape), signature)
    return directory


def port_of(docker, container: str, port: int = 8080) -> int:
    return int(docker("port", container, str(port)).stdout.splitlines()[0].rpartition(":")[2])


def wait_until_healthy(docker, container: str, port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        running = json.loads(docker("inspect", container).stdout)[0]["State"]["Running"]
        assert running, docker("logs", container).stdout[-2000:] + docker("logs", container).stderr[-2000:]
        time.sleep(0.3)
    raise AssertionError(docker("logs", container).stderr[-2000:])


def invoke(port: int) -> dict:
    body = json.dumps({"instances": [[[0] * 8] * 8]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_c3_c82_c104_it_serves_a_read_only_model_directory(serve_image, docker, artifact):
    container = docker(
        "run", "--detach", "--publish=127.0.0.1::8080", f"--volume={artifact}:/opt/ml/model:ro", serve_image, "serve"
    ).stdout.strip()
    port = port_of(docker, container)
    wait_until_healthy(docker, container, port)
    assert invoke(port)["predictions"][0]["label"] in ("cat", "dog")
    started = time.monotonic()
    docker("stop", "--time", "30", container)
    assert time.monotonic() - started < 30
    assert json.loads(docker("inspect", container).stdout)[0]["State"]["ExitCode"] == 0


ASK_INSIDE = """
import json, sys, time, urllib.request
url = "http://127.0.0.1:8080"
for _ in range(600):
    try:
        assert urllib.request.urlopen(url + "/ping", timeout=2).status == 200
        break
    except OSError:
        time.sleep(0.2)
body = json.dumps({"instances": [[[0] * 8] * 8]}).encode()
request = urllib.request.Request(url + "/invocations", body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


def closed(docker, artifact, image, *more: str) -> str:
    """The container of a server that has nothing but `/tmp`: no network, nothing writable, no rights."""
    return docker(
        "run",
        "--detach",
        "--network=none",
        "--user=10001:10001",
        "--read-only",
        "--tmpfs=/tmp",
        "--ipc=none",
        "--cap-drop=ALL",
        f"--volume={artifact}:/opt/ml/model:ro",
        *more,
        image,
        "serve",
    ).stdout.strip()


def ask_inside(docker, container: str) -> dict:
    """The answer to an image of zeros, asked for from within: the container has no network."""
    done = docker("exec", container, "/opt/venv/bin/python", "-c", ASK_INSIDE, check=False, timeout=150)
    assert done.returncode == 0, done.stderr + docker("logs", container).stdout[-2000:]
    return json.loads(done.stdout)


def test_c142_it_serves_as_another_user_on_a_read_only_root_without_shared_memory_or_network(
    serve_image, docker, artifact
):
    container = closed(docker, artifact, serve_image)
    assert len(ask_inside(docker, container)["predictions"]) == 1
    mount_point = {"C /opt", "A /opt/ml", "A /opt/ml/model"}
    assert set(docker("diff", container).stdout.splitlines()) == mount_point


def test_c107_code_that_is_baked_into_the_image_is_served_without_a_model(serve_image, docker, tmp_path):
    code = tmp_path / "code"
    code.mkdir(mode=0o755)
    (code / "own.py").write_text("def predict_fn(data, model): return {'predictions': data.tolist()}\n")
    (code / "requirements.txt").write_text("numpy>=2\n")  # there already: nothing is installed
    tmp_path.chmod(0o755)
    baked = (f"--volume={code}:/opt/slipway/code:ro", "--env=SAGEMAKER_PROGRAM=own.py")
    (tmp_path / "model").mkdir()
    container = closed(docker, tmp_path / "model", serve_image, *baked)
    assert ask_inside(docker, container) == {"predictions": [[[0] * 8] * 8]}


def test_c143_two_gigabytes_are_one_process(serve_image, docker, artifact):
    container = closed(docker, artifact, serve_image, "--memory=2g")
    assert len(ask_inside(docker, container)["predictions"]) == 1
    log = docker("logs", container).stdout
    assert " processes=1 " in log
    assert json.loads(docker("inspect", container).stdout)[0]["State"]["OOMKilled"] is False


def test_c83_c128_two_copies_serve_in_one_network_namespace(serve_image, docker, artifact):
    common = (f"--volume={artifact}:/opt/ml/model:ro",)
    first = docker(
        "run",
        "--detach",
        "--publish=127.0.0.1::9191",
        "--publish=127.0.0.1::9192",
        "--env=SAGEMAKER_BIND_TO_PORT=9191",
        "--env=SAGEMAKER_SAFE_PORT_RANGE=10000-10009",
        *common,
        serve_image,
        "serve",
    ).stdout.strip()
    second = docker(
        "run",
        "--detach",
        f"--network=container:{first}",
        "--env=SAGEMAKER_BIND_TO_PORT=9192",
        "--env=SAGEMAKER_SAFE_PORT_RANGE=10010-10019",
        *common,
        serve_image,
        "serve",
    ).stdout.strip()
    ports = [port_of(docker, first, 9191), port_of(docker, first, 9192)]
    for container, port in zip((first, second), ports, strict=True):
        wait_until_healthy(docker, container, port)
    assert all(len(invoke(port)["predictions"]) == 1 for port in ports)
    listening = docker("exec", first, "cat", "/proc/net/tcp", "/proc/net/tcp6").stdout.splitlines()
    bound = {int(line.split()[1].rpartition(":")[2], 16) for line in listening if " 0A " in line}
    assert bound == {9191, 9192}


def test_c88_a_broken_model_ends_the_container_with_one_line_that_says_why(serve_image, docker, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(
        "def model_fn(model_dir):\n    raise OSError('weights.bin is gone')\n"
    )
    started = time.monotonic()
    done = docker("run", f"--volume={tmp_path}:/opt/ml/model:ro", serve_image, "serve", check=False, timeout=60)
    assert done.returncode not in (0, None)
    assert time.monotonic() - started < 30
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "weights.bin is gone" in line]
    assert any("inference.py:2" in line for line in lines), done.stdout + done.stderr


def test_the_container_answers_errors_of_the_caller_with_4xx(serve_image, docker, artifact):
    container = docker(
        "run", "--detach", "--publish=127.0.0.1::8080", f"--volume={artifact}:/opt/ml/model:ro", serve_image, "serve"
    ).stdout.strip()
    port = port_of(docker, container)
    wait_until_healthy(docker, container, port)
    statuses = {}
    for content_type, body in {"application/json": b"{", "application/pdf": b"x", "image/png": b"x"}.items():
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", data=body, headers={"Content-Type": content_type}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        statuses[content_type] = refused.value.code
    assert statuses == {"application/json": 400, "application/pdf": 415, "image/png": 400}


def test_c115_c116_c120_a_multi_model_container_loads_answers_and_forgets(serve_image, docker, artifact):
    container = docker(
        "run",
        "--detach",
        "--publish=127.0.0.1::8080",
        "--env=SAGEMAKER_MULTI_MODEL=true",
        f"--volume={artifact}:/opt/ml/models/4f1d2c/model:ro",
        serve_image,
        "serve",
    ).stdout.strip()
    port = port_of(docker, container)
    wait_until_healthy(docker, container, port)

    def call(method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as refused:
            return refused.code, {}

    assert call("GET", "/models") == (200, {"models": []})
    model = {"model_name": "4f1d2c", "url": "/opt/ml/models/4f1d2c/model"}
    assert call("POST", "/models", model)[0] == 200
    assert call("POST", "/models", model)[0] == 409
    listed = call("GET", "/models")[1]["models"]
    assert [entry["modelName"] for entry in listed] == ["4f1d2c"]
    image = {"instances": [[[0] * 8] * 8]}
    assert len(call("POST", "/models/4f1d2c/invoke", image)[1]["predictions"]) == 1
    assert call("DELETE", "/models/4f1d2c")[0] == 200
    assert call("POST", "/models/4f1d2c/invoke", image)[0] == 404
