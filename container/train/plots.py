"""The pictures a job leaves; the only module that imports matplotlib."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display in a container
from matplotlib import pyplot as plt


def plot_learning_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Loss and accuracy over epochs, one line per channel; PNG."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        for channel in ("train", "validation", "test"):
            points = [
                (entry["epoch"], entry[f"{channel}:{quantity}"])
                for entry in history
                if f"{channel}:{quantity}" in entry
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=channel)
        axis.set(xlabel="epoch", ylabel=quantity)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_confusion_matrix(path: Path, matrix: list[list[int]], classes: tuple[str, ...]) -> None:
    """Counts of true (rows) against predicted (columns) class; PNG. Numbers are written in up to 20 classes."""
    figure, axis = plt.subplots(figsize=(6, 5.5), layout="constrained")
    image = axis.imshow(matrix, cmap="Blues")
    figure.colorbar(image, shrink=0.8)
    axis.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 20:
        axis.set_xticks(range(len(classes)), classes, rotation=90)
        axis.set_yticks(range(len(classes)), classes)
        highest = max(map(max, matrix))
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                if count:
                    colour = "white" if count > highest / 2 else "black"
                    axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
