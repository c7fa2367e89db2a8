"""What can be read off the built images, and how they take their arguments."""

import json
import subprocess

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]  # the first one builds


@pytest.fixture(params=["train", "serve"])
def image(request) -> str:
    return request.getfixturevalue(f"{request.param}_image")


def inspect(image: str) -> dict:
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[0]


def test_c1_the_entry_point_is_an_absolute_executable_in_exec_form(image, docker):
    entry_point = inspect(image)["Config"]["Entrypoint"]
    assert isinstance(entry_point, list)
    assert entry_point[0].startswith("/")
    docker("run", "--rm", "--entrypoint", "test", image, "-x", entry_point[0])


def test_the_training_image_trains_when_it_gets_no_argument(train_image):
    assert inspect(train_image)["Config"]["Cmd"] == ["train"]  # the SDK's local mode passes none


def test_c74_the_serving_image_answers_no_argument_with_the_usage(serve_image, docker):
    done = docker("run", "--rm", serve_image, check=False)
    assert done.returncode == 64
    assert "no argument was given" in done.stderr


def test_c4_an_unknown_argument_ends_with_the_usage(image, docker):
    done = docker("run", "--rm", image, "no-such-command", check=False)
    assert done.returncode == 127
    assert "Usage: docker run IMAGE" in done.stderr


def test_each_image_names_the_role_it_does_not_hold(train_image, serve_image, docker):
    assert "this image cannot serve" in docker("run", "--rm", train_image, "serve", check=False).stderr
    assert "this image cannot train" in docker("run", "--rm", serve_image, "train", check=False).stderr


def test_c5_nothing_lies_under_opt_ml(image, docker):
    done = docker("run", "--rm", "--entrypoint", "sh", image, "-c", "find /opt/ml 2>/dev/null | wc -l")
    assert done.stdout.strip() == "0"


def test_c6_no_driver_is_in_the_image(image, docker):
    script = (
        "find / -xdev -name 'libcuda.so*' -not -path '*/compat/*'; dpkg -l | grep -E 'nvidia-(driver|kernel)' || true"
    )
    assert docker("run", "--rm", "--entrypoint", "sh", image, "-c", script).stdout == ""


def test_no_build_tool_is_left_in(image, docker):
    script = "for tool in gcc cc g++ make ld; do command -v $tool; done; true"
    assert docker("run", "--rm", "--entrypoint", "sh", image, "-c", script).stdout == ""


def test_both_images_share_their_layers_down_to_torch(train_image, serve_image):
    training, serving = (inspect(image)["RootFS"]["Layers"] for image in (train_image, serve_image))
    shared = [layer for layer, other in zip(training, serving, strict=False) if layer == other]
    assert len(shared) >= len(inspect_base_layers(train_image)) + 3  # system packages, the lock file, torch
    assert training[: len(shared)] == serving[: len(shared)]


def inspect_base_layers(image: str) -> list[str]:
    """The base's own layers: those below the first of ours, found by the number of instructions that add one."""
    history = subprocess.run(
        ["docker", "history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", image],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    ours = next(index for index, line in enumerate(history) if "python3-venv" in line)
    return [line for line in history[ours + 1 :] if not line.startswith("0B")]


def test_c129_the_serving_image_says_that_it_binds_where_it_is_told(serve_image):
    labels = inspect(serve_image)["Config"]["Labels"]
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"


def test_c114_no_capability_is_claimed_without_tests(train_image, serve_image):
    claimed = {
        name.rpartition(".")[2]
        for image in (train_image, serve_image)
        for name in inspect(image)["Config"]["Labels"]
        if name.startswith("com.amazonaws.sagemaker.capabilities.")
    }
    assert claimed == {"accept-bind-to-port", "bidirectional-streaming", "multi-models"}  # C128; C111; C115..C127


def test_c144_the_images_are_within_the_serverless_limit(image):
    assert inspect(image)["Size"] < 10e9


def test_no_secret_is_in_the_images_environment(image):
    names = [entry.partition("=")[0].lower() for entry in inspect(image)["Config"]["Env"]]
    assert not [name for name in names if any(word in name for word in ("secret", "password", "token", "credential"))]


def test_the_serving_image_holds_no_aws_sdk(serve_image, docker):
    script = (
        "import importlib.util as u; print([m for m in ('boto3', 'sagemaker', 'sagemaker_training') if u.find_spec(m)])"
    )
    assert docker("run", "--rm", serve_image, "python", "-c", script).stdout.strip() == "[]"
