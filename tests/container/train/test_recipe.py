"""What the data decides where a job sets nothing."""

import pytest
import torch
from torch import nn

from container.train.hyperparameters import HyperparameterError
from container.train.objective import Objective, class_weights, mixing
from container.train.recipe import build_optimizer, peak_learning_rate, resolve
from container.train.settings import Augmentation, Loss, Settings


@pytest.mark.parametrize(
    ("samples", "ranks", "expected"),
    [
        (1437, 1, (64, 15)),  # the digits
        (1_281_167, 8, (64, 15)),
        (160, 1, (16, 30)),  # 10 steps per epoch, 300 in all
        (20, 2, (8, 60)),
        (20, 12, (12, 60)),  # every rank has work
    ],
)
def test_few_images_make_smaller_batches_and_more_epochs(samples, ranks, expected):
    settings = resolve(Settings(), samples, ranks)
    assert (settings.batch_size, settings.epochs) == expected


def test_what_a_job_sets_stays():
    settings = resolve(Settings(epochs=3, batch_size=500), 1000, 4)
    assert (settings.batch_size, settings.epochs) == (500, 3)
    assert resolve(Settings(batch_size_per_rank=32), 10_000, 4).batch_size == 128


@pytest.mark.parametrize(
    ("given", "architecture", "is_trained", "peak", "reason"),
    [
        ({"batch_size": 64}, "convnet", False, 0.003, "0.003 x 64 / 64 images = 0.003"),
        ({"batch_size": 128}, "resnet18", False, 0.002, "0.001 x 128 / 64 images = 0.002"),
        ({"batch_size": 32}, "resnet18", True, 0.00015, "0.0003 x 32 / 64 images = 0.00015"),
        ({"batch_size": 512}, "resnet18", False, 0.004, "= 0.008, and at most 0.004 unless you set learning_rate"),
        ({"batch_size": 64, "learning_rate": 0.1}, "resnet18", False, 0.1, "0.1, as given"),
        ({"batch_size_per_rank": 32, "learning_rate": 0.1}, "resnet18", False, 0.4, "0.1 x 4 rank(s) = 0.4"),
        ({"batch_size": 256, "algorithm": "sgd"}, "resnet18", False, 0.1, "0.025 x 256 / 64 images = 0.1"),
    ],
)
def test_the_learning_rate_is_linear_in_the_global_batch_and_says_so(given, architecture, is_trained, peak, reason):
    settings = resolve(Settings.from_hyperparameters(given), 10_000, ranks=4)
    rate, text = peak_learning_rate(settings, architecture, is_trained, ranks=4)
    assert rate == pytest.approx(peak)
    assert text.endswith(reason)


@pytest.mark.parametrize(("algorithm", "decay"), [("adamw", 0.05), ("sgd", 1e-4)])
def test_biases_and_norms_do_not_decay(algorithm, decay):
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    optimizer = build_optimizer(network, Settings.from_hyperparameters({"algorithm": algorithm}), 0.1)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(1, decay), (3, 0.0)]
    chosen = Settings.from_hyperparameters({"algorithm": algorithm, "weight_decay": 0})
    assert build_optimizer(network, chosen, 0.1).param_groups[0]["weight_decay"] == 0


def test_balanced_class_weights_make_rare_classes_count_as_much_as_frequent_ones():
    counts = torch.tensor([90, 10])
    weights = class_weights(Loss(class_weights="balanced"), ("a", "b"), counts)
    assert (weights * counts).tolist() == pytest.approx([50, 50])
    assert class_weights(Loss(), ("a", "b"), counts) is None
    assert class_weights(Loss(class_weights={"b": 3}), ("a", "b"), counts).tolist() == [1, 3]
    logits, targets = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    each = [Objective(0, None)(logits[i : i + 1], targets[i : i + 1]) for i in range(4)]
    expected = sum(loss * weights[target] for loss, target in zip(each, targets, strict=True))
    assert Objective(0, weights)(logits, targets).item() == pytest.approx(expected.item())


def test_a_weight_for_a_class_that_is_none_is_an_error():
    with pytest.raises(HyperparameterError, match="class_weights names c; the classes are a, b"):
        class_weights(Loss(class_weights={"c": 2}), ("a", "b"), torch.tensor([1, 1]))


@pytest.mark.parametrize("given", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_images_have_the_classes_that_are_in_them(given):
    torch.manual_seed(1)
    mix = mixing(Augmentation(**given), 2)
    images = torch.cat([torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)])  # class 0 is black, 1 white
    mixed, shares = mix(images, torch.arange(8) // 4)
    assert shares.sum(1).tolist() == pytest.approx([1] * 8)
    assert shares[:, 1].tolist() == pytest.approx(mixed.mean((1, 2, 3)).tolist(), abs=1e-6)
    assert 0 < shares[0, 1] < 1  # paired with the last, a white one
    assert mixing(Augmentation(), 2) is None
