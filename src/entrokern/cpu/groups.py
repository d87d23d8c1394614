"""Kernel family *groups*: vectors along the classes, for rows of moderate length that lie in one piece.

The end of a row - the largest of a vector's lanes, the sum of them, a logarithm - costs as much as some
hundred classes. So as many rows are swept as a vector has lanes; each leaves its partial maxima and sums in a
square tile, whose rows are reduced together. While a group is summed from cache, the next one's maxima
are found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import CLASS_STRIDE, load_one, row_start, view
from .compile import inline, kernel
from .finish import (
    ARGMAX,
    GAPS,
    GROUP,
    INV_TEMPERATURE,
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
from .lanes import CHECKED, in_one_line, put_last_line, row_step, two_lines
from .map_terms import map_terms, special, special_row
from .maps import GRAD, HESS, LOG_SOFTMAX, shifted, variance, write_block
from .math import cast, log1p_positive, lowered
from .memory import copy_out, fence, load, prefetch_to_write, store, vector, width
from .row_groups import largest
from .rows import first_bad_label
from .simd import BYTES, any_lane, like_vector
from .statistics import block_gaps, block_statistics, block_sum, class_of, first_position
from .transpose import rows_max, rows_sum


def tiles_size(dtype: np.dtype[Any]) -> int:
    """Elements of three square tiles."""
    return 3 * (BYTES // dtype.itemsize) ** 2


def room(k: int, dtype: np.dtype[Any], maps: int) -> int:
    """Elements of a group of rows, each of whole vectors: once, and twice for each of the `maps`."""
    lanes = BYTES // dtype.itemsize
    return (1 + 2 * maps) * (-(-k // lanes) * lanes * lanes + lanes)


@inline
def start_of(geometry, first, r, n):
    """Where row r of the n from `first` on begins; beyond them the last one's place."""
    return row_start(geometry, first + min(r, n - 1))


@inline
def scaled(kept, at, k, factor, line, place):
    """``factor·e^(z-m)`` of the exponentials kept by `block_sum`, whole vectors at a time."""
    for c in range(0, k, width(factor)):
        store(line, place + c, lowered(load(kept, at + c, factor)) * factor)


@inline
def variances(kept, at, k, S, factor, line, place):
    """`variance` of the exponentials kept."""
    for c in range(0, k, width(factor)):
        store(line, place + c, variance(lowered(load(kept, at + c, factor)), S, factor))


@inline
def map_rows(
    kind, kept, pitch, x, geometry, first, low, n, k, labels, ignore, records, at, terms, options, scale,
    weighed, out, line, hess, hess_line,
):  # fmt: skip
    """The map `kind` of a group of rows into `line`, if there is an output for it, the Hessian likewise: what a row
    writes beyond its end the next one overwrites."""
    v, inv_T = vector(scale), cast(options[INV_TEMPERATURE], scale)
    w = width(v)
    count = min(w, n - low)
    factor, own, _ = map_terms(kind, records, at, low, count, labels, options, scale, weighed)
    store(terms, 0, factor if kind != LOG_SOFTMAX else log1p_positive(load(records, S * GROUP + at, v)))
    store(terms, w, own)
    for r in range(count):
        if hess is not None:
            sums = like_vector(records[S * GROUP + at + r], v)
            curvature = like_vector(terms[r], v) / (sums + 1.0) * inv_T
            variances(kept, r * pitch, k, sums, curvature, hess_line, r * k)
        if out is None:
            continue
        if kind == LOG_SOFTMAX:
            row, m = view(x, start_of(geometry, first, low + r, n), k), like_vector(records[MAX * GROUP + at + r], v)
            shifted(row, m, inv_T, terms[r], view(line, r * k, pitch))
        else:
            scaled(kept, r * pitch, k, like_vector(terms[r], v), line, r * k)
        if kind == GRAD:
            label = class_of(labels[low + r], ignore)
            if label >= 0:
                line[r * k + label] = terms[w + r]
    if any_lane(special(records, at, count, v, weighed)):
        for r in range(count):
            start = row_start(geometry, first + low + r)
            if out is not None:
                special_row(kind, x, start, 1, k, records, at + r, weighed, line, r * k, 1)
            if hess is not None:
                special_row(HESS, x, start, 1, k, records, at + r, weighed, hess_line, r * k, 1)


