"""From records to results: one place for the weights, the options and the corner cases of rows and lanes.

A kernel puts the records of a group of rows into a small buffer and finishes the group at once, one row
per lane: a logarithm for one row at a time would cost as much as a short row itself.
"""

from __future__ import annotations

import numpy as np

from .blocks import load_one, row_start
from .compile import inline
from .math import cast, log1p_positive
from .memory import first_mask, load, store_next, vector, width
from .simd import any_lane, lanes_sum, magnitude, where
from .statistics import class_of

GROUP = 64  # rows finished at once
# Fields of a record, `GROUP` numbers of the compute type each.
S, MAX, SPREAD, Y_LOGIT, GAPS, WEIGHT, CLASS_WEIGHT, FIELDS = range(8)
RECORDS = (FIELDS + 1) * GROUP  # whole vectors of them are read, from any row on

# What can be asked of a row, in the order of `results`: arrays of a number per row, empty where it is not wanted.
# The last two make ``lse = max/T + log_Z``, apart: a row's normaliser as slices of classes are merged by.
ROW_RESULTS = ("loss", "lse", "log_prob", "entropy", "max_prob", "argmax", "rank", "max", "log_Z")
LOSS, LSE, LOG_PROB, ENTROPY, MAX_PROB, ARGMAX, RANK, ROW_MAX, LOG_Z = range(9)

# Scalar options, in one float64 array.
INV_TEMPERATURE, UNIT, SMOOTHING, Z_LOSS, CAP, MAP_SCALE, W_MEAN = range(7)

LN2 = 0.6931471805599453


@inline
def put_weights(records, at, low, count, labels, ignore, weights, class_weight):
    """The sample weights (0 for an ignored one) of rows from `low` on, and their labels' class weights."""
    for r in range(count):
        label = class_of(labels[low + r], ignore) if labels.size else -1
        weight = weights[low + r] if weights.size else 1.0
        records[WEIGHT * GROUP + at + r] = 0.0 if label == -2 else weight
        records[CLASS_WEIGHT * GROUP + at + r] = class_weight[label] if class_weight.size and label >= 0 else 1.0


@inline
def has_weights(ignore, weights, class_weight):
    return weights.size + ignore.size + class_weight.size > 0


@inline
def label_loss(L, gap, gaps, w_y, options, scale):
    """``(1-ε)·w_y·(lse - z_y) + ε·mean w·(lse - z)``, where ``lse - z = L + (m - z)`` is never a difference.

    A weight of 0 leaves its term out, infinite or not.
    """
    eps = options[SMOOTHING]
    loss = L * cast(0.0, scale)
    if eps < 1.0:
        loss += where(w_y == 0.0, cast(0.0, scale), w_y * (L + gap)) * cast(1.0 - eps, scale)
    if eps > 0.0:
        loss += (L * cast(options[W_MEAN], scale) + gaps) * cast(eps, scale)
    return loss


