"""What a row of logits says, from one read: records of blocks, merged.

A record is ``(m, S, spread)``: the largest logit; ``Σ e^(z-m)`` over the others (one instance of the
largest left out, so that a confident row keeps its digits); and ``Σ e^(z-m)·log2 e^(z-m)``. Beside them
go where the block with the largest logit begins, and how many logits lie above the label's.
"""

from __future__ import annotations

import numpy as np

from .blocks import BLOCK, block_of, load, view
from .compile import inline, inline_sums
from .math import cast, exp2, floored, maximum

# Accumulators restart after so many classes, and the segments' records merge in order: a row has the
# same bits whoever computes which part of it.
SEGMENT = 64 * BLOCK


@inline_sums
def block_max(block, lowest):
    m = lowest
    for i in range(block.size):
        m = maximum(m, block[i])
    return m


# Subtract first: ``x·scale - m·scale`` (``scale = log2(e)/T``) would cancel at a large common offset.


@inline_sums
def block_sum(block, m, scale):
    """``Σ e^(z-m)`` of a block whose logits do not exceed `m`."""
    total = cast(0.0, scale)
    for i in range(block.size):
        total += exp2(floored((block[i] - m) * scale))
    return total


@inline_sums
def block_sum_ahead(block, m, scale, ahead, lowest):
    """`block_sum`, and in the same loop the maximum of a block of the same length."""
    total, top = cast(0.0, scale), lowest
    for i in range(block.size):
        top = maximum(top, ahead[i])
        total += exp2(floored((block[i] - m) * scale))
    return total, top


@inline_sums
def block_rest(block, m, scale):
    """``Σ e^(z-m)`` over the logits below the block's largest one `m`, and how many equal it."""
    total, ties = cast(0.0, scale), cast(0.0, scale)
    zero, one = cast(0.0, scale), cast(1.0, scale)
    for i in range(block.size):
        e = exp2(floored((block[i] - m) * scale))
        total += zero if block[i] == m else e
        ties += one if block[i] == m else zero
    return total, ties


@inline_sums
def block_rest_ahead(block, m, scale, ahead, lowest):
    """`block_rest`, and in the same loop the maximum of a block of the same length."""
    total, ties, top = cast(0.0, scale), cast(0.0, scale), lowest
    zero, one = cast(0.0, scale), cast(1.0, scale)
    for i in range(block.size):
        top = maximum(top, ahead[i])
        e = exp2(floored((block[i] - m) * scale))
        total += zero if block[i] == m else e
        ties += one if block[i] == m else zero
    return total, ties, top


@inline_sums
def block_statistics(block, m, scale, y_logit):
    """`block_rest`, ``Σ e^(z-m)·log2 e^(z-m)``, and the number of logits above `y_logit`."""
    total, ties, spread = cast(0.0, scale), cast(0.0, scale), cast(0.0, scale)
    zero, one = cast(0.0, scale), cast(1.0, scale)
    above = np.int32(0)
    for i in range(block.size):
        t = floored((block[i] - m) * scale)
        e = exp2(t)
        total += zero if block[i] == m else e
        ties += one if block[i] == m else zero
        spread += e * t
        above += np.int32(1) if block[i] > y_logit else np.int32(0)
    return total, ties, spread, above


@inline_sums
def block_gaps(block, reference, weights):
    """``Σ w·(reference - x)`` in float64; a weight of 0 leaves its class out, infinite or not."""
    total = 0.0
    if weights.size == 0:
        for i in range(block.size):
            total += reference - np.float64(block[i])
    else:
        for i in range(block.size):
            gap = reference - np.float64(block[i])
            total += weights[i] * gap if (weights[i] != 0.0) | (gap != gap) else 0.0
    return total


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
def row_record(x, start, stride, k, next_start, ahead, slot, scale, cap, stage, more, y_logit):
    """The record of the row at `start`.

    `ahead` is the maximum of its first block, which `load` put into `slot`; returned with the record
    is the same for the row at `next_start`. `more` asks for `spread` and `above`.
    """
    lowest, wide = cast(-np.inf, scale), np.float64(scale)
    m, S, spread, at, above = -np.inf, 0.0, 0.0, 0, 0
    for segment in range(0, k, SEGMENT):
        end = min(k, segment + SEGMENT)
        s_m, s_S, s_spread, s_at = -np.inf, 0.0, 0.0, segment
        for b in range(segment, end, BLOCK):
            n = min(BLOCK, k - b)
            following = b + BLOCK
            next_n = min(BLOCK, k - following) if following < k else min(BLOCK, k)
            next_at = start + following * stride if following < k else next_start
            block = block_of(x, start + b * stride, n, stage, slot)
            slot = 1 - slot
            load(x, next_at, stride, next_n, cap, stage, slot)
            coming = block_of(x, next_at, next_n, stage, slot)
            top = np.float64(ahead)
            holds_max = top > s_m
            shift = top if holds_max else (s_m if s_m > -np.inf else 0.0)
            b_S, b_spread, ahead, b_above = block_record(
                block, cast(shift, scale), scale, coming, lowest, more, holds_max, y_logit
            )
            above += b_above
            if holds_max:
                s_at = b
                s_m, s_S, s_spread = merge(s_m, s_S, s_spread, top, b_S, b_spread, wide)
            else:
                s_S += b_S
                s_spread += b_spread
        at = s_at if s_m > m else at
        m, S, spread = merge(m, S, spread, s_m, s_S, s_spread, wide)
    return m, S, spread, at, above, ahead, slot


@inline
def block_record(block, m, scale, coming, lowest, more, holds_max, y_logit):
    """``S`` (all of ``Σ e^(z-m)`` unless the block holds the maximum), `spread`, the maximum ahead, `above`.

    Blocks differ in length only at a row's end; what is left over there goes through the plain loops.
    """
    n, next_n = block.size, coming.size
    w = min(n, next_n)
    if more:
        total, ties, spread, above = block_statistics(block, m, scale, y_logit)
        one = 1.0 if holds_max else 0.0
        return (
            np.float64(total) + (np.float64(ties) - one),
            np.float64(spread),
            block_max(coming, lowest),
            above,
        )
    S = 0.0
    if holds_max:
        total, ties, ahead = block_rest_ahead(view(block, 0, w), m, scale, view(coming, 0, w), lowest)
        if n > w:
            more_total, more_ties = block_rest(view(block, w, n - w), m, scale)
            S, ties = np.float64(more_total), ties + more_ties
        S += np.float64(total) + (np.float64(ties) - 1.0)
    else:
        total, ahead = block_sum_ahead(view(block, 0, w), m, scale, view(coming, 0, w), lowest)
        if n > w:
            S = np.float64(block_sum(view(block, w, n - w), m, scale))
        S += np.float64(total)
    if next_n > w:
        ahead = maximum(ahead, block_max(view(coming, w, next_n - w), lowest))
    return S, 0.0, ahead, np.int32(0)


@inline
def first_position(block, m):
    """The index of the first element equal to `m` (the length if there is none), without a branch."""
    first = np.int32(block.size)
    for i in range(block.size):
        first = min(first, np.int32(i) if block[i] == m else np.int32(block.size))
    return np.int64(first)
