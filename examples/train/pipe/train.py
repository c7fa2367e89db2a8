"""Trains on images that are never on disk: SageMaker streams an augmented manifest, one FIFO per epoch."""

import argparse
import os

import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from container.contract import OptMl, format_metric
from container.model import ModelSignature, build_network, normalize, save_model
from container.train import AugmentedManifest, ImageLabel, PipeChannel
from container.train.environment import read_environment

DIGITS = tuple("0123456789")
SIGNATURE = ModelSignature("convnet", DIGITS, channels=1, height=8, width=8, mean=(0.305,), std=(0.376,))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=64)
    arguments = parser.parse_args()

    environment = read_environment(OptMl.from_env(), os.environ)
    channel = PipeChannel.from_environment(environment, "train")
    decode = ImageLabel("source-ref", "digit", classes=DIGITS, channels=1)
    samples = AugmentedManifest(channel, ("source-ref", "digit", "digit-metadata"), decode)
    loader = DataLoader(samples, batch_size=arguments.batch_size, num_workers=1)

    network = build_network(SIGNATURE.architecture, len(DIGITS), SIGNATURE.image_shape)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for epoch in range(1, arguments.epochs + 1):
        right = seen = 0
        for images, labels in loader:  # each pass opens the next FIFO
            logits = network(normalize(images, SIGNATURE))
            loss = functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right, seen = right + int((logits.argmax(1) == labels).sum()), seen + len(labels)
        print(f"epoch={epoch} images={seen} {format_metric('train:accuracy', right / seen)}", flush=True)
    save_model(environment.opt_ml.model, network, SIGNATURE)


if __name__ == "__main__":
    main()
