"""Writes the digits of scikit-learn as 7 tar shards of images and labels into data/train."""

import tempfile
from pathlib import Path

import webdataset

from launcher.digits import write_digits

SHARDS = 7

if __name__ == "__main__":
    target = Path(__file__).parent / "data" / "train"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        write_digits(Path(directory))
        images = sorted(Path(directory, "train").rglob("*.png"), key=lambda path: path.name)  # mixes the classes
        for number in range(SHARDS):
            with webdataset.TarWriter(str(target / f"digits-{number}.tar")) as writer:
                for path in images[number::SHARDS]:
                    writer.write({"__key__": path.stem, "png": path.read_bytes(), "cls": path.parent.name})
