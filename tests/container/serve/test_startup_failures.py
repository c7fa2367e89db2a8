"""A corpus of models and handlers that cannot serve: each ends the server with one line that has cause and fix."""

import builtins
import json
import os
import re
import socket
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from container.cuda import DRIVER_VERSION_FILE
from container.model import build_network
from container.serve import failures
from container.serve.causes import CAUSES
from container.serve.failures import told_while_slow
from container.serve.load import place_of
from container.serve.plan import Machine, plan_server
from container.serve.predictor import load_predictor

SERVE = Path(failures.__file__).parent
ONE_PROCESS = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
SIGNATURE = {"architecture": "convnet", "classes": ["a", "b"], "height": 8, "width": 8}


def assert_fails(server, cause, words, status=3):
    assert server.process.wait(60) == status
    lines = [line for line in server.log.read_text().splitlines() if "serve cannot start" in line]
    assert len(lines) == 1, server.log.read_text()
    assert f"[{cause}]" in lines[0]
    assert words in lines[0]
    assert "; fix: " in lines[0]


HANDLERS = [
    ("def predict_fn(data, model)\n    pass", "syntax-error", "inference.py:1"),
    ("x = 1\n\0", "syntax-error", "inference.py: SyntaxError: source code string cannot contain null bytes"),
    ("from . import helper", "bad-handler", "attempted relative import"),
    ("class E(Exception): __str__ = 7\nraise E", "handler-error", "inference.py:2: E: (an error that cannot be"),
    (
        "try: open('/absent')\nexcept OSError as error: raise RuntimeError('cannot load') from error",
        "handler-error",
        "RuntimeError: cannot load (from FileNotFoundError: [Errno 2] No such file or directory: '/absent')",
    ),
    ("import yaml.absent_part", "wrong-version", "No module named 'yaml.absent_part'"),
    ("import sagemaker_inference", "missing-dependency", "fix: bake sagemaker-inference into the image, or ask for"),
    ("import absent_package", "missing-dependency", "inference.py:1: ModuleNotFoundError"),
    ("from json import absent_name", "wrong-version", "inference.py:1: ImportError"),
    ("def model_fn(model_dir): open(model_dir + '/weights.pt')", "missing-file", "weights.pt"),
    ("def model_fn(model_dir): raise KeyError('weights')", "handler-error", "inference.py:1: KeyError: 'weights'"),
    ("def model_fn(model_dir): return 7", "bad-handler", "returned int, which cannot be called nor has predict"),
    ("def predict_fn(data): pass", "bad-handler", "predict_fn(data, model)"),
    ("def transform_fn(m, d, c, a): pass\ndef input_fn(d, c): pass", "bad-handler", "transform_fn replaces them"),
    ("def model_fn(model_dir): bytearray(1 << 62)", "out-of-memory", "MemoryError"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "died", "ended by SIGKILL while it loaded"),
    ("import ctypes; ctypes.string_at(0)", "died", "ended by SIGSEGV while it loaded"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 1)", "died", "ended by signal 35 while it loaded"),
    ("import sys; sys.exit(0)", "exit", "SystemExit: 0"),
    ("import os; os._exit(0)", "died", "ended with status 0 while it loaded"),
    ("import os; os._exit(3)", "died", "ended with status 3 while it loaded"),
    (
        "import os, http.server as h\nh.HTTPServer(('', int(os.environ['SAGEMAKER_BIND_TO_PORT'])), None)",
        "bad-handler",
        "inference.py:2: OSError: [Errno 98] Address already in use; fix: this server listens there already",
    ),
    ("import os\nos.environ['BUCKET']", "bad-setting", "inference.py:2: KeyError: 'BUCKET'; fix: set BUCKET in"),
    ("open('inference.py')", "missing-file", "fix: it is code/inference.py of the model: os.path.join(os.path.dirname"),
    (
        "def model_fn(model_dir):\n    assert len(model_dir) == 1",
        "handler-error",
        "Error: assert len(model_dir)",
    ),
    ("import urllib.request as u; u.urlopen('http://127.0.0.1:9/m')", "no-network", "URLError"),
]


@pytest.mark.parametrize(("code", "cause", "words"), HANDLERS)
def test_c88_c107_a_handler_that_cannot_serve_ends_the_server_with_one_line(
    start_server, user_model, code, cause, words
):
    assert_fails(start_server(user_model(code), SAGEMAKER_MODEL_SERVER_WORKERS="2"), cause, words)


def test_a_file_that_the_containers_user_may_not_read_is_said(start_server, user_model):
    model = user_model("""
        import os
        def model_fn(model_dir):
            if os.geteuid() == 0:
                os.seteuid(65534)
            try:
                open(os.path.join(model_dir, "weights"))
            finally:
                if os.getuid() == 0:
                    os.seteuid(0)
    """)
    (model / "weights").touch(0)
    assert_fails(start_server(model, **ONE_PROCESS), "permission", "weights")


