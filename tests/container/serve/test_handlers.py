import sys
from pathlib import Path

import pytest

from container import contract
from container.serve.handlers import Context, HandlerError, find_program, load_functions


@pytest.fixture
def program(tmp_path):
    def write(code):
        path = tmp_path / "inference.py"
        path.write_text(code)
        return path

    return write


@pytest.mark.parametrize(
    "code",
    [
        "def predict_fn(data, model): return (data, model)",
        "def predict_fn(data, model, context): return (data, model, context)",
        "def predict_fn(data, model, ctx): return (data, model, ctx)",
        "def predict_fn(data, model, *, context): return (data, model, context)",
        "def predict_fn(data, model, context=None): return (data, model, context)",
        "def predict_fn(data, model, temperature=0.7): return (data, model)",
        "def predict_fn(*arguments): return arguments",
        "class P:\n  def __call__(self, data, model): return (data, model)\npredict_fn = P()",
    ],
)
def test_functions_are_called_with_context_when_they_take_it(program, code):
    result = load_functions(program(code)).predict_fn("d", "m", "c")
    assert result in (("d", "m"), ("d", "m", "c"))
    assert len(result) == (3 if "context" in code or "ctx" in code else 2)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def predict_fn(data): pass",
            r"inference.py:1: predict_fn\(data\) does not fit; write predict_fn\(data, model\)",
        ),
        ("\ndef output_fn(a, b, c, d): pass", r"inference.py:2: output_fn"),
        ("def model_fn(): pass", r"model_fn\(\) does not fit"),
        ("def input_fn(data, *, context): pass", "does not fit"),
        ("predict_fn = 3", "predict_fn is no function"),
        ("async def predict_fn(data, model): pass", "is async"),
        ("def predict(data): pass", "defines none of pre_model_fn, model_fn"),
    ],
)
def test_a_signature_that_does_not_fit_is_found_at_load(program, code, message):
    with pytest.raises(HandlerError, match=message):
        load_functions(program(code))


def test_c107_transform_fn_beside_a_function_it_replaces_is_an_error(program):
    code = "def transform_fn(model, data, content_type, accept): pass\ndef input_fn(data, content_type): pass\n"
    with pytest.raises(HandlerError, match="defines transform_fn and input_fn"):
        load_functions(program(code))


@pytest.fixture
def no_modules_stay():
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]


def test_the_users_file_is_imported_once_and_found_by_its_own_name(tmp_path, no_modules_stay):
    """Pickles of its classes, spawned processes and modules beside it name it so; it runs once all the same."""
    (tmp_path / "slipway_serve_it.py").write_text("import beside\ndef predict_fn(data, model): return beside.it\n")
    (tmp_path / "beside.py").write_text("import slipway_serve_it as it\n")
    functions = load_functions(tmp_path / "slipway_serve_it.py")
    assert functions.predict_fn("d", "m", "c") is sys.modules["slipway_serve_it"]


def test_the_users_file_does_not_take_another_modules_name(tmp_path, no_modules_stay):
    (tmp_path / "json.py").write_text("def predict_fn(data, model): pass")
    load_functions(tmp_path / "json.py")
    assert "predict_fn" not in vars(sys.modules["json"])
    assert "slipway_user_json" in sys.modules


def test_c107_the_program_is_found_in_the_model_directory_or_where_it_was_submitted(tmp_path):
    assert find_program(tmp_path, {}) is None
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").touch()
    assert find_program(tmp_path, {}) == tmp_path / "code" / "inference.py"
    submitted = tmp_path / "submitted"
    submitted.mkdir()
    (submitted / "serve_me.py").touch()
    environ = {"SAGEMAKER_PROGRAM": "serve_me.py", "SAGEMAKER_SUBMIT_DIRECTORY": f"file://{submitted}"}
    assert find_program(tmp_path, environ) == submitted / "serve_me.py"


def test_c107_the_models_own_code_goes_before_what_is_baked_into_the_image(tmp_path, monkeypatch):
    image, model = tmp_path / "image", tmp_path / "model"
    monkeypatch.setattr(contract, "IMAGE_CODE_DIR", image)
    for directory in (image, model / "code"):
        directory.mkdir(parents=True)
        (directory / "inference.py").touch()
    (image / "baked.py").touch()
    assert find_program(model, {}) == model / "code" / "inference.py"
    assert find_program(tmp_path / "empty", {}) == image / "inference.py"
    assert find_program(model, {"SAGEMAKER_PROGRAM": "baked.py"}) == image / "baked.py"


def test_c106_empty_program_and_submit_directory_are_unset(tmp_path):
    assert find_program(tmp_path, {"SAGEMAKER_PROGRAM": "", "SAGEMAKER_SUBMIT_DIRECTORY": ""}) is None


def test_a_program_that_is_nowhere_is_named_with_the_places_looked_at(tmp_path):
    with pytest.raises(HandlerError, match=r"SAGEMAKER_PROGRAM='absent.py' is in none of: .*code"):
        find_program(tmp_path, {"SAGEMAKER_PROGRAM": "absent.py"})


def test_a_program_without_a_python_suffix_is_refused(tmp_path):
    path = tmp_path / "inference.txt"
    path.write_text("")
    with pytest.raises(HandlerError, match=r"ends in \.py"):
        load_functions(Path(path))


def test_the_context_speaks_the_language_of_aws_toolkits():
    context = Context(
        {"x-amzn-sagemaker-custom-attributes": "a=1", "x-amzn-sagemaker-inference-id": "i"}, "/m", "cuda:3"
    )
    assert (context.custom_attributes, context.inference_id) == ("a=1", "i")
    assert context.system_properties == {"model_dir": "/m", "gpu_id": 3, "batch_size": 1}
    assert context.get_request_header(0, "X-Amzn-SageMaker-Inference-Id") == "i"
    context.set_response_content_type(0, "text/plain")
    context.set_response_header("X-A", "b")
    assert context.response_headers == {"Content-Type": "text/plain", "X-A": "b"}
    assert Context({}, "/m", "cpu").system_properties["gpu_id"] is None
