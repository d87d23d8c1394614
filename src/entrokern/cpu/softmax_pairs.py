"""Fast kernels of KL divergence between two softmaxes: both normalisers first, then the terms from cache.

Rows with anything but finite logits or -inf in both operands come out as NaN, for the careful kernel.
"""

from __future__ import annotations

import numpy as np

from .blocks import row_start
from .compile import inline, kernel
from .distributions import accumulate
from .math import LOG2E, cast, exp2_below, log_normal
from .memory import load, load_first, prefetch, store, vector, width
from .simd import lanes_max, lanes_sum, larger, like_vector
from .tables import ADDED, PIECE, put_lanes
from .terms import add_lower, add_upper, softmax_kl_mean, softmax_kl_term, without_shift
from .tiles import fill_tile, rows_ahead, rows_in_line

KEPT = 1 << 12  # exponentials of each operand that are kept from the first sweep to the second
GROUP = 16  # rows, whose logarithms are taken at once
# What is known of the rows of a group after the first sweep: largest logits, sums, factors.
TOP_P, TOP_Q, Z_P, Z_Q, SHIFT, RECORDS = range(6)


@inline
def row_max(x, i, k, v):
    """The largest of `k` logits from `i` on; a NaN is passed over."""
    lanes, lowest = width(v), v - np.inf
    top, more, c = lowest, lowest, 0
    while c + 2 * lanes <= k:
        top = larger(load(x, i + c, v), top)
        more = larger(load(x, i + c + lanes, v), more)
        c += 2 * lanes
    while c < k:
        top = larger(load_first(x, i + c, k - c, lowest), top)
        c += lanes
    return lanes_max(larger(top, more))


@inline
def exp_sum(x, i, k, m, scale, kept, at, v):
    """``Σ e^((x - m)/T)`` for ``scale = log2(e)/T``; the exponentials go to `kept`, unless it is None."""
    lanes, lowest = width(v), v - np.inf
    total, shift = 0.0, like_vector(m, v)
    for b in range(0, k, PIECE * lanes):
        n = min(PIECE * lanes, k - b)
        sum_e, sum_f, c = v, v, b
        while c + 2 * lanes <= b + n:
            e = exp2_below((load(x, i + c, v) - shift) * scale)
            f = exp2_below((load(x, i + c + lanes, v) - shift) * scale)
            sum_e += e
            sum_f += f
            if kept is not None:
                store(kept, at + c, e)
                store(kept, at + c + lanes, f)
            c += 2 * lanes
        while c < b + n:
            e = exp2_below((load_first(x, i + c, k - c, lowest) - shift) * scale)
            sum_e += e
            if kept is not None:
                store(kept, at + c, e)
            c += lanes
        total += lanes_sum(sum_e + sum_f)
    return total


@inline
def take_logs(records):
    """``log Z_p - log Z_q`` and ``1/Z`` of all rows of a group."""
    wide = vector(0.0)
    for g in range(0, GROUP, width(wide)):
        Z_p, Z_q = load(records, Z_P * GROUP + g, wide), load(records, Z_Q * GROUP + g, wide)
        store(records, SHIFT * GROUP + g, log_normal(Z_p) - log_normal(Z_q))
        store(records, Z_P * GROUP + g, 1.0 / Z_p)
        store(records, Z_Q * GROUP + g, 1.0 / Z_q)


@inline
def gather(gap_p, gap_q, e_p, e_q, inv_T, shift, p_factor, q_factor, terms, mean):
    """Add to ``Σ p·(δ + expm1(-δ))`` and ``Σ p·δ``, from gaps ``x - m`` and their exponentials.

    `shift` is ``log Z_p - log Z_q``, the factors are ``1/Z``.
    """
    # (a - m_a) - (b - m_b) first: for near operands it is small, and so is what it loses.
    p, q, delta = e_p * p_factor, e_q * q_factor, (gap_p - gap_q) * inv_T - shift
    return terms + softmax_kl_term(p, q, delta), mean + softmax_kl_mean(p, delta)


@inline
def row_terms(x, i, y, j, k, g, records, inv_T, scale, kept, at, next_i, next_j, v):
    """The divergence of row `g` of a group."""
    lanes, lowest = width(v), v - np.inf
    top_p = like_vector(cast(records[TOP_P * GROUP + g], scale), v)
    top_q = like_vector(cast(records[TOP_Q * GROUP + g], scale), v)
    p_factor, q_factor = cast(records[Z_P * GROUP + g], scale), cast(records[Z_Q * GROUP + g], scale)
    shift = cast(records[SHIFT * GROUP + g], scale)
    total, lost, total_mean, mean_lost = 0.0, 0.0, 0.0, 0.0
    for b in range(0, k, PIECE * lanes):
        terms, more_terms, mean, more_mean, c = v, v, v, v, b
        while c < b + PIECE * lanes and c < k:
            if c + lanes <= k:
                a, d = load(x, i + c, v), load(y, j + c, v)
            else:
                a, d = load_first(x, i + c, k - c, lowest), load_first(y, j + c, k - c, lowest)
            gap_p, gap_q = a - top_p, d - top_q
            if kept is None:
                e_p, e_q = exp2_below(gap_p * scale), exp2_below(gap_q * scale)
            else:
                prefetch(x, next_i + c)
                prefetch(y, next_j + c)
                e_p, e_q = load_first(kept, at + c, k - c, v), load_first(kept, KEPT + lanes + at + c, k - c, v)
            now = gather(gap_p, gap_q, e_p, e_q, inv_T, shift, p_factor, q_factor, terms, mean)
            terms, mean = more_terms, more_mean
            more_terms, more_mean = now
            c += lanes
        total, lost = accumulate(total, lost, lanes_sum(terms + more_terms))
        total_mean, mean_lost = accumulate(total_mean, mean_lost, lanes_sum(mean + more_mean))
    return without_shift(total + lost, total_mean + mean_lost)


