"""Fast kernels of two softmaxes, KL divergence and its gradients, and JS: the largest logits, the exponentials and
their sums, the terms, the gradients - sweeps over what the first of them has brought into cache.

``w=None`` asks for KL, else for JS of that weight (`terms.EVEN` for 1/2).

Rows with anything but finite logits or -inf in both operands come out as NaN, for the careful kernel, and
their gradients are not written.
"""

from __future__ import annotations

import numpy as np

from .blocks import BLOCK, row_start
from .compile import inline, kernel
from .maps import write_block
from .math import LOG2E, cast, exp2_below, log_normal
from .memory import fence, load, load_first, prefetch, store, vector, width
from .row_groups import ROWS, fill, group_sums, group_tops, place_of, put_sums
from .simd import lanes_sum, like_vector, where
from .tables import ADDED, PIECE, lane_slopes, put_lanes
from .terms import (
    add_lower,
    add_product_lower,
    add_product_upper,
    add_upper,
    far_lower,
    far_upper,
    joined,
    js_curvature,
    lost_lower,
    near_difference,
    pair_delta,
    softmax_js_term,
    softmax_kl_difference,
    softmax_kl_term,
    without_shift,
    zeros_of,
)
from .tiles import empty_tile, fill_tile, rows_ahead, rows_in_line, tile_top

ROOM = 1 << 17  # bytes of a row's (or group's) numbers that are kept from sweep to sweep, of each kind:
E_P, E_Q, GAPS, DIFFERENCE, KEPT = range(5)
# What is known of a row after each sweep: sums (then factors), log Z_p - log Z_q, the error of that, the loss.
Z_P, Z_Q, SHIFT, ERROR, LOSS, RECORDS = range(6)


@inline
def gather_exps(a, b, top_p, top_q, scale, kept, at, sum_p, sum_q):
    """Exponentials of two vectors of logits and the difference of their gaps into `kept`, and to the sums."""
    room = kept.size // KEPT
    gap_p, gap_q = a - top_p, b - top_q
    e_p, e_q = exp2_below(gap_p * scale), exp2_below(gap_q * scale)
    store(kept, E_P * room + at, e_p)
    store(kept, E_Q * room + at, e_q)
    # (a - m_a) - (b - m_b) first: for near operands it is small, and so is what it loses.
    store(kept, GAPS * room + at, gap_p - gap_q)
    return sum_p + e_p, sum_q + e_q


@inline
def keep_exps(x, i, y, j, n, top_p, top_q, scale, kept, at, v):
    """`gather_exps` of `n` classes, and their ``Σ e^((x - m)/T)``, in the lanes of a vector."""
    lanes, lowest, wide = width(v), v - np.inf, vector(0.0)
    Z_p, Z_q, lost_p, lost_q = wide, wide, wide, wide
    for b in range(0, n, PIECE * lanes):
        sum_p, sum_q, c, end = v, v, b, min(n, b + PIECE * lanes)
        while c + lanes <= end:
            sum_p, sum_q = gather_exps(
                load(x, i + c, v), load(y, j + c, v), top_p, top_q, scale, kept, at + c, sum_p, sum_q
            )
            c += lanes
        if c < end:
            a, d = load_first(x, i + c, n - c, lowest), load_first(y, j + c, n - c, lowest)
            sum_p, sum_q = gather_exps(a, d, top_p, top_q, scale, kept, at + c, sum_p, sum_q)
        new_p, new_q = add_lower(Z_p, sum_p), add_lower(Z_q, sum_q)
        lost_p, lost_q = lost_lower(lost_p, Z_p, new_p, sum_p), lost_lower(lost_q, Z_q, new_q, sum_q)
        Z_p, Z_q = add_upper(new_p, sum_p), add_upper(new_q, sum_q)
    return Z_p + lost_p, Z_q + lost_q


@inline
def take_logs(records):
    """``log Z_p - log Z_q`` and ``1/Z`` of all rows of a group."""
    wide = vector(0.0)
    for g in range(0, ROWS, width(wide)):
        Z_p, Z_q = load(records, Z_P * ROWS + g, wide), load(records, Z_Q * ROWS + g, wide)
        store(records, SHIFT * ROWS + g, log_normal(Z_p) - log_normal(Z_q))
        store(records, Z_P * ROWS + g, 1.0 / Z_p)
        store(records, Z_Q * ROWS + g, 1.0 / Z_q)


