"""What somebody would write by hand for the same job: a folder of grey images, a network, AdamW. No ranks, no stop.

python bench/train/bare.py IMAGES OUTPUT EPOCHS BATCH
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional
from torchvision.io import ImageReadMode, read_image

from container.model import ModelSignature, build_network, normalize
from container.train.data import augment


def main(images_dir: str, output: str, epochs: int, batch: int) -> None:
    files = sorted(Path(images_dir).glob("*/*.png"))
    classes = sorted({file.parent.name for file in files})
    images = torch.stack([read_image(str(file), ImageReadMode.GRAY) for file in files])
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    pixels = images.double() / 255
    shape = images.shape[1:]
    signature = ModelSignature(
        "convnet", tuple(classes), *shape, mean=(float(pixels.mean()),), std=(float(pixels.std()),)
    )
    del pixels
    network = build_network("convnet", len(classes), tuple(shape))
    kernels, others = ([p for p in network.parameters() if (p.ndim > 1) == decays] for decays in (True, False))
    groups = [{"params": kernels, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, eps=1e-6, fused=True)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch):
            inputs = augment(normalize(images[chosen], signature), torch.rand(len(chosen), 6))
            loss = functional.cross_entropy(network(inputs), labels[chosen], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    torch.save(network.state_dict(), output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