def test_c104_a_handler_that_writes_to_a_read_only_place_is_said(start_server, user_model):
    code = "import errno, os\ndef model_fn(model_dir): raise OSError(errno.EROFS, os.strerror(errno.EROFS), model_dir)"
    assert_fails(start_server(user_model(code), **ONE_PROCESS), "read-only", "Read-only file system")


def test_a_disk_that_is_full_is_said(start_server, user_model):
    code = "def model_fn(model_dir):\n    with open('/dev/full', 'w') as file: file.write('x')"
    assert_fails(start_server(user_model(code), **ONE_PROCESS), "disk-full", "No space left")


@pytest.mark.parametrize("exists", [True, False])
def test_c105_no_model_and_no_handler_is_an_explicit_error(start_server, tmp_path, exists):
    directory = tmp_path / "empty"
    directory.mkdir()
    assert_fails(start_server(directory if exists else None, **ONE_PROCESS), "no-model", "it is empty")


def test_an_unreadable_archive_is_said_without_torch(start_server, tmp_path):
    (tmp_path / "net.pt").write_bytes(b"PK\3\4 cut off")
    assert_fails(start_server(tmp_path, **ONE_PROCESS), "bad-model", "net.pt is damaged")


def test_a_signature_without_weights_is_said_without_torch(start_server, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(SIGNATURE))
    assert_fails(start_server(tmp_path, **ONE_PROCESS), "missing-file", "weights that are not there")


def test_a_port_that_is_taken_ends_the_server(start_server, artifact):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        server = start_server(artifact, SAGEMAKER_BIND_TO_PORT=str(taken.getsockname()[1]))
        assert_fails(server, "port-taken", "SAGEMAKER_BIND_TO_PORT", status=1)


def test_c108_requirements_that_cannot_be_met_end_the_server_at_once(start_server, user_model):
    model = user_model("def predict_fn(data, model): return data")
    (model / "code" / "requirements.txt").write_text("slipway-absent-package==9\n")
    (model / "code" / "wheels").mkdir()
    assert_fails(start_server(model), "requirements", "slipway-absent-package==9 cannot be installed", status=1)


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "many", "bad-setting"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "loud", "bad-setting"),
        ("SAGEMAKER_BIND_TO_PORT", "99999", "bad-setting"),
        ("SAGEMAKER_PROGRAM", "absent.py", "bad-handler"),
    ],
)
def test_a_bad_setting_ends_the_server_with_one_line(start_server, artifact, name, value, cause):
    server = start_server(artifact, **{name: value})
    assert_fails(server, cause, value, status=1)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.skipif(DRIVER_VERSION_FILE.exists(), reason="this machine has a driver of its own")
