import math

import pytest
import torch

from container.model import load_model
from container.serve import batch_size, tuning
from container.serve.classifier import ImageClassifier


@pytest.fixture
def model(artifact):
    return ImageClassifier(*load_model(artifact), "cpu", "application/json")


def test_a_tuned_network_gives_the_same_answers(model, monkeypatch):
    monkeypatch.setattr(tuning, "measure", lambda forms, example, until: {name: -len(name) for name in forms})
    images = torch.rand(5, 1, 8, 8)
    before = model.predict([images])[0]
    assert model.tune(keep_loaded=True, within=math.inf).startswith("the network is served channels last")
    assert model.network is not model.model
    assert torch.allclose(torch.from_numpy(before), torch.from_numpy(model.predict([images])[0]), atol=1e-5)


def test_several_requests_in_one_batch_get_what_each_gets_alone(model):
    inputs = [torch.rand(count, 1, 8, 8) for count in (1, 3, 2)]
    together = model.predict(inputs)
    for data, rows in zip(inputs, together, strict=True):
        assert rows.shape == (len(data), 10)
        assert torch.allclose(torch.from_numpy(rows), torch.from_numpy(model.predict([data])[0]), atol=1e-5)


def test_a_request_of_very_many_images_never_shows_the_network_all_of_them(model):
    shown = []

    def network(images):
        shown.append(len(images))
        return model.model(images)

    images = torch.rand(2 * batch_size.rows_at_once(64 * 4) + 5, 1, 8, 8)
    expected = model.predict([images[-5:]])[0]
    model.network = network
    rows = model.predict([images])[0]
    assert shown == [batch_size.rows_at_once(64 * 4)] * 2 + [5]
    assert torch.allclose(torch.from_numpy(rows[-5:]), torch.from_numpy(expected), atol=1e-5)
    assert batch_size.rows_at_once(3 * 224 * 224 * 4) == 64


def test_what_is_staged_for_a_device_is_answered_alike(artifact, model):
    staged = ImageClassifier(*load_model(artifact), "cpu:0", "application/json")  # any name but cpu's is a device's
    inputs = [torch.rand(count, 1, 8, 8) for count in (1, 3)]
    for batch in (inputs, inputs[1:]):
        for one, other in zip(staged.predict(batch), model.predict(batch), strict=True):
            assert torch.equal(torch.from_numpy(one), torch.from_numpy(other))
