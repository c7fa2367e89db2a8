"""Batches are as large as this machine gains from, and never change an answer."""

import gc
import json
import logging
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from container.model import ModelSignature
from container.serve import batch_size, memory
from container.serve.array_model import ArrayModel
from container.serve.classifier import ImageClassifier
from container.serve.handlers import UserFunctions
from container.serve.health import Health
from container.serve.load import is_measured, place_of, tune
from container.serve.plan import Machine, plan_server
from container.serve.predictor import NO_FUNCTIONS, Predictor, load_predictor
from container.serve.quick import Quick
from container.serve.service import Service

MACHINE = Machine(cores=1, memory_bytes=8 * 1024**3, gpus=0, shm_writable=True)
SIGNATURE = ModelSignature("convnet", ("a", "b"), 1, 4, 4, (0.5,), (0.25,))


class MixesNeighbours(nn.Module):
    """A batch norm in training mode, whatever mode the module is in."""

    def forward(self, images):
        return nn.functional.batch_norm(images, None, None, training=True).flatten(1)[:, :2]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def forward(self, images):
        return self.layer(images.flatten(1))


@pytest.fixture
def took(monkeypatch):
    """Says how long a record takes in a batch of each size, in place of the clock."""

    def set_seconds(table):
        monkeypatch.setattr(batch_size, "measure", lambda predict, records, size, wait: (table[size], table[2 * size]))

    return set_seconds


def tuned(defaults, environ=None, functions=NO_FUNCTIONS):
    """A service and its predictor after the measuring."""
    environ = environ or {}
    service = Service(plan_server(MACHINE, environ, 0), Health(1))
    predictor = Predictor(defaults.model, defaults, functions, None, None, Quick())
    tune(service, predictor, environ)
    return service, predictor


def classifier(network):
    return ImageClassifier(network.eval(), SIGNATURE, "cpu", "application/json")


def limit(service):
    return service._batcher._max_batch_size


def test_the_batch_grows_until_a_record_takes_no_less_time(took, caplog):
    took({1: 1.0, 2: 0.9, 4: 0.5, 8: 0.49})
    with caplog.at_level(logging.INFO):
        service, _ = tuned(classifier(Small()))
    assert limit(service) == 4
    line = (
        "at most 4 requests share a batch: 8 gain less than 5% a record (ms a record, 1: 1e+03, 2: 900, 4: 500, 8: 490)"
    )
    assert line in caplog.text


def test_the_batch_never_passes_the_plans(took):
    took({2**power: 2.0**-power for power in range(8)})
    service, _ = tuned(classifier(Small()))
    assert limit(service) == service.plan.max_batch_size == 32


def test_the_batch_stays_where_twice_as_many_may_not_fit_into_memory(took):
    took({1: 1.0, 2: 0.1})
    records = [np.zeros(1)] * 8
    size, line = batch_size.fitting_batch_size(lambda batch: list(batch), records, bound_bytes=1, threads=1)
    assert size == 1
    assert "twice as many may need" in line


def test_the_peak_is_what_was_held_at_most_and_not_what_is_left():
    assert memory.peak_growth(lambda: np.ones(8 * 1024**2).sum()) > 60e6
    assert memory.peak_growth(lambda: None) < 60e6


def test_where_the_peak_cannot_be_reset_what_is_left_counts(monkeypatch):
    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr(memory.Path, "write_text", refuse)
    kept = []
    assert memory.peak_growth(lambda: kept.append(np.ones(8 * 1024**2))) > 60e6


@pytest.mark.parametrize("environ", [{"SLIPWAY_MAX_BATCH_SIZE": "16"}, {"SLIPWAY_TUNE": "false"}])
def test_a_limit_that_the_user_set_stands(environ, took):
    took({1: 1.0, 2: 1.0})
    service, _ = tuned(classifier(Small()), environ)
    assert limit(service) == service.plan.max_batch_size


def test_a_model_without_an_example_is_not_measured(took):
    took({})
    service, _ = tuned(ArrayModel(nn.Linear(4, 2), "cpu", "application/json"))
    assert limit(service) == 32