@inline
def put_rows(out, geometry, row, count, k, like, lines, streaming):
    """Write the rows of a line to `out`, if there is one, those without a gap a group later; returns the `lines`
    as they are then (see `lanes.put_tile`)."""
    if out is None:
        return lines
    line, last_line, waiting, place = lines
    if in_one_line(geometry, row_step(geometry, row, count), k):
        start = row_start(geometry, row)
        prefetch_to_write(out, start + 3 * width(like) * k)
        copy_out(last_line, waiting, out, place, like, streaming)
        return last_line, line, count * k, start
    for r in range(count):
        write_block(view(line, r * k, k), k, out, row_start(geometry, row + r), geometry[CLASS_STRIDE], False)
    return lines


@kernel
def softmax_groups(
    x, geometry, first, n, k, labels, ignore, weights, class_weight, options, scale, tiles, records, results,
    summed, more, kind, out, out_geometry, hess, hess_geometry, streaming, work,
):  # fmt: skip
    """The work of `rows.softmax_rows` for plain logits in one piece, group by group."""
    v = vector(scale)
    w, total = width(v), 0.0
    tops, sums, spreads = view(tiles, 0, w * w), view(tiles, w * w, w * w), view(tiles, 2 * w * w, w * w)
    mapped, size = out is not None or hess is not None, work.size // (3 if hess is None else 5)
    pitch, kept = -(-k // w) * w, view(work, 0, size)
    lines, hess_lines = two_lines(work, size, size), two_lines(work, 3 * size, size)
    weighed, smoothed = has_weights(ignore, weights, class_weight), options[SMOOTHING] > 0.0
    for r in range(w):
        store(tops, r * w, largest(x, start_of(geometry, first, r, n), k, v))
    for low in range(0, n, w):
        count, at = min(w, n - low), low % GROUP
        if labels.size and low % CHECKED == 0:
            bad = first_bad_label(view(labels, low, min(CHECKED, n - low)), k, ignore)
            if bad >= 0:
                return low + bad, 0.0
        store(records, MAX * GROUP + at, rows_max(tops, v))
        for r in range(w):
            row = view(x, start_of(geometry, first, low + r, n), k)
            coming = view(x, start_of(geometry, first, low + w + r, n), k)
            m = records[MAX * GROUP + at + r]
            label = class_of(labels[low + r], ignore) if labels.size and r < count else -1
            y_logit = load_one(row, label, 0.0, tiles) if label >= 0 else cast(np.inf, scale)
            records[Y_LOGIT * GROUP + at + r] = y_logit
            if more:
                if mapped:
                    part, ties, spread, above, top = block_statistics(row, m, scale, y_logit, coming, kept, r * pitch)
                else:
                    part, ties, spread, above, top = block_statistics(row, m, scale, y_logit, coming, None, 0)
                store(spreads, r * w, spread)
                if r < count:
                    put(results[RANK], low + r, above)
            elif mapped:
                part, ties, top = block_sum(row, m, scale, coming, kept, r * pitch)
            else:
                part, ties, top = block_sum(row, m, scale, coming, None, 0)
            if r < count and results[ARGMAX].size:
                put(results[ARGMAX], low + r, first_position(row, m, v))
            # Of the largest logits all but one count as 1 each: spread over the lanes, exactly.
            store(sums, r * w, part + cast((ties - 1) / w, scale))
            store(tops, r * w, top)
            if smoothed:
                records[GAPS * GROUP + at + r] = block_gaps(row, np.float64(m), class_weight) / k
        store(records, S * GROUP + at, rows_sum(sums, v))
        if more:
            store(records, SPREAD * GROUP + at, rows_sum(spreads, v))
        if weighed:
            put_weights(records, at, low, count, labels, ignore, weights, class_weight)
        # With a map at once: it may overwrite the rows, and one that is not finite is looked at again.
        if mapped or at + w == GROUP or low + w >= n:
            done = at if mapped else 0
            total += finish_group(
                records, done, x, geometry, first, low - at + done, at + count - done, k, labels, ignore, weights,
                class_weight, options, scale, tiles, results, summed,
            )  # fmt: skip
        if mapped:
            map_rows(
                kind, kept, pitch, x, geometry, first, low, n, k, labels, ignore, records, at, spreads, options, scale,
                weighed, out, lines[0], hess, hess_lines[0],
            )  # fmt: skip
            lines = put_rows(out, out_geometry, first + low, count, k, v, lines, streaming)
            hess_lines = put_rows(hess, hess_geometry, first + low, count, k, v, hess_lines, streaming)
    put_last_line(out, lines, v, streaming)
    put_last_line(hess, hess_lines, v, streaming)
    if streaming:
        fence()
    return -1, total
