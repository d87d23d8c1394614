"""Kernel family *lanes*: one row per lane, for few classes or a strided class axis.

A tile holds two vectors of rows, class by class, in L1: ``tile[c·pitch + r]`` is class c of row r. A last
tile that is not full repeats its last row, so that a row's result does not depend on its neighbours.

Classes of rows side by side lie in as many places of memory, each worth a visit only for a good deal at a time:
several tiles' worth is brought into a stage, while the tiles of another stage are computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import AXES, CLASS_STRIDE, SIZES, narrow, row_start, view, widen
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
    put_next,
    put_weights,
)
from .map_terms import map_terms, special, special_row
from .maps import HESS, LOG_SOFTMAX, variance
from .math import cast, clipped, exp2_below, log1p_positive, lowered, raised_exp2
from .memory import (
    copy_out,
    fence,
    load,
    load_next,
    prefetch,
    prefetch_to_write,
    store,
    store_next,
    vector,
    width,
)
from .rows import first_bad_label
from .simd import BYTES, any_lane, larger, like_vector, where
from .transpose import (
    load_2,
    load_3,
    load_4,
    load_8_columns,
    load_columns,
    store_2,
    store_3,
    store_4,
    store_columns,
    store_short_columns,
)  # fmt: skip

CHECKED = 4096  # labels checked at once, still in cache when they are used
EARLY = 8  # classes
STAGE = 1 << 17  # bytes at most
PARTIAL = 16  # classes summed before their sum is added to the others': half the rounding


def tile_size(k: int, dtype: np.dtype[Any]) -> int:
    """Elements of a tile: room for whole squares of classes."""
    lanes = BYTES // dtype.itemsize
    return -(-k // lanes) * lanes * 2 * lanes


def stage_rows(k: int, dtype: np.dtype[Any]) -> int:
    """How many rows make a stage, a power of two of tiles: as many as give a class a kilobyte, if there is room."""
    room = max(1, STAGE // (tile_size(k, dtype) * dtype.itemsize))
    return min(8, 1 << (room.bit_length() - 1)) * 2 * (BYTES // dtype.itemsize)


# --- rows into a tile and back --------------------------------------------------------------------


@inline
def row_step(geometry, row, count):
    """How far apart rows ``row … row + count - 1`` lie, if all of them alike; else 0."""
    axes = geometry[AXES]
    if axes == 1:
        return geometry[SIZES + 1]
    last = geometry[SIZES + axes - 1]
    return geometry[SIZES + 2 * axes - 1] if row % last + count <= last else 0


@inline
def fill_tile(x, geometry, row, start, step, count, k, tile, like):
    """Bring `count` rows from `row` on into the tile, widened, and repeat the last one to fill it."""
    w, stride = width(like), geometry[CLASS_STRIDE]
    if step == 1 and count == 2 * w:
        for c in range(k):
            store(tile, c * 2 * w, load(x, start + c * stride, like))
            store(tile, c * 2 * w + w, load(x, start + c * stride + w, like))
    elif stride == 1 and step != 0:
        for g in range(0, 2 * w, w):
            begin, rows = start + min(g, count - 1) * step, max(1, count - g)
            packed = step == k and rows >= w
            if packed and k == 2:
                load_2(x, begin, tile, g, 2 * w, like)
            elif packed and k == 3:
                load_3(x, begin, tile, g, 2 * w, like)
            elif packed and k == 4:
                load_4(x, begin, tile, g, 2 * w, like)
            elif k <= 8:
                load_8_columns(x, begin, step, rows, k, tile, g, 2 * w, like)
            else:
                for c in range(0, k, w):
                    load_columns(x, begin + c, step, rows, k - c, tile, c * 2 * w + g, 2 * w, like)
    else:
        for r in range(2 * w):
            start = row_start(geometry, row + min(r, count - 1))
            for c in range(k):
                tile[c * 2 * w + r] = widen(x[start + c * stride])


@inline
def fill_stage(x, start, stride, low, high, k, shift, stage, like):
    """Parts ``low … high - 1`` of a stage: a class has ``2^shift`` of them, two vectors each, and comes before the
    next one. The same of the class `EARLY` later is asked for: lines a power of two apart would drive each other
    out of the cache if asked for sooner."""
    w = width(like)
    for part in range(low, high):
        c, r = part >> shift, (part & ((1 << shift) - 1)) * 2 * w
        early = start + r + (c + EARLY) * stride
        if c + EARLY >= k:
            early += (2 * w << shift) - k * stride  # the next stage's
        prefetch(x, early)
        prefetch(x, early + w)
        at = (c << shift) * 2 * w + r
        store(stage, at, load(x, start + c * stride + r, like))
        store(stage, at + w, load(x, start + c * stride + r + w, like))


@inline
def look_ahead(x, stride, start, step, c, k, like, next_start, part, shift, stage):
    """Do the c-th part of what the next tiles will need, while this one is computed.

    Of rows side by side, a part of the next stage is filled (`part` is this tile's first, or -1 for none). Else
    lines of the tile after the next are asked for.
    """
    w = width(like)
    if part >= 0:
        fill_stage(x, next_start, stride, part + c, part + c + 1, k, shift, stage, like)
    else:
        ahead = start + 4 * w * step + c * (2 * w if stride == 1 else stride)
        prefetch(x, ahead)
        prefetch(x, ahead + w)


@inline
def rows_adjacent(geometry, row, count, left):
    """Whether the next `count` rows of those `left` lie side by side."""
    return count <= left and row_step(geometry, row, count) == 1


@inline
def in_one_line(geometry, step, k):
    """Whether rows follow one another without a gap."""
    return geometry[CLASS_STRIDE] == 1 and step == k


@inline
def store_tile(tile, pitch, out, geometry, row, count, k, like, line):
    """Write a tile to `out`; rows without a gap only to `line`, from where they are copied a tile later:
    what has just been stored in parts cannot be loaded as a whole before it has reached the cache."""
    w, stride = width(like), geometry[CLASS_STRIDE]
    start, step = row_start(geometry, row), row_step(geometry, row, count)
    if in_one_line(geometry, step, k):
        for g in range(0, min(count, 2 * w), w):
            if k == 2:
                store_2(tile, g, pitch, line, g * k, like)
            elif k == 3:
                store_3(tile, g, pitch, line, g * k, like)
            elif k == 4:
                store_4(tile, g, pitch, line, g * k, like)
            elif k <= w:
                store_short_columns(tile, g, pitch, line, g * k, k, like)
            else:
                for c in range(0, k, w):
                    store_columns(tile, c * pitch + g, pitch, line, g * k + c, k, count - g, k - c, like)
        prefetch_to_write(out, start + 6 * w * k)  # the cache line that two tiles share, not written whole
    elif step == 1:
        for c in range(k):
            store_next(out, start + c * stride, count, load(tile, c * pitch, like))
            store_next(out, start + c * stride + w, count - w, load(tile, c * pitch + w, like))
    elif stride == 1 and step != 0:
        for g in range(0, min(count, 2 * w), w):
            for c in range(0, k, w):
                store_columns(tile, c * pitch + g, pitch, out, start + g * step + c, step, count - g, k - c, like)
    else:
        for r in range(count):
            start = row_start(geometry, row + r)
            for c in range(k):
                out[start + c * stride] = narrow(tile[c * pitch + r], out)


@inline
def two_lines(room, at, size):
    """Where rows without gaps wait for their way out: the line being written, the last one, its length and place."""
    return view(room, at, size), view(room, at + size, size), 0, 0


@inline
def put_tile(tile, pitch, out, geometry, row, count, k, like, lines, streaming):
    """Write a tile to `out`, if there is one, by way of its `lines`; returns them as they are then."""
    if out is None:
        return lines
    line, last_line, waiting, place = lines
    store_tile(tile, pitch, out, geometry, row, count, k, like, line)
    if not in_one_line(geometry, row_step(geometry, row, count), k):
        return lines
    copy_out(last_line, waiting, out, place, like, streaming)
    return last_line, line, count * k, row_start(geometry, row)


@inline
def put_last_line(out, lines, like, streaming):
    """Write to `out` what still waits."""
    if out is not None:
        _, last_line, waiting, place = lines
        copy_out(last_line, waiting, out, place, like, streaming)


# --- the record of every row ----------------------------------------------------------------------


@inline
def tile_max(tile, pitch, k, like):
    """Each row's largest logit."""
    w = width(like)
    a, b = load(tile, 0, like), load(tile, w, like)
    for c in range(1, k):
        a, b = larger(load(tile, c * pitch, like), a), larger(load(tile, c * pitch + w, like), b)
    return a, b


@inline
def add_below(x, m, e, total, below):
    """Add ``e = e^(z-m)`` where the logit is below `m` (or NaN), and count where it is."""
    counts = x != m
    return where(counts, total + e, total), where(counts, below + 1.0, below)


@inline
def tile_sums(tile, pitch, k, scale, m_a, m_b, y_a, y_b, x, stride, start, step, next_start, part, shift, stage):
    """Each row's ``S``, the largest logit left out, and its label's logit."""
    w = width(m_a)
    zero = like_vector(0.0, m_a)
    S_a, S_b, below_a, below_b, logit_a, logit_b = zero, zero, zero, zero, zero, zero
    for low in range(0, k, PARTIAL):
        sum_a, sum_b = zero, zero
        for c in range(low, min(k, low + PARTIAL)):
            look_ahead(x, stride, start, step, c, k, m_a, next_start, part, shift, stage)
            a, b = load(tile, c * pitch, m_a), load(tile, c * pitch + w, m_a)
            sum_a, below_a = add_below(a, m_a, raised_exp2((a - m_a) * scale), sum_a, below_a)
            sum_b, below_b = add_below(b, m_b, raised_exp2((b - m_b) * scale), sum_b, below_b)
            this = like_vector(c, m_a)
            logit_a, logit_b = where(y_a == this, a, logit_a), where(y_b == this, b, logit_b)
        S_a, S_b = S_a + sum_a, S_b + sum_b
    # The tie that is no tie, the largest logit itself, is taken off before it can swallow a small sum.
    return lowered(S_a) + (k - 1 - below_a), lowered(S_b) + (k - 1 - below_b), logit_a, logit_b


@inline
def tile_statistics(tile, pitch, k, scale, m_a, m_b, x, stride, start, step, next_start, part, shift, stage):
    """Each row's ``S`` and ``Σ e^(z-m)·log2 e^(z-m)``."""
    w = width(m_a)
    zero = like_vector(0.0, m_a)
    S_a, S_b, below_a, below_b, spread_a, spread_b = zero, zero, zero, zero, zero, zero
    for low in range(0, k, PARTIAL):
        sum_a, sum_b, part_a, part_b = zero, zero, zero, zero
        for c in range(low, min(k, low + PARTIAL)):
            look_ahead(x, stride, start, step, c, k, m_a, next_start, part, shift, stage)
            a, b = load(tile, c * pitch, m_a), load(tile, c * pitch + w, m_a)
            t_a, t_b = clipped((a - m_a) * scale), clipped((b - m_b) * scale)
            e_a, e_b = raised_exp2(t_a), raised_exp2(t_b)
            sum_a, below_a = add_below(a, m_a, e_a, sum_a, below_a)
            sum_b, below_b = add_below(b, m_b, e_b, sum_b, below_b)
            part_a, part_b = part_a + e_a * t_a, part_b + e_b * t_b
        S_a, S_b, spread_a, spread_b = S_a + sum_a, S_b + sum_b, spread_a + part_a, spread_b + part_b
    return lowered(S_a) + (k - 1 - below_a), lowered(S_b) + (k - 1 - below_b), lowered(spread_a), lowered(spread_b)


@inline
def tile_ranks(tile, pitch, at, k, m, y):
    """Of one vector of rows: the label's logit, the first largest logit, how many are above the label's."""
    zero = like_vector(0.0, m)
    y_logit, argmax, above = zero, zero, zero
    for c in range(k - 1, -1, -1):
        x, this = load(tile, c * pitch + at, m), like_vector(c, m)
        y_logit, argmax = where(y == this, x, y_logit), where(x == m, this, argmax)
    for c in range(k):
        above = where(load(tile, c * pitch + at, m) > y_logit, above + 1.0, above)
    return y_logit, argmax, above


@inline
def tile_gaps(tile, pitch, at, k, m, class_weight):
    """Of one vector of rows: the mean over the classes of ``w·(m - x)``, what label smoothing adds."""
    gaps = like_vector(0.0, m)
    for c in range(k):
        w = (class_weight[c] if class_weight.size else 1.0) / k
        gap = m - load(tile, c * pitch + at, m)
        gaps += where(gap == gap, like_vector(0.0, m), gap) if w == 0.0 else gap * like_vector(w, m)
    return gaps


# --- maps -----------------------------------------------------------------------------------------


@inline
def tile_log_softmax(tile, pitch, at, k, inv_T, m, sums):
    """Replace the logits of one vector of rows by ``(z - m) - log Z``."""
    L = log1p_positive(sums)
    for c in range(k):
        store(tile, c * pitch + at, (load(tile, c * pitch + at, m) - m) * inv_T - L)


@inline
def tile_softmax(tile, pitch, at, k, scale, m, factor, y, own, hess, curved, sums, curvature):
    """Replace the logits of one vector of rows by ``factor·e^(z-m)``, that of class `y` by `own`; if the Hessian is
    asked for, `curved` receives their `variance`."""
    for c in range(k):
        e = exp2_below((load(tile, c * pitch + at, m) - m) * scale)
        if hess is not None:
            store(curved, c * 2 * width(m) + at, variance(e, sums, curvature))
        store(tile, c * pitch + at, where(y == like_vector(c, m), own, e * factor))


@inline
def map_tile(
    kind, tile, pitch, x, geometry, first, low, count, k, labels, records, at, options, scale, weighed,
    hess, curved,
):  # fmt: skip
    """Turn a tile of logits into the map `kind`; `curved` becomes the tile of their Hessian, if that is asked for."""
    v = vector(scale)
    w = width(v)
    stride, inv_T = geometry[CLASS_STRIDE], cast(options[INV_TEMPERATURE], scale)
    for g in range(0, min(count, 2 * w), w):
        record, row = at + g, low + g
        m, sums = load(records, MAX * GROUP + record, v), load(records, S * GROUP + record, v)
        factor, own, y = map_terms(kind, records, record, row, count - g, labels, options, scale, weighed)
        if kind == LOG_SOFTMAX:
            tile_log_softmax(tile, pitch, g, k, inv_T, m, sums)
        else:
            tile_softmax(tile, pitch, g, k, scale, m, factor, y, own, hess, curved, sums, factor / (sums + 1.0) * inv_T)
        if any_lane(special(records, record, count - g, v, weighed)):
            for r in range(g, min(g + w, count)):
                start = row_start(geometry, first + low + r)
                special_row(kind, x, start, stride, k, records, at + r, weighed, tile, r, pitch)
                if hess is not None:
                    special_row(HESS, x, start, stride, k, records, at + r, weighed, curved, r, 2 * w)


@kernel
def softmax_lanes(
    x, geometry, first, n, k, labels, ignore, weights, class_weight, options, scale, tiles, records, results,
    summed, more, kind, out, out_geometry, hess, hess_geometry, streaming, work,
):  # fmt: skip
    """The work of `rows.softmax_rows` for plain logits (no softcap), tile by tile."""
    v = vector(scale)
    w = width(v)
    none, total = like_vector(-1.0, v), 0.0
    stride, (small, stage, next_stage) = geometry[CLASS_STRIDE], tiles
    wide, shift = stage.size // k, 0
    while (2 * w) << shift < wide:
        shift += 1
    staged, filling, sub, next_start = False, False, 0, 0
    mapped, size = out is not None or hess is not None, work.size // (2 if hess is None else 5)
    ranked = results[ARGMAX].size + results[RANK].size > 0 or (more and labels.size > 0)
    lines, hess_lines, curved = two_lines(work, 0, size), two_lines(work, 2 * size, size), view(work, 4 * size, size)
    for low in range(0, n, 2 * w):
        count = min(2 * w, n - low)
        if labels.size and low % CHECKED == 0:
            bad = first_bad_label(view(labels, low, min(CHECKED, n - low)), k, ignore)
            if bad >= 0:
                return low + bad, 0.0
        at, start, step = low % (4 * w), row_start(geometry, first + low), row_step(geometry, first + low, count)
        if sub == 1 << shift:  # the stage's last tile was the one before
            staged, sub, stage, next_stage = filling, 0, next_stage, stage
        if not staged and wide and rows_adjacent(geometry, first + low, wide, n - low):
            fill_stage(x, start, stride, 0, k << shift, k, shift, stage, v)
            staged = True
        if staged:
            if sub == 0:
                filling, next_start = rows_adjacent(geometry, first + low, 2 * wide, n - low), start + wide
            tile, pitch = view(stage, sub * 2 * w, stage.size - sub * 2 * w), (2 * w) << shift
            part = sub * k if filling else -1
            sub += 1
        else:
            tile, pitch, part = small, 2 * w, -1
            fill_tile(x, geometry, first + low, start, step, count, k, tile, v)
        y_a, y_b = none, none
        if labels.size:
            y_a, y_b = load_next(labels, low, count, none), load_next(labels, low + w, count - w, none)
        m_a, m_b = tile_max(tile, pitch, k, v)
        if more:
            S_a, S_b, spread_a, spread_b = tile_statistics(
                tile, pitch, k, scale, m_a, m_b, x, stride, start, step, next_start, part, shift, next_stage
            )
            store(records, SPREAD * GROUP + at, spread_a)
            store(records, SPREAD * GROUP + at + w, spread_b)
        else:
            S_a, S_b, logit_a, logit_b = tile_sums(
                tile, pitch, k, scale, m_a, m_b, y_a, y_b, x, stride, start, step, next_start, part, shift, next_stage
            )
            store(records, Y_LOGIT * GROUP + at, logit_a)
            store(records, Y_LOGIT * GROUP + at + w, logit_b)
        store(records, S * GROUP + at, S_a)
        store(records, S * GROUP + at + w, S_b)
        store(records, MAX * GROUP + at, m_a)
        store(records, MAX * GROUP + at + w, m_b)
        if ranked:
            for g in range(0, 2 * w, w):
                y = load_next(labels, low + g, count - g, none) if labels.size else none
                y_logit, argmax, above = tile_ranks(tile, pitch, g, k, load(records, MAX * GROUP + at + g, v), y)
                store(records, Y_LOGIT * GROUP + at + g, y_logit)
                put_next(results[ARGMAX], low + g, count - g, argmax)
                put_next(results[RANK], low + g, count - g, above)
        if options[SMOOTHING] > 0.0:
            for g in range(0, 2 * w, w):
                m = load(records, MAX * GROUP + at + g, v)
                store(records, GAPS * GROUP + at + g, tile_gaps(tile, pitch, g, k, m, class_weight))
        weighed = has_weights(ignore, weights, class_weight)
        if weighed:
            put_weights(records, at, low, count, labels, ignore, weights, class_weight)
        # Without a map the tile before is finished now: its logarithms need not wait for this tile's sums.
        done, rows = (low, count) if mapped else (low - 2 * w, 2 * w)
        if done >= 0:
            total += finish_group(
                records, done % (4 * w), x, geometry, first, done, rows, k, labels, ignore, weights, class_weight,
                options, scale, tile, results, summed,
            )  # fmt: skip
        if mapped:
            map_tile(
                kind, tile, pitch, x, geometry, first, low, count, k, labels, records, at, options, scale, weighed,
                hess, curved,
            )  # fmt: skip
            lines = put_tile(tile, pitch, out, out_geometry, first + low, count, k, v, lines, streaming)
            hess_lines = put_tile(curved, 2 * w, hess, hess_geometry, first + low, count, k, v, hess_lines, streaming)
    if not mapped and n > 0:
        done = (n - 1) // (2 * w) * 2 * w
        total += finish_group(
            records, done % (4 * w), x, geometry, first, done, n - done, k, labels, ignore, weights, class_weight,
            options, scale, tile, results, summed,
        )  # fmt: skip
    put_last_line(out, lines, v, streaming)
    put_last_line(hess, hess_lines, v, streaming)
    if streaming:
        fence()
    return -1, total
