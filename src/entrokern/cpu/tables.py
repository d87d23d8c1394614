"""Fast kernels over tables of probabilities or their logarithms: KL and JS divergence of two, entropy of one.

What is finite and ordinary is summed here, in the compute type and without a branch; a row in which
anything else turns up (a number below 0, NaN, infinity, ``p > 0`` over ``q = 0``) comes out as NaN and is
done again by the careful kernels of `distributions` and `divergences`. ``y=None`` asks for the entropy
of `x`, ``w=None`` for KL, else for JS of that weight (`terms.EVEN` for 1/2). `p_logs` and `q_logs` say which operands
hold logarithms (None: probabilities; JS has no kernel but for two of these). Gradients (None: not wanted) are
derivatives by the numbers as given: each number's own.
"""

from __future__ import annotations

import numpy as np
from numba import types

from .blocks import BLOCK, CLASS_STRIDE, row_start, view
from .compile import inline, kernel, overload
from .distributions import accumulate
from .log_terms import (
    add_beside_log_lower,
    add_beside_log_upper,
    add_of_log_lower,
    add_of_log_upper,
    beside_log_slope,
    log_entropy_slope,
    log_entropy_term,
    log_kl_slope,
    log_kl_term,
    minus_exp,
    of_log_slope,
    of_log_slope_q,
    present,
)
from .maps import write_block
from .math import cast
from .memory import fence, first_mask, load, load_first, load_next, prefetch, store, store_first, vector, width
from .row_groups import fill, place_of
from .runs import in_line
from .simd import any_lane, lanes_sum, where
from .terms import (
    add_lower,
    add_upper,
    bits,
    difference,
    doubtful,
    entropy_slope,
    entropy_term,
    join_signs,
    js_slope,
    js_term,
    kl_slope_p,
    kl_slope_q,
    kl_term,
    lowest_below,
    mixture,
    other_weight,
    refused,
)
from .tiles import fill_tile, rows_ahead, rows_in_line

# A large term among many small ones loses a little with each: sums in the compute type are kept short.
PIECE = 16  # vectors, in two sums
ADDED = 8  # classes
NEAR = 1 << 14  # numbers


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


def next_of_second(y, i, count, v):
    """`load_next` of the second operand, if there is one."""
    raise NotImplementedError("compiled code only")


@overload(next_of_second)
def _next_of_second(y, i, count, v):
    return (lambda y, i, count, v: None) if y == types.none else (lambda y, i, count, v: load_next(y, i, count, v))


@inline
def gather(p, q, w, p_logs, q_logs, terms, lower, upper, signs, low):
    """Add vectors of two operands, or one, to a row's record.

    `terms` are sums in the compute type, and ``lower, upper`` sums in float64: KL's ``Σ(p - q)``, or all of it
    where an operand holds logarithms; `signs` and `low` tell what the terms cannot.
    """
    if p_logs is None:
        signs = join_signs(signs, p)
    if q is None:
        return terms + (entropy_term(p) if p_logs is None else log_entropy_term(p)), lower, upper, signs, low
    if q_logs is not None:
        if p_logs is None:
            return terms, add_beside_log_lower(lower, p, q), add_beside_log_upper(upper, p, q), signs, low
        term = log_kl_term(p, q)
        return terms, add_lower(lower, term), add_upper(upper, term), signs, low
    signs = join_signs(signs, q)
    if p_logs is not None:
        low = lowest_below(present(p), q, low)
        return terms, add_of_log_lower(lower, p, q), add_of_log_upper(upper, p, q), signs, low
    if w is not None:
        m = mixture(p, q, w)
        return terms + js_term(p, q, w), lower, upper, signs, lowest_below(m, m, low)
    excess = difference(p, q)
    low = lowest_below(p, q, low)
    return terms + kl_term(p, q), add_lower(lower, excess), add_upper(upper, excess), signs, low


# --- rows: vectors along the classes ----------------------------------------------------------------


