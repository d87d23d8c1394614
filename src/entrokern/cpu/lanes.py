"""Kernel family *lanes*: vector code across rows, one row per lane, for few classes or a strided class axis.

A tile holds `LANES` rows, class by class: ``tile[c·LANES + r]`` is class c of row r. Every loop over the
lanes has the same length; a last group that is not full repeats its last row, so that a row's result does
not depend on its neighbours.
"""

from __future__ import annotations

import numpy as np

from .blocks import AXES, CLASS_STRIDE, SIZES, load_one, narrow, row_start, view, widen
from .compile import inline, kernel
from .finish import INV_TEMPERATURE, MAP_SCALE, SMOOTHING, UNIT, finish_rows, put_infinite, put_record
from .maps import GRAD, LOG_SOFTMAX
from .math import LOG2E, cast, exp2, floored, log1p
from .rows import first_bad_label, scan
from .statistics import class_of

LANES = 64
GROUP = 8  # classes summed in the compute type before their sum goes to float64

# Vectors of one number per lane, in the compute type …
MAX, ARGMAX, PART, SPREAD, ABOVE, Y, FACTOR, VECTORS = range(8)
# … and those in float64.
S, LOG_Z, GAPS, WIDE = range(4)


@inline
def adjacent(geometry, row, count):
    """Whether a full tile of rows from `row` on lies side by side in memory."""
    axes = geometry[AXES]
    last = geometry[SIZES + axes - 1]
    return count == LANES and geometry[SIZES + 2 * axes - 1] == 1 and row % last + LANES <= last


@inline
def fill_tile(x, geometry, row, count, k, tile):
    """Copy `count` rows from `row` on, widened, and repeat the last one up to `LANES`."""
    stride = geometry[CLASS_STRIDE]
    start = row_start(geometry, row)
    if adjacent(geometry, row, count):
        for c in range(k):
            source, target = view(x, start + c * stride, LANES), view(tile, c * LANES, LANES)
            for r in range(LANES):
                target[r] = widen(source[r])
        return
    for r in range(count):
        start = row_start(geometry, row + r)
        for c in range(k):
            tile[c * LANES + r] = widen(x[start + c * stride])
    for r in range(count, LANES):
        for c in range(k):
            tile[c * LANES + r] = tile[c * LANES + count - 1]


@inline
def store_tile(tile, out, geometry, row, count, k):
    stride = geometry[CLASS_STRIDE]
    start = row_start(geometry, row)
    if adjacent(geometry, row, count):
        for c in range(k):
            source, target = view(tile, c * LANES, LANES), view(out, start + c * stride, LANES)
            for r in range(LANES):
                target[r] = narrow(source[r], out)
        return
    for r in range(count):
        start = row_start(geometry, row + r)
        for c in range(k):
            out[start + c * stride] = narrow(tile[c * LANES + r], out)


@inline
def tile_max(tile, vectors, k):
    """Each lane's largest logit and its first position."""
    m, at = view(vectors, MAX * LANES, LANES), view(vectors, ARGMAX * LANES, LANES)
    first = view(tile, 0, LANES)
    for r in range(LANES):
        m[r] = first[r]
        at[r] = 0
    for c in range(1, k):
        row, position = view(tile, c * LANES, LANES), cast(c, tile[0])
        for r in range(LANES):
            larger = row[r] > m[r]
            m[r] = row[r] if larger else m[r]
            at[r] = position if larger else at[r]


@inline
def tile_sums(tile, vectors, wide, k, scale, more):
    """Each lane's ``S``, the largest logit left out; with `more` also `spread` and `above`."""
    m, at = view(vectors, MAX * LANES, LANES), view(vectors, ARGMAX * LANES, LANES)
    part, total = view(vectors, PART * LANES, LANES), view(wide, S * LANES, LANES)
    spread, above = view(vectors, SPREAD * LANES, LANES), view(vectors, ABOVE * LANES, LANES)
    y, zero = view(vectors, Y * LANES, LANES), cast(0.0, scale)
    for r in range(LANES):
        total[r] = 0.0
        spread[r] = zero
        above[r] = zero
    for low in range(0, k, GROUP):
        for r in range(LANES):
            part[r] = zero
        for c in range(low, min(k, low + GROUP)):
            row, position = view(tile, c * LANES, LANES), cast(c, scale)
            for r in range(LANES):
                e = exp2(floored((row[r] - m[r]) * scale))
                part[r] += zero if at[r] == position else e
            if more:
                for r in range(LANES):
                    t = floored((row[r] - m[r]) * scale)
                    spread[r] += exp2(t) * t
                    above[r] += cast(1.0, scale) if row[r] > y[r] else zero
        for r in range(LANES):
            total[r] += np.float64(part[r])


@inline
def tile_gaps(tile, vectors, wide, k, class_weight):
    """Each lane's mean over the classes of ``w·(m - x)``, what label smoothing adds."""
    m, gaps = view(vectors, MAX * LANES, LANES), view(wide, GAPS * LANES, LANES)
    for r in range(LANES):
        gaps[r] = 0.0
    for c in range(k):
        row, w = view(tile, c * LANES, LANES), (class_weight[c] if class_weight.size else 1.0) / k
        for r in range(LANES):
            gap = np.float64(m[r]) - np.float64(row[r])
            gaps[r] += w * gap if (w != 0.0) | (gap != gap) else 0.0


