"""CSV and Parquet channels as tensors."""

import array
import csv
import gzip
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.utils.data import TensorDataset

from container.train.files import ChannelError, list_files

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


@dataclass(frozen=True)
class Target:
    """Which column a model learns, and as what."""

    column: str | int = 0
    """By name, or by place from 0, from the end if negative. SageMaker's own CSV has the label first and no header."""
    classes: bool = False
    """Whether values are classes, which become their index, rather than numbers."""
    class_names: tuple[str, ...] = ()
    """The classes in the order of their indices; empty for those that occur, sorted. Give validation the training
    table's, and every host the same where hosts read different files: one may not have seen every class."""


@dataclass(frozen=True)
class Table:
    """Rows as tensors."""

    features: torch.Tensor
    """float32 [N, F]."""
    target: torch.Tensor | None
    """float32 [N], or int64 [N] of class indices; None where no target was asked for."""
    feature_names: tuple[str, ...]
    """From the header; places as text where there is none."""
    class_names: tuple[str, ...] = ()

    def dataset(self) -> TensorDataset:
        """Per row (features [F], target), or (features [F],) without a target."""
        return TensorDataset(self.features) if self.target is None else TensorDataset(self.features, self.target)


@dataclass(frozen=True)
class _Columns:
    """The columns every file of a channel must have, and where the target is among them."""

    names: tuple[str, ...]
    target: int | None

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(name for place, name in enumerate(self.names) if place != self.target)


def read_csv(
    path: Path, target: Target | None = None, header: bool | None = None, missing: float | None = None
) -> Table:
    """A CSV file, or every data file in a channel's directory in the order of their names; `.gz` is unpacked.

        train = read_csv(channel_directory(environment, "train"), Target("species", classes=True))
        loader = DataLoader(train.dataset(), batch_size=64, shuffle=True)

    Args:
        path: a file or a directory.
        target: None where every column is a feature.
        header: whether each file starts with names; None to tell by its first line: one without any number is names.
        missing: what a missing feature becomes; None to refuse it.

    Raises:
        ChannelError: no rows, no such column, files or rows whose columns differ, a value that is missing or not a
            number, a class that is not among the given ones.
    """
    columns: _Columns | None = None
    features, labels = array.array("f"), list[str]()
    for file in _files(path):
        with _open_text(file) as stream:
            rows = csv.reader(stream, skipinitialspace=True)
            first = next((row for row in rows if row), None)
            if first is None:
                continue  # an empty object
            named = not any(map(_is_number, first)) if header is None else header
            columns = _same_columns(columns, tuple(first) if named else _places(first), target, file)
            _append(itertools.chain([] if named else [first], rows), columns, features, labels, f"{file}")
    if columns is None or not features:
        raise ChannelError(f"{path} holds no rows")
    matrix = torch.frombuffer(features, dtype=torch.float32).view(-1, len(columns.features))
    return _table(matrix, labels, columns, target, missing)