def test_a_driver_that_is_too_old_for_the_image_is_said_before_anything_loads(start_server, artifact, tmp_path):
    """The device is one that the environment names; the driver's version is what nvidia-smi says."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 390.157\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    server = start_server(artifact, PATH=f"{tmp_path}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="0")
    problem = "driver 390.157 is too old for the image's CUDA" if torch.version.cuda else "torch is built without CUDA"
    assert_fails(server, "no-cuda-driver", problem, status=1)
    assert "CUDA_VISIBLE_DEVICES=-1 asks for the CPU" in server.log.read_text()


def test_requirements_that_are_no_text_are_said(start_server, user_model):
    model = user_model("def predict_fn(data, model): return data")
    (model / "code" / "requirements.txt").write_bytes("numpy".encode("utf-16"))
    assert_fails(start_server(model), "requirements", "requirements.txt is no UTF-8", status=1)


def test_a_failure_is_said_last_and_at_once_while_another_process_loads_and_hears_nothing(
    start_server, user_model, tmp_path
):
    """The first of two fails; the other sits in native code that holds the GIL, and would not end by itself."""
    code = f"""
        import ctypes, os, pathlib, time
        first, second = (pathlib.Path({str(tmp_path)!r}) / name for name in ("first", "second"))
        def model_fn(model_dir):
            try:
                first.touch(exist_ok=False)
            except FileExistsError:
                second.touch()
                ctypes.PyDLL(None).sleep(1000)
            while not second.exists():
                time.sleep(0.01)
            time.sleep(0.5)
            (first.parent / "failed").write_text(str(time.time()))
            raise KeyError("weights")
    """
    server = start_server(user_model(code), SAGEMAKER_MODEL_SERVER_WORKERS="2")
    assert_fails(server, "handler-error", "KeyError: 'weights'")
    log = server.log.read_text()
    assert "serve cannot start" in log.splitlines()[-1]
    assert "Traceback" in log
    ended = server.log.stat().st_mtime
    assert ended - float((tmp_path / "failed").read_text()) < 20, "gunicorn would have waited for 25 s"


TORCH_HANDLERS = [
    (
        "def model_fn(model_dir): return torch.nn.Linear(2, 2).load_state_dict({'weight': torch.ones(3, 3)})",
        "wrong-architecture",
        "Error(s) in loading state_dict for Linear",
    ),
    ("def model_fn(model_dir): return torch.empty(1 << 58)", "out-of-memory", "can't allocate memory"),
    ("def model_fn(model_dir): return torch.load(model_dir + '/gpu.pt')", "needs-gpu", "on a CUDA device"),
    (
        "def model_fn(model_dir): return torch.load(model_dir + '/module.pt')",
        "pickled-model",
        "Weights only load failed",
    ),
    (
        "def model_fn(model_dir): return torch.load(model_dir + '/elsewhere.pt', weights_only=False)",
        "missing-class",
        "Can't get attribute 'Absent'",
    ),
    pytest.param(
        "def model_fn(model_dir): return torch.nn.Linear(2, 2).to('cuda')",
        "no-cuda-driver",
        "; fix: on a GPU instance choose one whose driver runs",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the driver that must be missing"),
    ),
]


@pytest.mark.slow  # torch is imported for each
@pytest.mark.parametrize(("code", "cause", "words"), TORCH_HANDLERS)
def test_a_handler_that_torch_refuses_ends_the_server_with_one_line(start_server, user_model, code, cause, words):
    model = user_model("import torch\n" + code)
    torch.save(torch.nn.Linear(2, 2), model / "module.pt")
    torch.save(torch.ones(2), model / "cpu.pt")
    edit_pickle(model / "cpu.pt", model / "gpu.pt", b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    edit_pickle(model / "module.pt", model / "elsewhere.pt", b"torch.nn.modules.linear\nLinear", b"builtins\nAbsent")
    assert_fails(start_server(model, **ONE_PROCESS), cause, words)


def edit_pickle(source, target, old, new):
    """A torch.save file with other words in its pickle: of another machine, of another module."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as edited:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):
                assert old in content
                content = content.replace(old, new)
            edited.writestr(name, content)


@pytest.mark.slow
def test_weights_of_another_network_than_the_signature_names_end_the_server(start_server, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(SIGNATURE))
    torch.save(build_network("convnet", 5, (3, 8, 8)).state_dict(), tmp_path / "net.pth")
    assert_fails(start_server(tmp_path, **ONE_PROCESS), "wrong-architecture", "does not fit 'convnet'")


@pytest.mark.slow
def test_a_program_that_does_not_answer_its_own_example_ends_the_server(start_server, tmp_path):
    """Its example input is half of what it takes: an archive edited by hand."""

    class Halved(torch.nn.Module):
        def forward(self, data):
            torch._check(data.shape[0] > 0)
            return data

    program = torch.export.export(Halved(), (torch.ones(4, 2),))
    program._example_inputs = ((torch.ones(2, 2),), {})
    torch.export.save(program, tmp_path / "net.pt2")
    assert_fails(start_server(tmp_path, **ONE_PROCESS), "warm-up", "answered with 400")


def test_a_load_that_lasts_says_where_it_is(user_model, caplog):
    model = user_model("""
        import builtins
        def model_fn(model_dir):
            return builtins.slipway_test_wait()
    """)
    said = threading.Event()
    handler = caplog.handler
    emit = handler.emit

    def emit_and_tell(record):
        emit(record)
        if "slow-load" in record.getMessage():
            said.set()

    handler.emit = emit_and_tell
    builtins.slipway_test_wait = lambda: (said.wait(60), print)[1]
    try:
        plan = plan_server(Machine(1, 8 * 1024**3, 0, True), {}, 0)
        with told_while_slow(every=0.05):
            load_predictor(model, {}, place_of(plan, "cpu"))
    finally:
        del builtins.slipway_test_wait
    line = next(record.getMessage() for record in caplog.records if "slow-load" in record.getMessage())
    assert "/ping answers 503; fix: " in line
    assert ".py:" in line
    assert os.linesep not in line


def test_every_class_of_failure_is_in_the_documents_table():
    pages = Path(__file__).parents[3] / "docs" / "serve.md"
    table = pages.read_text().partition("<!-- causes")[2].partition("\n\n")[0]
    documented = {
        cause for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for cause in re.findall(r"`([\w-]+)`", row)
    }
    raised = {
        cause
        for file in ("model_files", "model_loader", "failures", "causes")
        for cause in causes_in(SERVE / f"{file}.py")
    }
    assert documented == set(CAUSES) | raised


def causes_in(path):
    """Classes that a module names itself: as ModelFileError's first argument, or in the line."""
    text = path.read_text()
    return re.findall(r'ModelFileError\(\s*"([\w-]+)"', text) + re.findall(r"cannot start \[([\w-]+)\]", text)
