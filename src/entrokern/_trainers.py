"""What the rooms of trainers share: labels that come as floats, and work of NumPy's on the kernels' results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _threads
from ._arrays import Array

BLOCK = 1 << 17  # elements: what NumPy does to a kernel's results, it does while they are in cache

Rows = slice


def class_labels(labels: Any, k: int) -> Array:
    """`labels` of any real dtype, shape ``(n,)``, as int64.

    Raises ``IndexError`` for the first that is none of ``0 … k-1``, ``1.5`` and NaN included.
    """
    given = np.asarray(labels)
    if given.ndim != 1 or given.dtype.kind not in "biuf":
        raise ValueError(
            f"labels have shape {given.shape} and dtype {given.dtype}; pass one class 0 to {k - 1} per row"
        )
    with np.errstate(invalid="ignore"):
        classes = given.astype(np.int64)
    bad = (classes != given) | (classes < 0) | (classes >= k)
    if bad.any():
        i = int(bad.argmax())
        raise IndexError(f"label {given[i]} of row {i} is no class: the {k} classes are 0 to {k - 1}")
    return classes


def over_blocks(shape: tuple[int, ...], work: Callable[[Rows], None]) -> None:
    """Call ``work(rows)`` for blocks of the rows of `shape`, spread over the library's threads."""
    n, step = shape[0], max(1, BLOCK // max(1, math.prod(shape[1:])))

    def block(i: int) -> None:
        with _threads.one_thread():
            work(slice(i * step, min(n, (i + 1) * step)))

    _threads.run_chunks(-(-n // step), block)
