"""Trains a classifier of table rows: CSV without a header, the label in the first column.

Hyperparameters arrive as arguments, paths in SM_* variables; with several processes torchrun starts this file in each.
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


def read_tables(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float32 [N, columns] and labels int64 [N] of every CSV file."""
    table = numpy.concatenate([numpy.loadtxt(path, delimiter=",", ndmin=2) for path in sorted(folder.glob("*.csv"))])
    return torch.tensor(table[:, 1:], dtype=torch.float32), torch.tensor(table[:, 0], dtype=torch.int64)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--learning_rate", type=float, default=0.01)
    options, _ = parser.parse_known_args()

    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed:
        dist.init_process_group("gloo")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)

    features, labels = read_tables(Path(os.environ["SM_CHANNEL_TRAIN"]))
    mean, std = features.mean(0), features.std(0)
    torch.manual_seed(1)
    network = build(features.shape[1], int(labels.max()) + 1, mean, std)
    model = DistributedDataParallel(network) if distributed else network
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    mine = slice(rank, len(labels) // world_size * world_size, world_size)

    for epoch in range(1, options.epochs + 1):
        loss = nn.functional.cross_entropy(model(features[mine]), labels[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and epoch % 10 == 0:
            print(f"epoch={epoch} train:loss={loss.item():.6f};", flush=True)

    if rank == 0:
        features, labels = read_tables(Path(os.environ["SM_CHANNEL_VALIDATION"]))
        network.eval()
        with torch.inference_mode():
            accuracy = (network(features).argmax(1) == labels).float().mean().item()
        print(f"validation:accuracy={accuracy:.6f};", flush=True)
        model_dir = Path(os.environ["SM_MODEL_DIR"])
        model_dir.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), model_dir / "weights.pt")
        shape = {"columns": features.shape[1], "classes": int(network[-1].out_features)}
        (model_dir / "model.json").write_text(json.dumps(shape))
    if distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
