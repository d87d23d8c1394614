"""Fast kernels of cross-entropy with target distributions together with its gradient, for 32 bits and less.

The gradient ``A·p - b`` is a difference, and where the softmax comes near its target there is little left of
it. So exponentials near 1 are kept as ``e^z - 1``, and what is subtracted is subtracted in float64.
Rows with anything but targets from 0 on and finite logits (or -inf where the target is 0) come out as NaN, for
the careful kernel, and their gradient is not written.
"""

from __future__ import annotations

import numpy as np

from .blocks import BLOCK, row_start
from .compile import inline, kernel
from .maps import write_block
from .math import LOG2E, cast, exp2_or_excess, log1p_positive
from .memory import fence, load, load_first, prefetch, store, vector, width
from .row_groups import ROWS, fill, group_sums, group_tops, place_of, put_sums
from .simd import lanes_set, like_vector, where
from .soft_targets import gap_times
from .tables import ADDED, PIECE, lane_slopes, put_lanes
from .terms import (
    add_lower,
    add_upper,
    bits,
    is_excess,
    join_signs,
    joined,
    negative,
    target_slope,
    zero_times,
    zeros_of,
)
from .tiles import empty_tile, fill_tile, rows_ahead, rows_in_line, tile_top

ROOM = 1 << 17  # bytes of exponentials that are kept from sweep to sweep
HALF = 8  # lanes of float64
# What is known of a row: its sums, and how many logits count as 1 in that of the exponentials.
S, GAPS, MASS, ONES, RECORDS = range(5)


@inline
def gather(a, b, exact, top, scale, kept, at, total, gaps, ones, signs):
    """Add vectors of logits and targets to a row's sums; the exponentials go to `kept`."""
    e = exp2_or_excess((a - top) * scale)
    store(kept, at, e)
    return total + e, gaps + gap_times(b, top - a, exact), ones + lanes_set(is_excess(e)), join_signs(signs, b)


@inline
def sum_block(x, i, y, j, n, exact, top, scale, kept, at, next_i, next_j, v):
    """Sums of `n` classes: ``Σ e`` of what is in `kept` then, ``Σ b·(m - x)``, ``Σ b``, and how many ones more
    belong to the first."""
    lanes, lowest, wide = width(v), v - np.inf, vector(0.0)
    S_sum, gap_sum, mass, ones, signs = wide, wide, wide, 0, bits(v)
    for low in range(0, n, PIECE * lanes):
        total, gaps, c, end = v, v, low, min(n, low + PIECE * lanes)
        while c + lanes <= end:
            prefetch(x, next_i + c)
            prefetch(y, next_j + c)
            a, b = load(x, i + c, v), load(y, j + c, v)
            total, gaps, ones, signs = gather(a, b, exact, top, scale, kept, at + c, total, gaps, ones, signs)
            mass += load(y, j + c, wide) + load(y, j + c + HALF, wide)
            c += lanes
        if c < end:
            a, b = load_first(x, i + c, n - c, lowest), load_first(y, j + c, n - c, v)
            total, gaps, ones, signs = gather(a, b, exact, top, scale, kept, at + c, total, gaps, ones, signs)
            mass += load_first(y, j + c, n - c, wide) + load_first(y, j + c + HALF, n - c - HALF, wide)
        S_sum, gap_sum = add_upper(add_lower(S_sum, total), total), add_upper(add_lower(gap_sum, gaps), gaps)
    refused = where(negative(signs) | (top == -np.inf), v + np.nan, v)
    return S_sum, add_upper(add_lower(gap_sum, refused), refused), mass, ones


