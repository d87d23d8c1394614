"""Distributions in any form as blocks of float64, and the kernels of one: entropy and cross-entropy.

Everything here computes in float64, also for 16- and 32-bit input: gradients and divergences are
differences of numbers that can be nearly equal.
"""

from __future__ import annotations

import numpy as np

from .. import _formulas
from .blocks import (
    BLOCK,
    CLASS_STRIDE,
    load,
    load_one,
    row_start,
    slot_of,
    store,
    store_constant,
    through_softcap,
    view,
)
from .compile import inline, inline_sums, kernel
from .finish import scan
from .math import LOG2E, exp, log, log1p
from .memory import vector
from .row_groups import fill, place_of
from .rows import first_bad_label
from .statistics import class_of, first_block, row_record

LOGITS, LOG_PROBS, PROBS = range(3)
FORM_CODES = {"logits": LOGITS, "log_probs": LOG_PROBS, "probs": PROBS}

# Slots of the scratch array: the operands are loaded into the first two (`row_record` swaps them).
LOADED, SPARE, P, LOG_P, Q, LOG_Q, DIFFERENCE, RATIO, OUT_P, OUT_Q, SLOTS = range(11)


@inline
def normaliser(x, start, stride, k, form, scale, cap, stage):
    """A row's largest logit, ``log Z`` and ``S``; zeros where the form needs none.

    A row without a finite maximum has no softmax: everything NaN.
    """
    if form != LOGITS:
        return 0.0, 0.0, 0.0
    ahead = first_block(x, start, stride, k, cap, stage, 0, vector(1.0))
    m, S, _, _, _, _, _ = row_record(x, start, stride, k, start, ahead, 0, scale, cap, stage, False, np.inf)
    return (m, log1p(S), S) if -np.inf < m < np.inf else (m, np.nan, np.nan)


@inline
def read_distribution(x, start, stride, n, form, m, inv_T, S, cap, logs, stage, p, log_p):
    """A block of a distribution: its probabilities, and (with `logs`) its logarithms before ``- log Z``."""
    load(x, start, stride, n, cap, stage, LOADED)
    raw = slot_of(stage, LOADED, n)
    if form == PROBS:
        for i in range(n):
            v = raw[i]
            p[i] = v if v >= 0.0 else np.nan
        if logs:
            for i in range(n):
                log_p[i] = log(raw[i])
    elif form == LOG_PROBS:
        for i in range(n):
            log_p[i] = raw[i]
            p[i] = exp(raw[i])
    else:
        inv_Z = 1.0 / (1.0 + S)
        for i in range(n):
            d = (raw[i] - m) * inv_T
            log_p[i] = d
            p[i] = exp(d) * inv_Z


@inline
def accumulate(total, lost, value):
    """Add a block's sum, keeping what the addition rounds away: a row of 10⁶ classes has 10³ blocks."""
    new = total + value
    lost += (total - new) + value if abs(new) < np.inf else 0.0
    return new, lost


@inline_sums
def block_total(values):
    total = 0.0
    for i in range(values.size):
        total += values[i]
    return total


# --- one distribution -----------------------------------------------------------------------------


@inline_sums
def entropy_block(n, stage):
    p, log_p = slot_of(stage, P, n), slot_of(stage, LOG_P, n)
    total = 0.0
    for i in range(n):
        total -= _formulas.times(p[i], log_p[i])
    return total


