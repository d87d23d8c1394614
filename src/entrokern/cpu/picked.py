"""Cross-entropy of given probabilities, or their logarithms, with labels: one number of each row is picked.

The others are only looked at: a NaN or a negative probability among them makes the row NaN.
"""

from __future__ import annotations

import numpy as np

from .blocks import BLOCK, CLASS_STRIDE, row_start, widen
from .compile import inline, kernel
from .maps import write_block
from .math import any_log
from .memory import load, load_first, prefetch, store_first, vector, width
from .row_groups import fill, place_of
from .rows import first_bad_label
from .simd import any_lane, where
from .statistics import class_of

ROWS = 8  # whose logarithms are one vector
PICKED, CLASS_WEIGHT, WEIGHT, SLOTS = range(4)  # of each row of a group
AHEAD = 2048  # elements to ask for ahead: rows that are shorter than a vector do not wake the prefetcher


@inline
def defined(x, start, stride, k, lowest, v):
    """Whether all of a row's numbers are at least `lowest`; of NaN none is."""
    if stride == 1:
        fine, c = v == v, 0
        while c + width(v) <= k:
            fine &= load(x, start + c, v) >= lowest
            c += width(v)
        if c < k:
            fine &= load_first(x, start + c, k - c, v) >= lowest
        return not any_lane(~fine)
    all_fine = True
    for c in range(k):
        all_fine &= widen(x[start + c * stride]) >= lowest
    return all_fine


@inline
def write_gradient(value, label, k, line, out, start, stride, streaming):
    """`value` for the class `label`, 0 for all others; `line` holds zeros."""
    for b in range(0, k, BLOCK):
        here = b <= label < b + BLOCK
        if here:
            line[label - b] = value
        write_block(line, min(BLOCK, k - b), out, start + b * stride, stride, streaming)
        if here:
            line[label - b] = 0.0


@kernel
def picked_rows(
    x, geometry, first, n, k, logs, labels, ignore, weights, class_weight, unit, map_scale, zero, group, results, out,
    out_geometry, streaming, line,
):  # fmt: skip
    """Losses of rows and, if there is an `out`, their gradients; `group` has room for the slots of a group's rows.

    Returns the index of the first bad label, before anything is computed, or -1.
    """
    bad = first_bad_label(labels, k, ignore)
    if bad >= 0:
        return bad
    v, wide, stride = vector(zero), vector(0.0), geometry[CLASS_STRIDE]
    lowest = -np.inf if logs else 0.0
    for r in range(0, n, ROWS):
        count = min(ROWS, n - r)
        for g in range(count):
            start, label = row_start(geometry, first + r + g), class_of(labels[r + g], ignore)
            prefetch(x, start + AHEAD)
            picked, w_y, weight = np.nan, 1.0, 0.0
            if label >= 0:
                weight = weights[r + g] if weights.size else 1.0
                w_y = class_weight[label] if class_weight.size else 1.0
                if weight != 0.0 and defined(x, start, stride, k, lowest, v):
                    picked = np.float64(widen(x[start + label * stride]))
            group[PICKED * ROWS + g], group[CLASS_WEIGHT * ROWS + g], group[WEIGHT * ROWS + g] = picked, w_y, weight
        picked, w_y = load(group, PICKED * ROWS, wide), load(group, CLASS_WEIGHT * ROWS, wide)
        weight = load(group, WEIGHT * ROWS, wide)
        loss = w_y * (-picked if logs else -any_log(picked))
        loss = where((w_y == 0.0) & (picked == picked), wide, loss)
        store_first(results, r, count, where(weight == 0.0, wide, weight * (unit * loss)))
        if out is not None:
            for g in range(count):
                at, out_stride = place_of(out_geometry, first + r + g)
                if results[r + g] != results[r + g]:
                    fill(np.nan, k, out, at, out_stride)
                else:
                    factor = group[WEIGHT * ROWS + g] * map_scale * unit * group[CLASS_WEIGHT * ROWS + g]
                    slope = 0.0 if factor == 0.0 else -factor if logs else -factor / group[PICKED * ROWS + g]
                    label = class_of(labels[r + g], ignore)
                    write_gradient(slope, label, k, line, out, at, out_stride, streaming)
    return -1
