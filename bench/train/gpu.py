"""ResNet-50 on a GPU: the built-in program, a hand-written loop, the input pipeline alone, the device's limit.

All at 224 pixels, bfloat16, channels-last, compiled.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from jobs import job_environ, job_tree, rates, write_images

IMAGES = 8192  # JPEG files of 256 x 256
BATCH = 256
STEPS = 60
EPOCHS = 3


def gpu(base: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        print("GPU part: skipped, torch sees no GPU")
        return
    print(f"GPU part: {torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} cores")
    report(base, "cuda", write_images(base / "images", IMAGES, 256, channels=3))


def report(base: Path, device: str, images: Path) -> None:
    limit = device_limit(device)
    pipeline = input_pipeline(base, images)
    bare = bare_loop(device, images)
    ours = program(base, images)
    print(f"  device limit, data already on it: {limit:.0f} images/s")
    print(f"  our input pipeline alone: {pipeline:.0f} images/s")
    print(f"  bare loop with torchvision's ImageFolder and DataLoader: {bare:.0f} images/s")
    print(
        f"  built-in program: {ours:.0f} images/s: {ours / bare:.2f} of the bare loop, {ours / limit:.2f} of the limit,"
    )
    print(f"    {ours / min(limit, pipeline):.2f} of what device and input allow together")


def made(device: str):
    """Network, optimizer, and one training step."""
    import torch
    from torch.nn import functional
    from torchvision.models import resnet50

    network = resnet50(num_classes=10).to(device, memory_format=torch.channels_last)
    network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = functional.cross_entropy(network(images), labels, label_smoothing=0.05)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def device_limit(device: str) -> float:
    import torch

    step = made(device)
    images = torch.randn(BATCH, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,), device=device)
    for _ in range(5):
        step(images, labels)
    synchronize(device)
    began = time.perf_counter()
    for _ in range(STEPS):
        step(images, labels)
    synchronize(device)
    return BATCH * STEPS / (time.perf_counter() - began)


def bare_loop(device: str, folder: Path) -> float:
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import decode_image, read_file
    from torchvision.transforms import v2

    transform = v2.Compose(
        [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    )
    dataset = ImageFolder(str(folder), transform=transform, loader=lambda path: decode_image(read_file(path)))
    workers = os.cpu_count() or 1
    loader = DataLoader(
        dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers, pin_memory=device == "cuda",
        persistent_workers=True,
    )  # fmt: skip
    step, measured = made(device), []
    for _ in range(EPOCHS):
        began, seen = time.perf_counter(), 0
        for images, labels in loader:
            inputs = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            step(inputs, labels.to(device, non_blocking=True))
            seen += len(labels)
        synchronize(device)
        measured.append(seen / (time.perf_counter() - began))
    return statistics.median(measured[1:])


def input_pipeline(base: Path, images: Path) -> float:
    """Decoding, resizing and batching as the program does it, with nobody who uses the batches."""
    import torch

    from container.train import data
    from container.train.data import ImageData, describe_images, scan_folder

    folder = scan_folder(images)
    signature = describe_images(folder, sorted(set(folder.class_names)), "resnet50", 224)
    data.MEMORY_BYTES = 0  # however few they are here
    source = ImageData(folder, signature, os.cpu_count() or 1)
    measured = []
    for epoch in range(2):
        batches = data.training_batches(len(source), BATCH, 0, epoch, (0, 1))
        began, seen = time.perf_counter(), 0
        for pixels, labels, _ in source.batches(batches):
            assert pixels.dtype == torch.uint8
            seen += len(labels)
        measured.append(seen / (time.perf_counter() - began))
    return measured[-1]


def program(base: Path, images: Path) -> float:
    settings = {
        "model": "resnet50",
        "image_size": 224,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "compute.compile": "true",
    }
    opt_ml = job_tree(base, "gpu", ["gpu"], settings, {"train": images})
    environ = job_environ(opt_ml)
    del environ["OMP_NUM_THREADS"]
    argv = [sys.executable, "-m", "container", "train"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shutil.rmtree(opt_ml.model)
    return statistics.median(rates(opt_ml)[1:])
