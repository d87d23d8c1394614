"""What a row of logits says, from one read: records of blocks, merged.

A record is ``(m, rest, star, at, spread, above)``: the largest logit; ``Σ e^(z-m)`` over all blocks but
the one that holds it, and over that one; where that block begins; ``Σ e^(z-m)·log2 e^(z-m)``; and how
many logits lie above the label's. Keeping the star block apart lets `sum_without_max` leave the largest
logit out of the sum by reading one block again, which a confident row needs for its digits.
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


@inline_sums
def block_sum(block, m, scale):
    """``Σ e^(z-m)`` for ``scale = log2(e)/T``. Subtract first: ``x·scale - m·scale`` would cancel."""
    total = cast(0.0, scale)
    for i in range(block.size):
        total += exp2(floored((block[i] - m) * scale))
    return total


@inline_sums
def block_sum_and_max_ahead(block, m, scale, ahead, lowest):
    """`block_sum`, and in the same loop the maximum of a block of the same length."""
    total = cast(0.0, scale)
    top = lowest
    for i in range(block.size):
        top = maximum(top, ahead[i])
        total += exp2(floored((block[i] - m) * scale))
    return total, top


@inline_sums
def block_sums(block, m, scale, y_logit):
    """``Σ e^(z-m)``, ``Σ e^(z-m)·log2 e^(z-m)`` and the number of logits above `y_logit`."""
    total, spread = cast(0.0, scale), cast(0.0, scale)
    above = np.int32(0)
    for i in range(block.size):
        t = floored((block[i] - m) * scale)
        e = exp2(t)
        total += e
        spread += e * t
        above += np.int32(1) if block[i] > y_logit else np.int32(0)
    return total, spread, above


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
            total += weights[i] * gap if weights[i] != 0.0 or gap != gap else 0.0
    return total


@inline
def merge(m_a, rest_a, star_a, at_a, spread_a, m_b, rest_b, star_b, at_b, spread_b, scale):
    """The record of two parts of a row; on equal maxima the first part keeps the star.

    An empty part has ``m = -inf`` and sums of 0, or of NaN, which stays. Shifts are floored, so that
    -inf times a sum of 0 is 0.
    """
    if m_b > m_a:
        shift = floored((m_a - m_b) * scale)
        factor, low = exp2(shift), rest_a + star_a
        return m_b, rest_b + factor * low, star_b, at_b, spread_b + factor * (spread_a + shift * low)
    shift = floored((m_b - m_a) * scale) if m_b < m_a else 0.0
    factor, low = exp2(shift), rest_b + star_b
    return m_a, rest_a + factor * low, star_a, at_a, spread_a + factor * (spread_b + shift * low)


@inline
def row_record(x, start, stride, k, next_start, ahead, slot, scale, cap, stage, more, y_logit):
    """The record of the row at `start`.

    `ahead` is the maximum of its first block, which `load` put into `slot`; returned with the record
    is the same for the row at `next_start`. `more` asks for `spread` and `above`.
    """
    lowest, wide = cast(-np.inf, scale), np.float64(scale)
    m, rest, star, at, spread, above = -np.inf, 0.0, 0.0, 0, 0.0, 0
    for segment in range(0, k, SEGMENT):
        end = min(k, segment + SEGMENT)
        s_m, s_rest, s_star, s_at, s_spread = -np.inf, 0.0, 0.0, segment, 0.0
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
            if holds_max:
                s_m, s_rest, s_star, s_at, s_spread = merge(
                    s_m, s_rest, s_star, s_at, s_spread, top, 0.0, 0.0, b, 0.0, wide
                )
            shift = cast(s_m if s_m > -np.inf else 0.0, scale)
            if more:
                total, block_spread, block_above = block_sums(block, shift, scale, y_logit)
                s_spread += np.float64(block_spread)
                above += block_above
                ahead = block_max(coming, lowest)
                block_total = np.float64(total)
            else:
                w = min(n, next_n)
                total, ahead = block_sum_and_max_ahead(
                    view(block, 0, w), shift, scale, view(coming, 0, w), lowest
                )
                block_total = np.float64(total)
                if n > w:
                    block_total += np.float64(block_sum(view(block, w, n - w), shift, scale))
                if next_n > w:
                    ahead = maximum(ahead, block_max(view(coming, w, next_n - w), lowest))
            if holds_max:
                s_star += block_total
            else:
                s_rest += block_total
        m, rest, star, at, spread = merge(
            m, rest, star, at, spread, s_m, s_rest, s_star, s_at, s_spread, wide
        )
    return m, rest, star, at, spread, above, ahead, slot


@inline
def first_position(block, m):
    """The index of the first element equal to `m`."""
    for i in range(block.size):
        if block[i] == m:
            return i
    return -1


@inline
def sum_without_max(block, m, scale):
    """``Σ e^(z-m)`` over a block, its first largest logit left out; and where that is."""
    i = first_position(block, m)
    if i < 0:
        return 0.0, i
    before = block_sum(view(block, 0, i), m, scale)
    after = block_sum(view(block, i + 1, block.size - i - 1), m, scale)
    return np.float64(before) + np.float64(after), i
