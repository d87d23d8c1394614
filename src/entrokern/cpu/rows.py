"""Kernel family *rows*: vector code along the classes, for long contiguous rows (and any other)."""

from __future__ import annotations

import numpy as np

from .blocks import BLOCK, CLASS_STRIDE, block_of, load, load_one, row_start, view
from .compile import inline, kernel
from .finish import (
    ARGMAX,
    CAP,
    GAPS,
    GROUP,
    MAX,
    RANK,
    SMOOTHING,
    SPREAD,
    Y_LOGIT,
    S,
    finish_group,
    has_weights,
    put,
    put_weights,
)
from .maps import write_map
from .math import cast
from .memory import fence, load_next, vector, width
from .row_groups import place_of
from .simd import any_lane, like_vector
from .statistics import block_gaps, block_size, class_of, first_block, first_position, row_record


@inline
def first_bad_label(labels, k, ignore):
    """The index of the first label that is neither a class nor ignored, or -1."""
    zero = vector(labels.size)
    for low in range(0, labels.size, width(zero)):
        several = load_next(labels, low, labels.size - low, like_vector(0, zero))
        if any_lane((several < 0) | (several >= k)):
            for i in range(low, min(labels.size, low + width(zero))):
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


@kernel
def softmax_rows(
    x, geometry, first, n, k, labels, ignore, weights, class_weight, options, scale, stage, records, results,
    summed, more, kind, out, out_geometry, hess, hess_geometry, streaming, work,
):  # fmt: skip
    """Rows ``first … first + n - 1`` of logits: their results, one map and the Hessian (None for none).

    `more` asks for the records' `spread` and for ranks. Returns the index of the first bad label, before anything is
    computed, or -1; and the sum of the losses.
    """
    bad = first_bad_label(labels, k, ignore)
    if bad >= 0:
        return bad, 0.0
    stride, cap, like = geometry[CLASS_STRIDE], options[CAP], vector(scale)
    mapped = out is not None or hess is not None
    slot, total, done = 0, 0.0, 0
    start = row_start(geometry, first)
    size = block_size(k)
    ahead = first_block(x, start, stride, k, cap, stage, slot, like)
    for i in range(n):
        next_start = row_start(geometry, first + i + 1) if i + 1 < n else start
        label = class_of(labels[i], ignore) if labels.size else -1
        y_logit = np.inf
        if label >= 0 and more:
            y_logit = np.float64(load_one(x, start + label * stride, cap, stage))
        m, S_i, spread, at, above, ahead, slot = row_record(
            x, start, stride, k, next_start, ahead, slot, scale, cap, stage, more, y_logit
        )
        if label >= 0 and not more:
            # After the sweep, which has brought the row into cache: before it, this read would wait for memory.
            y_logit = np.float64(load_one(x, start + label * stride, cap, stage))
        # A row that is not is finished by a look at it, which a map may overwrite.
        finite = S_i == S_i and -np.inf < m < np.inf
        r = i % GROUP
        records[S * GROUP + r] = S_i
        records[MAX * GROUP + r] = m
        records[SPREAD * GROUP + r] = spread
        records[Y_LOGIT * GROUP + r] = y_logit
        records[GAPS * GROUP + r] = 0.0
        if options[SMOOTHING] > 0.0 and label >= 0:
            gaps = row_gaps(x, start, stride, k, m, class_weight, cap, stage, 1 - slot) / k
            records[GAPS * GROUP + r] = gaps
        if results[ARGMAX].size:
            load(x, start + at * stride, stride, min(size, k - at), cap, stage, 1 - slot)
            block = block_of(x, start + at * stride, min(size, k - at), stage, 1 - slot)
            put(results[ARGMAX], i, at + first_position(block, cast(m, scale), like))
        put(results[RANK], i, above)
        if has_weights(ignore, weights, class_weight):
            put_weights(records, r, i, 1, labels, ignore, weights, class_weight)
        if r == GROUP - 1 or i + 1 == n or (mapped and not finite):
            total += finish_group(
                records, done % GROUP, x, geometry, first, done, i + 1 - done, k, labels, ignore, weights, class_weight,
                options, scale, stage, results, summed,
            )  # fmt: skip
            done = i + 1
        if mapped:
            out_start, out_stride = place_of(out_geometry, first + i)
            hess_start, hess_stride = place_of(hess_geometry, first + i)
            weight = weights[i] if weights.size else 1.0
            w_y = class_weight[label] if class_weight.size and label >= 0 else 1.0
            write_map(
                kind, x, start, stride, k, k, out, out_start, out_stride, hess, hess_start, hess_stride, m, S_i, spread,
                at, label, y_logit, weight, w_y, class_weight, options, scale, stage, 1 - slot, work, streaming,
            )  # fmt: skip
        start = next_start
    if streaming:
        fence()
    return -1, total
