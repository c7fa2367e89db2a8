"""Trains a classifier of table rows: CSV without a header, the label in the first column.

Hyperparameters arrive as arguments, paths in SM_* variables; with several processes torchrun starts this file in each.
A checkpoint now and then and at a stop (a spot interruption, the time limit, `launcher stop`): a job that starts again
goes on from there.
By itself: SM_CHANNEL_TRAIN=data/train SM_CHANNEL_VALIDATION=data/validation SM_MODEL_DIR=model python src/train.py
"""

import argparse
import json
import os
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
from network import build
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from container.train import Checkpoints, GracefulStop, export_weights, training_environment


def read_tables(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float32 [N, columns] and labels int64 [N] of every CSV file."""
    table = numpy.concatenate([numpy.loadtxt(path, delimiter=",", ndmin=2) for path in sorted(folder.glob("*.csv"))])
    return torch.tensor(table[:, 1:], dtype=torch.float32), torch.tensor(table[:, 0], dtype=torch.int64)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--learning_rate", type=float, default=0.01)
    return parser.parse_known_args()[0]


def train(network: nn.Module, features: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> None:
    """Train the network in place, from the last checkpoint on if there is one."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate)
    checkpoints = Checkpoints(training_environment().checkpoint_dir)  # copied to S3 where the job has a place for them
    state = checkpoints.load() or {"epoch": 0}
    if state["epoch"]:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"goes on after epoch {state['epoch']}", flush=True)

    model = DistributedDataParallel(network) if world_size > 1 else network
    mine = slice(rank, len(labels) // world_size * world_size, world_size)
    with GracefulStop() as stop:
        for epoch in range(state["epoch"] + 1, options.epochs + 1):
            loss = nn.functional.cross_entropy(model(features[mine]), labels[mine])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stopped = stop.agreed()  # the same answer on every rank
            if rank == 0 and (epoch % 10 == 0 or stopped):
                print(f"epoch={epoch} train:loss={loss.item():.6f};", flush=True)
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoints.save(epoch, {**state, "epoch": epoch})
            if stopped:
                break
    checkpoints.wait()


def save(network: nn.Sequential) -> None:
    """Measure the network on the channel `validation`, and write what inference.py loads."""
    features, labels = read_tables(Path(os.environ["SM_CHANNEL_VALIDATION"]))
    network.eval()
    with torch.inference_mode():
        accuracy = (network(features).argmax(1) == labels).float().mean().item()
    print(f"validation:accuracy={accuracy:.6f};", flush=True)
    model_dir = Path(os.environ["SM_MODEL_DIR"])
    model_dir.mkdir(parents=True, exist_ok=True)
    export_weights(network.state_dict(), model_dir / "weights.pt")
    shape = {"columns": features.shape[1], "classes": int(network[-1].out_features)}
    (model_dir / "model.json").write_text(json.dumps(shape))


def main() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    features, labels = read_tables(Path(os.environ["SM_CHANNEL_TRAIN"]))
    torch.manual_seed(1)
    network = build(features.shape[1], int(labels.max()) + 1, features.mean(0), features.std(0))
    train(network, features, labels, read_options())
    if not dist.is_initialized() or dist.get_rank() == 0:
        save(network)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