@inline
def tile_map(kind, tile, vectors, k, scale):
    """Replace the tile's logits by ``factor·e^(z-m)`` or by ``(z - m) - log Z``."""
    m, factor = view(vectors, MAX * LANES, LANES), view(vectors, FACTOR * LANES, LANES)
    for c in range(k):
        row = view(tile, c * LANES, LANES)
        if kind == LOG_SOFTMAX:
            for r in range(LANES):
                row[r] = (row[r] - m[r]) - factor[r]
        else:
            for r in range(LANES):
                row[r] = factor[r] * exp2(floored((row[r] - m[r]) * scale))


@inline
def true_class_gradient(S, same, y_gap, w_y, factor):
    """``-w·(1 - p_y)``: the others' share, ``S/Z`` where the label's logit is the largest."""
    Z = 1.0 + S
    return -factor * w_y * (S / Z if same else (Z - exp2(floored(y_gap))) / Z)


@kernel
def softmax_lanes(
    x, geometry, first, n, k, labels, ignore, weights, class_weight, options, scale, tile, more, details, results,
    kind, out, out_geometry, vectors, wide,
):  # fmt: skip
    """The work of `rows.softmax_rows` for plain logits (no softcap), tile by tile."""
    bad = first_bad_label(labels, k, ignore)
    if bad >= 0:
        return bad
    inv_T = options[INV_TEMPERATURE]
    stride = geometry[CLASS_STRIDE]
    tops, argmaxes = view(vectors, MAX * LANES, LANES), view(vectors, ARGMAX * LANES, LANES)
    spreads, aboves = view(vectors, SPREAD * LANES, LANES), view(vectors, ABOVE * LANES, LANES)
    y_logits, factors = view(vectors, Y * LANES, LANES), view(vectors, FACTOR * LANES, LANES)
    sums, logs = view(wide, S * LANES, LANES), view(wide, LOG_Z * LANES, LANES)
    gaps = view(wide, GAPS * LANES, LANES)
    for low in range(0, n, LANES):
        count = min(LANES, n - low)
        fill_tile(x, geometry, first + low, count, k, tile)
        for r in range(count):
            y_logits[r] = cast(np.inf, scale)
            if labels.size:
                label = class_of(labels[low + r], ignore)
                y_logits[r] = tile[label * LANES + r] if label >= 0 else cast(np.inf, scale)
        tile_max(tile, vectors, k)
        tile_sums(tile, vectors, wide, k, scale, more)
        if options[SMOOTHING] > 0.0:
            tile_gaps(tile, vectors, wide, k, class_weight)
        for r in range(count):
            i = low + r
            label = class_of(labels[i], ignore) if labels.size else -1
            m, y_logit = np.float64(tops[r]), np.float64(y_logits[r])
            if m == -np.inf or m == np.inf:
                start = row_start(geometry, first + i)
                has_nan, m, at, above, weighs = scan(x, start, stride, k, y_logit, class_weight, 0.0, tile)
                if has_nan:
                    sums[r] = np.nan
                    put_record(results, n, i, np.nan, np.nan, np.nan, 0, 0, y_logit, 0.0)
                else:
                    smoothed = weighs and options[SMOOTHING] > 0.0
                    weight = weights[i] if weights.size else 1.0
                    put_infinite(results, n, i, m, at, above, y_logit, label, weight, smoothed)
            else:
                gap = gaps[r] if options[SMOOTHING] > 0.0 else 0.0
                put_record(
                    results, n, i, m, sums[r], np.float64(spreads[r]), argmaxes[r], aboves[r], y_logit, gap
                )  # fmt: skip
        finish_rows(results, n, low, low + count, labels, ignore, weights, class_weight, options, details)
        if kind == LOG_SOFTMAX and out is not None:
            for r in range(LANES):
                logs[r] = log1p(sums[r])
        if out is not None:
            for r in range(count):
                i = low + r
                label = class_of(labels[i], ignore) if labels.size else -1
                weight = weights[i] if weights.size else 1.0
                w_y = class_weight[label] if class_weight.size and label >= 0 else 1.0
                scaled = weight * options[MAP_SCALE] * options[UNIT] * inv_T * w_y / (1.0 + sums[r])
                factors[r] = scaled if kind == GRAD else (logs[r] if kind == LOG_SOFTMAX else 1.0 / (1.0 + sums[r]))
            tile_map(kind, tile, vectors, k, scale)
            for r in range(count):
                i = low + r
                m, y_logit = np.float64(tops[r]), np.float64(y_logits[r])
                label = class_of(labels[i], ignore) if labels.size else -1
                weight = weights[i] if weights.size else 1.0
                if sums[r] != sums[r] or m == -np.inf or m == np.inf or m != m:
                    undefined_lane(kind, x, row_start(geometry, first + i), stride, k, m, tile, r)
                if kind == GRAD:
                    if label == -2 or weight == 0.0:
                        for c in range(k):
                            tile[c * LANES + r] = 0
                    elif sums[r] == sums[r] and -np.inf < m < np.inf:
                        w_y = class_weight[label] if class_weight.size else 1.0
                        factor = weight * options[MAP_SCALE] * options[UNIT] * inv_T
                        tile[label * LANES + r] = true_class_gradient(
                            sums[r], y_logit == m, (y_logit - m) * inv_T * LOG2E, w_y, factor
                        )
            store_tile(tile, out, out_geometry, first + low, count, k)
    return -1


@inline
def undefined_lane(kind, x, start, stride, k, m, tile, r):
    """A map's row without a finite maximum: NaN, but for log-softmax ``x - inf``."""
    has_nan = m != m
    for c in range(k):
        v = load_one(x, start + c * stride, 0.0, tile)
        has_nan |= v != v
    for c in range(k):
        v = np.float64(load_one(x, start + c * stride, 0.0, tile))
        tile[c * LANES + r] = v - np.inf if kind == LOG_SOFTMAX and m == np.inf and not has_nan else np.nan
