"""Which calls on whole distributions have a fast kernel, and what that kernel leaves to the careful one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._arrays import Array
from .._call import Call
from .launch import Source
from .operands import Operand
from .softmax_pairs import GROUP, KEPT, RECORDS, softmax_kl_rows
from .tables import table_lanes, table_rows

LANES_UP_TO = 64  # classes: beyond, a row fills the vectors by itself
SQUARE = 16 * 16  # of the narrowest numbers

# (first row, second operand, weights, results) → which rows are left to the careful kernel
Fast = Callable[[int, Operand | None, Array, Array], Array]


def lies_flat(x: Operand) -> bool:
    """Whether the classes of a row lie side by side."""
    return bool(x.geometry[0] == 1)


def family(k: int, *operands: Operand) -> str | None:
    """``"rows"`` or ``"lanes"``, or None where neither reads the operands in place."""
    if k > LANES_UP_TO and all(map(lies_flat, operands)):
        return "rows"
    return "lanes" if all(lies_flat(x) or x.geometry[-1] == 1 for x in operands) else None


def fast_tables(call: Call, x: Operand, y: Source | None = None) -> Fast | None:
    """Entropy of probabilities, or divergence of two tables of them, without gradients."""
    narrow = call.x.itemsize < 8 and (call.y is None or call.y.itemsize < 8)
    zero: Any = np.float32(0) if narrow else np.float64(0)
    chosen = family(call.k, x, *([] if y is None or y.whole is None else [y.whole]))
    if chosen is None:
        return None
    w = call.js_weight if call.quantity == "js_divergence" else None

    def run(start: int, q: Operand | None, weights: Array, results: Array) -> Array:
        loss = results[0]
        arguments = (*x, *(q or (None, None)), start, loss.size, call.k, w, call.unit, weights, zero)
        if chosen == "rows":
            left = table_rows(*arguments, loss)
        else:
            tiles = np.empty(SQUARE, zero.dtype), None if q is None else np.empty(SQUARE, zero.dtype)
            left = table_lanes(*arguments, *tiles, loss)
        return np.flatnonzero(np.isnan(loss)) if left else np.empty(0, np.intp)

    return run


def fast_softmax_kl(call: Call, x: Operand, y: Source) -> Fast | None:
    """KL divergence between two softmaxes, without gradients."""
    assert call.y is not None
    zero: Any = np.float32(0) if call.x.itemsize < 8 and call.y.itemsize < 8 else np.float64(0)
    chosen = family(call.k, x, *([] if y.whole is None else [y.whole]))

    def run(start: int, q: Operand | None, weights: Array, results: Array) -> Array:
        assert q is not None
        loss = results[0]
        kept = np.empty(2 * (KEPT + 16), zero.dtype) if call.k <= KEPT else None
        records = np.ones(RECORDS * GROUP)
        left = softmax_kl_rows(
            *x, *q, start, loss.size, call.k, call.temperature, call.unit, weights, zero, kept, records, loss
        )  # fmt: skip
        return np.flatnonzero(np.isnan(loss)) if left else np.empty(0, np.intp)

    return run if chosen == "rows" else None
