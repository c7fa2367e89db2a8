"""What a classifier gets wrong."""

import pytest
import torch
from torchvision.io import ImageReadMode, read_image

from container.train import errors, plots
from container.train.errors import Mistake, macro_f1, report_by_class, table_lines


def test_precision_recall_and_f1_are_those_of_the_textbook():
    reports = report_by_class([[8, 2, 0], [1, 9, 0], [0, 0, 0]], ("cat", "dog", "owl"))
    cat, dog, owl = reports
    assert (cat.precision, cat.recall, cat.images) == (pytest.approx(8 / 9), 0.8, 10)
    assert cat.f1 == pytest.approx(2 * (8 / 9) * 0.8 / (8 / 9 + 0.8))
    assert dog.f1 == pytest.approx(18 / 21)
    assert (owl.precision, owl.recall, owl.f1, owl.images) == (0, 0, 0, 0)
    assert macro_f1(reports) == pytest.approx((cat.f1 + dog.f1) / 2)  # there was no owl to find


def test_of_many_classes_the_log_lists_those_that_fared_worst():
    matrix = [[1 if row == column != 7 else 0 for column in range(40)] for row in range(40)]
    lines = table_lines(report_by_class(matrix, [f"class {number}" for number in range(40)]))
    assert lines[1].split() == ["class", "7", "0.000", "0.000", "0.000", "0"]
    assert lines[-1] == "and 10 classes that fared better: report.json"
    assert len(lines) == 32


def test_the_sheet_shows_the_surest_mistakes_first(tmp_path):
    images = [torch.zeros(3, 200, 100, dtype=torch.uint8), torch.full((1, 8, 8), 200, dtype=torch.uint8)]
    mistakes = [
        Mistake(f"{number}.png", "cat", "dog", number / 100, errors.thumbnail(images[number % 2]))
        for number in range(70)
    ]
    shown = errors.surest(mistakes)
    assert [mistake.file for mistake in shown] == [f"{number}.png" for number in range(69, 5, -1)]
    assert shown[1].thumbnail.shape == (3, 96, 48)
    plots.plot_mistakes(tmp_path / "sheet.png", shown)
    sheet = read_image(str(tmp_path / "sheet.png"), ImageReadMode.GRAY)[0]
    assert sheet[40, 40] == 200  # 69.png is grey, and enlarged
    assert sheet[40, 40 + 156] == 0  # 68.png is black
