"""Your own training script: plain PyTorch, and a few lines of ours for what a SageMaker job needs.

Runs on any number of hosts and GPUs: it is started once per rank, by torchrun. Hyperparameters come as arguments.
Told to stop, every rank leaves the loop at the same step and the job ends with a checkpoint and a model; started again
on the same checkpoints, it goes on where it was.
"""

import argparse
import math
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from container.train import Checkpoints, GracefulStop, Health, Metrics, export_weights, training_environment


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25, help="per epoch")
    parser.add_argument("--lr", type=float, default=0.01)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    environment = training_environment()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    rank = dist.get_rank()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1)).to(device)
    model = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr)

    checkpoints = Checkpoints(environment.checkpoint_dir)  # copied to S3 by SageMaker; does nothing without it
    state = checkpoints.load() or {"epoch": 0}  # on every host: SageMaker restores them everywhere
    if state["epoch"]:
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"resumed after epoch {state['epoch']}")
    metrics = Metrics(environment.opt_ml.output_data / "metrics.jsonl", rank, state.get("history"))

    stopped = False
    with GracefulStop() as stop, Health() as health:
        for epoch in range(state["epoch"], arguments.epochs):
            generator = torch.Generator().manual_seed(epoch * 1000 + rank)
            for _ in range(arguments.steps):
                x = torch.rand(32, 1, generator=generator).to(device) * 2 * math.pi  # [B, 1]
                loss = nn.functional.mse_loss(model(x), torch.sin(x))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                health.step()
                stopped = stop.agreed()  # the same answer on every rank
                if stopped:
                    break
            health.loss(loss.item())
            metrics.log(epoch + 1, (epoch + 1) * arguments.steps, {"train:loss": loss.item()})
            if rank == 0:
                state = {"epoch": epoch + (not stopped), "model": network.state_dict(), "history": metrics.history}
                checkpoints.save(epoch + 1, state | {"optimizer": optimizer.state_dict()})
            if stopped:
                break

    checkpoints.wait()
    if rank == 0:
        export_weights(network.state_dict(), environment.opt_ml.model / "model.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
