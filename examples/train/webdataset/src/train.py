"""Tar shards in WebDataset's layout: each rank reads its own, shuffled anew every epoch, and all make as many steps."""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from container.train import Metrics, TarShards, channel_directory, channel_share, equal_steps, training_environment


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()

    environment = training_environment()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")  # equal_steps counts on the CPU
    torch.manual_seed(0)

    shards = TarShards(channel_directory(environment, "train"), channel_share(environment, "train", os.environ))
    dataset = shards.samples(shuffle=500).decode("torchrgb").to_tuple("png", "cls")
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    model = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    metrics = Metrics(environment.opt_ml.output_data / "metrics.jsonl", dist.get_rank())

    step = 0
    for epoch in range(1, arguments.epochs + 1):
        shards.set_epoch(epoch)
        images_seen = torch.zeros(1)
        for images, labels in equal_steps(DataLoader(dataset, batch_size=32, num_workers=arguments.workers)):
            loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step, images_seen = step + 1, images_seen + len(images)
        dist.all_reduce(images_seen)
        metrics.log(epoch, step, {"train:loss": loss.item(), "train:images": images_seen.item()})

    if dist.get_rank() == 0:
        torch.save(network.state_dict(), environment.opt_ml.model / "model.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
