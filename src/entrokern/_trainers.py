"""What the rooms of trainers share: labels that come as floats, results in another dtype, the softmax's Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _threads
from ._arrays import Array
from .losses import cross_entropy

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


def softmax_gradient_hessian(
    x: Array,
    labels: Array,
    sample_weight: Array | None,
    grad: Array,
    hess: Array,
    scale: float = 1.0,
    least: float = 0.0,
) -> None:
    """``s·(p - [c = y])`` into `grad`, ``scale·s·p·(1-p)``, at the `least`, into `hess`; one of them may be `x`.

    The Hessian is made of the gradient: ``|p - [c = y]|`` is ``p``, or ``1 - p`` for the label's class, and
    ``p·(1-p)`` is the same for both. Its error is within ``eps``, and relative for the label's class, where ``p``
    comes from the loss. `grad` and `hess` may have another floating dtype than `x`.
    """

    def block(rows: Rows) -> None:
        s, counts = np.ones((), x.dtype), None
        if sample_weight is not None:
            s = sample_weight[rows, None].astype(x.dtype, copy=False)
            counts = (sample_weight[rows] != 0).astype(np.int8)  # what does not count is 0, whatever `x` holds there
        loss, g = cross_entropy(x[rows], labels[rows], sample_weight=counts, reduction="none", return_grad=True)
        p = np.abs(g)
        variance = 1 - p
        variance *= p
        label = np.arange(len(p)), labels[rows]
        variance[label] = p[label] * np.exp(-loss)
        np.multiply(g, s, out=grad[rows], casting="same_kind")
        np.multiply(variance, scale * s, out=hess[rows], casting="same_kind")
        if least:
            np.maximum(hess[rows], least, out=hess[rows])

    over_blocks(x.shape, block)
