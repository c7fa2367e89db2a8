"""The pictures a job leaves; the only module that imports matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display in a container
from matplotlib import pyplot as plt

from container.train.errors import THUMBNAIL_PIXELS, Mistake

plt.rcParams["text.parse_math"] = False  # a class name may have dollars

GAP_PIXELS = 30  # below each picture, for two lines of text
NAME_LETTERS = 16  # of a class


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


def plot_mistakes(path: Path, mistakes: Sequence[Mistake]) -> None:
    """One picture per mistake with its true and its predicted class, in the order given; PNG."""
    columns = min(8, len(mistakes))
    rows = math.ceil(len(mistakes) / columns)
    width, height = THUMBNAIL_PIXELS + 8, THUMBNAIL_PIXELS + GAP_PIXELS
    sheet = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    dpi = 150
    figure = plt.figure(figsize=(columns * width * 1.5 / dpi, rows * height * 1.5 / dpi), dpi=dpi)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    for number, mistake in enumerate(mistakes):
        top, left = number // columns * height, number % columns * width + 4
        tile = _tile(mistake)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        text = f"{mistake.label[:NAME_LETTERS]} (true)\n{mistake.predicted[:NAME_LETTERS]} {mistake.confidence:.2f}"
        axis.text(left, top + THUMBNAIL_PIXELS + 3, text, fontsize=5, va="top", ha="left")
    axis.imshow(sheet, aspect="auto", interpolation="nearest")
    figure.savefig(path)
    plt.close(figure)


def _tile(mistake: Mistake) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """uint8 [h, w, 3]; small pictures are enlarged by a whole number, so that their pixels stay square."""
    picture = mistake.thumbnail.permute(1, 2, 0).numpy()
    picture = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    times = max(1, THUMBNAIL_PIXELS // max(picture.shape[:2]))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
