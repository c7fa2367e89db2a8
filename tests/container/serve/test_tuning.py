"""A network is served in another form only where that is faster and gives the same answers."""

import logging
import types

import pytest
import torch
from torch import nn

from container.model import build_network
from container.serve import tuning
from container.serve.load import is_tuned, tune_network

IMAGES = [torch.rand(count, 1, 8, 8) for count in (1, 3)]


class Own(nn.Module):
    def forward(self, images):
        return images.flatten(1) * len(images)  # a trace would keep the length


@pytest.fixture(autouse=True)
def _inference():
    """As the server predicts."""
    with torch.inference_mode():
        yield


@pytest.fixture
def network():
    return build_network("convnet", 3, (1, 8, 8)).eval()


@pytest.fixture
def took(monkeypatch):
    """Says how long each form took, in place of the clock."""

    def set_seconds(**seconds):
        table = {name.replace("_", " "): value for name, value in seconds.items()}
        monkeypatch.setattr(tuning, "measure", lambda forms, example, until: {name: table[name] for name in forms})

    return set_seconds


@pytest.mark.parametrize("form", ["channels last", "frozen"])
def test_the_fastest_form_is_taken_and_agrees(network, took, form):
    took(as_loaded=1.0, **{"channels_last": 0.9, "frozen": 0.9, form.replace(" ", "_"): 0.5})
    served, line = tuning.fastest_form(network, IMAGES)
    assert served is not network
    assert line.startswith(f"the network is served {form}: as loaded 1000.00 ms, ")
    for images in IMAGES:
        assert torch.allclose(served(images), network(images), atol=1e-4)


def test_a_form_that_gains_too_little_is_not_taken(network, took):
    took(as_loaded=1.0, channels_last=0.96, frozen=1.2)
    served, line = tuning.fastest_form(network, IMAGES)
    assert served is network
    assert line.startswith("the network is served as loaded")


def test_a_form_with_other_answers_is_left_out_and_named(network, took, monkeypatch):
    took(as_loaded=1.0, channels_last=0.9, frozen=0.1)
    monkeypatch.setitem(tuning.FORMS, "frozen", lambda network, example: lambda images: network(images) + 1)
    served, line = tuning.fastest_form(network, IMAGES)
    assert torch.allclose(served(IMAGES[1]), network(IMAGES[1]), atol=1e-4)
    assert line.endswith("; other answers: frozen")
    monkeypatch.setitem(tuning.FORMS, "frozen", lambda network, example: lambda images: network(images)[:1])
    assert "other answers: frozen" in tuning.fastest_form(network, IMAGES)[1]


def test_a_network_of_the_users_own_and_a_program_are_never_traced(took):
    took(as_loaded=1.0)
    program = torch.export.export(nn.Flatten(), (IMAGES[1],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for module in (Own(), program):
        assert tuning.fastest_form(module, IMAGES)[0] is module


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_frozen_without_a_trace(network, took):
    took(as_loaded=1.0, frozen=0.5)
    script = torch.jit.script(network)
    served, line = tuning.fastest_form(script, IMAGES)
    assert line.startswith("the network is served frozen")
    assert torch.allclose(served(IMAGES[1]), network(IMAGES[1]), atol=1e-4)


def test_a_network_that_cannot_be_traced_stays(network, took, monkeypatch):
    took(as_loaded=1.0, channels_last=2.0)

    def refuse(*arguments, **options):
        raise RuntimeError("no")

    monkeypatch.setattr(torch.jit, "trace", refuse)
    assert tuning.fastest_form(network, IMAGES)[0] is network


def test_without_time_for_any_form_the_network_stays_and_nothing_is_said(network):
    assert tuning.fastest_form(network, IMAGES, within=1e-9) == (network, "")


def test_further_forms_that_there_is_no_time_for_are_left_out(network, monkeypatch):
    monkeypatch.setattr(tuning, "FORWARD_PASSES", 0)
    line = tuning.fastest_form(network, IMAGES, within=1e-9)[1]
    assert "frozen" in line
    assert "channels last" not in line


def test_measuring_ends_with_its_time_but_not_before_two_runs(network):
    runs = []
    tuning.measure({"counted": runs.append}, torch.zeros(1), until=0.0)
    assert len(runs) == 3  # the first warms up


def test_every_form_is_timed(network):
    seconds = tuning.measure({"one": network, "two": network}, IMAGES[0])
    assert seconds.keys() == {"one", "two"}
    assert min(seconds.values()) > 0


@pytest.mark.parametrize(
    ("device", "value", "tuned"),
    [
        ("cpu", None, True),
        ("cpu", "", True),
        ("cpu", "false", False),
        ("cuda:0", None, False),
        ("cuda:0", "true", True),
    ],
)
def test_cpus_are_tuned_unless_switched_off_and_gpus_if_asked(device, value, tuned):
    assert is_tuned(device, {} if value is None else {"SLIPWAY_TUNE": value}) is tuned


def test_a_form_that_does_not_fit_into_memory_leaves_the_model_as_it_is(caplog):
    def fail(within):
        raise torch.OutOfMemoryError("CUDA out of memory")

    predictor = types.SimpleNamespace(defaults=types.SimpleNamespace(device="cpu"), tune=fail)
    with caplog.at_level(logging.WARNING):
        assert not tune_network(predictor)
    assert "is served as it was loaded: CUDA out of memory" in caplog.text
