"""The built-in program's hyperparameters."""

import pytest

from container.train import hyperparameters
from container.train.hyperparameters import HyperparameterError
from container.train.settings import Settings


def test_values_arrive_plain_quoted_or_typed_and_names_with_dashes():
    given = {
        "epochs": 3,
        "batch-size": "32",
        "learning_rate": "1e-3",
        "amp": "False",
        "model": "resnet18",
        "augment": True,
    }
    settings = Settings.from_hyperparameters(given)
    assert (settings.epochs, settings.batch_size, settings.optimizer.learning_rate) == (3, 32, 0.001)
    assert (settings.compute.amp, settings.augmentation.augment, settings.model) == (False, True, "resnet18")


def test_every_hyperparameter_has_a_short_name_of_its_own():
    names = [name for name, _ in hyperparameters._leaves(Settings)]
    short = [name.rpartition(".")[2] for name in names]
    assert len(set(short)) == len(short)


def test_the_batch_is_given_for_all_ranks_or_for_each():
    with pytest.raises(HyperparameterError, match="set one of them"):
        Settings.from_hyperparameters({"batch_size": 64, "batch_size_per_rank": 32})


def test_an_unknown_name_is_an_error_with_the_nearest_one():
    with pytest.raises(
        HyperparameterError, match=r"unknown hyperparameter 'learnin_rate'; did you mean 'optimizer.learning_rate'\?"
    ):
        Settings.from_hyperparameters({"learnin_rate": 1})
    with pytest.raises(HyperparameterError, match="known are model, epochs"):
        Settings.from_hyperparameters({"zzz": 1})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("epochs", "many", "epochs='many' is not a whole number"),
        ("epochs", 1.5, "is not a whole number"),
        ("epochs", float("inf"), "is not a whole number"),
        ("epochs", -1, "epochs=-1 must not be negative"),
        ("keep_checkpoints", 0, "keep_checkpoints=0 must be at least 1"),
        ("algorithm", "adam", "algorithm='adam' is none of adamw, sgd"),
        ("amp_dtype", "half", "amp_dtype='half' is none of empty, bfloat16, float16"),
        ("class_weights", "even", "class_weights='even' is none of empty, balanced"),
        ("class_weights", {"a": -1}, "class_weights={'a': -1.0} must not be negative"),
        ("label_smoothing", 1, "must be in 0..1, without 1"),
        ("ema_decay", 1, "must be in 0..1, without 1"),
        ("learning_rate", None, "is not a number"),
        ("learning_rate", -1, "must not be negative"),
        ("amp", "maybe", "is not true or false"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error(name, value, text):
    with pytest.raises(HyperparameterError, match=text):
        Settings.from_hyperparameters({name: value})
