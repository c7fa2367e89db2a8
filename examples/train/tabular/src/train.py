"""A table: CSV files as tensors, hyperparameters as nested configuration, metrics, health rules. One process."""

import json
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from container.train import Health, Metrics, Target, build_config, channel_directory, read_csv, training_environment


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 0.01
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Config:
    epochs: int = 60
    batch_size: int = 32
    hidden: int = 32
    optimizer: Optimizer = Optimizer()


def main() -> None:
    environment = training_environment()
    config = build_config(Config, environment.hyperparameters)  # `optimizer.learning_rate`, typed; unknown is an error
    torch.manual_seed(0)
    train = read_csv(channel_directory(environment, "train"), Target("cultivar", classes=True))
    classes = train.class_names
    validation = read_csv(
        channel_directory(environment, "validation"), Target("cultivar", classes=True, class_names=classes)
    )
    assert validation.target is not None

    normalise = nn.BatchNorm1d(len(train.feature_names), affine=False)  # columns differ by orders of magnitude
    network = nn.Sequential(
        normalise, nn.Linear(len(train.feature_names), config.hidden), nn.ReLU(), nn.Linear(config.hidden, len(classes))
    )
    options = config.optimizer
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    loader = DataLoader(train.dataset(), config.batch_size, shuffle=True, drop_last=True)
    metrics = Metrics(environment.opt_ml.output_data / "metrics.jsonl", rank=0)

    with Health() as health:
        for epoch in range(1, config.epochs + 1):
            network.train()
            for features, target in loader:
                loss = nn.functional.cross_entropy(network(features), target)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                health.step()
            health.loss(loss.item())
            network.eval()
            with torch.no_grad():
                right = network(validation.features).argmax(1) == validation.target
            values = {"train:loss": loss.item(), "validation:accuracy": right.float().mean().item()}
            metrics.log(epoch, epoch * len(loader), values)

    torch.jit.script(network).save(str(environment.opt_ml.model / "model.pt"))
    names = {"classes": classes, "features": train.feature_names}
    (environment.opt_ml.model / "names.json").write_text(json.dumps(names))


if __name__ == "__main__":
    main()