@inline
def finish_group(
    records, at, x, geometry, first, low, count, k, labels, ignore, weights, class_weight, options, scale, stage,
    results, summed,
):  # fmt: skip
    """Turn the records (from `at` on) of rows ``low … low + count - 1`` into results; returns the sum of the
    losses, if `summed`.

    argmax and rank are what the kernel has put there.
    """
    weighed = has_weights(ignore, weights, class_weight)
    v = vector(scale)
    zero, one = vector(cast(0.0, scale)), vector(cast(1.0, scale))
    inv_T, unit = cast(options[INV_TEMPERATURE], scale), cast(options[UNIT], scale)
    total = 0.0
    for r in range(0, count, width(v)):
        left = count - r
        sums, m = load(records, S * GROUP + at + r, v), load(records, MAX * GROUP + at + r, v)
        L, Z = log1p_positive(sums), sums + one
        lse = m * inv_T + L
        weight, w_y = one, one
        if weighed:
            weight, w_y = load(records, WEIGHT * GROUP + at + r, v), load(records, CLASS_WEIGHT * GROUP + at + r, v)
        gap, entropy = zero, zero
        if results[ENTROPY].size or labels.size == 0:
            # Σ p·(m - z), from Σ e^(z-m)·log2 e^(z-m), to which the largest logit itself adds 0.
            entropy = (L - load(records, SPREAD * GROUP + at + r, v) / Z * cast(LN2, scale)) * unit
        if labels.size:
            gap = (m - load(records, Y_LOGIT * GROUP + at + r, v)) * inv_T
            gaps = load(records, GAPS * GROUP + at + r, v) * inv_T
            loss = label_loss(L, gap, gaps, w_y, options, scale) * unit
            if options[Z_LOSS] != 0.0:
                loss += lse * lse * cast(options[Z_LOSS], scale)
        else:
            loss = entropy
        loss = where(weight == 0.0, zero, weight * loss)
        undefined = first_mask(left, v) & ((sums != sums) | ~(magnitude(m) < np.inf))
        put_next(results[LOSS], low + r, left, loss)
        put_next(results[LSE], low + r, left, lse)
        put_next(results[LOG_PROB], low + r, left, -(L + gap))
        put_next(results[ENTROPY], low + r, left, entropy)
        put_next(results[MAX_PROB], low + r, left, one / Z)
        put_next(results[ROW_MAX], low + r, left, m)
        put_next(results[LOG_Z], low + r, left, L)
        if summed:
            total += lanes_sum(where(first_mask(left, v) & ~undefined, loss, zero))
        if any_lane(undefined):
            for i in range(low + r, low + min(r + width(v), count)):
                m_i, S_i = records[MAX * GROUP + at + i - low], records[S * GROUP + at + i - low]
                if not (-np.inf < m_i < np.inf) or S_i != S_i:
                    total += finish_undefined(
                        x, geometry, first, i, k, labels, ignore, weights, class_weight, options, stage,
                        results,
                    )  # fmt: skip
    if ignore.size and (results[LOG_PROB].size or results[RANK].size):
        for i in range(low, low + count):
            if labels[i] == ignore[0]:
                put(results[LOG_PROB], i, np.nan)
                put(results[RANK], i, -1)
    return total


@inline
def put(result, i, value):
    if result.size:
        result[i] = value


@inline
def put_next(result, i, count, value):
    if result.size:
        store_next(result, i, count, value)


@inline
def finish_undefined(
    x, geometry, first, i, k, labels, ignore, weights, class_weight, options, stage, results
):  # fmt: skip
    """The results of a row that holds a NaN, or whose largest logit is infinite; returns its loss."""
    label = class_of(labels[i], ignore) if labels.size else -1
    weight = 0.0 if label == -2 else (weights[i] if weights.size else 1.0)
    start, stride, cap = row_start(geometry, first + i), geometry[0], options[CAP]
    y_logit = np.float64(load_one(x, start + label * stride, cap, stage)) if label >= 0 else np.inf
    has_nan, m, at, above, weighs = scan(x, start, stride, k, y_logit, class_weight, cap, stage)
    # inf - inf is undefined: the label's own logit is the infinite one (or there is no label).
    surprise = np.nan if has_nan or m == -np.inf or y_logit == np.inf else np.inf
    loss = np.nan if weighs and options[SMOOTHING] > 0.0 else surprise
    if m == np.inf and not has_nan and class_weight.size and label >= 0 and class_weight[label] == 0.0:
        # The label's own term is left out, infinite or not; smoothing may add one, and so does the z-loss.
        rest = options[SMOOTHING] > 0.0 and options[W_MEAN] > 0.0
        loss = loss if rest else np.inf if options[Z_LOSS] > 0.0 else 0.0
    loss = weight * loss if weight != 0.0 else 0.0
    put(results[LOSS], i, loss)
    put(results[LSE], i, np.nan if has_nan else m)
    put(results[LOG_PROB], i, -surprise)
    put(results[ENTROPY], i, np.nan)
    put(results[MAX_PROB], i, np.nan)
    put(results[ROW_MAX], i, np.nan if has_nan else m)
    put(results[LOG_Z], i, np.nan)
    put(results[ARGMAX], i, -1 if has_nan else at)
    put(results[RANK], i, -1 if has_nan else above)
    return loss


@inline
def scan(x, start, stride, k, y_logit, class_weight, cap, stage):
    """The slow look at a row without a finite maximum: where the infinity is, and what is around it."""
    has_nan, first, above, weighs = False, 0, 0, False
    top = -np.inf
    for c in range(k):
        v = np.float64(load_one(x, start + c * stride, cap, stage))
        has_nan |= v != v
        if v > top:
            top, first = v, c
        above += 1 if v > y_logit else 0
        weighs |= v == np.inf and (class_weight.size == 0 or class_weight[c] > 0.0)
    return has_nan, top, first, above, weighs
