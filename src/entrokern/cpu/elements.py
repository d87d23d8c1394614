"""Kernel family *elements*: information and KL estimates, and binary cross-entropy of log-probabilities."""

from __future__ import annotations

import numpy as np

from .. import _formulas
from .blocks import BLOCK, CLASS_STRIDE, load, row_start, slot_of, store, store_constant
from .compile import inline, kernel
from .distributions import block_total
from .math import any_log, exp, log, log1p, signed_exp
from .memory import vector, width
from .runs import RUN, fourfold, gathered, placed, quarters, read, scattered, write
from .simd import Value, emitted, lanes_sum, magnitude, select

# Scratch slots. The targets and positive weights become the weights of the negative and positive part.
X, T, POS, WEIGHT, LOG1P, E, VALUE, GRAD, SLOTS = range(9)


@inline
def log1mexp(x):
    """``log(1 - e^x)`` for ``x <= 0``."""
    e = exp(x)
    small = -x * (1.0 + x * _formulas.expm1_tail(-x)) if x > -1.0 else 1.0 - e
    return log(small) if x > -0.6931471805599453 else log1p(-e)


@inline
def binary_parts(n, stage):
    """The two surprises of a block: ``-log p`` into E and ``-log(1-p)`` into LOG1P."""
    x, e, l = slot_of(stage, X, n), slot_of(stage, E, n), slot_of(stage, LOG1P, n)  # noqa: E741
    for i in range(n):
        e[i] = -x[i]
        l[i] = -log1mexp(x[i])


@inline
def binary_slopes(n, unit, stage):
    """Gradient of the unweighted block."""
    x, positive, negative = slot_of(stage, X, n), slot_of(stage, POS, n), slot_of(stage, T, n)
    grad = slot_of(stage, GRAD, n)
    for i in range(n):
        d = -x[i]
        # 1 / (e^d - 1), from the series of e^d - 1 where d is small.
        growth = d * (1.0 + d * _formulas.expm1_tail(-d)) if d < 1.0 else exp(d) - 1.0
        grad[i] = unit * (_formulas.times(negative[i], 1.0 / growth) - positive[i])


@kernel
def binary_rows(
    x, x_geometry, t, t_geometry, pos, pos_geometry, weight, weight_geometry, first, n, size, whole_numbers,
    summed, smoothing, ignore, unit, map_scale, stage, results, loss, loss_geometry,
    grad, grad_geometry,
):  # fmt: skip
    """BCE of rows of `size` log-probabilities: elements into `loss`, weighted row sums into `results`.

    `summed` says that the rows are summed to one loss each, not elements that happen to lie in rows.

    Returns the row (relative to `first`) that holds the first bad target, before it is computed, or -1.
    """
    ignored = ignore[0] if ignore.size else np.nan  # which no target equals
    for i in range(n):
        kept_any = False
        t_start = row_start(t_geometry, first + i)
        if whole_numbers:
            for b in range(0, size, BLOCK):
                m = min(BLOCK, size - b)
                load(t, t_start + b * t_geometry[CLASS_STRIDE], t_geometry[CLASS_STRIDE], m, 0.0, stage, T)
                targets = slot_of(stage, T, m)
                bad = False
                for c in range(m):
                    bad |= (targets[c] != 0.0) & (targets[c] != 1.0) & (targets[c] != ignored)
                if bad:
                    return i
        row_total = 0.0
        for b in range(0, size, BLOCK):
            m = min(BLOCK, size - b)
            x_stride, t_stride = x_geometry[CLASS_STRIDE], t_geometry[CLASS_STRIDE]
            load(x, row_start(x_geometry, first + i) + b * x_stride, x_stride, m, 0.0, stage, X)
            load(t, t_start + b * t_stride, t_stride, m, 0.0, stage, T)
            targets, values = slot_of(stage, T, m), slot_of(stage, VALUE, m)
            weights, pos_weights = slot_of(stage, WEIGHT, m), slot_of(stage, POS, m)
            for c in range(m):
                weights[c] = 1.0
                pos_weights[c] = 1.0
            if weight is not None:
                s = weight_geometry[CLASS_STRIDE]
                load(weight, row_start(weight_geometry, first + i) + b * s, s, m, 0.0, stage, WEIGHT)
            if pos is not None:
                s = pos_geometry[CLASS_STRIDE]
                load(pos, row_start(pos_geometry, first + i) + b * s, s, m, 0.0, stage, POS)
            kept = 0
            for c in range(m):
                counts = targets[c] != ignored
                kept += 1 if counts else 0
                weights[c] = weights[c] if counts else 0.0
                # The two parts' weights. The negative one is smoothed on its own: 1 - t would lose a small ε.
                t_c = targets[c]
                pos_weights[c] *= (1.0 - smoothing) * t_c + 0.5 * smoothing
                targets[c] = (1.0 - smoothing) * (1.0 - t_c) + 0.5 * smoothing
            kept_any |= kept > 0
            binary_parts(m, stage)
            surprise, other = slot_of(stage, E, m), slot_of(stage, LOG1P, m)
            for c in range(m):
                value = _formulas.times(pos_weights[c], surprise[c]) + _formulas.times(targets[c], other[c])
                # What does not count is 0, whatever x holds there.
                values[c] = 0.0 if weights[c] == 0.0 else weights[c] * unit * value
            row_total += block_total(values)
            if loss is not None:
                s = loss_geometry[CLASS_STRIDE]
                store(values, loss, row_start(loss_geometry, first + i) + b * s, s)
            if grad is not None:
                binary_slopes(m, unit * map_scale, stage)
                slopes = slot_of(stage, GRAD, m)
                for c in range(m):
                    slopes[c] = 0.0 if weights[c] == 0.0 else weights[c] * slopes[c]
                s = grad_geometry[CLASS_STRIDE]
                store(slopes, grad, row_start(grad_geometry, first + i) + b * s, s)
        results[0, i] = row_total if kept_any else 0.0
        if summed and row_total != row_total and grad is not None:
            # A NaN anywhere in the row makes the row NaN.
            store_constant(np.nan, size, grad, row_start(grad_geometry, first + i), grad_geometry[CLASS_STRIDE])
    return -1


