"""What a classifier gets wrong: class by class as numbers, and its surest mistakes as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from container.model import resize_image

SHOWN = 64  # mistakes on the sheet
THUMBNAIL_PIXELS = 96  # longer side of each
LISTED = 30  # classes in the log


@dataclass(frozen=True)
class ClassReport:
    """How one class fared among the images of a channel."""

    name: str
    precision: float
    """Of the images given this class, the share that are of it."""
    recall: float
    """Of the images of this class, the share that were given it."""
    f1: float
    """The harmonic mean of both."""
    images: int

    @classmethod
    def of(cls, name: str, right: int, predicted: int, images: int) -> "ClassReport":
        """From counts; 0 where there is nothing to divide by."""
        precision, recall = right / max(1, predicted), right / max(1, images)
        f1 = 2 * right / max(1, predicted + images)
        return cls(name, precision, recall, f1, images)


def report_by_class(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[ClassReport]:
    """Precision, recall and F1 of each class from counts of true (rows) against predicted (columns) ones."""
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    return [
        ClassReport.of(name, matrix[index][index], predicted[index], sum(matrix[index]))
        for index, name in enumerate(classes)
    ]


def macro_f1(reports: Sequence[ClassReport]) -> float:
    """The mean over all classes that have images, rare ones counting as much as frequent ones."""
    present = [report.f1 for report in reports if report.images]
    return sum(present) / max(1, len(present))


def table_lines(reports: Sequence[ClassReport]) -> list[str]:
    """The reports as lines of a table; of many classes those that fared worst."""
    shown = sorted(reports, key=lambda report: report.f1)[:LISTED] if len(reports) > LISTED else list(reports)
    width = max(5, *(len(report.name) for report in shown))
    lines = [f"{'class':<{width}}  precision  recall  F1     images"]
    lines += [
        f"{report.name:<{width}}  {report.precision:<9.3f}  {report.recall:<6.3f}  {report.f1:<5.3f}  {report.images}"
        for report in shown
    ]
    rest = len(reports) - len(shown)
    return lines + ([f"and {rest} classes that fared better: report.json"] if rest else [])


@dataclass(frozen=True)
class Mistake:
    """An image that was given another class than its own."""

    file: str
    label: str
    predicted: str
    confidence: float
    """Probability of the class it was given."""
    thumbnail: torch.Tensor
    """uint8 [C, h, w]."""


def thumbnail(image: torch.Tensor) -> torch.Tensor:
    """uint8 [C, H, W] with its longer side at most `THUMBNAIL_PIXELS`."""
    height, width = image.shape[-2:]
    scale = THUMBNAIL_PIXELS / max(height, width)
    return image if scale >= 1 else resize_image(image, max(1, round(height * scale)), max(1, round(width * scale)))


def surest(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """Those of the highest confidence, the highest first."""
    return sorted(mistakes, key=lambda mistake: (-mistake.confidence, mistake.file))[:SHOWN]
