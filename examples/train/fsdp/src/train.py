"""A transformer whose weights no rank holds whole: FSDP2, sharded checkpoints, a good stop, a whole model at the end.

It learns to continue sequences that count up from a random number. Killed or stopped, it goes on where it was, on any
number of hosts and GPUs.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn

from container.train import (
    GracefulStop,
    Metrics,
    ShardedCheckpoints,
    export_weights,
    full_state_dict,
    shard,
    training_environment,
)

TOKENS, LENGTH, WIDTH = 64, 16, 64


class Network(nn.Module):
    """A small decoder: [B, T] tokens to [B, T, TOKENS] scores of the next ones."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.scores = nn.Linear(WIDTH, TOKENS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        hidden = self.tokens(tokens) + self.places.weight[:length]  # [B, T, WIDTH]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return self.scores(hidden)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=20)
    arguments = parser.parse_args()

    environment = training_environment()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")

    torch.manual_seed(0)  # the same weights everywhere, before they are dealt out
    network = Network(arguments.layers).to(device)
    shard(network, device.type, unit_parameters=10_000)  # a layer is a unit; by default from 1 million parameters
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)

    checkpoints = ShardedCheckpoints(environment.checkpoint_dir)
    state = checkpoints.load(network, optimizer) or {"step": 0, "history": []}
    if state["step"] and dist.get_rank() == 0:
        print(f"resumed after step {state['step']}")
    metrics = Metrics(environment.opt_ml.output_data / "metrics.jsonl", dist.get_rank(), state["history"])

    with GracefulStop() as stop:
        for step in range(state["step"] + 1, arguments.steps + 1):
            generator = torch.Generator().manual_seed(step * 1000 + dist.get_rank())
            start = torch.randint(TOKENS, (16, 1), generator=generator)
            sequence = ((start + torch.arange(LENGTH + 1)) % TOKENS).to(device)  # [B, T + 1]
            scores = network(sequence[:, :-1])
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), sequence[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            stopped = stop.agreed()
            if stopped or step % arguments.save_every == 0:
                metrics.log(1, step, {"train:loss": loss.item()})
                checkpoints.save(step, network, optimizer, {"step": step, "history": metrics.history})
            if stopped:
                break

    checkpoints.wait()
    weights = full_state_dict(network)  # on every rank; the first gets them
    if dist.get_rank() == 0:
        export_weights(weights, environment.opt_ml.model / "model.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
