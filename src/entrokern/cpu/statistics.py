"""What a row of logits says, from one read: records of blocks, merged.

A record is ``(m, S, spread)``: the largest logit; ``Σ e^(z-m)`` over the others (one instance of the
largest left out, so that a confident row keeps its digits); and ``Σ e^(z-m)·log2 e^(z-m)``. Beside them
go where the block with the largest logit begins, and how many logits lie above the label's.
"""

from __future__ import annotations

import numpy as np

from .blocks import BLOCK, block_of
from .blocks import load as fetch
from .compile import inline
from .math import cast, clipped, exp2, floored, lowered, raised_exp2
from .memory import load, load_first, prefetch, store, vector, width
from .simd import any_lane, first_lane, lanes_max, lanes_set, lanes_sum, larger, like_vector, where

# Accumulators restart after so many classes, and the segments' records merge in order: a row has the
# same bits whoever computes which part of it.
SEGMENT = 64 * BLOCK
AHEAD = 2 * BLOCK  # how far beyond the block that comes next memory is asked for


@inline
def block_max(block, like):
    """The largest element (NaN apart), as a scalar of the type of the vector `like`."""
    top = like_vector(-np.inf, like)
    for i in range(0, block.size, width(like)):
        top = larger(load_first(block, i, block.size - i, like_vector(-np.inf, like)), top)
    return lanes_max(top)


