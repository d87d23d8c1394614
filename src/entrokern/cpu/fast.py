"""Which calls on whole distributions have a fast kernel, and what that kernel leaves to the careful one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._arrays import Array
from .._call import Call
from .blocks import BLOCK
from .launch import Source, Target, streams
from .log_lines import STRETCH, STRETCH_IN_FLOAT64, log_lines
from .operands import Layout, Operand
from .row_groups import ROWS
from .simd import BYTES
from .soft_target_gradients import RECORDS as SUMS
from .soft_target_gradients import soft_target_gradient_groups, soft_target_gradient_lanes
from .soft_targets import soft_target_lanes, soft_target_rows
from .softmax_pairs import KEPT, RECORDS, ROOM, softmax_pair_groups, softmax_pair_lanes
from .tables import tables
from .terms import EVEN

LANES_UP_TO = 64  # classes: beyond, a row fills the vectors by itself …
SOFTMAX_LANES_UP_TO = 256  # … with several sweeps later: each begins and ends at a cost
TILE_UP_TO = 1 << 14  # numbers: what fits in L2 a few times

# (call, operands, first row, weights, results) → which rows are left to the careful kernel
Fast = Callable[[Call, Operand, Operand, int, Array, Array], Array]
SQUARE = (BYTES // 8) ** 2  # of float64
NO_TARGET = Target(None)
NOTHING = Operand(np.empty(0), np.empty(0, np.int64))


def narrow(call: Call) -> bool:
    """Whether no operand holds more than float32 does; a target's type does not matter."""
    return call.x.itemsize < 8 and (call.y is None or call.quantity == "cross_entropy" or call.y.itemsize < 8)


def holds(compute: np.dtype[Any], dtype: np.dtype[Any]) -> bool:
    """Whether numbers of type `dtype` are as they are in the compute type."""
    return dtype.kind == "b" or (dtype.itemsize <= 2 if dtype.kind in "iu" else dtype.itemsize <= compute.itemsize)


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


def weight_of(call: Call) -> Any:
    """The weight of JS as its kernels take it; None for others."""
    if call.quantity != "js_divergence":
        return None
    return EVEN if call.js_weight == 0.5 else call.js_weight


