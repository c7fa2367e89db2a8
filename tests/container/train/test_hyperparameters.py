"""Dotted hyperparameters as nested configuration."""

from dataclasses import dataclass

import pytest

from container.train.hyperparameters import HyperparameterError, build_config, nest_hyperparameters


@dataclass(frozen=True)
class Optimizer:
    lr: float = 0.1
    name: str = "sgd"


@dataclass(frozen=True)
class Head:
    width: int = 8
    name: str = "linear"


@dataclass(frozen=True)
class Config:
    epochs: int = 3
    weights: str | dict[str, float] = ""
    optimizer: Optimizer = Optimizer()
    head: Head = Head()


def test_dotted_names_become_nested_dictionaries():
    given = {"optimizer.lr": 0.1, "optimizer.schedule.warmup": 5, "epochs": 3, "head": {"width": 2}}
    nested = {"optimizer": {"lr": 0.1, "schedule": {"warmup": 5}}, "epochs": 3, "head": {"width": 2}}
    assert nest_hyperparameters(given) == nested


@pytest.mark.parametrize("given", [{"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"a.b": 1, "a": {"b": 2}}])
def test_a_name_that_is_a_value_and_a_group_or_comes_twice_is_an_error(given):
    with pytest.raises(HyperparameterError, match="a is a value, and|is given twice, or is both"):
        nest_hyperparameters(given)


def test_dotted_nested_and_short_names_build_nested_dataclasses():
    config = Config(5, optimizer=Optimizer(0.5), head=Head(4))
    for given in (
        {"epochs": "5", "optimizer.lr": "0.5", "head.width": 4},
        {"epochs": 5, "lr": 0.5, "width": "4"},
        {"epochs": 5, "optimizer": {"lr": 0.5}, "head": {"width": 4.0}},
    ):
        assert build_config(Config, given) == config


def test_a_mapping_keeps_its_keys_as_they_are_given():
    assert build_config(Config, {"weights.no-entry.v2": "2", "weights": {"stop": 1}}).weights == {
        "no-entry.v2": 2,
        "stop": 1,
    }
    assert build_config(Config, {"weights": "balanced"}).weights == "balanced"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"optimizer.rl": 1}, "unknown hyperparameter 'optimizer.rl'; did you mean 'optimizer.lr'?"),
        ({"optimiser.lr": 1}, "unknown hyperparameter 'optimiser.lr'; did you mean 'optimizer.lr'?"),
        ({"widht": 1}, "unknown hyperparameter 'widht'; did you mean 'head.width'?"),
        ({"zzzzz": 1}, "unknown hyperparameter 'zzzzz'; known are epochs, weights, optimizer.lr"),
        ({"name": "x"}, "unknown hyperparameter 'name'; did you mean"),  # of which of the two?
        ({"lr": 1, "optimizer.lr": 2}, "'optimizer.lr' sets optimizer.lr, which is set already"),
        ({"head.width": "wide"}, "head.width='wide' is not a whole number"),
        ({"weights.stop": "much"}, "weights.stop='much' is not a number"),
        ({"weights": "balanced", "weights.stop": 1}, "'weights.stop' sets weights, which is set already"),
        ({"weights.stop": 1, "weights": "balanced"}, "'weights' sets weights, which is set already"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_what_does(given, text):
    with pytest.raises(HyperparameterError) as raised:
        build_config(Config, given)
    assert str(raised.value).startswith(text)
