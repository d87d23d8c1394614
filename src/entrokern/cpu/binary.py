"""Kernel family *binary*: binary cross-entropy of logits or probabilities and its slopes, in one sweep of vectors.

Of logits all comes from ``e = e^-|x|``: ``softplus(±x) = log1p(e) + max(±x, 0)``, and the sigmoids of x and
-x are 1 and e over ``1 + e``.
"""

from __future__ import annotations

import numpy as np
from numba import types

from .. import _formulas
from .blocks import CLASS_STRIDE, row_start, store_constant
from .compile import inline, kernel, overload
from .math import any_log, exp_minus_magnitude, log1m, log1p_unit, polynomial
from .memory import BFLOAT16, FLOAT16, first_mask, load, load_first, store, store_first, vector, width
from .runs import (
    RUN,
    fourfold,
    gathered,
    placed,
    quarters,
    read,
    scattered,
    sums_by_lane,
    write,
)
from .simd import Value, any_lane, emitted, lanes_sum, like_vector, lower_half, magnitude, select, upper_half, where

# Scalar options, in one float64 array. The weight of the positive part is ``pos·(keep·t + rest)``, that of
# the negative one ``keep·(1 - t) + rest``: ``1 - ε`` and ``ε/2``, both times the unit of the base.
KEEP, REST, POS_WEIGHT, MAP_SCALE, IGNORED = range(5)

LOGITS, PROBABILITIES = None, True  # what x holds, to the kernels: two types, so that each has code of its own

SHORT = 256  # classes: up to here rows are computed as one run, and summed one row per lane


# --- formulas -------------------------------------------------------------------------------------


@emitted
def surprise(x: Value, e: Value, a: Value, b: Value) -> Value:
    """``a·softplus(-x) + b·softplus(x)``: one of the two grows with ``|x|``, or does not count at all."""
    steep = select(x < 0.0, a, b)
    return (a + b) * log1p_unit(e) + select(steep == 0.0, steep, steep * magnitude(x))


@emitted
def weights_gap(t: Value, pos: Value, keep: Value, rest: Value) -> Value:
    """``b - a``, in float64: of two weights rounded first, too little would be left where they are equal."""
    return ((keep + 2.0 * rest) - (pos + 1.0) * (t.converted(types.float64) * keep + rest)).converted(t.dtype)


@emitted
def slope(x: Value, e: Value, a: Value, b: Value) -> Value:
    """``b·σ(x) - a·σ(-x)``. The smaller sigmoid is ``e/(1+e)``, never ``1 - σ``: its digits are kept."""
    r, one = 1.0 / (e + 1.0), x.constant(1.0)
    return b * (select(x < 0.0, e, one) * r) - a * (select(x < 0.0, one, e) * r)


@emitted
def slope_between(x: Value, e: Value, a: Value, b: Value, gap: Value) -> Value:
    """`slope` for targets between 0 and 1.

    Near x = 0 both sigmoids are 1/2, and where the weights are nearly equal too all that is left of the
    difference is ``gap/2 + (a+b)·tanh(x/2)/2``. (In float64 the contract does not ask for that much.)
    """
    if x.dtype == types.float64:
        return slope(x, e, a, b)
    near = 0.5 * gap + (a + b) * (0.5 * x * polynomial(x * x, _formulas.HALF_TANH))
    return select(magnitude(x) < 1.0, near, slope(x, e, a, b))


@emitted
def curvature(e: Value, a: Value, b: Value) -> Value:
    """``(a + b)·σ(x)·σ(-x)``"""
    r = 1.0 / (e + 1.0)
    return (a + b) * (e * r) * r


def times(weight: Value, value: Value) -> Value:
    """`_formulas.times` for vectors: a weight of 0 gives 0, also times infinity; NaN stays."""
    return select((weight == 0.0) & (value == value), weight, weight * value)


@emitted
def surprise_of_probability(p: Value, a: Value, b: Value) -> Value:
    """``-a·log p - b·log(1 - p)``; NaN outside of 0 … 1."""
    return times(a, -any_log(p)) + times(b, -log1m(p))


