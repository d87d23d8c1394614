"""Short rows of log-probabilities as one line: KL of two, entropy of one, and their gradients, from one read.

A number's term and slopes are its own: rows that lie next to each other are computed as one, in vectors which they
would not fill by themselves. Then the terms are summed row by row. The arguments are those of `tables.tables`.
"""

from __future__ import annotations

from .blocks import row_start, view
from .compile import inline, kernel
from .log_terms import log_entropy_term, log_kl_term
from .maps import write_block
from .memory import fence, load, load_first, load_next, prefetch, store, vector, width
from .row_groups import group_sums, place_of, put_sums
from .tables import next_of_second, put_lanes, slopes, without_gaps

# Numbers of whole rows that are computed before they are summed: what is loaded again has left the store buffer, and
# lies in L1. Longer rows fill their vectors anyway.
STRETCH = 1 << 11
STRETCH_IN_FLOAT64 = 1 << 7  # whose sums are kept short (`tables.PIECE`)


@inline
def log_term(p, q):
    """The term of two logarithms, or of one."""
    if q is None:
        return log_entropy_term(p)
    return log_kl_term(p, q)


@inline
def fill_line(x, i, y, j, n, q_logs, slope, terms, line_p, line_q, grad_p, grad_q, at, v):
    """The terms, and slopes where gradients are wanted, of `n` numbers from `i` in `x` and `j` in `y`, to `at`."""
    for c in range(0, n, width(v)):
        prefetch(x, i + c + STRETCH)  # while sums are taken, the machine's own prefetcher rests
        if y is not None:
            prefetch(y, j + c + STRETCH)
        p, q = load_next(x, i + c, n - c, v), next_of_second(y, j + c, n - c, v)
        store(terms, at + c, log_term(p, q))
        by_p, by_q = slopes(p, q, None, True, q_logs)
        if grad_p is not None:
            store(line_p, at + c, by_p * slope)
        if grad_q is not None:
            store(line_q, at + c, by_q * slope)


@inline
def sum_line(terms, n, k, unit, sums, v, results):
    """The sums of `n` rows of terms, in float64; how many are left to the careful kernel."""
    wide, left = vector(0.0), 0
    lanes = width(wide)
    for r in range(0, n, lanes):
        count = min(lanes, n - r)
        for g in range(count):
            at = (r + g) * k
            if k <= 2 * lanes:  # a loop that ends at once costs more
                total = load_first(terms, at, k, wide) + load_first(terms, at + lanes, k - lanes, wide)
            else:
                total, c = wide, 0
                while c + lanes <= k:
                    total += load(terms, at + c, wide)
                    c += lanes
                total += load_first(terms, at + c, k - c, wide)
            put_sums(sums, g, total)
        left += put_lanes(results, r, count, group_sums(sums, 0), unit, view(results, 0, 0), v)
    return left


@inline
def write_line(line, n, k, results, left, out, geometry, row, streaming):
    """The slopes of `n` rows, but for those `left` to the careful kernel, to `out`, if there is such."""
    if out is not None:
        if left == 0 and without_gaps(geometry, n, k):
            write_block(line, n * k, out, row_start(geometry, row), 1, streaming)
        else:
            for r in range(n):
                if results[r] == results[r]:
                    write_block(view(line, r * k, k), k, out, row_start(geometry, row + r), 1, streaming)


@kernel
def log_lines(
    x, x_geometry, y, y_geometry, first, n, k, q_logs, unit, slope, zero, terms, sums, results, grad_p, p_geometry,
    grad_q, q_geometry, streaming, line_p, line_q,
):  # fmt: skip
    """Losses and gradients of rows without weights; returns how many are left to the careful kernel."""
    v, total_left, step = vector(zero), 0, STRETCH // k
    in_line = without_gaps(x_geometry, n, k) and without_gaps(y_geometry, n, k)
    for low in range(0, n, step):
        count, row = min(step, n - low), first + low
        rows = count if in_line else 1  # at once
        for r in range(0, count, rows):
            i, (j, _) = row_start(x_geometry, row + r), place_of(y_geometry, row + r)
            fill_line(x, i, y, j, rows * k, q_logs, slope, terms, line_p, line_q, grad_p, grad_q, r * k, v)
        losses = view(results, low, count)
        left = sum_line(terms, count, k, unit, sums, v, losses)
        # Only now: they may be written over the operands, which the careful kernel still needs.
        write_line(line_p, count, k, losses, left, grad_p, p_geometry, row, streaming)
        write_line(line_q, count, k, losses, left, grad_q, q_geometry, row, streaming)
        total_left += left
    if streaming:
        fence()
    return total_left
