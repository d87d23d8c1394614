"""The checks that cost a pass over the data, made only with ``validate=True``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ._arrays import Array, flat_chunk, in_line, is_bfloat16, on_host

ELEMENTS = 1 << 20  # per step: bounded memory, whatever the size of the array


def row_chunks(view: Array) -> Iterator[tuple[int, Array]]:
    """Blocks of rows of ``batch + (k,)`` as float64, each with the index of its first row."""
    view, k = in_line(view), view.shape[-1]
    step = max(1, ELEMENTS // k)
    n = view.size // k
    for start in range(0, n, step):
        stop = min(n, start + step)
        yield start, flat_chunk(view, start * k, stop * k).reshape(-1, k).astype(np.float64)


def _row_name(row: int, view: Array) -> str:
    batch = view.shape[:-1]
    if len(batch) == 1:
        return str(row)
    return str(tuple(int(i) for i in np.unravel_index(row, batch))) if batch else "0"


def tolerance_of(dtype: np.dtype[Any]) -> float:
    """How far the sum of a distribution may be off 1: ``8·√eps``."""
    eps = 2.0**-7 if is_bfloat16(dtype) else float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-52
    return 8.0 * math.sqrt(eps)


def distribution(name: str, view: Array, form: str) -> None:
    """Raise for the first row below 0 somewhere, or whose sum is off 1 by more than ``8·√eps``."""
    if form == "logits":
        return
    tolerance = tolerance_of(view.dtype)
    for start, rows in row_chunks(view):
        with np.errstate(all="ignore"):
            p = np.exp(rows) if form == "log_probs" else rows
            sums = p.sum(axis=1)
            negative: Any = (p < 0).any(axis=1)
            bad = negative | (np.abs(sums - 1.0) > tolerance)
        if bad.any():
            i = int(bad.argmax())
            lowest, total = float(p[i].min()), float(sums[i])
            what = (
                f"holds a probability below 0 ({lowest:.6g})"
                if negative[i]
                else f"sums to {total:.6g}, not 1 (within {tolerance:.2g})"
            )
            raise ValueError(
                f"{name}: row {_row_name(start + i, view)} {what}; normalise the rows, "
                "or pass validate=False to take them as they are"
            )


def _elements(name: str, array: Array, allowed: str, low: float, high: float, ignore: int | None = None) -> None:
    array = in_line(array)
    for start in range(0, array.size, ELEMENTS):
        chunk = flat_chunk(array, start, min(array.size, start + ELEMENTS))
        values = chunk.astype(np.float64)
        bad = (values < low) | (values > high)
        if ignore is not None:
            bad &= values != ignore
        if bad.any():
            i = int(bad.argmax())
            where = tuple(int(j) for j in np.unravel_index(start + i, array.shape)) if array.shape else ()
            place = where[0] if len(where) == 1 else where
            raise ValueError(f"{name}: row {place} is {on_host(chunk[i])}; allowed: {allowed}")


def not_negative(name: str, p: Array) -> None:
    _elements(name, p, "probabilities, 0 or greater", 0.0, np.inf)


def not_positive(name: str, log_p: Array) -> None:
    _elements(name, log_p, "log-probabilities, 0 or less", -np.inf, 0.0)


def unit_interval(name: str, t: Array, ignore_index: int | None) -> None:
    _elements(name, t, "targets in [0, 1]", 0.0, 1.0, ignore_index)


def binary_predictions(name: str, x: Array, form: str) -> None:
    if form == "probs":
        _elements(name, x, "probabilities in [0, 1]", 0.0, 1.0)
    elif form == "log_probs":
        not_positive(name, x)
