"""Fast kernels of cross-entropy with target distributions: ``Σ b·(m - x) + log Z·Σ b``, terms all non-negative.

The largest logit first, then the sums from cache. Rows with anything but targets from 0 on and finite
logits (or -inf where the target is 0) come out as NaN, for the careful kernel.
"""

from __future__ import annotations

import numpy as np

from .blocks import row_start
from .compile import inline, kernel
from .math import LOG2E, cast, exp2_below, log1p, log1p_positive
from .memory import load, load_first, prefetch, vector, width
from .row_groups import largest
from .simd import any_lane, lanes_max, lanes_sum, like_vector, where
from .tables import ADDED, PIECE, put_lanes
from .terms import add_lower, add_upper, bits, join_signs, negative, zero_times
from .tiles import fill_tile, rows_ahead, rows_in_line, tile_top

PREFETCHED = 1 << 13  # classes: longer rows would push each other out of the cache


@inline
def gap_times(b, gap, exact):
    """``b·gap``, 0 for ``b = 0`` also where the gap is infinite. Unless targets are `exact` in the compute type (None:
    they may have been rounded to 0): then NaN there, which leaves the row to the careful kernel."""
    return b * gap if exact is None else zero_times(b, gap)


@inline
def gather(a, b, exact, top, scale, rest, ties, gaps, mass, signs):
    """Add vectors of logits and targets to a row's record.

    `rest` is ``Σ e^(x-m)`` without the largest, which `ties` counts; `gaps` is ``Σ b·(m-x)``, `mass` ``Σ b``.
    """
    e, largest = exp2_below((a - top) * scale), a == top
    rest = where(largest, rest, rest + e)
    ties = where(largest, ties + 1.0, ties)
    return rest, ties, gaps + gap_times(b, top - a, exact), mass + b, join_signs(signs, b)


@inline
def row_loss(x, i, y, j, k, exact, m, inv_T, scale, next_i, next_j, v):
    """The loss of a row; NaN where it is left to the careful kernel."""
    lanes, lowest, top = width(v), v - np.inf, like_vector(m, v)
    total_rest, total_ties, total_gaps, total_mass = 0.0, -1.0, 0.0, 0.0  # one of the largest is left out
    signs = bits(v)
    for b in range(0, k, PIECE * lanes):
        rest, ties, gaps, mass = v, v, v, v
        more_rest, more_gaps, more_mass = v, v, v
        c = b
        while c < b + PIECE * lanes and c < k:
            if c + lanes <= k:
                if k <= PREFETCHED:
                    prefetch(x, next_i + c)
                    prefetch(y, next_j + c)
                a, t = load(x, i + c, v), load(y, j + c, v)
            else:
                a, t = load_first(x, i + c, k - c, lowest), load_first(y, j + c, k - c, v)
            now = gather(a, t, exact, top, scale, rest, ties, gaps, mass, signs)
            rest, gaps, mass = more_rest, more_gaps, more_mass
            more_rest, ties, more_gaps, more_mass, signs = now
            c += lanes
        total_rest += lanes_sum(rest + more_rest)
        total_ties += lanes_sum(ties)
        total_gaps += lanes_sum(gaps + more_gaps)
        total_mass += lanes_sum(mass + more_mass)
    loss = total_gaps * inv_T + total_mass * log1p(total_rest + total_ties)
    return np.nan if any_lane(negative(signs)) or not loss < np.inf or m == -np.inf else loss


@kernel
def soft_target_rows(x, x_geometry, y, y_geometry, first, n, k, temperature, unit, weights, zero, exact, results):
    """Rows whose classes lie side by side; returns how many are left to the careful kernel."""
    v, left = vector(zero), 0
    inv_T, scale = 1.0 / temperature, cast(LOG2E / temperature, zero)
    i, j = row_start(x_geometry, first), row_start(y_geometry, first)
    m = lanes_max(largest(x, i, k, v))
    for r in range(n):
        following = first + min(r + 1, n - 1)
        next_i, next_j = row_start(x_geometry, following), row_start(y_geometry, following)
        loss = row_loss(x, i, y, j, k, exact, m, inv_T, scale, next_i, next_j, v)
        left += 0 if loss == loss else 1
        weight = weights[r] if weights.size else 1.0
        results[r] = weight * unit * loss if weight != 0.0 else 0.0
        i, j, m = next_i, next_j, lanes_max(largest(x, next_i, k, v))
    return left


@kernel
def soft_target_lanes(
    x, x_geometry, y, y_geometry, first, n, k, temperature, unit, weights, zero, exact, x_tile, y_tile, results
):  # fmt: skip
    """The work of `soft_target_rows` for few classes, or for rows that lie side by side."""
    v, wide = vector(zero), vector(0.0)
    inv_T, scale = cast(1.0 / temperature, zero), cast(LOG2E / temperature, zero)
    lanes, left = width(v), 0
    x_ahead, x_line = rows_ahead(x_geometry, lanes)
    y_ahead, y_line = rows_ahead(y_geometry, lanes)
    r = 0
    while r < n:
        count = min(lanes, n - r)
        count = min(count, rows_in_line(x_geometry, first + r), rows_in_line(y_geometry, first + r))
        i, j = row_start(x_geometry, first + r), row_start(y_geometry, first + r)
        fill_tile(x, x_geometry, i, count, k, x_tile, v)
        fill_tile(y, y_geometry, j, count, k, y_tile, v)
        top = tile_top(x_tile, k, v)
        all_rest, all_gaps, all_mass = v, v, v
        rest, ties, gaps, mass, signs = v, v - 1.0, v, v, bits(v)
        for c in range(k):
            prefetch(x, i + x_ahead + c * x_line)
            prefetch(y, j + y_ahead + c * y_line)
            a, t = load(x_tile, c * lanes, v), load(y_tile, c * lanes, v)
            rest, ties, gaps, mass, signs = gather(a, t, exact, top, scale, rest, ties, gaps, mass, signs)
            if c % ADDED == ADDED - 1:
                all_rest, all_gaps, all_mass = all_rest + rest, all_gaps + gaps, all_mass + mass
                rest, gaps, mass = v, v, v
        all_rest, all_gaps, all_mass = all_rest + rest + ties, all_gaps + gaps, all_mass + mass
        loss = all_gaps * inv_T + all_mass * log1p_positive(all_rest)
        loss = where(negative(signs) | (top == -np.inf), v + np.nan, loss)
        left += put_lanes(results, r, min(count, 8), add_lower(wide, loss), unit, weights, v)
        if lanes > 8:
            left += put_lanes(results, r + 8, count - 8, add_upper(wide, loss), unit, weights, v)
        r += count
    return left