def room_for_tiles(k: int, zero: Any, count: int) -> list[Array]:
    """Room for `count` tiles of all classes."""
    lanes = BYTES // zero.itemsize
    return [np.empty(-(-k // lanes) * lanes * lanes, zero.dtype) for _ in range(count)]


def common_slope(call: Call) -> Any:
    """What all slopes are multiplied by, in the type that they are computed in.

    Of narrow operands, products of exponentials and differences of logarithms keep their digits in float32. What is
    left of a computed logarithm beside 1 may be little; quotients, and weights, may be beyond float32.
    """
    slope = call.unit * call.map_scale
    of_products = of_logs(call) or (call.y_form == "log_probs" and "grad_p" not in call.maps)
    fits = narrow(call) and call.sample_weight is None and 2.0**-100 < abs(slope) < 2.0**24
    return np.float32(slope) if call.maps and of_products and fits else np.float64(slope)


def of_logs(call: Call) -> bool:
    """Whether the operands, or the one that there is, are log-probabilities."""
    return call.form == "log_probs" and (call.y is None or call.y_form == "log_probs")


def fast_lines(call: Call, x: Layout, y: Source | None, grad_p: Target, grad_q: Target) -> Fast | None:
    """Rows of few or some hundred log-probabilities, without weights: entropy, KL of two, and gradients in float32."""
    zero: Any = np.float32(0) if narrow(call) else np.float64(0)
    k, unit, of_two = call.k, call.unit, y is not None
    short = k <= (STRETCH if narrow(call) else STRETCH_IN_FLOAT64)
    if not (of_logs(call) and short) or call.sample_weight is not None or family(k, x, y, 0) != "rows":
        return None
    if call.maps and (
        common_slope(call).dtype != np.float32 or any(a.strides[-1] != a.itemsize for a in call.maps.values())
    ):
        return None
    q_logs, streaming, name = True if of_two else None, streams(call), "grad_p" if of_two else "grad"

    def run(call: Call, p: Operand, q: Operand, start: int, weights: Array, results: Array) -> Array:
        loss, second = results[0], q if of_two else (None, None)
        lines = [np.empty(STRETCH + BYTES, zero.dtype) for _ in ("terms", "grad_p", "grad_q")]
        return left_of(loss, log_lines(
            *p, *second, start, loss.size, k, q_logs, unit, common_slope(call), zero, lines[0], np.zeros(SQUARE), loss,
            *grad_p.of(call.maps.get(name)), *grad_q.of(call.maps.get("grad_q")), streaming, *lines[1:],
        ))  # fmt: skip

    return run


def fast_tables(
    call: Call, x: Layout, y: Source | None = None, grad_p: Target = NO_TARGET, grad_q: Target = NO_TARGET
) -> Fast | None:
    """Entropy of probabilities or log-probabilities, KL of two tables of them, JS of probabilities; gradients in
    float32, by whole rows."""
    forms = {call.form, call.y_form}
    if "logits" in forms or (call.quantity == "js_divergence" and "log_probs" in forms):
        return None
    if (in_lines := fast_lines(call, x, y, grad_p, grad_q)) is not None:
        return in_lines
    p_logs, q_logs = (True if form == "log_probs" else None for form in (call.form, call.y_form))
    zero: Any = np.float32(0) if narrow(call) else np.float64(0)
    chosen = family(call.k, x, y)
    if chosen is None:
        return None
    if call.maps and not (narrow(call) and family(call.k, x, y, 0) == "rows"):
        return None
    width = BYTES // zero.itemsize
    k, w, unit, of_two = call.k, weight_of(call), call.unit, y is not None
    streaming, name = streams(call), "grad_p" if y is not None else "grad"

    def run(call: Call, p: Operand, q: Operand, start: int, weights: Array, results: Array) -> Array:
        loss = results[0]
        second = q if of_two else (None, None)
        squares = None
        if chosen == "lanes":
            squares = (*room_for_tiles(width, zero, 1), room_for_tiles(width, zero, 1)[0] if of_two else None)
        return left_of(loss, tables(
            *p, *second, start, loss.size, k, w, p_logs, q_logs, unit, common_slope(call), weights, zero, squares, loss,
            *grad_p.of(call.maps.get(name)), *grad_q.of(call.maps.get("grad_q")), streaming,
            np.empty(2 * BLOCK, zero.dtype) if call.maps else None,
        ))  # fmt: skip

    return run


def fast_softmax_pairs(call: Call, x: Layout, y: Source, grad_p: Target, grad_q: Target) -> Fast | None:
    """KL divergence between two softmaxes and its gradients, or JS divergence without."""
    if call.maps and call.quantity == "js_divergence":
        return None
    zero: Any = np.float32(0) if narrow(call) else np.float64(0)
    chosen = family(call.k, x, y, SOFTMAX_LANES_UP_TO)
    if chosen is None or (chosen == "lanes" and call.k * 16 > TILE_UP_TO):
        return None
    k, w, temperature, unit = call.k, weight_of(call), call.temperature, call.unit
    streaming = streams(call)

    def run(call: Call, p: Operand, q: Operand, start: int, weights: Array, results: Array) -> Array:
        loss = results[0]
        gradients = *grad_p.of(call.maps.get("grad_p")), *grad_q.of(call.maps.get("grad_q"))
        arguments = (*p, *q, start, loss.size, k, w, temperature, unit, call.map_scale, weights, zero)
        if chosen == "lanes":
            return left_of(loss, softmax_pair_lanes(*arguments, *room_for_tiles(k, zero, 4), loss, *gradients))
        lanes = BYTES // zero.itemsize
        room = min(ROOM // zero.itemsize, ROWS * (k + lanes))
        return left_of(loss, softmax_pair_groups(
            *arguments, np.empty(KEPT * room, zero.dtype), np.empty(lanes * lanes, zero.dtype),
            np.empty(2 * ROWS, zero.dtype), np.zeros(2 * ROWS * 8), np.ones(RECORDS * ROWS), loss, *gradients,
            streaming, np.empty(BLOCK, zero.dtype),
        ))  # fmt: skip

    return run


def fast_soft_targets(call: Call, x: Layout, y: Source, grad: Target) -> Fast | None:
    """Cross-entropy of logits with target distributions, without most options; its gradient in float32."""
    plain = call.softcap is None and call.class_weight is None and call.label_smoothing == call.z_loss == 0.0
    if not plain or call.form != "logits":
        return None
    if call.maps and (set(call.maps) != {"grad"} or not narrow(call)):
        return None
    zero: Any = np.float32(0) if narrow(call) else np.float64(0)
    exact = True if call.y is None or holds(zero.dtype, call.y.dtype) else None
    # Tiles hold what the compute type does; beside a target of more digits, little may be left of the gradient.
    tiles_do = call.k * 16 <= TILE_UP_TO and not (call.maps and exact is None)
    chosen = family(call.k, x, y, SOFTMAX_LANES_UP_TO if tiles_do else 0)
    if chosen is None or (chosen == "lanes" and not tiles_do):
        return None
    k, temperature, unit = call.k, call.temperature, call.unit
    with_gradient, streaming = bool(call.maps), streams(call)

    def run(call: Call, p: Operand, b: Operand, start: int, weights: Array, results: Array) -> Array:
        loss = results[0]
        arguments = (*p, *b, start, loss.size, k, temperature, unit)
        if not with_gradient and chosen == "rows":
            return left_of(loss, soft_target_rows(*arguments, weights, zero, exact, loss))
        if not with_gradient:
            return left_of(loss, soft_target_lanes(*arguments, weights, zero, exact, *room_for_tiles(k, zero, 2), loss))
        for_gradient = *arguments, call.map_scale, weights, zero
        target = grad.of(call.maps["grad"])
        if chosen == "lanes":
            return left_of(loss, soft_target_gradient_lanes(*for_gradient, *room_for_tiles(k, zero, 2), loss, *target))
        lanes = BYTES // zero.itemsize
        room = min(ROOM // zero.itemsize, ROWS * (k + lanes))
        return left_of(loss, soft_target_gradient_groups(
            *for_gradient, exact, np.empty(room, zero.dtype), np.empty(lanes * lanes, zero.dtype),
            np.empty(ROWS, zero.dtype), np.zeros(3 * ROWS * 8), np.zeros(SUMS * ROWS), loss, *target,
            streaming, np.empty(BLOCK, zero.dtype),
        ))  # fmt: skip

    return run