@inline
def write_slopes(kept, at, y, j, n, A, S, factor, out, start, stride, streaming, line, v):
    """``factor·(A·p - b)`` of `n` classes, for a `factor` that has been divided by Z."""
    lanes, wide = width(v), vector(0.0)
    A, S, factor = like_vector(A, wide), like_vector(S, wide), like_vector(factor, v)
    for low in range(0, n, BLOCK):
        size, c = min(BLOCK, n - low), 0
        while c + lanes <= size:
            at_y = j + low + c
            lower, upper = load(y, at_y, wide), load(y, at_y + HALF, wide)
            store(line, c, target_slope(load(kept, at + low + c, v), lower, upper, A, S, A, S) * factor)
            c += lanes
        if c < size:
            at_y, left = j + low + c, size - c
            lower, upper = load_first(y, at_y, left, wide), load_first(y, at_y + HALF, left - HALF, wide)
            store(line, c, target_slope(load(kept, at + low + c, v), lower, upper, A, S, A, S) * factor)
        write_block(line, size, out, start + low * stride, stride, streaming)


@kernel
def soft_target_gradient_groups(
    x, x_geometry, y, y_geometry, first, n, k, temperature, unit, map_scale, weights, zero, exact, kept, square, tops,
    sums, records, results, grad, g_geometry, streaming, line,
):  # fmt: skip
    """Rows whose classes lie side by side, as many at once as a vector has lanes, if their exponentials have room;
    returns how many are left to the careful kernel."""
    v, wide = vector(zero), vector(0.0)
    scale, left = cast(LOG2E / temperature, zero), 0
    pitch = -(-k // width(v)) * width(v)
    group = min(width(v), max(1, kept.size // pitch))
    # Of longer rows a block is kept, and computed again for the gradient.
    block = min(k, kept.size)
    for low in range(0, n, group):
        row, size = first + low, min(group, n - low)
        store(tops, 0, group_tops(x, x_geometry, row, size, k, square, v))
        for g in range(size):
            i, j = row_start(x_geometry, row + g), row_start(y_geometry, row + g)
            following = first + min(low + g + group, n - 1)
            next_i, next_j = row_start(x_geometry, following), row_start(y_geometry, following)
            rest, gaps, mass, ones = wide, wide, wide, -1  # one of the largest is left out
            for b in range(0, k, block):
                more = sum_block(
                    x, i + b, y, j + b, min(block, k - b), exact, like_vector(tops[g], v), scale, kept, g * pitch,
                    next_i + b, next_j + b, v,
                )  # fmt: skip
                rest, gaps, mass, ones = rest + more[0], gaps + more[1], mass + more[2], ones + more[3]
            put_sums(sums, S * ROWS + g, rest)
            put_sums(sums, GAPS * ROWS + g, gaps)
            put_sums(sums, MASS * ROWS + g, mass)
            records[ONES * ROWS + g] = ones
        for g in range(0, size, HALF):
            rest = group_sums(sums, S * ROWS + g) + load(records, ONES * ROWS + g, wide)
            mass = group_sums(sums, MASS * ROWS + g)
            loss = group_sums(sums, GAPS * ROWS + g) * (1.0 / temperature) + mass * log1p_positive(rest)
            store(records, S * ROWS + g, rest)
            store(records, MASS * ROWS + g, mass)
            left += put_lanes(results, low + g, min(size - g, HALF), loss, unit, weights, v)
        for g in range(size):
            i, j, (start, stride) = (
                row_start(x_geometry, row + g), row_start(y_geometry, row + g), place_of(g_geometry, row + g)
            )  # fmt: skip
            weight = weights[low + g] if weights.size else 1.0
            if weight == 0.0:
                fill(0.0, k, grad, start, stride)
            elif results[low + g] == results[low + g]:
                A, rest = records[MASS * ROWS + g], records[S * ROWS + g]
                factor = weight * unit * map_scale / temperature / (1.0 + rest)
                for b in range(0, k, block):
                    m = min(block, k - b)
                    if block < k:
                        sum_block(
                            x, i + b, y, j + b, m, exact, like_vector(tops[g], v), scale, kept, 0, i + b, j + b, v
                        )
                    write_slopes(
                        kept, g * pitch, y, j + b, m, A, rest, cast(factor, zero), grad, start + b * stride, stride,
                        streaming, line, v,
                    )  # fmt: skip
    if streaming:
        fence()
    return left


# --- lanes: a row per lane --------------------------------------------------------------------------


@inline
def halves(tile, at):
    """Both halves of a vector of float32 as float64."""
    return load(tile, at, vector(0.0)), load(tile, at + HALF, vector(0.0))


@kernel
def soft_target_gradient_lanes(
    x, x_geometry, y, y_geometry, first, n, k, temperature, unit, map_scale, weights, zero, x_tile, y_tile, results,
    grad, g_geometry,
):  # fmt: skip
    """The work of `soft_target_gradient_groups` for few classes, or for rows that lie side by side; for targets that
    float32 holds."""
    v, wide = vector(zero), vector(0.0)
    inv_T, scale = 1.0 / temperature, cast(LOG2E / temperature, zero)
    lanes, left = width(v), 0
    x_ahead, x_line = rows_ahead(x_geometry, lanes)
    y_ahead, y_line = rows_ahead(y_geometry, lanes)
    r = 0
    while r < n:
        row = first + r
        count = min(min(lanes, n - r), rows_in_line(g_geometry, row))
        count = min(count, min(rows_in_line(x_geometry, row), rows_in_line(y_geometry, row)))
        i, j = row_start(x_geometry, row), row_start(y_geometry, row)
        fill_tile(x, x_geometry, i, count, k, x_tile, v)
        fill_tile(y, y_geometry, j, count, k, y_tile, v)
        top = tile_top(x_tile, k, v)
        S_lower, S_upper, A_lower, A_upper, gap_sum = wide, wide, wide, wide, v
        rest, ones, gaps, signs = v, v - 1.0, v, bits(v)  # one of the largest is left out
        for c in range(k):
            prefetch(x, i + x_ahead + c * x_line)
            prefetch(y, j + y_ahead + c * y_line)
            a, b = load(x_tile, c * lanes, v), load(y_tile, c * lanes, v)
            e = exp2_or_excess((a - top) * scale)
            store(x_tile, c * lanes, e)
            ones = where(is_excess(e), ones + 1.0, ones)
            rest, gaps, signs = rest + e, gaps + zero_times(b, top - a), join_signs(signs, b)
            A_lower, A_upper = add_lower(A_lower, b), add_upper(A_upper, b)
            if c % ADDED == ADDED - 1 or c + 1 == k:
                S_lower, S_upper, rest = add_lower(S_lower, rest), add_upper(S_upper, rest), v
                gap_sum, gaps = gap_sum + gaps, v
        S_lower, S_upper = add_lower(S_lower, ones), add_upper(S_upper, ones)
        gap_sum = where(negative(signs) | (top == -np.inf), v + np.nan, gap_sum)
        lower = add_lower(wide, gap_sum) * inv_T + A_lower * log1p_positive(S_lower)
        upper = add_upper(wide, gap_sum) * inv_T + A_upper * log1p_positive(S_upper)
        left_here = put_lanes(results, r, min(count, HALF), lower, unit, weights, v)
        left_here += put_lanes(results, r + HALF, count - HALF, upper, unit, weights, v)
        lower_slope, upper_slope = lane_slopes(unit * map_scale / temperature, weights, r, count)
        factor = joined(lower_slope / (S_lower + 1.0), upper_slope / (S_upper + 1.0), v)
        unweighted = zeros_of(lower_slope, upper_slope, v)
        for c in range(k):
            b_lower, b_upper = halves(y_tile, c * lanes)
            slope = target_slope(load(x_tile, c * lanes, v), b_lower, b_upper, A_lower, S_lower, A_upper, S_upper)
            store(x_tile, c * lanes, where(unweighted, v, slope * factor))
        empty_tile(x_tile, grad, g_geometry, row, count, k, results, r, left_here > 0, v)
        left += left_here
        r += count
    return left
