import pytest
import torch

from container.model import load_model
from container.serve import classifier
from container.serve.classifier import ImageClassifier


@pytest.fixture
def model(artifact):
    return ImageClassifier(*load_model(artifact), "cpu", "application/json")


def test_a_frozen_network_gives_the_same_answers(model, monkeypatch):
    monkeypatch.setattr(classifier, "WORTH_FREEZING", 1e9)  # whatever the clock says
    images = torch.rand(5, 1, 8, 8)
    before = model.predict([images])[0]
    assert "is frozen" in model.tune()
    assert torch.allclose(torch.from_numpy(before), torch.from_numpy(model.predict([images])[0]), atol=1e-5)


def test_a_network_that_gains_nothing_or_changes_its_answers_stays(model, monkeypatch):
    eager = model.network
    monkeypatch.setattr(classifier, "WORTH_FREEZING", 0.0)
    assert "stays as it is" in model.tune()
    monkeypatch.setattr(classifier, "WORTH_FREEZING", 1e9)
    monkeypatch.setattr(classifier, "freeze", lambda network, example: lambda images: network(images) + 1)
    assert "same=False" in model.tune()
    assert model.network is eager


def test_a_network_that_cannot_be_traced_stays(model):
    class Unpredictable(torch.nn.Module):
        def forward(self, images):
            raise RuntimeError("no")

    assert classifier.freeze(Unpredictable(), torch.rand(1)) is None
    model.network = Unpredictable()
    assert "cannot be traced" in model.tune()


def test_several_requests_in_one_batch_get_what_each_gets_alone(model):
    inputs = [torch.rand(count, 1, 8, 8) for count in (1, 3, 2)]
    together = model.predict(inputs)
    for data, rows in zip(inputs, together, strict=True):
        assert rows.shape == (len(data), 10)
        assert torch.allclose(torch.from_numpy(rows), torch.from_numpy(model.predict([data])[0]), atol=1e-5)
