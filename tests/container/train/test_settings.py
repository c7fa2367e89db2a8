"""The built-in program's hyperparameters."""

import pytest

from container.train.settings import HyperparameterError, Settings


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
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (3, 32, 0.001)
    assert (settings.amp, settings.augment, settings.model) == (False, True, "resnet18")


def test_an_unknown_name_is_an_error_with_the_nearest_one():
    with pytest.raises(
        HyperparameterError, match=r"unknown hyperparameter 'learnin_rate'; did you mean 'learning_rate'\?"
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
        ("epochs", 0, "must be at least 1"),
        ("learning_rate", None, "is not a number"),
        ("learning_rate", -1, "must not be negative"),
        ("amp", "maybe", "is not true or false"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error(name, value, text):
    with pytest.raises(HyperparameterError, match=text):
        Settings.from_hyperparameters({name: value})
