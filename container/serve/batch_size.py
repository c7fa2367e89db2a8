"""How many requests a model's batch holds: as many as this machine gains from, by the clock and by the memory."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from container.serve import memory

WORTH = 0.95  # a record of the larger batch takes at most this share of one of the smaller
REPEATS = 7
PAIR_SECONDS = 3.0  # of measuring two sizes

ROWS_AT_ONCE = 64
BYTES_AT_ONCE = 4 * 1024**2  # a row of the input may become a hundred times as large inside the network

Predict = Callable[[Sequence[Any]], list[Any]]


def fitting_batch_size(
    predict: Predict,
    records: Sequence[Any],
    bound_bytes: int | None,
    threads: int,
    wait: Callable[[], None] = lambda: None,
) -> tuple[int, str]:
    """The largest batch worth forming, of 1, 2, 4, …, and a line that says why it is that.

    Args:
        predict: one answer for each of several records.
        records: different ones, as many as the largest batch may hold.
        bound_bytes: what this process may hold while each of `threads` predicts; None: as much as there is.
        threads: how many batches this process computes at once.
        wait: called before each batch; returns when nobody else computes.

    Raises:
        RuntimeError: as `predict`, unless it is that memory ran out.
    """
    size, per_record = 1, 0.0
    figures: list[str] = []
    reason = "no larger one is allowed"
    while 2 * size <= len(records):
        held, grown = memory.held(), memory.peak_growth(functools.partial(predict, records[:size]))
        if bound_bytes is not None and held + 2 * grown * threads > bound_bytes:
            reason = f"twice as many may need {(held + 2 * grown * threads) / 1e6:.0f} MB of {bound_bytes / 1e6:.0f} MB"
            break
        try:
            per_record, larger = measure(predict, records, size, wait)
        except RuntimeError as error:  # torch's, of a GPU whose memory the larger batch does not fit into
            if "out of memory" not in str(error):
                raise
            reason = f"{2 * size} do not fit into the device's memory"
            break
        figures = figures or [f"1: {per_record * 1e3:.3g}"]
        figures.append(f"{2 * size}: {larger * 1e3:.3g}")
        if larger > per_record * WORTH:
            reason = f"{2 * size} gain less than {1 - WORTH:.0%} a record"
            break
        size *= 2
    shown = f" (ms a record, {', '.join(figures)})" if figures else ""
    return size, f"at most {size} requests share a batch: {reason}{shown}"


def measure(
    predict: Predict, records: Sequence[Any], size: int, wait: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Seconds a record in batches of `size` and of twice as many, in turn: the fastest run of each counts."""
    best = {size: float("inf"), 2 * size: float("inf")}
    spent = 0.0
    for turn in range(REPEATS + 1):
        for count in best:
            wait()
            started = time.perf_counter()
            predict(records[:count])
            seconds = time.perf_counter() - started
            spent += seconds
            if turn:  # the first warms up
                best[count] = min(best[count], seconds / count)
        if turn and spent > PAIR_SECONDS:
            break
    return best[size], best[2 * size]


def rows_at_once(row_bytes: int) -> int:
    """How many of a request's own rows a network is shown at once: 660 images in one batch body would take 4 GB."""
    return max(ROWS_AT_ONCE, BYTES_AT_ONCE // max(1, row_bytes))


def agree(one: Any, other: Any) -> bool:
    """Whether two answers are arrays of the same numbers."""
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray) or one.shape != other.shape:
        return False
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True))