def test_an_example_that_may_not_be_changed_leaves_the_plan_as_it_is(caplog):
    class Refuses(nn.Module):
        def forward(self, data):
            if data.any():
                raise RuntimeError("only zeros")
            return data

    service, _ = tuned(ArrayModel(Refuses(), "cpu", "application/json", np.zeros((1, 4), np.float32)))
    assert limit(service) == 32
    assert "batches are not measured: only zeros" in caplog.text


def test_images_that_change_with_their_neighbours_are_shown_one_at_a_time(caplog):
    with caplog.at_level(logging.INFO):
        service, predictor = tuned(classifier(MixesNeighbours()))
    assert limit(service) == 1
    assert "one record at a time is served" in caplog.text
    one, other = predictor.defaults.examples(2)
    together = predictor.defaults.predict([torch.cat([one, other])])[0]  # also those of one request
    assert np.allclose(together[:1], predictor.defaults.predict([one])[0])


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_arrays_that_change_with_their_neighbours_share_no_batch(dtype, caplog):
    class Sums(nn.Module):
        def forward(self, data):
            return data * torch.arange(data.shape[1]) + data[:, 0].sum()

    example = np.arange(1, 5, dtype=dtype)[None]
    with caplog.at_level(logging.INFO):
        service, predictor = tuned(ArrayModel(Sums(), "cpu", "application/json", example))
    assert limit(service) == 1
    assert predictor.batch_key(example) is None
    assert "one record at a time is served" in caplog.text


def test_the_clock_tells_what_a_batch_gains():
    def predict(batch):
        return list(batch)

    assert min(batch_size.measure(predict, [1, 2, 3, 4], 2)) > 0


def test_the_network_as_it_was_loaded_is_freed_where_another_form_is_served(artifact, monkeypatch):
    from container.serve import tuning

    table = {"as loaded": 1.0, "channels last": 0.9, "frozen": 0.1}
    monkeypatch.setattr(tuning, "measure", lambda forms, example, until: {name: table[name] for name in forms})
    plan = plan_server(MACHINE, {}, 0)
    predictor = load_predictor(artifact, {}, place_of(plan, "cpu"))
    loaded, size = weakref.ref(predictor.model), predictor.memory_bytes
    service = Service(plan, Health(1))
    service.serve(predictor)
    try:
        tune(service, predictor, {})
        gc.collect()
        assert loaded() is None
        assert predictor.memory_bytes == size > 0
        assert predictor.defaults.interface().classes
        assert predictor.defaults.predict(predictor.defaults.examples(1))[0].shape == (1, 10)
    finally:
        service.stop()


def test_the_users_functions_keep_the_network_as_it_was_loaded(took):
    took({})
    _, predictor = tuned(classifier(Small()), functions=UserFunctions(output_fn=lambda *arguments: b""))
    assert isinstance(predictor.model, Small)


def test_the_warm_up_is_not_judged_by_the_limit_of_a_callers_body(open_door, artifact):
    door = open_door(artifact, {"SLIPWAY_MAX_REQUEST_BYTES": "10"})
    assert door.request("GET", "/ping").status == 200
    headers = {"Content-Type": "application/json"}
    assert door.request("POST", "/invocations", json.dumps([0] * 64).encode(), headers).status == 413


def test_each_batch_is_measured_when_nobody_else_computes():
    happened = []
    batch_size.measure(lambda records: happened.append(len(records)), [1, 2], 1, lambda: happened.append("quiet"))
    assert happened[::2] == ["quiet"] * (len(happened) // 2)
    assert set(happened[1::2]) == {1, 2}


def test_a_batch_that_the_devices_memory_does_not_hold_is_not_formed():
    def predict(records):
        if len(records) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        time.sleep(0.002)  # the same for any batch: more are always worth it
        return list(records)

    size, line = batch_size.fitting_batch_size(predict, list(range(16)), None, 1)
    assert size == 4
    assert "8 do not fit into the device's memory" in line


def test_batches_are_measured_on_every_device_and_forms_on_cpus():
    for environ, measured in (({}, True), ({"SLIPWAY_TUNE": "true"}, True), ({"SLIPWAY_TUNE": "false"}, False)):
        assert is_measured(environ) is measured
        assert is_measured({**environ, "SLIPWAY_MAX_BATCH_SIZE": "8"}) is False
