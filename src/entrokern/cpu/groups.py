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
from .lanes import CHECKED, in_one_line, row_step
from .map_terms import map_terms, special, special_row
from .maps import GRAD, LOG_SOFTMAX, shifted, write_block
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


def room(k: int, dtype: np.dtype[Any]) -> int:
    """Elements of a group of rows, each of whole vectors, three times."""
    lanes = BYTES // dtype.itemsize
    return 3 * (-(-k // lanes) * lanes * lanes + lanes)


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
def write_rows(
    kind, kept, pitch, x, geometry, first, low, n, k, labels, ignore, records, at, terms, options, scale,
    weighed, line,
):  # fmt: skip
    """The map `kind` of a group of rows into `line`: what a row writes beyond its end the next one overwrites."""
    v = vector(scale)
    w = width(v)
    count = min(w, n - low)
    factor, own, _ = map_terms(kind, records, at, low, count, labels, options, scale, weighed)
    store(terms, 0, factor if kind != LOG_SOFTMAX else log1p_positive(load(records, S * GROUP + at, v)))
    store(terms, w, own)
    for r in range(count):
        if kind == LOG_SOFTMAX:
            row, m = view(x, start_of(geometry, first, low + r, n), k), like_vector(records[MAX * GROUP + at + r], v)
            shifted(row, m, cast(options[INV_TEMPERATURE], scale), terms[r], view(line, r * k, pitch))
        else:
            scaled(kept, r * pitch, k, like_vector(terms[r], v), line, r * k)
        if kind == GRAD:
            label = class_of(labels[low + r], ignore)
            if label >= 0:
                line[r * k + label] = terms[w + r]
    if any_lane(special(records, at, count, v, weighed)):
        for r in range(count):
            special_row(kind, x, row_start(geometry, first + low + r), 1, k, records, at + r, weighed, line, r * k, 1)


@kernel
def softmax_groups(
    x, geometry, first, n, k, labels, ignore, weights, class_weight, options, scale, tiles, records, results,
    summed, more, kind, out, out_geometry, streaming, work,
):  # fmt: skip
    """The work of `rows.softmax_rows` for plain logits in one piece, group by group."""
    v = vector(scale)
    w, total = width(v), 0.0
    tops, sums, spreads = view(tiles, 0, w * w), view(tiles, w * w, w * w), view(tiles, 2 * w * w, w * w)
    pitch, third = -(-k // w) * w, work.size // 3
    kept, line, last_line = view(work, 0, third), view(work, third, third), view(work, 2 * third, third)
    waiting, place = 0, 0
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
                if out is None:
                    part, ties, spread, above, top = block_statistics(row, m, scale, y_logit, coming, None, 0)
                else:
                    part, ties, spread, above, top = block_statistics(row, m, scale, y_logit, coming, kept, r * pitch)
                store(spreads, r * w, spread)
                if r < count:
                    put(results[RANK], low + r, above)
                    if results[ARGMAX].size:
                        put(results[ARGMAX], low + r, first_position(row, m, v))
            elif out is None:
                part, ties, top = block_sum(row, m, scale, coming, None, 0)
            else:
                part, ties, top = block_sum(row, m, scale, coming, kept, r * pitch)
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
        if at + w == GROUP or low + w >= n:
            total += finish_group(
                records, 0, x, geometry, first, low - at, at + count, k, labels, ignore, weights, class_weight,
                options, scale, tiles, results, summed,
            )  # fmt: skip
        if out is not None:
            write_rows(
                kind, kept, pitch, x, geometry, first, low, n, k, labels, ignore, records, at, spreads, options, scale,
                weighed, line,
            )  # fmt: skip
            start = row_start(out_geometry, first + low)
            if in_one_line(out_geometry, row_step(out_geometry, first + low, count), k):
                prefetch_to_write(out, start + 3 * w * k)
                copy_out(last_line, waiting, out, place, v, streaming)
                line, last_line = last_line, line
                waiting, place = count * k, start
            else:
                for r in range(count):
                    row_out, stride = row_start(out_geometry, first + low + r), out_geometry[CLASS_STRIDE]
                    write_block(view(line, r * k, k), k, out, row_out, stride, False)
    if out is not None:
        copy_out(last_line, waiting, out, place, v, streaming)
        if streaming:
            fence()
    return -1, total
