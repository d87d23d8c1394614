"""Entropy of given probabilities, and KL divergence: the kernels of `cpu.quantities.entropy` and `divergence`.

As there a fast kernel computes what is finite and ordinary and leaves the other rows, as NaN, to a careful one; some
rows at a time, whose results in float64 are kept on the stack.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import types
from numba.extending import overload

from ..cpu import launch
from ..cpu.blocks import BLOCK, CLASS_STRIDE, SIZES, view
from ..cpu.distributions import FORM_CODES, SLOTS, accumulate, entropy_rows
from ..cpu.divergences import divergence_rows
from ..cpu.fast import LANES_UP_TO, SOFTMAX_LANES_UP_TO
from ..cpu.row_groups import ROWS
from ..cpu.simd import BYTES
from ..cpu.softmax_pairs import KEPT, RECORDS, softmax_pair_groups, softmax_pair_lanes
from ..cpu.tables import tables
from .memory import GEOMETRY, GLUE, beside, convert, glue, lies, line_of, memory, same, stack, stack_row

BUFFERED = 1024  # rows
STAGE = SLOTS * BLOCK
LINE = 2 * BLOCK
RECORDS_OF_PAIRS, TOPS, SUMS = RECORDS * ROWS, 2 * ROWS, 2 * ROWS * 8
SCRATCH = 64 << 10  # bytes

# The careful kernels, each called in this one place.


@glue
def careful_entropy(p, start, rows, k, form, unit, scale, weights, stage, results, grad):
    """Of probabilities or their logarithms; operands are pairs ``(memory, geometry)``."""
    entropy_rows(*p, start, rows, k, form, unit, scale, weights, stage, results, *grad)


@glue
def careful_divergence(p, q, start, rows, k, forms, temperature, unit, scale, weights, stage, results, grad_p, grad_q):
    """KL divergence of distributions in any form."""
    divergence_rows(
        *p, *q, start, rows, k, False, 0.5, *forms, temperature, unit, scale, weights, stage, results, *grad_p, *grad_q
    )


@glue
def rows_left(results, count, all_of_them, rows):
    """Into `rows` those that are to be done with care, which came out as NaN; returns how many."""
    left = 0
    for i in range(count):
        if all_of_them or results[0, i] != results[0, i]:
            rows[left] = i
            left += 1
    return left


def store(losses, start, count, results):
    """Round the results of rows to the dtype of `losses`, if there are any."""
    raise NotImplementedError("compiled code only")


@overload(store, jit_options=GLUE)
def _store(losses, start, count, results):
    if not isinstance(losses, types.Array):
        return lambda losses, start, count, results: None

    def deliver(losses, start, count, results):
        for i in range(count):
            losses[start + i] = results[0, i]

    return deliver


@glue
def sum_of(results, count):
    total = 0.0
    for i in range(count):
        total += results[0, i]
    return total


@glue
def streams(out, x):
    """Whether a gradient is written past the caches (`cpu.launch.streams`)."""
    return out is not None and out.nbytes >= launch.STREAMED and not same(out, x)


@functools.cache
def entropy(compute, form, of_map, single, contiguous):
    """What computes the entropies of rows of probabilities or log-probabilities, and returns their sum."""
    code, fast = FORM_CODES[form], not (of_map and (compute is np.float64 or not contiguous))
    logs = True if form == "log_probs" else None
    zero, lanes = compute(0), BYTES // np.dtype(compute).itemsize
    square = lanes * lanes

    @glue
    def run(x, n, k, sample_weight, unit, scale, losses, grad):
        geometry, out_geometry = stack(GEOMETRY, np.int64), stack(GEOMETRY, np.int64)
        stage, results = stack(STAGE, np.float64), stack_row(BUFFERED, np.float64)
        line, tile = stack(LINE, compute), stack(square, compute)
        rows, numbers = stack(BUFFERED, np.int64), stack(BUFFERED, np.float64)
        low, reach = lies(x, n, geometry)
        p = memory(x, low, reach), geometry
        low, reach = lies(grad, n, out_geometry)
        out = memory(grad, low, reach), beside(grad, out_geometry)
        flat, streaming = geometry[CLASS_STRIDE] == 1, streams(grad, x)
        if of_map:
            written = line
        else:
            written = None
        total, lost = 0.0, 0.0
        for start in range(0, n, BUFFERED):
            count = min(BUFFERED, n - start)
            convert(sample_weight, start, count, numbers)
            weights, left = line_of(sample_weight, start, count, numbers), -1
            if fast:
                line_of_results = memory(results, 0, count)
                head = (*p, None, None, start, count, k, None, logs, None, unit, unit * scale, weights, zero)
                tail = (line_of_results, *out, None, None, streaming, written)
                if flat and (single or k > LANES_UP_TO):
                    left = tables(*head, None, *tail)
                elif not single and (flat or geometry[SIZES + 1] == 1):
                    left = tables(*head, (tile, None), *tail)
            if left != 0:
                some = view(rows, 0, rows_left(results, count, left < 0, rows))
                careful_entropy(p, start, some, k, code, unit, scale, weights, stage, results, out)
            store(losses, start, count, results)
            total, lost = accumulate(total, lost, sum_of(results, count))
        return total + lost

    return run


@functools.cache
def kl_divergence(compute, p_form, q_form, of_map, single, contiguous):
    """What computes the KL divergences of rows in these forms, and returns their sum."""
    forms = FORM_CODES[p_form], FORM_CODES[q_form]
    of_tables = "logits" not in (p_form, q_form) and not (of_map and (compute is np.float64 or not contiguous))
    p_logs, q_logs = (True if form == "log_probs" else None for form in (p_form, q_form))
    of_logits = p_form == q_form == "logits"
    itemsize = np.dtype(compute).itemsize
    zero, lanes, size = compute(0), BYTES // itemsize, SCRATCH // itemsize
    square = lanes * lanes
    kept = size // KEPT // LINE * LINE  # of each kind; what a row has more is computed again

    @glue
    def fast_logits(head, tail, k, flat, adjacent, streaming, scratch, more):
        """How many rows are left to the careful kernel, -1 for all."""
        tile = -(-k // lanes) * square
        if not single and adjacent and k <= SOFTMAX_LANES_UP_TO:  # for which four tiles just fit into the scratch
            tiles = (
                view(scratch, 0, tile), view(scratch, tile, tile), view(scratch, 2 * tile, tile),
                view(scratch, 3 * tile, tile),
            )  # fmt: skip
            return softmax_pair_lanes(*head, *tiles, *tail)
        if flat:
            room = min(kept, ROWS * (k + lanes))
            kept_rows = view(scratch, 0, KEPT * room)
            return softmax_pair_groups(*head, kept_rows, *more[:4], *tail, streaming, more[4])
        return -1

    @glue
    def run(p, q, n, k, sample_weight, temperature, unit, scale, losses, grad_p, grad_q):
        p_geometry, q_geometry = stack(GEOMETRY, np.int64), stack(GEOMETRY, np.int64)
        out_p_geometry, out_q_geometry = stack(GEOMETRY, np.int64), stack(GEOMETRY, np.int64)
        results, rows, numbers = stack_row(BUFFERED, np.float64), stack(BUFFERED, np.int64), stack(BUFFERED, np.float64)
        low, reach = lies(p, n, p_geometry)
        a = memory(p, low, reach), p_geometry
        low, reach = lies(q, n, q_geometry)
        b = memory(q, low, reach), q_geometry
        low, reach = lies(grad_p, n, out_p_geometry)
        out_p = memory(grad_p, low, reach), beside(grad_p, out_p_geometry)
        low, reach = lies(grad_q, n, out_q_geometry)
        out_q = memory(grad_q, low, reach), beside(grad_q, out_q_geometry)
        p_flat, q_flat = p_geometry[CLASS_STRIDE] == 1, q_geometry[CLASS_STRIDE] == 1
        p_adjacent, q_adjacent = p_geometry[SIZES + 1] == 1, q_geometry[SIZES + 1] == 1
        flat, adjacent = p_flat and q_flat, (p_flat or p_adjacent) and (q_flat or q_adjacent)
        streaming = streams(grad_p, p) or streams(grad_q, q)
        stage, line = stack(STAGE, np.float64), stack(LINE, compute)
        if of_tables:
            p_tile, q_tile = stack(square, compute), stack(square, compute)
        if of_logits:
            scratch, corner, tops = stack(size, compute), stack(square, compute), stack(TOPS, compute)
            sums, records = stack(SUMS, np.float64), stack(RECORDS_OF_PAIRS, np.float64)
            for i in range(SUMS):
                sums[i] = 0.0
            for i in range(RECORDS_OF_PAIRS):
                records[i] = 1.0
            more = (corner, tops, sums, records, view(line, 0, BLOCK))
        if of_map:
            written = line
        else:
            written = None
        total, lost = 0.0, 0.0
        for start in range(0, n, BUFFERED):
            count = min(BUFFERED, n - start)
            convert(sample_weight, start, count, numbers)
            weights, left = line_of(sample_weight, start, count, numbers), -1
            losses_of_chunk = memory(results, 0, count)
            if of_tables:
                head = (*a, *b, start, count, k, None, p_logs, q_logs, unit, unit * scale, weights, zero)
                tail = (losses_of_chunk, *out_p, *out_q, streaming, written)
                if flat and (single or k > LANES_UP_TO):
                    left = tables(*head, None, *tail)
                elif not single and adjacent:
                    left = tables(*head, (p_tile, q_tile), *tail)
            if of_logits:
                pair = (*a, *b, start, count, k, None, temperature, unit, scale, weights, zero)
                outputs = (losses_of_chunk, *out_p, *out_q)
                left = fast_logits(pair, outputs, k, flat, adjacent, streaming, scratch, more)
            if left != 0:
                some = view(rows, 0, rows_left(results, count, left < 0, rows))
                careful_divergence(
                    a, b, start, some, k, forms, temperature, unit, scale, weights, stage, results, out_p, out_q
                )
            store(losses, start, count, results)
            total, lost = accumulate(total, lost, sum_of(results, count))
        return total + lost

    return run