@kernel
def entropy_rows(x, geometry, first, rows, k, form, unit, map_scale, weights, stage, results, grad, grad_geometry):
    """Entropy of the given rows of probabilities or log-probabilities, and its gradient (``None``: not wanted)."""
    stride = geometry[CLASS_STRIDE]
    for i in rows:
        weight = weights[i] if weights.size else 1.0
        start = row_start(geometry, first + i)
        loss = 0.0
        for sweep in range(1 if grad is None else 2):
            for b in range(0, k, BLOCK):
                size = min(BLOCK, k - b)
                p, log_p = slot_of(stage, P, size), slot_of(stage, LOG_P, size)
                read_distribution(x, start + b * stride, stride, size, form, 0.0, 1.0, 0.0, 0.0, True, stage, p, log_p)
                if sweep == 0:
                    loss += entropy_block(size, stage)
                elif grad is not None:
                    out = slot_of(stage, OUT_P, size)
                    factor = weight * unit * map_scale
                    for c in range(size):
                        out[c] = -(log_p[c] + 1.0) if form == PROBS else -(_formulas.times(p[c], log_p[c]) + p[c])
                        out[c] *= factor
                    grad_stride = grad_geometry[CLASS_STRIDE]
                    store(out, grad, row_start(grad_geometry, first + i) + b * grad_stride, grad_stride)
            if sweep == 0:
                results[0, i] = weight * unit * loss if weight != 0.0 else 0.0
                if grad is not None and (weight == 0.0 or loss != loss):
                    fill = 0.0 if weight == 0.0 else np.nan
                    at = row_start(grad_geometry, first + i)
                    store_constant(fill, k, grad, at, grad_geometry[CLASS_STRIDE])
                    break


# --- cross-entropy with target distributions, or of given probabilities ----------------------------


@inline
def read_target(y, start, stride, b, n, k, dense, label, smoothing, class_weight, stage, target):
    """``b_c = w_c·((1-ε)·target_c + ε/k)`` of a dense target or of a label."""
    if dense:
        load(y, start + b * stride, stride, n, 0.0, stage, LOADED)
        raw = slot_of(stage, LOADED, n)
        for i in range(n):
            v = raw[i] if raw[i] >= 0.0 else np.nan
            target[i] = (1.0 - smoothing) * v + smoothing / k
    else:
        for i in range(n):
            target[i] = smoothing / k
        if b <= label < b + n:
            target[label - b] += 1.0 - smoothing
    if class_weight.size:
        weights = view(class_weight, b, n)
        for i in range(n):
            target[i] *= weights[i]


@inline_sums
def cross_entropy_block(n, log_Z, stage):
    """``Σ b·(log Z - d)`` of terms that are non-negative for logits, and ``Σ b``.

    The logarithm counts also where the target is 0: if it is NaN, so is the row.
    """
    log_p, target = slot_of(stage, LOG_P, n), slot_of(stage, Q, n)
    total, A = 0.0, 0.0
    for i in range(n):
        total += _formulas.times(target[i], log_Z - log_p[i])
        A += target[i]
    return total, A


@inline
def write_target_map(
    x, start, stride, y, y_start, y_stride, k, classes, form, dense, label, smoothing, class_weight, m, S, A, lse,
    inv_T, cap, z_loss, unit, factor, kind, stage, out, out_start, out_stride,
):  # fmt: skip
    """``factor`` times the gradient (kind 0) or Hessian (1) by `k` of the `classes` of a row of ``m, S, A, lse``."""
    inv_Z = 1.0 / (1.0 + S)
    if form == LOGITS:
        factor *= inv_T
    for b in range(0, k, BLOCK):
        size = min(BLOCK, k - b)
        p, log_p, target = slot_of(stage, P, size), slot_of(stage, LOG_P, size), slot_of(stage, Q, size)
        read_target(y, y_start, y_stride, b, size, classes, dense, label, smoothing, class_weight, stage, target)
        read_distribution(x, start + b * stride, stride, size, form, m, inv_T, S, cap, True, stage, p, log_p)
        gradient = slot_of(stage, OUT_P, size)
        if form == LOGITS:
            for c in range(size):
                rest = S * inv_Z if log_p[c] == 0.0 else 1.0 - p[c]  # of the largest logit with its digits
                if kind == 0:
                    gradient[c] = unit * _formulas.softmax_gradient(A, target[c], p[c], rest)
                    gradient[c] += 2.0 * z_loss * lse * p[c] if z_loss != 0.0 else 0.0
                else:
                    gradient[c] = unit * inv_T * A * p[c] * rest
                gradient[c] *= factor
            if cap > 0.0:
                through_softcap(gradient, x, start + b * stride, stride, cap)
        elif form == LOG_PROBS:
            for c in range(size):
                gradient[c] = -factor * unit * target[c]
        else:
            for c in range(size):
                gradient[c] = -factor * unit * _formulas.times(target[c], 1.0 / p[c])
        store(gradient, out, out_start + b * out_stride, out_stride)


