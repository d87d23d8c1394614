"""Which calls on whole distributions have a fast kernel, and what that kernel leaves to the careful one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._arrays import Array
from .._call import Call
from .launch import Source
from .operands import Layout, Operand
from .soft_targets import soft_target_lanes, soft_target_rows
from .softmax_pairs import GROUP, KEPT, RECORDS, softmax_kl_lanes, softmax_kl_rows
from .tables import table_lanes, table_rows
from .terms import EVEN

LANES_UP_TO = 64  # classes: beyond, a row fills the vectors by itself …
SOFTMAX_LANES_UP_TO = 256  # … with several sweeps later: each begins and ends at a cost
TILE_UP_TO = 1 << 14  # numbers: what fits in L2 a few times

# (operands, first row, weights, results) → which rows are left to the careful kernel
Fast = Callable[[Operand, Operand, int, Array, Array], Array]
NOTHING = Operand(np.empty(0), np.empty(0, np.int64))


def narrow(call: Call) -> bool:
    """Whether no operand holds more than float32 does; a target's type does not matter."""
    return call.x.itemsize < 8 and (call.y is None or call.quantity == "cross_entropy" or call.y.itemsize < 8)


def family(k: int, x: Layout, y: Source | None, lanes_up_to: int = LANES_UP_TO) -> str | None:
    """``"rows"`` or ``"lanes"``, or None where neither reads the operands in place."""
    geometries = [x.geometry] if y is None or y.geometry is None else [x.geometry, y.geometry]
    flat = [g[0] == 1 for g in geometries]
    if k > lanes_up_to and all(flat):
        return "rows"
    adjacent = [g[-1] == 1 for g in geometries]
    return "lanes" if all(f or a for f, a in zip(flat, adjacent, strict=True)) else None


def left_of(results: Array, left: int) -> Array:
    """The rows that came out as NaN, if there are any."""
    return np.flatnonzero(np.isnan(results)) if left else np.empty(0, np.intp)


def tiles(k: int, zero: Any, count: int) -> list[Array]:
    """Room for `count` tiles of all classes."""
    lanes = 64 // zero.itemsize
    return [np.empty(-(-k // lanes) * lanes * lanes, zero.dtype) for _ in range(count)]


def fast_tables(call: Call, x: Layout, y: Source | None = None) -> Fast | None:
    """Entropy of probabilities, or divergence of two tables of them, without gradients."""
    zero: Any = np.float32(0) if narrow(call) else np.float64(0)
    chosen = family(call.k, x, y)
    if chosen is None:
        return None
    width = 64 // zero.itemsize
    w: Any = call.js_weight if call.quantity == "js_divergence" else None
    w = EVEN if w == 0.5 else w
    k, unit, of_two = call.k, call.unit, y is not None  # what runs later keeps no array of the call

    def run(p: Operand, q: Operand, start: int, weights: Array, results: Array) -> Array:
        loss = results[0]
        second = q if of_two else (None, None)
        arguments = (*p, *second, start, loss.size, k, w, unit, weights, zero)
        if chosen == "rows":
            return left_of(loss, table_rows(*arguments, loss))
        squares = tiles(width, zero, 2) if of_two else (*tiles(width, zero, 1), None)
        return left_of(loss, table_lanes(*arguments, *squares, loss))

    return run


def fast_softmax_kl(call: Call, x: Layout, y: Source) -> Fast | None:
    """KL divergence between two softmaxes, without gradients."""
    zero: Any = np.float32(0) if narrow(call) else np.float64(0)
    chosen = family(call.k, x, y, SOFTMAX_LANES_UP_TO)
    if chosen is None or (chosen == "lanes" and call.k * 16 > TILE_UP_TO):
        return None
    k, temperature, unit = call.k, call.temperature, call.unit

    def run(p: Operand, q: Operand, start: int, weights: Array, results: Array) -> Array:
        loss = results[0]
        arguments = (*p, *q, start, loss.size, k, temperature, unit, weights, zero)
        if chosen == "lanes":
            return left_of(loss, softmax_kl_lanes(*arguments, *tiles(k, zero, 4), loss))
        kept = np.empty(2 * (KEPT + 16), zero.dtype) if k <= KEPT else None
        return left_of(loss, softmax_kl_rows(*arguments, kept, np.ones(RECORDS * GROUP), loss))

    return run


def fast_soft_targets(call: Call, x: Layout, y: Source) -> Fast | None:
    """Cross-entropy of logits with target distributions, without gradients and without most options."""
    plain = call.softcap is None and call.class_weight is None and call.label_smoothing == call.z_loss == 0.0
    zero: Any = np.float32(0) if narrow(call) else np.float64(0)
    chosen = family(call.k, x, y, SOFTMAX_LANES_UP_TO)
    if not plain or call.maps or call.form != "logits" or chosen is None:
        return None
    if chosen == "lanes" and call.k * 16 > TILE_UP_TO:
        return None
    k, temperature, unit = call.k, call.temperature, call.unit

    def run(p: Operand, b: Operand, start: int, weights: Array, results: Array) -> Array:
        loss = results[0]
        arguments = (*p, *b, start, loss.size, k, temperature, unit, weights, zero)
        if chosen == "lanes":
            return left_of(loss, soft_target_lanes(*arguments, *tiles(k, zero, 2), loss))
        return left_of(loss, soft_target_rows(*arguments, loss))

    return run
