"""Kernel family *rows*: vector code along the classes, for long contiguous rows (and any other)."""

from __future__ import annotations

import numpy as np

from .blocks import BLOCK, CLASS_STRIDE, block_of, load, load_one, row_start, view
from .compile import inline, kernel
from .finish import CAP, GROUP, SMOOTHING, finish_rows, put_infinite, put_record
from .maps import write_map
from .math import cast
from .statistics import block_gaps, block_max, class_of, first_position, row_record


@inline
def first_bad_label(labels, k, ignore):
    """The index of the first label that is neither a class nor ignored, or -1."""
    for i in range(labels.size):
        label = labels[i]
        if (label < 0 or label >= k) and (ignore.size == 0 or label != ignore[0]):
            return i
    return -1


@inline
def row_gaps(x, start, stride, k, reference, class_weight, cap, stage, slot):
    """``Σ_c w_c·(reference - x_c)``, what label smoothing adds."""
    total = 0.0
    for b in range(0, k, BLOCK):
        n = min(BLOCK, k - b)
        load(x, start + b * stride, stride, n, cap, stage, slot)
        block = block_of(x, start + b * stride, n, stage, slot)
        total += block_gaps(block, reference, view(class_weight, b, n if class_weight.size else 0))
    return total


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


@kernel
def softmax_rows(
    x, geometry, first, n, k, labels, ignore, weights, class_weight, options, scale, stage, more, details, results,
    kind, out, out_geometry, work,
):  # fmt: skip
    """Rows ``first … first + n - 1`` of logits: their results, and one map (``out=None`` for none).

    Returns the index of the first bad label, before anything is computed, or -1.
    """
    bad = first_bad_label(labels, k, ignore)
    if bad >= 0:
        return bad
    stride, cap, lowest = geometry[CLASS_STRIDE], options[CAP], cast(-np.inf, scale)
    slot = 0
    start = row_start(geometry, first)
    load(x, start, stride, min(BLOCK, k), cap, stage, slot)
    ahead = block_max(block_of(x, start, min(BLOCK, k), stage, slot), lowest)
    for i in range(n):
        next_start = row_start(geometry, first + i + 1) if i + 1 < n else start
        label, y_logit, w_y = -1, np.inf, 1.0
        if labels.size:
            label = class_of(labels[i], ignore)
            if label >= 0:
                w_y = class_weight[label] if class_weight.size else 1.0
                if more:
                    y_logit = np.float64(load_one(x, start + label * stride, cap, stage))
        weight = weights[i] if weights.size else 1.0
        m, S, spread, at, above, ahead, slot = row_record(
            x, start, stride, k, next_start, ahead, slot, scale, cap, stage, more, cast(y_logit, scale)
        )
        if label >= 0 and not more:
            # After the sweep, which has brought the row into cache: before it, this read would wait for memory.
            y_logit = np.float64(load_one(x, start + label * stride, cap, stage))
        argmax = at
        if m == -np.inf or m == np.inf:
            has_nan, m, argmax, above, weighs = scan(x, start, stride, k, y_logit, class_weight, cap, stage)
            if has_nan:
                m, S = np.nan, np.nan
                put_record(results, n, i, m, S, S, 0, 0, y_logit, 0.0)
            else:
                smoothed = weighs and options[SMOOTHING] > 0.0
                put_infinite(results, n, i, m, argmax, above, y_logit, label, weight, smoothed)
        else:
            if more or out is not None:
                load(x, start + at * stride, stride, min(BLOCK, k - at), cap, stage, 1 - slot)
                block = block_of(x, start + at * stride, min(BLOCK, k - at), stage, 1 - slot)
                argmax = at + first_position(block, cast(m, scale))
            gaps = 0.0
            if options[SMOOTHING] > 0.0 and label >= 0:
                gaps = row_gaps(x, start, stride, k, m, class_weight, cap, stage, 1 - slot) / k
            put_record(results, n, i, m, S, spread, argmax, above, y_logit, gaps)
        if out is not None:
            write_map(
                kind, x, start, stride, k, out, row_start(out_geometry, first + i), out_geometry[CLASS_STRIDE],
                m, S, spread, argmax, label, y_logit, weight, w_y, class_weight, options, scale, stage,
                1 - slot, work,
            )  # fmt: skip
        if (i + 1) % GROUP == 0 or i + 1 == n:
            low = i // GROUP * GROUP
            finish_rows(results, n, low, i + 1, labels, ignore, weights, class_weight, options, details)
        start = next_start
    return -1
