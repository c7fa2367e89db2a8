"""What the built-in program leaves is what serving can load."""

import logging

import pytest

from container.model import ModelFormatError, ModelSignature, build_network, save_model
from container.train.results import check_artifact


@pytest.fixture
def artifact(tmp_path):
    signature = ModelSignature("convnet", ("a", "b"), 1, 8, 8, (0.5,), (0.25,))
    save_model(tmp_path, build_network("convnet", 2, (1, 8, 8)), signature)
    return tmp_path


@pytest.fixture
def damaged(artifact):
    (weights,) = artifact.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    return artifact


def test_an_artifact_that_loads_again_passes(artifact):
    check_artifact(artifact)


@pytest.mark.parametrize("value", ["", "true"])
def test_an_artifact_that_does_not_load_again_fails_the_job(damaged, monkeypatch, value):
    monkeypatch.setenv("SLIPWAY_REQUIRE_MODEL", value)
    with pytest.raises(ModelFormatError, match="does not fit its signature"):
        check_artifact(damaged)


def test_switched_off_it_is_a_warning(damaged, monkeypatch, caplog):
    monkeypatch.setenv("SLIPWAY_REQUIRE_MODEL", "false")
    with caplog.at_level(logging.WARNING):
        check_artifact(damaged)
    assert "does not load again and cannot be served" in caplog.text
