"""Plain PyTorch: image folders, DistributedDataParallel, nothing of ours; a bare `torchrun train.py` works, too.

The container starts it once per GPU on every host, with hyperparameters as arguments and channels in SM_CHANNEL_*.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--train", type=Path, default=os.environ.get("SM_CHANNEL_TRAIN", "data/train"))
parser.add_argument("--model-dir", type=Path, default=os.environ.get("SM_MODEL_DIR", "."))
arguments = parser.parse_args()

on_gpu = torch.cuda.is_available()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
dist.init_process_group("nccl" if on_gpu else "gloo")
torch.manual_seed(0)

dataset = ImageFolder(str(arguments.train), transforms.Compose([transforms.Grayscale(), transforms.ToTensor()]))
sampler = DistributedSampler(dataset)
loader = DataLoader(dataset, batch_size=64, sampler=sampler)
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(dataset.classes))).to(device)
model = DistributedDataParallel(network)
optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr)

for epoch in range(1, arguments.epochs + 1):
    sampler.set_epoch(epoch)  # without this every epoch repeats the same order
    right = seen = 0
    for images, labels in loader:
        logits = model(images.to(device))  # [B, 10]
        loss = nn.functional.cross_entropy(logits, labels.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        right += int((logits.argmax(1).cpu() == labels).sum())
        seen += len(labels)
    if dist.get_rank() == 0:  # name=value; is what launcher.yaml's `metrics` finds in the log
        print(f"epoch={epoch} train:loss={loss.item():.6f};")
        print(f"epoch={epoch} train:accuracy={right / seen:.6f};")

if dist.get_rank() == 0:
    torch.save({"model": network.state_dict(), "classes": dataset.classes}, arguments.model_dir / "model.pt")
dist.destroy_process_group()