# --- information and estimates: vectors of runs ------------------------------------------------------


@inline
def information_run(x, out, n, unit, zero):
    lanes = width(zero)
    fours = n - n % (4 * lanes)
    for i in range(0, fours, 4 * lanes):
        write(out, i, None, 0.0 - any_log(read(x, i, None, fourfold(zero))) * unit)
    for i in range(fours, n, lanes):
        write(out, i, n - i, 0.0 - any_log(read(x, i, n - i, zero)) * unit)


@kernel
def information_rows(x, out, first, n, k, group, unit, zero):
    """``-log p`` of the elements of rows, `group` rows at once."""
    for i in range(0, n, group):
        row, rows = first + i, min(group, n - i)
        for at in range(0, k, RUN):
            m = min(RUN, k - at)
            information_run(gathered(x, row, rows, at, m), placed(out, row, rows, at, m), rows * m, unit, vector(zero))
            scattered(out, row, rows, at, m)


@emitted
def estimate_1(d: Value) -> Value:
    return d


@emitted
def estimate_2(d: Value) -> Value:
    return 0.5 * d * d


@emitted
def estimate_3(d: Value) -> Value:
    """``(r - 1) - log r`` for ``d = -log r``: non-negative, by its series near 0."""
    far = (signed_exp(-d) - 1.0) + d
    return select(magnitude(d) < 1.0, d * d * _formulas.expm1_tail(d), far)


@inline
def estimate(x, y, out, i, count, estimator, zero):
    """The estimator of one vector of samples."""
    d = read(x, i, count, zero) - read(y, i, count, zero)  # beyond the end 0, whose estimate is 0
    if estimator == 1:
        value = estimate_1(d)
    elif estimator == 2:
        value = estimate_2(d)
    else:
        value = estimate_3(d)
    write(out, i, count, value)
    return value


@inline
def estimate_run(x, y, out, n, estimator, zero):
    """The estimators of `n` samples: their sum."""
    lanes = width(zero)
    fours = n - n % (4 * lanes)
    four = fourfold(zero)
    for i in range(0, fours, 4 * lanes):
        four = four + estimate(x, y, out, i, None, estimator, fourfold(zero))
    total = quarters(four)
    for i in range(fours, n, lanes):
        total = total + estimate(x, y, out, i, n - i, estimator, zero)
    return lanes_sum(total)


@kernel
def kl_estimate_rows(x, y, out, first, n, k, group, estimator, results):
    """Estimators 1, 2, 3 of the samples in rows, `group` rows at once, in float64; their sums into `results`."""
    for i in range(0, n, group):
        row, rows, total = first + i, min(group, n - i), 0.0
        for at in range(0, k, RUN):
            m = min(RUN, k - at)
            total += estimate_run(
                gathered(x, row, rows, at, m), gathered(y, row, rows, at, m), placed(out, row, rows, at, m),
                rows * m, estimator, vector(0.0),
            )  # fmt: skip
            scattered(out, row, rows, at, m)
        results[0, i] = total