@emitted
def slope_of_probability(p: Value, a: Value, b: Value) -> Value:
    """``b/(1-p) - a/p``; NaN outside of 0 … 1."""
    value = times(b, 1.0 / (1.0 - p)) - times(a, 1.0 / p)
    return select((p >= 0.0) & (p <= 1.0), value, p.constant(float("nan")))


@emitted
def excess(p: Value, t: Value, pos: Value, keep: Value, rest: Value) -> Value:
    """``p·(a + b) - a``, in float64: 0 at the best p, and small near it."""
    wide = t.converted(types.float64)
    a = pos * (wide * keep + rest)
    return (p.converted(types.float64) * (a + ((1.0 - wide) * keep + rest)) - a).converted(t.dtype)


@emitted
def slope_of_probability_between(p: Value, a: Value, b: Value, excess: Value) -> Value:
    """`slope_of_probability` for targets between 0 and 1, where its two terms nearly cancel: ``excess / (p·(1-p))``."""
    if p.dtype == types.float64:
        return slope_of_probability(p, a, b)
    either = (a == 0.0) | (b == 0.0) | (p < 0.0) | (p > 1.0)
    return select(either, slope_of_probability(p, a, b), excess / (p * (1.0 - p)))


@emitted
def doubles(v: Value) -> Value:
    return v.converted(types.float64)


@emitted
def as_type_of(v: Value, like: Value) -> Value:
    return v.converted(like.dtype)


def are_whole(t):
    """Whether a run of targets are integers (or bools), which can be wrong, by their storage type."""
    raise NotImplementedError("compiled code only")


@overload(are_whole)
def _are_whole(t):
    dtype = t[0].dtype
    whole = isinstance(dtype, types.Integer) and dtype not in (FLOAT16, BFLOAT16)
    return lambda t: whole


# --- vectors, runs, the kernel --------------------------------------------------------------------


@inline
def step(form, x, t, pos, weight, options, loss, grad, hess, i, count, zero):
    """One vector of elements: their values, and something other than 0 for a target that is none."""
    keep, rest, pos_weight, map_scale, ignored = options
    one = like_vector(1.0, zero)
    given, target = read(x, i, count, zero), read(t, i, count, zero)
    of_class = read(pos, i, count, doubles(one))
    a = (target * (keep * pos_weight) + rest * pos_weight) * as_type_of(of_class, zero)
    b = (1.0 - target) * keep + rest  # smoothed on its own: of 1 - a a small ε would be lost
    if form is None:
        e = exp_minus_magnitude(given)
        value, bend = surprise(given, e, a, b), curvature(e, a, b)
        if are_whole(t):
            descent = slope(given, e, a, b)
        else:
            descent = slope_between(given, e, a, b, weights_gap(target, of_class * pos_weight, keep, rest))
    else:
        value, bend = surprise_of_probability(given, a, b), zero
        if are_whole(t):
            descent = slope_of_probability(given, a, b)
        else:
            over = excess(given, target, of_class * pos_weight, keep, rest)
            descent = slope_of_probability_between(given, a, b, over)
    counts = target != ignored
    if count is not None:
        counts = counts & first_mask(count, zero)
    wrong = where(counts, target * target - target, zero) if are_whole(t) else zero
    factor = read(weight, i, count, one)
    value, map_factor = value * factor, factor * map_scale
    counts = counts & (factor != 0.0)
    # What does not count is 0, whatever x holds there.
    value = where(counts, value, zero)
    write(loss, i, count, value)
    write(grad, i, count, where(counts, descent * map_factor, zero))
    write(hess, i, count, where(counts, bend * map_factor, zero))
    return value, wrong


@inline
def run(form, x, t, pos, weight, options, loss, grad, hess, n, zero):
    """BCE of `n` elements: their sum, and something other than 0 for a target that is none."""
    lanes = width(zero)
    low = high = lower_half(zero)
    wrong = zero
    fours = n - n % (4 * lanes)
    for i in range(0, fours, 4 * lanes):
        # Four registers at once: their latencies overlap, and only their sum has to become float64.
        values, w = step(form, x, t, pos, weight, options, loss, grad, hess, i, None, fourfold(zero))
        values, wrong = quarters(values), wrong + quarters(w)
        low, high = low + lower_half(values), high + upper_half(values)
    rest = zero
    for i in range(fours, n, lanes):
        values, w = step(form, x, t, pos, weight, options, loss, grad, hess, i, n - i, zero)
        rest, wrong = rest + values, wrong + w
    return lanes_sum(low + high) + lanes_sum(rest), lanes_sum(wrong)


