"""Fast kernels over tables of probabilities: KL and JS divergence of two, entropy of one.

What is finite and ordinary is summed here, in the compute type and without a branch; a row in which
anything else turns up (a number below 0, NaN, infinity, ``p > 0`` over ``q = 0``) comes out as NaN and is
done again by the careful kernels of `distributions` and `divergences`. ``y=None`` asks for the entropy
of `x`, ``w=None`` for KL, else for JS of that weight (`terms.EVEN` for 1/2).
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from .blocks import CLASS_STRIDE, row_start
from .compile import inline, kernel
from .distributions import accumulate
from .memory import load, load_first, prefetch, store_first, vector, width
from .simd import any_lane, lanes_sum, where
from .terms import (
    add_lower,
    add_upper,
    bits,
    difference,
    doubtful,
    entropy_term,
    join_signs,
    js_term,
    kl_term,
    lowest_below,
    mixture,
    refused,
)
from .tiles import fill_tile, rows_ahead, rows_in_line

# A large term among many small ones loses a little with each: sums in the compute type are kept short.
PIECE = 16  # vectors, in two sums
ADDED = 8  # classes


def of_second(y, i, v):
    """`load` of the second operand, if there is one."""
    raise NotImplementedError("compiled code only")


@overload(of_second)
def _of_second(y, i, v):
    return (lambda y, i, v: None) if y == types.none else (lambda y, i, v: load(y, i, v))


def first_of_second(y, i, count, v):
    """`load_first` of the second operand, if there is one."""
    raise NotImplementedError("compiled code only")


@overload(first_of_second)
def _first_of_second(y, i, count, v):
    return (lambda y, i, count, v: None) if y == types.none else (lambda y, i, count, v: load_first(y, i, count, v))


@inline
def gather(p, q, w, terms, lower, upper, signs, low):
    """Add vectors of probabilities to a row's record.

    `terms` are sums in the compute type; ``lower, upper`` are KL's ``Σ(p - q)`` in float64; `top` and
    `low` tell what the terms cannot.
    """
    signs = join_signs(signs, p)
    if q is None:
        return terms + entropy_term(p), lower, upper, signs, low
    signs = join_signs(signs, q)
    if w is not None:
        m = mixture(p, q, w)
        return terms + js_term(p, q, w), lower, upper, signs, lowest_below(m, m, low)
    excess = difference(p, q)
    low = lowest_below(p, q, low)
    return terms + kl_term(p, q), add_lower(lower, excess), add_upper(upper, excess), signs, low


# --- rows: vectors along the classes ----------------------------------------------------------------


@inline
def piece_record(x, i, y, j, n, w, v, signs, low):
    """The record of `n` classes from `i` in `x` and from `j` in `y`; two sums of terms."""
    lanes = width(v)
    terms, more_terms, lower, upper = v, v, vector(0.0), vector(0.0)
    c = 0
    while c + 2 * lanes <= n:
        p, q = load(x, i + c, v), of_second(y, j + c, v)
        terms, lower, upper, signs, low = gather(p, q, w, terms, lower, upper, signs, low)
        p, q = load(x, i + c + lanes, v), of_second(y, j + c + lanes, v)
        more_terms, lower, upper, signs, low = gather(p, q, w, more_terms, lower, upper, signs, low)
        c += 2 * lanes
    while c < n:
        p, q = load_first(x, i + c, n - c, v), first_of_second(y, j + c, n - c, v)
        terms, lower, upper, signs, low = gather(p, q, w, terms, lower, upper, signs, low)
        c += lanes
    return lanes_sum(terms) + lanes_sum(more_terms), lanes_sum(lower + upper), signs, low


@kernel
def table_rows(x, x_geometry, y, y_geometry, first, n, k, w, unit, weights, zero, results):
    """Rows whose classes lie side by side; returns how many are left to the careful kernel."""
    v, one = vector(zero), vector(zero) + 1.0
    piece, left = PIECE * width(v), 0
    for r in range(n):
        i = row_start(x_geometry, first + r)
        j = 0 if y is None else row_start(y_geometry, first + r)
        total, lost, excess, excess_lost = 0.0, 0.0, 0.0, 0.0
        signs, low = bits(v), one
        for b in range(0, k, piece):
            terms, over, signs, low = piece_record(x, i + b, y, j + b, min(piece, k - b), w, v, signs, low)
            total, lost = accumulate(total, lost, terms)
            if y is not None and w is None:
                excess, excess_lost = accumulate(excess, excess_lost, over)
        loss = (total + lost) + (excess + excess_lost)
        if any_lane(refused(signs, low)) or doubtful(loss, zero):
            loss = np.nan
            left += 1
        weight = weights[r] if weights.size else 1.0
        results[r] = weight * unit * loss if weight != 0.0 else 0.0
    return left


# --- lanes: a row per lane --------------------------------------------------------------------------


@kernel
def table_lanes(x, x_geometry, y, y_geometry, first, n, k, w, unit, weights, zero, x_tile, y_tile, results):
    """The work of `table_rows` for few classes, or for rows that lie side by side."""
    v, wide, one = vector(zero), vector(0.0), vector(zero) + 1.0
    lanes, left = width(v), 0
    x_ahead, x_line = rows_ahead(x_geometry, lanes)
    y_ahead, y_line = (0, 0) if y is None else rows_ahead(y_geometry, lanes)
    r = 0
    while r < n:
        count = min(min(lanes, n - r), rows_in_line(x_geometry, first + r))
        i, j = row_start(x_geometry, first + r), 0
        if y is not None:
            count = min(count, rows_in_line(y_geometry, first + r))
            j = row_start(y_geometry, first + r)
        first_half, other_half, signs, low = wide, wide, bits(v), one
        for b in range(0, k, lanes):
            classes = min(lanes, k - b)
            fill_tile(x, x_geometry, i + b * x_geometry[CLASS_STRIDE], count, classes, x_tile, v)
            if y is not None:
                fill_tile(y, y_geometry, j + b * y_geometry[CLASS_STRIDE], count, classes, y_tile, v)
            terms, lower, upper = v, wide, wide
            for c in range(classes):
                prefetch(x, i + x_ahead + (b + c) * x_line)
                if y is not None:
                    prefetch(y, j + y_ahead + (b + c) * y_line)
                p, q = load(x_tile, c * lanes, v), of_second(y_tile, c * lanes, v)
                terms, lower, upper, signs, low = gather(p, q, w, terms, lower, upper, signs, low)
                if c % ADDED == ADDED - 1 or c + 1 == classes:
                    first_half += add_lower(lower, terms)
                    other_half += add_upper(upper, terms)
                    terms, lower, upper = v, wide, wide
        poison = where(refused(signs, low), v + np.nan, v)
        first_half, other_half = add_lower(first_half, poison), add_upper(other_half, poison)
        left += put_lanes(results, r, min(count, 8), first_half, unit, weights, v)
        if lanes > 8:
            left += put_lanes(results, r + 8, count - 8, other_half, unit, weights, v)
        r += count
    return left


@inline
def put_lanes(results, r, count, loss, unit, weights, v):
    """Store the results of `count` rows from `r` on; how many vectors have rows left to the careful kernel."""
    loss = where(doubtful(loss, v), loss + np.nan, loss * unit)
    if weights.size:
        weight = load_first(weights, r, count, loss)
        loss = where(weight == 0.0, weight, loss * weight)
    store_first(results, r, count, loss)
    return 1 if any_lane(loss != loss) else 0
