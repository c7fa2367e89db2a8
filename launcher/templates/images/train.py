"""Trains an image classifier on the folders of the channels `train` and `validation`.

Hyperparameters arrive as arguments, paths in SM_* variables; with several processes torchrun starts this file in each.
By itself: SM_CHANNEL_TRAIN=data/train SM_CHANNEL_VALIDATION=data/validation SM_MODEL_DIR=model python src/train.py
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from network import SIZE, build, to_tensor
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def read_folder(folder: Path, classes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [N, 3, SIZE, SIZE] and class numbers int64 [N]."""
    files = sorted(path for name in classes for path in (folder / name).iterdir())
    images = torch.stack([to_tensor(Image.open(path)) for path in files])
    return images, torch.tensor([classes.index(path.parent.name) for path in files])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=0.003)
    options, _ = parser.parse_known_args()

    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if distributed:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)

    train_folder = Path(os.environ["SM_CHANNEL_TRAIN"])
    classes = sorted(path.name for path in train_folder.iterdir() if path.is_dir())
    images, labels = (tensor.to(device) for tensor in read_folder(train_folder, classes))
    torch.manual_seed(1)
    network = build(len(classes)).to(device)
    model = DistributedDataParallel(network) if distributed else network
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)

    for epoch in range(1, options.epochs + 1):
        model.train()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        order = order[: len(order) // world_size * world_size][rank::world_size]  # every rank takes as many steps
        for batch in order.split(max(1, options.batch_size // world_size)):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch={epoch} train:loss={loss.item():.6f};", flush=True)

    if rank == 0:
        images, labels = (t.to(device) for t in read_folder(Path(os.environ["SM_CHANNEL_VALIDATION"]), classes))
        network.eval()
        with torch.inference_mode():
            accuracy = (network(images).argmax(1) == labels).float().mean().item()
        print(f"validation:accuracy={accuracy:.6f};", flush=True)
        model_dir = Path(os.environ["SM_MODEL_DIR"])
        model_dir.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), model_dir / "weights.pt")
        (model_dir / "model.json").write_text(json.dumps({"classes": classes, "size": SIZE}))
    if distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