@inline
def pair_term(p, q, delta, difference, w):
    """The term of KL or JS."""
    return softmax_kl_term(p, q, delta) if w is None else softmax_js_term(p, q, difference, w)


@inline
def curvature(w, like):
    """What `without_shift` needs."""
    return 1.0 if w is None else js_curvature(like, w)


@inline
def add_difference(e_p, e_q, delta, difference, lower_p, upper_p, lower_q, upper_q, grad_q, error, lower, upper):
    """Add ``p - q`` to ``Σ (p - q)``, `error` in the compute type, `lower` and `upper` in float64; the factors of both
    halves of the lanes are ``1/Z``.

    With a gradient the sum must not suffer from large terms' rounding: what was not taken from δ is added in float64.
    """
    if grad_q is None:
        return error + difference, lower, upper
    lower += far_lower(e_p, e_q, delta, lower_p, lower_q)
    upper += far_upper(e_p, e_q, delta, upper_p, upper_q)
    return error + near_difference(difference, delta), lower, upper


@inline
def sum_terms(kept, at, n, inv_T, shift, p_factor, q_factor, w, grad_q, x, next_i, y, next_j, v):
    """The terms of `n` classes and ``Σ (p - q)``, which is the error of δ; ``p - q`` is kept for `grad_q`.

    `shift` is ``log Z_p - log Z_q``, the factors are ``1/Z`` in float64. Whole vectors: what is kept beyond the
    classes adds nothing.
    """
    lanes, room, wide = width(v), kept.size // KEPT, vector(0.0)
    wide_p, wide_q = wide + p_factor, wide + q_factor
    p_factor, q_factor = cast(p_factor, inv_T), cast(q_factor, inv_T)
    total, lost, lower, upper, lost_error = wide, wide, wide, wide, wide
    for b in range(0, n, PIECE * lanes):
        terms, error = v, v
        for c in range(b, min(n, b + PIECE * lanes), lanes):
            prefetch(x, next_i + c)
            prefetch(y, next_j + c)
            e_p, e_q = load(kept, E_P * room + at + c, v), load(kept, E_Q * room + at + c, v)
            p, q = e_p * p_factor, e_q * q_factor
            delta = pair_delta(load(kept, GAPS * room + at + c, v), inv_T, shift)
            difference = softmax_kl_difference(p, q, delta)
            if grad_q is not None:
                store(kept, DIFFERENCE * room + at + c, difference)
            terms += pair_term(p, q, delta, difference, w)
            error, lower, upper = add_difference(
                e_p, e_q, delta, difference, wide_p, wide_p, wide_q, wide_q, grad_q, error, lower, upper
            )
        new = add_lower(total, terms)
        lost, total = lost_lower(lost, total, new, terms), add_upper(new, terms)
        new = add_lower(lower, error)
        lost_error, lower, upper = lost_lower(lost_error, lower, new, error), new, add_upper(upper, error)
    return total + lost, lower + upper + lost_error


# ``log Z_p - log Z_q`` is off by some error h, and with it every δ. What is found for Σ(p - q), which is 0, is h
# (see `without_shift`): with it the gradients are right also where p and q nearly agree. The gradient by p, too,
# sums to 0: the rest that is found instead is taken off. It counts where one class has nearly all of p.


@inline
def centered(kept, at, inv_T, shift, p_factor, center, v):
    """p and ``δ - center`` of a vector of classes."""
    room = kept.size // KEPT
    delta = pair_delta(load(kept, GAPS * room + at, v), inv_T, shift)
    return load(kept, E_P * room + at, v) * p_factor, delta - center


@inline
def sum_gradient_p(kept, at, n, g, records, inv_T, v):
    """The sum of ``p·(δ - h - KL)`` of `n` classes of row `g`."""
    shift, p_factor = cast(records[SHIFT * ROWS + g], inv_T), cast(records[Z_P * ROWS + g], inv_T)
    center = cast(records[ERROR * ROWS + g] + records[LOSS * ROWS + g], inv_T)
    lower, upper = vector(0.0), vector(0.0)
    for c in range(at, at + n, width(v)):
        p, gap = centered(kept, c, inv_T, shift, p_factor, center, v)
        # In float64: where one class has nearly all of p, what is left of it is less than what float32 rounds.
        lower, upper = add_product_lower(lower, p, gap), add_product_upper(upper, p, gap)
    return lanes_sum(lower + upper)


