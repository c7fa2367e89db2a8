"""Trains an image classifier on the folders of the channels `train` and `validation`.

Hyperparameters arrive as arguments, paths in SM_* variables; with several processes torchrun starts this file in each.
Every epoch leaves a checkpoint, and so does a stop (a spot interruption, the time limit, `launcher stop`): a job that
starts again goes on from there.
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

from container.train import Checkpoints, GracefulStop, export_weights, training_environment


def read_folder(folder: Path, classes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [N, 3, SIZE, SIZE] and class numbers int64 [N]."""
    files = sorted(path for name in classes for path in (folder / name).iterdir())
    images = torch.stack([to_tensor(Image.open(path)) for path in files])
    return images, torch.tensor([classes.index(path.parent.name) for path in files])


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=32, help="over all processes")
    parser.add_argument("--learning_rate", type=float, default=0.003)
    return parser.parse_known_args()[0]


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> None:
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
    model.train()
    with GracefulStop() as stop:
        for epoch in range(state["epoch"] + 1, options.epochs + 1):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
            order = order[: len(order) // world_size * world_size][rank::world_size]  # every rank takes as many steps
            for batch in order.split(max(1, options.batch_size // world_size)):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if stopped := stop.agreed():  # the same answer on every rank
                    break
            if rank == 0:
                print(f"epoch={epoch} train:loss={loss.item():.6f};", flush=True)
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoints.save(epoch, {**state, "epoch": epoch - stopped})
            if stopped:
                break
    checkpoints.wait()


def save(network: nn.Module, classes: list[str], device: torch.device) -> None:
    """Measure the network on the channel `validation`, and write what inference.py loads."""
    images, labels = (item.to(device) for item in read_folder(Path(os.environ["SM_CHANNEL_VALIDATION"]), classes))
    network.eval()
    with torch.inference_mode():
        accuracy = (network(images).argmax(1) == labels).float().mean().item()
    print(f"validation:accuracy={accuracy:.6f};", flush=True)
    model_dir = Path(os.environ["SM_MODEL_DIR"])
    model_dir.mkdir(parents=True, exist_ok=True)
    export_weights(network.state_dict(), model_dir / "weights.pt")
    (model_dir / "model.json").write_text(json.dumps({"classes": classes, "size": SIZE}))


def main() -> None:
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    train_folder = Path(os.environ["SM_CHANNEL_TRAIN"])
    classes = sorted(path.name for path in train_folder.iterdir() if path.is_dir())
    images, labels = (tensor.to(device) for tensor in read_folder(train_folder, classes))
    torch.manual_seed(1)
    network = build(len(classes)).to(device)
    train(network, images, labels, read_options())
    if not dist.is_initialized() or dist.get_rank() == 0:
        save(network, classes, device)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
