"""Runs train.py as SageMaker would with InputMode Pipe: python run.py [--epochs 3]. No Docker, no account.

This script plays the platform: it lays out /opt/ml in a temporary directory, streams the digits that come with
scikit-learn through one FIFO per epoch, and starts the training container's entry point as a process. In the cloud the
channel is S3DataType AugmentedManifestFile, AttributeNames [source-ref, digit, digit-metadata], RecordWrapperType
RecordIO.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from container.contract import OptMl
from launcher.digits import write_digits
from launcher.local.opt_ml import write_training_input

CHANNELS = [{"ChannelName": "train", "InputMode": "Pipe", "RecordWrapperType": "RecordIO"}]


def records(images: list[Path]) -> Iterator[bytes]:
    """Per image its content, its class index and Ground Truth's description of the label."""
    for path in images:
        name = path.parent.name
        metadata = {"class-name": name, "type": "groundtruth/image-classification", "human-annotated": "yes"}
        yield from (path.read_bytes(), name.encode(), json.dumps(metadata).encode())


def stream(channel: Path, images: list[Path], epochs: int) -> None:
    for epoch in range(epochs):
        fifo = Path(f"{channel}_{epoch}")
        os.mkfifo(fifo)
        with fifo.open("wb") as file:  # waits for the reader
            for record in records(images):
                file.write(struct.pack("<II", 0xCED7230A, len(record)) + record + bytes(-len(record) % 4))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    epochs = parser.parse_args().epochs
    with tempfile.TemporaryDirectory() as directory:
        opt_ml = OptMl(Path(directory, "opt-ml"))
        write_digits(Path(directory))
        images = sorted(Path(directory, "train").rglob("*.png"), key=lambda path: path.name)  # mixes the classes
        request = {"InputDataConfig": CHANNELS, "HyperParameters": {"epochs": str(epochs)}}
        request["HyperParameters"]["sagemaker_program"] = "train.py"
        request["HyperParameters"]["sagemaker_submit_directory"] = str(Path(__file__).resolve().parent)
        write_training_input(opt_ml, request, "algo-1", ["algo-1"])
        threading.Thread(target=stream, args=(opt_ml.data / "train", images, epochs), daemon=True).start()
        environ = os.environ | {"SAGEMAKER_BASE_DIR": str(opt_ml.base)}
        status = subprocess.run([sys.executable, "-m", "container", "train"], env=environ).returncode
        artifact = sorted(path.name for path in opt_ml.model.iterdir())
        print(f"exit status {status}; model directory: {', '.join(artifact) or 'empty'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