@inline
def piece_record(x, i, y, j, n, w, p_logs, q_logs, v, signs, low):
    """The record of `n` classes from `i` in `x` and from `j` in `y`; two sums of terms."""
    lanes = width(v)
    terms, more_terms, lower, upper = v, v, vector(0.0), vector(0.0)
    rest = v + 1.0 if p_logs is not None and q_logs is None else v  # of q beside what the end lacks of p: no term
    c = 0
    while c + 2 * lanes <= n:
        p, q = load(x, i + c, v), of_second(y, j + c, v)
        terms, lower, upper, signs, low = gather(p, q, w, p_logs, q_logs, terms, lower, upper, signs, low)
        p, q = load(x, i + c + lanes, v), of_second(y, j + c + lanes, v)
        more_terms, lower, upper, signs, low = gather(p, q, w, p_logs, q_logs, more_terms, lower, upper, signs, low)
        c += 2 * lanes
    while c < n:
        p, q = load_first(x, i + c, n - c, v), first_of_second(y, j + c, n - c, rest)
        terms, lower, upper, signs, low = gather(p, q, w, p_logs, q_logs, terms, lower, upper, signs, low)
        c += lanes
    return lanes_sum(terms) + lanes_sum(more_terms), lanes_sum(lower + upper), signs, low


@inline
def sum_rows(x, x_geometry, y, y_geometry, first, n, k, w, p_logs, q_logs, unit, weights, zero, results):
    """Rows whose classes lie side by side; returns how many are left to the careful kernel."""
    v, one = vector(zero), vector(zero) + 1.0
    piece, left = PIECE * width(v), 0
    for r in range(n):
        i = row_start(x_geometry, first + r)
        j = 0 if y is None else row_start(y_geometry, first + r)
        total, lost, excess, excess_lost = 0.0, 0.0, 0.0, 0.0
        signs, low = bits(v), one
        for b in range(0, k, piece):
            terms, over, signs, low = piece_record(
                x, i + b, y, j + b, min(piece, k - b), w, p_logs, q_logs, v, signs, low
            )
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


@inline
def sum_lanes(
    x, x_geometry, y, y_geometry, first, n, k, w, p_logs, q_logs, unit, weights, zero, x_tile, y_tile, results
):
    """The work of `sum_rows` for few classes, or for rows that lie side by side."""
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
                terms, lower, upper, signs, low = gather(p, q, w, p_logs, q_logs, terms, lower, upper, signs, low)
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
def lane_slopes(slope, weights, r, count):
    """``weight·slope`` of `count` rows from `r` on, in float64 halves: the factors alone may be beyond float32."""
    wide = vector(0.0)
    if not weights.size:
        return wide + slope, wide + slope
    return load_first(weights, r, count, wide) * slope, load_first(weights, r + 8, count - 8, wide) * slope


@inline
def put_lanes(results, r, count, loss, unit, weights, v):
    """Store the results of `count` rows from `r` on; 1 if some of them are left to the careful kernel, else 0."""
    loss = where(doubtful(loss, v), loss + np.nan, loss * unit)
    if weights.size:
        weight = load_first(weights, r, count, loss)
        loss = where(weight == 0.0, weight, loss * weight)
    store_first(results, r, count, loss)
    return 1 if any_lane(first_mask(count, loss) & (loss != loss)) else 0


# --- gradients ------------------------------------------------------------------------------------------


@inline
def slopes(p, q, w, p_logs, q_logs):
    """The derivatives of vectors of terms by `p` and by `q`."""
    if q is None:
        return (entropy_slope(p) if p_logs is None else log_entropy_slope(p)), None
    if p_logs is None:
        if q_logs is not None:
            return beside_log_slope(p, q), -p
        if w is None:
            return kl_slope_p(p, q), kl_slope_q(p, q)
        return js_slope(p, q, w), js_slope(q, p, other_weight(w))
    if q_logs is None:
        return of_log_slope(p, q), of_log_slope_q(p, q)
    return log_kl_slope(p, q), minus_exp(p)