@inline
def block_size(k):
    """How many classes of a row make a block: alike for all blocks, for the sweeps of two go together."""
    blocks = -(-k // BLOCK)
    return BLOCK if blocks > 16 else -(-k // (32 * blocks)) * 32


# Subtract first: ``x·scale - m·scale`` (``scale = log2(e)/T``) would cancel at a large common offset.
# The loops over a block also find the maximum of the block that comes next: while one is summed from
# cache, the other arrives from memory, and lines further on are asked for. Two accumulators keep the adders
# busy; what is left over at the end of a block is loaded in part. Logits equal to `m` are counted, not
# added: one of them is left out in the end, and would have rounded away what is small beside it.


@inline
def block_sum(block, m, scale, coming, kept, at):
    """``Σ e^(z-m)`` over the logits below `m`, how many equal `m`, and the maximum of the block `coming`.

    The sum and the maximum are vectors, whose lanes are to be taken together. `kept` (or None) receives
    the `raised_exp2` of all logits from `at` on, whole vectors.
    """
    v = vector(scale)
    m, lowest = like_vector(m, v), like_vector(-np.inf, v)
    top_a, top_b = lowest, lowest
    sum_a, sum_b = like_vector(0.0, v), like_vector(0.0, v)
    w, n, both = width(v), block.size, min(block.size, coming.size)
    i, below = 0, 0
    while i + 2 * w <= both:
        top_a, top_b = larger(load(coming, i, v), top_a), larger(load(coming, i + w, v), top_b)
        prefetch(coming, i + AHEAD)
        prefetch(coming, i + w + AHEAD)
        a, b = load(block, i, v), load(block, i + w, v)
        e_a, e_b = raised_exp2((a - m) * scale), raised_exp2((b - m) * scale)
        below_a, below_b = a != m, b != m
        sum_a, sum_b = where(below_a, sum_a + e_a, sum_a), where(below_b, sum_b + e_b, sum_b)
        below += lanes_set(below_a) + lanes_set(below_b)
        if kept is not None:
            store(kept, at + i, e_a)
            store(kept, at + i + w, e_b)
        i += 2 * w
    while i < n:
        top_a = larger(load_first(coming, i, coming.size - i, lowest), top_a)
        a = load_first(block, i, n - i, lowest)
        e_a, below_a = raised_exp2((a - m) * scale), a != m
        sum_a = where(below_a, sum_a + e_a, sum_a)
        below += lanes_set(below_a)
        if kept is not None:
            store(kept, at + i, e_a)
        i += w
    while i < coming.size:
        top_a = larger(load_first(coming, i, coming.size - i, lowest), top_a)
        i += w
    return lowered(sum_a + sum_b), -(-n // w) * w - below, larger(top_a, top_b)


@inline
def more_of(x, m, scale, total, spread):
    """Add a vector of logits to the sums of a block; which of them are below `m` (or NaN), and their `raised_exp2`."""
    t = clipped((x - m) * scale)
    e, below = raised_exp2(t), x != m
    return where(below, total + e, total), spread + e * t, below, e


@inline
def block_statistics(block, m, scale, y_logit, coming, kept, at):
    """What `block_sum` tells, with ``Σ e^(z-m)·log2 e^(z-m)`` (a vector) and the number of logits above `y_logit`."""
    v = vector(scale)
    m, lowest, zero = like_vector(m, v), like_vector(-np.inf, v), like_vector(0.0, v)
    top_a, sum_a, spread_a, top_b, sum_b, spread_b = lowest, zero, zero, lowest, zero, zero
    w, n, both = width(v), block.size, min(block.size, coming.size)
    i, below, above = 0, 0, 0
    while i + 2 * w <= both:
        top_a, top_b = larger(load(coming, i, v), top_a), larger(load(coming, i + w, v), top_b)
        prefetch(coming, i + AHEAD)
        prefetch(coming, i + w + AHEAD)
        a, b = load(block, i, v), load(block, i + w, v)
        sum_a, spread_a, below_a, e_a = more_of(a, m, scale, sum_a, spread_a)
        sum_b, spread_b, below_b, e_b = more_of(b, m, scale, sum_b, spread_b)
        below += lanes_set(below_a) + lanes_set(below_b)
        above += lanes_set(a > y_logit) + lanes_set(b > y_logit)
        if kept is not None:
            store(kept, at + i, e_a)
            store(kept, at + i + w, e_b)
        i += 2 * w
    while i < n:
        top_a = larger(load_first(coming, i, coming.size - i, lowest), top_a)
        a = load_first(block, i, n - i, lowest)
        sum_a, spread_a, below_a, e_a = more_of(a, m, scale, sum_a, spread_a)
        below += lanes_set(below_a)
        above += lanes_set(a > y_logit)
        if kept is not None:
            store(kept, at + i, e_a)
        i += w
    while i < coming.size:
        top_a = larger(load_first(coming, i, coming.size - i, lowest), top_a)
        i += w
    ties, top = -(-n // w) * w - below, larger(top_a, top_b)
    return lowered(sum_a + sum_b), ties, lowered(spread_a + spread_b), above, top


@inline
def block_gaps(block, reference, weights):
    """``Σ w·(reference - x)`` in float64; a weight of 0 leaves its class out, infinite or not."""
    total = vector(0.0)
    reference = vector(reference)
    for i in range(0, block.size, width(total)):
        left = block.size - i
        gap = reference - load_first(block, i, left, reference)
        if weights.size:
            w = load_first(weights, i, left, vector(0.0))
            gap = where((w == 0.0) & (gap == gap), vector(0.0), w * gap)
        total += gap
    return lanes_sum(total)


@inline
def class_of(label, ignore):
    """A checked label as the kernels use it: -2 for an ignored one, which may also be a class's number."""
    return -2 if ignore.size and label == ignore[0] else label


@inline
def merge(m_a, S_a, spread_a, m_b, S_b, spread_b, scale):
    """The record of two parts of a row.

    The part with the smaller maximum adds ``e^(m_a - m_b)·(1 + S)``. A part without a finite logit has
    ``m = -inf`` and sums of 0, or of NaN, which stays; the floored shift keeps ``-inf·0`` out.
    """
    if m_a == -np.inf or m_b == -np.inf:
        return max(m_a, m_b), S_a + S_b, spread_a + spread_b
    if m_b > m_a:
        shift = floored((m_a - m_b) * scale)
        factor, Z = exp2(shift), 1.0 + S_a
        return m_b, S_b + factor * Z, spread_b + factor * (spread_a + shift * Z)
    shift = floored((m_b - m_a) * scale)
    factor, Z = exp2(shift), 1.0 + S_b
    return m_a, S_a + factor * Z, spread_a + factor * (spread_b + shift * Z)


@inline
def block_record(block, m, scale, coming, more, holds_max, y_logit):
    """``S`` (all of ``Σ e^(z-m)`` unless the block holds the maximum), `spread`, `above`, the maximum ahead."""
    spread, above = 0.0, 0
    if more:
        total, ties, spreads, above, ahead = block_statistics(block, m, scale, y_logit, coming, None, 0)
        spread = lanes_sum(spreads)
    else:
        total, ties, ahead = block_sum(block, m, scale, coming, None, 0)
    return lanes_sum(total) + (ties - (1 if holds_max else 0)), spread, above, lanes_max(ahead)


@inline
def first_block(x, start, stride, k, cap, stage, slot, like):
    """Bring the first block of a row into `slot`; its maximum."""
    n = min(block_size(k), k)
    fetch(x, start, stride, n, cap, stage, slot)
    return block_max(block_of(x, start, n, stage, slot), like)


@inline
def row_record(x, start, stride, k, next_start, ahead, slot, scale, cap, stage, more, y_logit):
    """The record of the row at `start`.

    `ahead` is what `first_block` says of it, or the record of the row before: returned with the record
    is the same for the row at `next_start`. `more` asks for `spread` and `above`.
    """
    wide, size = np.float64(scale), block_size(k)
    m, S, spread, at, above = -np.inf, 0.0, 0.0, 0, 0
    for segment in range(0, k, SEGMENT):
        end = min(k, segment + SEGMENT)
        s_m, s_S, s_spread, s_at = -np.inf, 0.0, 0.0, segment
        for b in range(segment, end, size):
            n = min(size, k - b)
            following = b + size
            next_n = min(size, k - following) if following < k else min(size, k)
            next_at = start + following * stride if following < k else next_start
            block = block_of(x, start + b * stride, n, stage, slot)
            slot = 1 - slot
            fetch(x, next_at, stride, next_n, cap, stage, slot)
            coming = block_of(x, next_at, next_n, stage, slot)
            top = np.float64(ahead)
            holds_max = top > s_m
            shift = top if holds_max else (s_m if s_m > -np.inf else 0.0)
            b_S, b_spread, b_above, ahead = block_record(
                block, cast(shift, scale), scale, coming, more, holds_max, cast(y_logit, scale)
            )
            above += b_above
            if not holds_max:
                s_S += b_S
                s_spread += b_spread
            elif b == 0:
                s_m, s_S, s_spread = top, b_S, b_spread
            else:
                s_at = b
                s_m, s_S, s_spread = merge(s_m, s_S, s_spread, top, b_S, b_spread, wide)
        if segment == 0:
            m, S, spread, at = s_m, s_S, s_spread, s_at
        else:
            at = s_at if s_m > m else at
            m, S, spread = merge(m, S, spread, s_m, s_S, s_spread, wide)
    return m, S, spread, at, above, ahead, slot


@inline
def first_position(block, m, like):
    """The index of the first element equal to `m` (the length if there is none)."""
    w, i = width(like), 0
    while i + 4 * w <= block.size:  # a branch for each vector would take longer than its comparison
        a, b = load(block, i, like) == m, load(block, i + w, like) == m
        c, d = load(block, i + 2 * w, like) == m, load(block, i + 3 * w, like) == m
        if any_lane((a | b) | (c | d)):
            break
        i += 4 * w
    for at in range(i, block.size, w):
        found = load_first(block, at, block.size - at, like_vector(np.nan, like)) == m
        if any_lane(found):
            return at + first_lane(found)
    return block.size