@kernel
def cross_entropy_rows(
    x, geometry, y, y_geometry, first, rows, k, form, labels, ignore, weights, class_weight, smoothing, temperature,
    cap, z_loss, unit, map_scale, stage, results, kind, out, out_geometry,
):  # fmt: skip
    """CE of the given rows against dense targets (`labels` empty) or labels, in any form; kind 0 gradient, 1 Hessian.

    Returns the index of the first bad label, before anything is computed, or -1.
    """
    bad = first_bad_label(labels, k, ignore)
    if bad >= 0:
        return bad
    inv_T, scale, dense = 1.0 / temperature, LOG2E / temperature, labels.size == 0
    stride, y_stride = geometry[CLASS_STRIDE], y_geometry[CLASS_STRIDE]
    for i in rows:
        label = -1 if dense else class_of(labels[i], ignore)
        weight = weights[i] if weights.size and label != -2 else (0.0 if label == -2 else 1.0)
        out_start, out_stride = place_of(out_geometry, first + i)
        if weight == 0.0:
            results[0, i] = 0.0
            fill(0.0, k, out, out_start, out_stride)
            continue
        start = row_start(geometry, first + i)
        y_start = row_start(y_geometry, first + i) if dense else 0
        m, L, S = normaliser(x, start, stride, k, form, scale, cap, stage)
        lse = m * inv_T + L
        loss, A, loss_lost, A_lost = 0.0, 0.0, 0.0, 0.0
        for b in range(0, k, BLOCK):
            size = min(BLOCK, k - b)
            p, log_p, target = slot_of(stage, P, size), slot_of(stage, LOG_P, size), slot_of(stage, Q, size)
            read_target(y, y_start, y_stride, b, size, k, dense, label, smoothing, class_weight, stage, target)
            read_distribution(x, start + b * stride, stride, size, form, m, inv_T, S, cap, True, stage, p, log_p)
            terms, part = cross_entropy_block(size, L, stage)
            loss, loss_lost = accumulate(loss, loss_lost, terms)
            A, A_lost = accumulate(A, A_lost, part)
        loss, A, undefined = loss + loss_lost, A + A_lost, False
        if form == LOGITS and not -np.inf < m < np.inf:
            loss, undefined = infinite_loss(
                x, start, stride, y, y_start, y_stride, k, dense, label, smoothing, class_weight, cap, A, stage
            )
            lse = np.inf
        value = unit * loss
        if z_loss != 0.0:
            value += z_loss * lse * lse
        results[0, i] = weight * value
        if undefined or loss != loss:
            fill(np.nan, k, out, out_start, out_stride)
        elif out is not None:
            write_target_map(
                x, start, stride, y, y_start, y_stride, k, k, form, dense, label, smoothing, class_weight, m, S, A,
                lse, inv_T, cap, z_loss, unit, weight * map_scale, kind, stage, out, out_start, out_stride,
            )  # fmt: skip
    return -1


@inline
def infinite_loss(
    x, start, stride, y, y_start, y_stride, k, dense, label, smoothing, class_weight, cap, A, stage
):  # fmt: skip
    """CE of a row whose largest logit is infinite: NaN, or +inf where all of the target lies elsewhere."""
    has_nan, m, _, _, _ = scan(x, start, stride, k, np.inf, class_weight, cap, stage)
    if has_nan or m == -np.inf or A != A:
        return np.nan, True
    for b in range(0, k, BLOCK):
        size = min(BLOCK, k - b)
        target = slot_of(stage, Q, size)
        read_target(y, y_start, y_stride, b, size, k, dense, label, smoothing, class_weight, stage, target)
        for c in range(size):
            if target[c] > 0.0 and load_one(x, start + (b + c) * stride, cap, stage) == np.inf:
                return np.nan, True
    return (np.inf if A > 0.0 else 0.0), True