@inline
def without_gaps(geometry, n, k):
    """Whether rows lie next to each other; those of no array do."""
    return True if geometry is None else in_line(geometry, n, k)


@inline
def write_slopes(
    x, x_geometry, y, y_geometry, row, n, k, w, p_logs, q_logs, slope, weights, results, left, grad_p, p_geometry,
    grad_q, q_geometry, streaming, line,
):  # fmt: skip
    """The gradients of rows whose classes lie side by side, but for those `left` to the careful kernel.

    `slope` multiplies them all, and its type is the one that they are computed in (`fast.common_slope`).
    """
    one = vector(cast(1.0, slope))
    if (
        left == 0 and weights.size == 0 and without_gaps(x_geometry, n, k) and without_gaps(y_geometry, n, k)
        and without_gaps(p_geometry, n, k) and without_gaps(q_geometry, n, k)
    ):  # fmt: skip
        n, k = 1, n * k  # one long row: each number's slope is its own, and short rows fill no vectors
    line_p, line_q = view(line, 0, BLOCK), view(line, BLOCK, BLOCK)
    for r in range(n):
        i, j = row_start(x_geometry, row + r), 0 if y is None else row_start(y_geometry, row + r)
        (p_start, p_stride), (q_start, q_stride) = place_of(p_geometry, row + r), place_of(q_geometry, row + r)
        weight = weights[r] if weights.size else 1.0
        if weight == 0.0:
            fill(0.0, k, grad_p, p_start, p_stride)
            fill(0.0, k, grad_q, q_start, q_stride)
        elif results[r] == results[r]:
            factor = cast(weight * slope, slope)
            for b in range(0, k, BLOCK):
                m = min(BLOCK, k - b)
                # Both before either is written: it may be written over an operand.
                for c in range(0, m, width(one)):
                    p, q = load_next(x, i + b + c, m - c, one), next_of_second(y, j + b + c, m - c, one)
                    by_p, by_q = slopes(p, q, w, p_logs, q_logs)
                    if grad_p is not None:
                        store(line_p, c, by_p * factor)
                    if grad_q is not None:
                        store(line_q, c, by_q * factor)
                if grad_p is not None:
                    write_block(line_p, m, grad_p, p_start + b * p_stride, p_stride, streaming)
                if grad_q is not None:
                    write_block(line_q, m, grad_q, q_start + b * q_stride, q_stride, streaming)


@kernel
def tables(
    x, x_geometry, y, y_geometry, first, n, k, w, p_logs, q_logs, unit, slope, weights, zero, squares, results,
    grad_p, p_geometry, grad_q, q_geometry, streaming, line,
):  # fmt: skip
    """Losses and gradients of rows, by `sum_lanes` if there are `squares` for it; returns how many rows are left
    to the careful kernel."""
    total_left, step = 0, n
    if grad_p is not None or grad_q is not None:
        step = max(1, NEAR // k)  # rows that are still in cache when their gradients are written
    for low in range(0, n, step):
        size, row = min(step, n - low), first + low
        losses, row_weights = view(results, low, size), view(weights, low, size if weights.size else 0)
        if squares is None:
            left = sum_rows(
                x, x_geometry, y, y_geometry, row, size, k, w, p_logs, q_logs, unit, row_weights, zero, losses
            )
        else:
            left = sum_lanes(
                x, x_geometry, y, y_geometry, row, size, k, w, p_logs, q_logs, unit, row_weights, zero, squares[0],
                squares[1], losses,
            )  # fmt: skip
        if grad_p is not None or grad_q is not None:
            write_slopes(
                x, x_geometry, y, y_geometry, row, size, k, w, p_logs, q_logs, slope, row_weights, losses,
                left, grad_p, p_geometry, grad_q, q_geometry, streaming, line,
            )  # fmt: skip
        total_left += left
    if streaming:
        fence()
    return total_left
