"""A built image is checked before it is pushed; each check has an image that fails it."""

import json

import pytest

from launcher import cli
from launcher.config.images import ServingImage
from launcher.images import build as images
from launcher.images.check import check_image, manifest
from launcher.images.registry import DOCKER_MANIFEST, INDEXES

GOOD = 'FROM scratch\nCOPY app /app\nENTRYPOINT ["/app/python", "-m", "container"]\n'
pytestmark = pytest.mark.docker


@pytest.fixture
def findings(tmp_path, image_names):
    """Builds a Dockerfile and returns the outcome of every check by name."""

    def build(dockerfile, instance_types=("ml.g5.xlarge",), **settings):
        image = ServingImage(repository=image_names("check"), tag="1", **settings)
        (tmp_path / "Dockerfile.serve").write_text(dockerfile)
        for name in ("app/python", "secret/.aws/credentials", "model/weights"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x" * 2000)
        images.build(image, tmp_path)
        found = check_image(images.engine(), image, images.local_reference(image), list(instance_types))
        return {item.check: item for item in found}

    return build


def test_a_good_image_passes_every_check(findings):
    found = findings(GOOD)
    assert {item.status for item in found.values()} == {"ok"}
    assert "largest: 2.0 KB COPY" in found["size"].detail


@pytest.mark.parametrize(
    ("dockerfile", "check", "status", "words"),
    [
        ("FROM scratch\nCOPY app /app\n", "entry point", "warn", "there is no ENTRYPOINT"),
        ("FROM scratch\nCOPY app /app\nENTRYPOINT python -m x\n", "entry point", "fail", "shell form"),
        ('FROM scratch\nCOPY app /app\nENTRYPOINT ["tini", "--", "x"]\n', "entry point", "warn", "misreads"),
        ('FROM scratch\nCOPY app /app\nENTRYPOINT ["python"]\n', "entry point", "warn", "searched on PATH"),
        (GOOD + "USER 1000\n", "user", "fail", "hosting expects root"),
        (GOOD + "ENV API_TOKEN=ghp_0123456789abcdefghijABCDEFGHIJ012345\n", "environment", "fail", "API_TOKEN"),
        (GOOD + "COPY secret /root\n", "files", "fail", "/root/.aws/credentials holds credentials"),
        (GOOD + "COPY model /opt/ml/model\n", "files", "warn", "may be hidden at run time"),
    ],
)
def test_each_fault_is_found_and_named(dockerfile, check, status, words, findings):
    found = findings(dockerfile)[check]
    assert found.status == status
    assert words in found.detail
    assert found.fix


def test_an_image_for_another_processor_is_refused(findings):
    found = findings(GOOD, instance_types=["ml.m5.large", "ml.m7g.large"])["architecture"]
    assert (found.status, found.detail) == ("fail", "the image is amd64 and ml.m7g.large runs arm64")


def test_an_image_over_its_budget_is_refused(findings):
    assert findings(GOOD, max_size_gb=1e-6)["size"].status == "fail"


def test_c144_an_image_too_large_for_serverless_is_told(findings, monkeypatch):
    monkeypatch.setattr("launcher.images.check.SERVERLESS_IMAGE_BYTES", 1000)
    found = findings(GOOD)["serverless size"]
    assert found.status == "warn"
    assert "above the 10 GB" in found.detail


def test_a_secret_given_as_build_argument_is_found_in_the_history(findings):
    dockerfile = "FROM scratch\nCOPY app /app\nLABEL token=ghp_0123456789abcdefghijABCDEFGHIJ012345\n"
    found = findings(dockerfile)["history"]
    assert found.status == "fail"
    assert "has a credential in token" in found.detail


def test_the_verb_prints_the_checks_and_fails_with_them(findings, image_names, tmp_path, monkeypatch, capsys):
    findings(GOOD + "USER 1000\n")
    monkeypatch.chdir(tmp_path)
    settings = f"images: {{serving: {{repository: {image_names('check')}, tag: '1'}}}}"
    (tmp_path / "launcher.yaml").write_text(settings)
    assert cli.main(["image", "check", "serving", "--json"]) == 5
    captured = capsys.readouterr()
    assert "1 checks failed: user" in captured.err
    checks = {item["check"]: item["status"] for item in json.loads(captured.out)["serving"]}
    assert checks["user"] == "fail"


@pytest.mark.parametrize("kind", sorted(INDEXES))
def test_an_index_of_several_images_is_refused_before_it_is_pushed(kind):
    found = manifest({"Descriptor": {"mediaType": kind}})
    assert (found.check, found.status) == ("manifest", "fail")
    assert kind in found.detail


@pytest.mark.parametrize("attributes", [{}, {"Descriptor": None}, {"Descriptor": {"mediaType": DOCKER_MANIFEST}}])
def test_one_image_may_be_pushed(attributes):
    assert manifest(attributes).status == "ok"


def test_the_contract_suite_has_a_verb_of_its_own_for_json(capsys):
    assert cli.main(["image", "check", "--contract", "--json"]) == 2
    assert "`python -m launcher check IMAGE --json` has" in capsys.readouterr().err
