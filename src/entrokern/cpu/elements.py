"""Kernel family *elements*: binary cross-entropy of probabilities, information and KL estimates, in float64."""

from __future__ import annotations

import numpy as np

from .. import _formulas
from .blocks import BLOCK, CLASS_STRIDE, block_of, load, row_start, slot_of, store, store_constant
from .compile import inline, kernel
from .distributions import LOG_PROBS, block_total
from .math import exp, log, log1p

# Scratch slots. The targets and positive weights become the weights of the negative and positive part.
X, T, POS, WEIGHT, LOG1P, E, VALUE, GRAD, SLOTS = range(9)


@inline
def log1mexp(x):
    """``log(1 - e^x)`` for ``x <= 0``."""
    e = exp(x)
    small = -x * (1.0 + x * _formulas.expm1_tail(-x)) if x > -1.0 else 1.0 - e
    return log(small) if x > -0.6931471805599453 else log1p(-e)


@inline
def binary_parts(n, form, stage):
    """The two surprises of a block: ``-log p`` into E and ``-log(1-p)`` into LOG1P."""
    x, e, l = slot_of(stage, X, n), slot_of(stage, E, n), slot_of(stage, LOG1P, n)  # noqa: E741
    if form == LOG_PROBS:
        for i in range(n):
            e[i] = -x[i]
            l[i] = -log1mexp(x[i])
    else:
        for i in range(n):
            e[i] = 0.0 - log(x[i])
            l[i] = 0.0 - log1p(-x[i]) if x[i] >= 0.0 else np.nan


@inline
def binary_slopes(n, form, unit, stage):
    """Gradient of the unweighted block."""
    x, positive, negative = slot_of(stage, X, n), slot_of(stage, POS, n), slot_of(stage, T, n)
    grad = slot_of(stage, GRAD, n)
    if form == LOG_PROBS:
        for i in range(n):
            d = -x[i]
            # 1 / (e^d - 1), from the series of e^d - 1 where d is small.
            growth = d * (1.0 + d * _formulas.expm1_tail(-d)) if d < 1.0 else exp(d) - 1.0
            grad[i] = unit * (_formulas.times(negative[i], 1.0 / growth) - positive[i])
    else:
        for i in range(n):
            b = _formulas.times(negative[i], 1.0 / (1.0 - x[i]))
            grad[i] = unit * (b - _formulas.times(positive[i], 1.0 / x[i]))
            grad[i] = grad[i] if x[i] >= 0.0 else np.nan


@kernel
def binary_rows(
    x, x_geometry, t, t_geometry, pos, pos_geometry, weight, weight_geometry, first, n, size, whole_numbers,
    summed, form, smoothing, ignore, unit, map_scale, stage, results, loss, loss_geometry,
    grad, grad_geometry,
):  # fmt: skip
    """BCE of rows of `size` elements: elements into `loss`, weighted row sums into `results`.

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
            binary_parts(m, form, stage)
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
                binary_slopes(m, form, unit * map_scale, stage)
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


@kernel
def information_rows(x, geometry, first, n, low, high, unit, stage, out, out_geometry):
    """``-log p`` of columns ``low … high - 1``."""
    stride, out_stride = geometry[CLASS_STRIDE], out_geometry[CLASS_STRIDE]
    for i in range(n):
        for at in range(low, high, BLOCK):
            m = min(BLOCK, high - at)
            load(x, row_start(geometry, first + i) + at * stride, stride, m, 0.0, stage, X)
            p, values = block_of(x, 0, m, stage, X), slot_of(stage, VALUE, m)
            for c in range(m):
                values[c] = 0.0 - unit * log(p[c])
            store(values, out, row_start(out_geometry, first + i) + at * out_stride, out_stride)


@kernel
def kl_estimate_rows(
    x, x_geometry, y, y_geometry, first, n, low, high, estimator, stage, results, out, out_geometry
):  # fmt: skip
    """Estimators 1, 2, 3 of samples in columns ``low … high - 1``; their sums into `results`."""
    for i in range(n):
        total = 0.0
        for at in range(low, high, BLOCK):
            m = min(BLOCK, high - at)
            s = x_geometry[CLASS_STRIDE]
            load(x, row_start(x_geometry, first + i) + at * s, s, m, 0.0, stage, X)
            s = y_geometry[CLASS_STRIDE]
            load(y, row_start(y_geometry, first + i) + at * s, s, m, 0.0, stage, T)
            log_p, log_q, values = slot_of(stage, X, m), slot_of(stage, T, m), slot_of(stage, VALUE, m)
            for c in range(m):
                d = log_p[c] - log_q[c]
                if estimator == 1:
                    values[c] = d
                elif estimator == 2:
                    values[c] = 0.5 * d * d
                else:
                    values[c] = _formulas.k3(d, exp(-d) - 1.0) if d < np.inf else d
            total += block_total(values)
            if out is not None:
                s = out_geometry[CLASS_STRIDE]
                store(values, out, row_start(out_geometry, first + i) + at * s, s)
        results[0, i] = total