def read_parquet(path: Path, target: Target | None = None, missing: float | None = None) -> Table:
    """A Parquet file, or every data file in a channel's directory; needs pyarrow, which the image does not have.

    Args and errors are those of `read_csv`; besides:

    Raises:
        ChannelError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ChannelError("Parquet needs pyarrow: add it to requirements.txt beside the script, or use CSV") from error
    columns: _Columns | None = None
    parts: list[torch.Tensor] = []
    labels: list[str] = []
    for file in _files(path):
        rows = parquet.ParquetFile(file).read()
        columns = _same_columns(columns, tuple(rows.column_names), target, file)
        parts.append(torch.stack([_parquet_column(rows, name, file) for name in columns.features], dim=1))
        if columns.target is not None:
            labels += ["" if value is None else str(value) for value in rows.column(columns.target).to_pylist()]
    if columns is None or not sum(map(len, parts)):
        raise ChannelError(f"{path} holds no rows")
    return _table(torch.cat(parts), labels, columns, target, missing)


def _parquet_column(rows: Any, name: str, file: Path) -> torch.Tensor:  # float32 [N]
    try:
        return torch.from_numpy(rows.column(name).to_numpy(zero_copy_only=False).astype("float32"))
    except (ValueError, TypeError) as error:
        raise ChannelError(f"{file}: column {name!r} is not numeric: encode it as numbers first") from error


def _files(path: Path) -> list[Path]:
    return list_files(path) if path.is_dir() else [path]


def _open_text(file: Path) -> TextIO:
    encoding = "utf-8-sig"  # Excel starts its CSV with a byte-order mark
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding=encoding, newline="")
    return file.open(encoding=encoding, newline="")


def _places(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(place) for place in range(len(row)))


def _same_columns(columns: _Columns | None, names: tuple[str, ...], target: Target | None, file: Path) -> _Columns:
    """The columns of the first file, after making sure that this one has the same."""
    if columns is None:
        return _Columns(names, None if target is None else _target_place(target.column, names, file))
    if columns.names != names:
        raise ChannelError(f"{file} has columns {list(names)[:20]}, the files before it {list(columns.names)[:20]}")
    return columns


def _target_place(column: str | int, names: tuple[str, ...], file: Path) -> int:
    if isinstance(column, str) and column in names:
        return names.index(column)
    if isinstance(column, int) and -len(names) <= column < len(names):
        return column % len(names)
    raise ChannelError(f"{file} has no column {column!r}, but {list(names)[:20]}")


def _append(
    rows: Iterable[list[str]], columns: _Columns, features: "array.array[float]", labels: list[str], where: str
) -> None:
    """Put each row's numbers at the end of `features` and its target at the end of `labels`."""
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        if len(row) != len(columns.names):
            raise ChannelError(f"{where}: row {number} has {len(row)} columns, the first line {len(columns.names)}")
        if columns.target is not None:
            labels.append(row.pop(columns.target).strip())
        end = len(features)
        try:
            features.extend(map(float, row))
        except ValueError:
            del features[end:]  # what came before the value that is no number
            features.extend(
                _number(cell, f"{where}: row {number}, column {name!r}")
                for cell, name in zip(row, columns.features, strict=True)
            )


def _number(cell: str, where: str) -> float:
    if cell.strip().lower() in MISSING:
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        raise ChannelError(f"{where} is {cell!r}, which is not a number: encode it as numbers first") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _table(
    features: torch.Tensor, labels: list[str], columns: _Columns, target: Target | None, missing: float | None
) -> Table:
    gaps = features.isnan()
    if missing is not None:
        features = features.masked_fill(gaps, missing)
    elif gaps.any():
        row, place = gaps.nonzero()[0].tolist()
        raise ChannelError(
            f"{int(gaps.sum())} values are missing, the first in column {columns.features[place]!r} of data row "
            f"{row + 1}: give `missing`, the number to put there"
        )
    if target is None:
        return Table(features, None, columns.features)
    names = (target.class_names or _sorted_classes(labels)) if target.classes else ()
    return Table(features, _target_tensor(labels, target, names), columns.features, names)


def _target_tensor(labels: list[str], target: Target, class_names: tuple[str, ...]) -> torch.Tensor:
    where = f"target column {target.column!r}"
    if not target.classes:
        numbers = torch.tensor([_number(label, where) for label in labels], dtype=torch.float32)
        if numbers.isnan().any():
            raise ChannelError(f"{where} is missing in {int(numbers.isnan().sum())} rows")
        return numbers
    index = {name: place for place, name in enumerate(class_names)}
    unknown = set(labels) - (set(index) - {""})
    if unknown:
        raise ChannelError(f"{where} has {sorted(unknown)[:10]}, which are no classes: {list(class_names)[:50]}")
    return torch.tensor([index[label] for label in labels])


def _sorted_classes(labels: list[str]) -> tuple[str, ...]:
    found = set(labels)
    return tuple(sorted(found, key=float) if all(map(_is_number, found)) else sorted(found))
