"""The same suite on real containers: the fake in an image of its own, and our two images."""

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.check.bench import Bench
from launcher.check.command import check
from launcher.check.docker_target import DockerError, DockerTarget, docker, is_of_interest
from launcher.check.materials import Patience
from launcher.check.suite import FAILED, NOT_JUDGED, PASSED, run_checks
from launcher.check.table import CHECKS
from launcher.check.target import CannotStart, Launch, NotJudged
from launcher.errors import ConfigError, JobFailed

pytestmark = [pytest.mark.docker, pytest.mark.slow]

HERE = Path(__file__).parent
BASE_IMAGE = os.environ.get("SLIPWAY_BASE_IMAGE") or "slipway-base:bookworm"
LABELS = {
    "com.amazonaws.sagemaker.capabilities.accept-bind-to-port": "true",
    "com.amazonaws.sagemaker.capabilities.multi-models": "true",
}
# Enough for an engine whose machine does something else; a container that hangs is found by its state, not by these.
PATIENCE = Patience(startup=30, training=60, training_stop=10, serving_stop=10, early_stop=10, broken_model=10)


def need_image(image: str) -> None:
    try:
        docker("image", "inspect", image)
    except DockerError:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"image {image} is not built here")


@pytest.fixture(scope="module")
def fake_image(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Builds the fake with faults baked in: `fake_image("loopback", instructions="USER 1000")`."""
    need_image(BASE_IMAGE)
    built = []

    def build(*faults: str, instructions: str = "", labels: dict = LABELS, entrypoint: str | None = None) -> str:
        context = tmp_path_factory.mktemp("context")
        (context / "fake_container.py").write_bytes((HERE / "fake_container.py").read_bytes())
        (context / "model.json").write_text("{}")
        options = [word for fault in faults for word in ("--fault", fault)]
        argv = json.dumps(["/usr/bin/python3", "/fake_container.py", *options])
        lines = [f"FROM {BASE_IMAGE}", "COPY fake_container.py /fake_container.py"]
        lines += [f'LABEL {name}="{value}"' for name, value in labels.items()]
        lines += [instructions, f"ENTRYPOINT {entrypoint or argv}"]
        (context / "Dockerfile").write_text("\n".join(lines) + "\n")
        image = f"slipway-check-test:{uuid.uuid4().hex[:12]}"
        environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
        argv_build = ["docker", "build", "--quiet", "--network=none", "--tag", image, str(context)]
        subprocess.run(argv_build, check=True, capture_output=True, env=environment)
        built.append(image)
        return image

    yield build
    if built:
        docker("rmi", "--force", *built)


@pytest.fixture
def judge_image(materials, tmp_path):
    """Runs checks by number on an image; number -> result. No container is left behind."""

    def run(image: str, *numbers: str, roles=("train", "serve"), patience=PATIENCE, **changes):
        target = DockerTarget(image)
        bench = Bench(target, replace(materials, **changes), tmp_path / "bench", roles, patience)
        try:
            wanted = [one for one in CHECKS if one.number in numbers or not numbers]
            results = run_checks(wanted, bench, lambda result: None)
        finally:
            bench.close()
        assert docker("ps", "--all", "--quiet", "--filter", f"label={target.label}").strip() == ""
        return {result.check.number: result for result in results}

    return run


def test_an_image_that_keeps_the_contract_passes_every_check(fake_image, judge_image):
    results = judge_image(fake_image("reaps"))
    assert {number: result.message for number, result in results.items() if result.outcome != PASSED} == {}


# Check, the image that breaks it, and what the failure must say.
BROKEN = [
    ("C7", {"instructions": "USER 10001"}, "mode 0644|Permission|permission"),
    ("C12", {"faults": ("waits-for-killed-worker",)}, "zombies"),
    ("C69", {"faults": ("needs-network",)}, "EnableNetworkIsolation"),
    ("C142", {"faults": ("needs-shared-memory",)}, "read-only root"),
    ("C1", {"entrypoint": "python3 /fake_container.py"}, "shell form"),
    ("C5", {"instructions": "COPY model.json /opt/ml/model/model.json"}, "model.json"),
    ("C6", {"instructions": "COPY model.json /usr/lib/libcuda.so.580"}, "libcuda.so.580"),
    ("C46", {"faults": ("ignores-killed-worker",)}, "Completed"),
    ("C82", {"faults": ("loopback",)}, "127.0.0.1:8080 only"),
    ("C104", {"faults": ("writes-into-the-model",)}, "read-only"),
    ("C129", {"labels": {}}, "Docker label"),
]


@pytest.mark.parametrize(("number", "image", "said"), BROKEN, ids=[case[0] for case in BROKEN])
def test_a_check_fails_on_an_image_that_breaks_its_statement(fake_image, judge_image, number, image, said):
    options = dict(image)
    built = fake_image(*options.pop("faults", ()), **options)
    roles = {"C12": ("train",), "C46": ("train",)}.get(number, ("train", "serve"))
    result = judge_image(built, number, roles=roles, patience=replace(PATIENCE, startup=8))[number]
    assert result.outcome == FAILED, result
    assert any(words in result.message for words in said.split("|")), result.message


def test_a_program_that_is_itself_pid_1_need_not_reap(fake_image, judge_image):
    assert judge_image(fake_image(), "C12", roles=("serve",))["C12"].outcome == PASSED


def test_a_pid_1_that_ends_with_its_main_child_need_not_reap(fake_image, judge_image):
    assert judge_image(fake_image(), "C12", roles=("train",))["C12"].outcome == PASSED


def test_without_the_label_multi_model_mode_is_not_judged(fake_image, judge_image):
    results = judge_image(fake_image(labels={}), "C115", "C116")
    assert {result.outcome for result in results.values()} == {NOT_JUDGED}
    assert "multi-models" in results["C115"].message


def test_an_image_without_an_entry_point_is_judged_by_its_start(fake_image, judge_image):
    results = judge_image(fake_image(entrypoint="[]"), "C1", "C2", "C3", "C4", "C41", "C74", "C85")
    outcomes = {number: result.outcome for number, result in results.items()}
    assert outcomes["C1"] == NOT_JUDGED
    assert outcomes["C2"] == outcomes["C3"] == FAILED
    assert "CannotStartContainerError" in results["C2"].message
    assert outcomes["C41"] == NOT_JUDGED
    assert outcomes["C85"] == NOT_JUDGED
    assert outcomes["C4"] == outcomes["C74"] == PASSED  # the engine says that there is nothing to run


def test_a_strangers_image_is_judged_without_its_materials(fake_image):
    image = fake_image("reaps")
    done = CliRunner().invoke(check, [image, "--role", "serve", "--only", "serve,limits"])
    assert done.exit_code == 0, done.output
    assert "not judged C84 C86" in done.output
    assert "give --request FILE" in " ".join(done.output.split())


def test_a_strangers_image_is_judged_with_its_materials(fake_image, materials, tmp_path):
    (tmp_path / "request.json").write_text('{"a": 1}')
    options = ["--model", str(materials.model), "--request", str(tmp_path / "request.json"), "--json"]
    done = CliRunner().invoke(check, [fake_image("always-400"), *options, "--only", "serve"])
    assert done.exit_code == 0, done.output  # C94 is an S
    others = {one["check"]: one for one in json.loads(done.stdout)["checks"] if one["outcome"] != PASSED}
    assert others.pop("C94")["outcome"] == FAILED
    assert others.pop("C87")["outcome"] == NOT_JUDGED  # no slow request was given
    assert others == {}


def test_an_image_of_ours_that_cannot_make_its_sample_model_is_told(fake_image):
    image = fake_image(labels={"org.opencontainers.image.title": "slipway-serve"})
    done = CliRunner().invoke(check, [image, "--only", "serve"])
    assert isinstance(done.exception, JobFailed)
    assert "sample model" in str(done.exception)


def test_files_of_root_are_handed_back_to_the_caller(fake_image, tmp_path, monkeypatch):
    (tmp_path / "of-root").touch()
    monkeypatch.setattr(os, "getuid", lambda: 10001)
    DockerTarget(fake_image()).reclaim(tmp_path)
    assert (tmp_path / "of-root").stat().st_uid == 10001
    with pytest.raises(NotJudged, match="cannot hand back"):
        DockerTarget("slipway-no-such-image:none").reclaim(tmp_path)


def test_what_an_image_can_do_must_be_said_when_nothing_tells_it(fake_image):
    done = CliRunner().invoke(check, [fake_image()])
    assert isinstance(done.exception, ConfigError)
    assert "--role train" in str(done.exception)


def test_an_image_without_find_is_listed_from_an_export(fake_image):
    target = DockerTarget(fake_image(instructions="COPY model.json /opt/ml/code/model.json"))
    assert "/opt/ml/code/model.json" in target.exported_files()
    assert set(target.exported_files()) == set(target.image().files)


def test_a_command_that_the_container_lacks_is_not_judged(fake_image):
    running = DockerTarget(fake_image()).start(Launch(("/usr/bin/python3", "-c", "import time; time.sleep(30)")))
    try:
        with pytest.raises(NotJudged, match="no-such-command"):
            running.execute("no-such-command")
        assert running.execute("/bin/echo", "here") == (0, "here\n")
    finally:
        running.remove()
        running.remove()  # a second time does no harm


def test_an_image_that_cannot_be_executed_cannot_start(fake_image):
    with pytest.raises(CannotStart, match="CannotStartContainerError"):
        DockerTarget(fake_image(entrypoint='["/no/such/program"]')).start(Launch(("train",)))


def test_an_image_that_is_not_there_is_a_mistake_of_the_caller():
    done = CliRunner().invoke(check, ["slipway-no-such-image:none"])
    assert isinstance(done.exception, ConfigError)
    assert "slipway-no-such-image:none" in str(done.exception)


def test_the_paths_of_interest_are_the_same_in_an_export():
    interesting = ("/opt/ml/a", "/usr/lib/libcuda.so.1", "/lib/modules/6/nvidia.ko", "/var/lib/dpkg/info/nvidia-x.list")
    assert all(map(is_of_interest, interesting))
    assert not any(map(is_of_interest, ("/opt/ml/", "/usr/lib/libc.so.6", "/var/lib/dpkg/info/python3.list")))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("image", ["slipway-train:local", "slipway-serve:local"])
def test_our_image_passes_every_check(image, tmp_path):
    need_image(image)
    done = CliRunner().invoke(check, [image, "--json", "--strict", "--junit", str(tmp_path / "junit.xml")])
    results = json.loads(done.stdout)["checks"]
    assert [(one["check"], one["message"]) for one in results if one["outcome"] == FAILED] == []
    assert done.exit_code == 0
    not_judged = {one["check"] for one in results if one["outcome"] == NOT_JUDGED}
    assert not_judged <= {"C10", "C115", "C116", "C117", "C118", "C119"}