@inline
def sum_rows(values, rows, k, tile, sums, at, zero):
    """The sums of `rows` rows of `k` values into `sums` from `at` on; whether one of them is NaN."""
    lanes = width(zero)
    nan = zero != zero
    for r in range(0, rows, lanes):
        count = min(lanes, rows - r)
        if k <= lanes:
            total = sums_by_lane(values, r * k, k, k, zero)
        else:
            for j in range(count):
                store(tile, j * lanes, sum_of_row(values, (r + j) * k, k, zero))
            total = sums_by_lane(tile, 0, lanes, lanes, zero)
        nan = nan | ((total != total) & first_mask(count, zero))
        store_first(sums, at + r, count, total)
    return any_lane(nan)


@inline
def sum_of_row(values, start, k, zero):
    """A vector of partial sums, which stay in single precision: no sum is longer than a few numbers."""
    lanes = width(zero)
    fours = k - k % (4 * lanes)
    four = fourfold(zero)
    for c in range(0, fours, 4 * lanes):
        four = four + load(values, start + c, four)
    total = quarters(four)
    for c in range(fours, k, lanes):
        total = total + load_first(values, start + c, k - c, zero)
    return total


@inline
def set_row(operand, row, k, value):
    if operand is not None:
        flat, geometry, _ = operand
        store_constant(value, k, flat, row_start(geometry, row), geometry[CLASS_STRIDE])


@kernel
def binary_in_line(form, x, t, pos, weight, loss, grad, hess, first, n, k, group, summed, options, zero, results):
    """BCE of the elements of rows, `group` rows at once: their sums into `results`.

    `summed` says that the rows are summed to one loss each, not elements that happen to lie in rows.
    Returns the row (relative to `first`) at or before the first bad target, or -1.
    """
    o = (options[KEEP], options[REST], options[POS_WEIGHT], options[MAP_SCALE], options[IGNORED])
    v = vector(zero)
    for i in range(0, n, group):
        row, rows, total = first + i, min(group, n - i), 0.0
        for at in range(0, k, RUN):
            m = min(RUN, k - at)
            part, wrong = run(
                form, gathered(x, row, rows, at, m), gathered(t, row, rows, at, m),
                gathered(pos, row, rows, at, m), gathered(weight, row, rows, at, m), o,
                placed(loss, row, rows, at, m), placed(grad, row, rows, at, m), placed(hess, row, rows, at, m),
                rows * m, v,
            )  # fmt: skip
            if wrong != 0.0:
                return i
            total += part
            scattered(loss, row, rows, at, m)
            scattered(grad, row, rows, at, m)
            scattered(hess, row, rows, at, m)
        results[0, i] = total
        if summed and total != total:
            set_row(grad, row, k, np.nan)
            set_row(hess, row, k, np.nan)
    return -1


@kernel
def binary_short_rows(form, x, t, pos, weight, grad, hess, first, n, k, options, zero, values, tile, results):
    """`binary_in_line` of rows of few classes: as many rows as make a run at once, then their sums by lanes."""
    o = (options[KEEP], options[REST], options[POS_WEIGHT], options[MAP_SCALE], options[IGNORED])
    v = vector(zero)
    for i in range(0, n, RUN // k):
        row, rows = first + i, min(RUN // k, n - i)
        _, wrong = run(
            form, gathered(x, row, rows, 0, k), gathered(t, row, rows, 0, k),
            gathered(pos, row, rows, 0, k), gathered(weight, row, rows, 0, k), o,
            (values, 0), placed(grad, row, rows, 0, k), placed(hess, row, rows, 0, k), rows * k, v,
        )  # fmt: skip
        if wrong != 0.0:
            return i
        scattered(grad, row, rows, 0, k)
        scattered(hess, row, rows, 0, k)
        any_nan = sum_rows(values, rows, k, tile, results[0], i, v)
        if any_nan and (grad is not None or hess is not None):
            for r in range(i, i + rows):
                if results[0, r] != results[0, r]:
                    set_row(grad, first + r, k, np.nan)
                    set_row(hess, first + r, k, np.nan)
    return -1