@kernel
def softmax_kl_rows(
    x, x_geometry, y, y_geometry, first, n, k, temperature, unit, weights, zero, kept, records, results
):  # fmt: skip
    """Rows whose classes lie side by side; returns how many are left to the careful kernel.

    `kept` takes the exponentials of both operands (None: they are computed twice).
    """
    v = vector(zero)
    inv_T, scale = cast(1.0 / temperature, zero), cast(LOG2E / temperature, zero)
    group, left = 1 if kept is None else min(GROUP, max(1, KEPT // k)), 0
    for low in range(0, n, group):
        size = min(group, n - low)
        for g in range(size):
            i, j = row_start(x_geometry, first + low + g), row_start(y_geometry, first + low + g)
            m_p, m_q = row_max(x, i, k, v), row_max(y, j, k, v)
            records[TOP_P * GROUP + g], records[TOP_Q * GROUP + g] = m_p, m_q
            records[Z_P * GROUP + g] = exp_sum(x, i, k, m_p, scale, kept, g * k, v)
            records[Z_Q * GROUP + g] = exp_sum(y, j, k, m_q, scale, kept, KEPT + width(v) + g * k, v)
        take_logs(records)
        for g in range(size):
            r = low + g
            i, j = row_start(x_geometry, first + r), row_start(y_geometry, first + r)
            following = first + min(r + group, n - 1)
            next_i, next_j = row_start(x_geometry, following), row_start(y_geometry, following)
            loss = row_terms(x, i, y, j, k, g, records, inv_T, scale, kept, g * k, next_i, next_j, v)
            if not loss < np.inf:
                loss = np.nan
                left += 1
            weight = weights[r] if weights.size else 1.0
            results[r] = weight * unit * loss if weight != 0.0 else 0.0
    return left


# --- lanes: a row per lane --------------------------------------------------------------------------


@inline
def tile_exps(tile, kept, k, scale, v):
    """Each row's largest logit, and ``Σ e^((x - m)/T)`` with the exponentials in `kept`."""
    lanes = width(v)
    top, more = v - np.inf, v - np.inf
    for c in range(k):
        top, more = more, larger(load(tile, c * lanes, v), top)
    top = larger(top, more)
    total, part = v, v
    for c in range(k):
        e = exp2_below((load(tile, c * lanes, v) - top) * scale)
        store(kept, c * lanes, e)
        part += e
        if c % ADDED == ADDED - 1:
            total, part = total + part, v
    return top, total + part


@kernel
def softmax_kl_lanes(
    x, x_geometry, y, y_geometry, first, n, k, temperature, unit, weights, zero, x_tile, y_tile, x_kept, y_kept, results
):  # fmt: skip
    """The work of `softmax_kl_rows` for few classes, or for rows that lie side by side."""
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
        top_p, Z_p = tile_exps(x_tile, x_kept, k, scale, v)
        top_q, Z_q = tile_exps(y_tile, y_kept, k, scale, v)
        shift, p_factor, q_factor = log_normal(Z_p / Z_q), 1.0 / Z_p, 1.0 / Z_q
        lower, upper, terms, mean, total_mean = wide, wide, v, v, v
        for c in range(k):
            prefetch(x, i + x_ahead + c * x_line)
            prefetch(y, j + y_ahead + c * y_line)
            gap_p, gap_q = load(x_tile, c * lanes, v) - top_p, load(y_tile, c * lanes, v) - top_q
            e_p, e_q = load(x_kept, c * lanes, v), load(y_kept, c * lanes, v)
            terms, mean = gather(gap_p, gap_q, e_p, e_q, inv_T, shift, p_factor, q_factor, terms, mean)
            if c % ADDED == ADDED - 1 or c + 1 == k:
                lower, upper, terms = add_lower(lower, terms), add_upper(upper, terms), v
                total_mean, mean = total_mean + mean, v
        lower = without_shift(lower, add_lower(wide, total_mean))
        upper = without_shift(upper, add_upper(wide, total_mean))
        left += put_lanes(results, r, min(count, 8), lower, unit, weights, v)
        if lanes > 8:
            left += put_lanes(results, r + 8, count - 8, upper, unit, weights, v)
        r += count
    return left