@inline
def gradient_q(kept, at, q_factor, error, factor):
    """``factor·(q - p)`` of a vector of classes: ``p - q`` was found for δ, and is ``h·q`` too large."""
    room = kept.size // KEPT
    q = load(kept, E_Q * room + at, factor) * q_factor
    return (q * error - load(kept, DIFFERENCE * room + at, factor)) * factor


@inline
def write_gradients(
    kept, at, n, g, records, rest, inv_T, factor, grad_p, p_start, p_stride, grad_q, q_start, q_stride, streaming, line
):  # fmt: skip
    """The gradients of `n` classes of row `g`, whose numbers lie in `kept` from `at` on; `rest` is to be taken
    off the one by p."""
    shift = cast(records[SHIFT * ROWS + g], inv_T)
    p_factor, q_factor = cast(records[Z_P * ROWS + g], inv_T), cast(records[Z_Q * ROWS + g], inv_T)
    h = records[ERROR * ROWS + g]
    center, error = cast(h + records[LOSS * ROWS + g], inv_T), cast(h, inv_T)
    high = cast(rest, inv_T)  # in two parts: beside it, less than its last digit may be left of δ
    low_part = cast(rest - np.float64(high), inv_T)
    for low in range(0, n, BLOCK):
        size = min(BLOCK, n - low)
        if grad_p is not None:
            for c in range(0, size, width(factor)):
                p, gap = centered(kept, at + low + c, inv_T, shift, p_factor, center, factor)
                store(line, c, p * (gap - high - low_part) * factor)
            write_block(line, size, grad_p, p_start + low * p_stride, p_stride, streaming)
        if grad_q is not None:
            for c in range(0, size, width(factor)):
                store(line, c, gradient_q(kept, at + low + c, q_factor, error, factor))
            write_block(line, size, grad_q, q_start + low * q_stride, q_stride, streaming)


# --- groups: vectors along the classes ---------------------------------------------------------------


@inline
def keep_block(x, i, y, j, n, tops, g, scale, kept, at, v):
    """`keep_exps` of a block of row `g`."""
    top_p, top_q = like_vector(tops[g], v), like_vector(tops[ROWS + g], v)
    return keep_exps(x, i, y, j, n, top_p, top_q, scale, kept, at, v)


@inline
def sum_block(kept, at, n, g, records, inv_T, w, grad_q, x, next_i, y, next_j, v):
    """`sum_terms` of a block of row `g`."""
    shift = cast(records[SHIFT * ROWS + g], inv_T)
    p_factor, q_factor = records[Z_P * ROWS + g], records[Z_Q * ROWS + g]
    return sum_terms(kept, at, n, inv_T, shift, p_factor, q_factor, w, grad_q, x, next_i, y, next_j, v)


@kernel
def softmax_pair_groups(
    x, x_geometry, y, y_geometry, first, n, k, w, temperature, unit, map_scale, weights, zero, kept, square, tops, sums,
    records, results, grad_p, p_geometry, grad_q, q_geometry, streaming, line,
):  # fmt: skip
    """Rows whose classes lie side by side, as many at once as a vector has lanes, if what is kept of them has
    room; returns how many are left to the careful kernel."""
    v, wide = vector(zero), vector(0.0)
    inv_T, scale, left = cast(1.0 / temperature, zero), cast(LOG2E / temperature, zero), 0
    lanes, room = width(v), kept.size // KEPT
    pitch = -(-k // lanes) * lanes
    group = min(lanes, max(1, room // pitch))
    # Of longer rows a block is kept, and computed again for every sweep.
    block = min(k, room)
    for low in range(0, n, group):
        row, size = first + low, min(group, n - low)
        store(tops, 0, group_tops(x, x_geometry, row, size, k, square, v))
        store(tops, ROWS, group_tops(y, y_geometry, row, size, k, square, v))
        for g in range(size):
            i, j = row_start(x_geometry, row + g), row_start(y_geometry, row + g)
            Z_p, Z_q = wide, wide
            for b in range(0, k, block):
                more_p, more_q = keep_block(x, i + b, y, j + b, min(block, k - b), tops, g, scale, kept, g * pitch, v)
                Z_p, Z_q = Z_p + more_p, Z_q + more_q
            put_sums(sums, g, Z_p)
            put_sums(sums, ROWS + g, Z_q)
        for g in range(0, lanes, 8):
            store(records, Z_P * ROWS + g, group_sums(sums, g))
            store(records, Z_Q * ROWS + g, group_sums(sums, ROWS + g))
        take_logs(records)
        for g in range(size):
            i, j = row_start(x_geometry, row + g), row_start(y_geometry, row + g)
            following = first + min(low + g + group, n - 1)
            next_i, next_j = row_start(x_geometry, following), row_start(y_geometry, following)
            terms, error = wide, wide
            for b in range(0, k, block):
                m = min(block, k - b)
                if block < k:
                    keep_block(x, i + b, y, j + b, m, tops, g, scale, kept, 0, v)
                more, more_error = sum_block(
                    kept, g * pitch, m, g, records, inv_T, w, grad_q, x, next_i + b, y, next_j + b, v
                )
                terms, error = terms + more, error + more_error
            put_sums(sums, g, terms)
            put_sums(sums, ROWS + g, error)
        for g in range(0, size, 8):
            error = group_sums(sums, ROWS + g)
            loss = without_shift(group_sums(sums, g), error, curvature(w, 0.0))
            store(records, LOSS * ROWS + g, loss)
            store(records, ERROR * ROWS + g, error)
            left += put_lanes(results, low + g, min(size - g, 8), loss, unit, weights, v)
        if grad_p is None and grad_q is None:
            continue
        for g in range(size):
            weight = weights[low + g] if weights.size else 1.0
            (p_start, p_stride), (q_start, q_stride) = place_of(p_geometry, row + g), place_of(q_geometry, row + g)
            if weight == 0.0:
                fill(0.0, k, grad_p, p_start, p_stride)
                fill(0.0, k, grad_q, q_start, q_stride)
            elif results[low + g] == results[low + g]:
                factor = like_vector(weight * unit * map_scale / temperature, v)
                i, j, rest = row_start(x_geometry, row + g), row_start(y_geometry, row + g), 0.0
                if grad_p is not None:
                    for b in range(0, k, block):
                        m = min(block, k - b)
                        if block < k:
                            keep_block(x, i + b, y, j + b, m, tops, g, scale, kept, 0, v)
                        rest += sum_gradient_p(kept, g * pitch, m, g, records, inv_T, v)
                for b in range(0, k, block):
                    m = min(block, k - b)
                    if block < k:
                        keep_block(x, i + b, y, j + b, m, tops, g, scale, kept, 0, v)
                        sum_block(kept, 0, m, g, records, inv_T, w, grad_q, x, i + b, y, j + b, v)
                    write_gradients(
                        kept, g * pitch, m, g, records, rest, inv_T, factor, grad_p, p_start + b * p_stride, p_stride,
                        grad_q, q_start + b * q_stride, q_stride, streaming, line,
                    )  # fmt: skip
    if streaming:
        fence()
    return left


# --- lanes: a row per lane --------------------------------------------------------------------------


@inline
def tile_exps(tile, kept, k, scale, v):
    """Each row's ``Σ e^((x - m)/T)`` in two halves, the exponentials in `kept`; `tile` holds ``x - m`` then."""
    lanes, top, wide = width(v), tile_top(tile, k, v), vector(0.0)
    lower, upper, part = wide, wide, v
    for c in range(k):
        gap = load(tile, c * lanes, v) - top
        e = exp2_below(gap * scale)
        store(tile, c * lanes, gap)
        store(kept, c * lanes, e)
        part += e
        if c % ADDED == ADDED - 1 or c + 1 == k:
            lower, upper, part = add_lower(lower, part), add_upper(upper, part), v
    return lower, upper


@kernel
def softmax_pair_lanes(
    x, x_geometry, y, y_geometry, first, n, k, w, temperature, unit, map_scale, weights, zero, x_tile, y_tile, x_kept,
    y_kept, results, grad_p, p_geometry, grad_q, q_geometry,
):  # fmt: skip
    """The work of `softmax_pair_groups` for few classes, or for rows that lie side by side."""
    v, wide = vector(zero), vector(0.0)
    inv_T, scale = cast(1.0 / temperature, zero), cast(LOG2E / temperature, zero)
    lanes, left = width(v), 0
    x_ahead, x_line = rows_ahead(x_geometry, lanes)
    y_ahead, y_line = rows_ahead(y_geometry, lanes)
    r = 0
    while r < n:
        row = first + r
        count = min(min(lanes, n - r), min(rows_in_line(x_geometry, row), rows_in_line(y_geometry, row)))
        count = min(count, min(rows_in_line(p_geometry, row), rows_in_line(q_geometry, row)))
        i, j = row_start(x_geometry, row), row_start(y_geometry, row)
        fill_tile(x, x_geometry, i, count, k, x_tile, v)
        fill_tile(y, y_geometry, j, count, k, y_tile, v)
        (lower_p, upper_p), (lower_q, upper_q) = (
            tile_exps(x_tile, x_kept, k, scale, v), tile_exps(y_tile, y_kept, k, scale, v)
        )  # fmt: skip
        shift = joined(log_normal(lower_p / lower_q), log_normal(upper_p / upper_q), v)
        lower_p, upper_p, lower_q, upper_q = 1.0 / lower_p, 1.0 / upper_p, 1.0 / lower_q, 1.0 / upper_q
        p_factor, q_factor = joined(lower_p, upper_p, v), joined(lower_q, upper_q, v)
        lower, upper, lower_error, upper_error, terms, error = wide, wide, wide, wide, v, v
        for c in range(k):
            prefetch(x, i + x_ahead + c * x_line)
            prefetch(y, j + y_ahead + c * y_line)
            e_p, e_q = load(x_kept, c * lanes, v), load(y_kept, c * lanes, v)
            p, q = e_p * p_factor, e_q * q_factor
            delta = pair_delta(load(x_tile, c * lanes, v) - load(y_tile, c * lanes, v), inv_T, shift)
            difference = softmax_kl_difference(p, q, delta)
            if grad_p is not None:
                store(x_tile, c * lanes, delta)
            if grad_q is not None:
                store(y_tile, c * lanes, difference)
            terms += pair_term(p, q, delta, difference, w)
            error, lower_error, upper_error = add_difference(
                e_p, e_q, delta, difference, lower_p, upper_p, lower_q, upper_q, grad_q, error, lower_error, upper_error
            )
            if c % ADDED == ADDED - 1 or c + 1 == k:
                lower, upper, terms = add_lower(lower, terms), add_upper(upper, terms), v
                lower_error, upper_error, error = add_lower(lower_error, error), add_upper(upper_error, error), v
        lower = without_shift(lower, lower_error, curvature(w, 0.0))
        upper = without_shift(upper, upper_error, curvature(w, 0.0))
        total_error = joined(lower_error, upper_error, v)
        left_here = put_lanes(results, r, min(count, 8), lower, unit, weights, v)
        if lanes > 8:
            left_here += put_lanes(results, r + 8, count - 8, upper, unit, weights, v)
        if grad_p is not None or grad_q is not None:
            lower_slope, upper_slope = lane_slopes(unit * map_scale / temperature, weights, r, count)
            factor, unweighted = joined(lower_slope, upper_slope, v), zeros_of(lower_slope, upper_slope, v)
            if grad_p is not None:
                center, rest_lower, rest_upper = total_error + joined(lower, upper, v), wide, wide
                for c in range(k):
                    p, gap = load(x_kept, c * lanes, v) * p_factor, load(x_tile, c * lanes, v) - center
                    store(x_tile, c * lanes, gap)
                    rest_lower = add_product_lower(rest_lower, p, gap)
                    rest_upper = add_product_upper(rest_upper, p, gap)
                rest = joined(rest_lower, rest_upper, v)
                rest_low = joined(rest_lower - add_lower(wide, rest), rest_upper - add_upper(wide, rest), v)
                for c in range(k):
                    p = load(x_kept, c * lanes, v) * p_factor
                    slope = p * (load(x_tile, c * lanes, v) - rest - rest_low) * factor
                    store(x_tile, c * lanes, where(unweighted, v, slope))
                empty_tile(x_tile, grad_p, p_geometry, row, count, k, results, r, left_here > 0, v)
            if grad_q is not None:
                for c in range(k):
                    q = load(y_kept, c * lanes, v) * q_factor
                    slope = (q * total_error - load(y_tile, c * lanes, v)) * factor
                    store(y_tile, c * lanes, where(unweighted, v, slope))
                empty_tile(y_tile, grad_q, q_geometry, row, count, k, results, r, left_here > 0, v)
        left += left_here
        r += count
    return left
