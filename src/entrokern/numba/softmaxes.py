"""Rows of logits: the kernels of `cpu.quantities.softmax`, chosen as there and called on one thread."""

from __future__ import annotations

import functools

import numpy as np
from numba.extending import register_jitable

from ..cpu import groups, lanes, launch
from ..cpu.blocks import BLOCK, CLASS_STRIDE, SIZES, view
from ..cpu.distributions import accumulate
from ..cpu.finish import RECORDS, W_MEAN
from ..cpu.quantities import GROUPS_UP_TO, LANES_UP_TO, STRIDED_LANES_UP_TO
from ..cpu.rows import softmax_rows
from ..cpu.simd import BYTES
from .memory import GEOMETRY, beside, convert, deliver, glue, lies, line_of, memory, same, stack

BUFFERED = 1024  # rows whose numbers are converted at a time
SCRATCH, LARGE_SCRATCH = 24 << 10, 64 << 10  # bytes
OPTIONS = W_MEAN + 1

for _function in (launch.chunk_elements, launch.chunk_rows, lanes.tile_size, groups.tiles_size, groups.room):
    register_jitable(_function)


@functools.cache
def softmax(compute, row_dtype, of_map, rows_only, staged, buffered):
    """What computes the results of rows of logits, in the dtype `compute`, and returns the sum of their losses.

    The scratch of the three families is on the stack: where a group of long rows, with what is written of them, has
    no room there, *rows* takes its place, and where rows lie side by side there is no stage for *lanes*.
    `rows_only`: by the family *rows*, as what the other two do not know needs, and as is best for one row; `staged`:
    its rows may have gaps; `buffered`: not all numbers of the rows lie as the kernels take them.
    """
    itemsize = np.dtype(compute).itemsize
    size = (LARGE_SCRATCH if of_map or staged else SCRATCH) // itemsize
    tiles = 3 if of_map else 1  # of lanes: one to compute in, two with what is written

    @glue
    def families(head, tail, k, geometry, scratch):
        """Call the kernel of the fastest family that has room."""
        dtype = scratch  # of which they want to know the itemsize
        if not rows_only:
            flat, adjacent = geometry[CLASS_STRIDE] == 1, geometry[SIZES + 1] == 1
            few = k * itemsize <= LANES_UP_TO * BYTES if flat else (adjacent or k <= STRIDED_LANES_UP_TO)
            tile = lanes.tile_size(k, dtype)
            if few and tiles * tile <= size:
                nothing = view(scratch, 0, 0)
                work = view(scratch, tile, (tiles - 1) * tile)
                return lanes.softmax_lanes(*head, (view(scratch, 0, tile), nothing, nothing), *tail, work)
            squares = groups.tiles_size(dtype)
            room = groups.room(k, dtype, 1) if of_map else 0
            if flat and k * itemsize <= GROUPS_UP_TO * BYTES and squares + room <= size:
                work = view(scratch, squares, room)
                return groups.softmax_groups(*head, view(scratch, 0, squares), *tail, work)
        work = view(scratch, 2 * BLOCK, BLOCK)
        if staged:
            return softmax_rows(*head, view(scratch, 0, 2 * BLOCK), *tail, work)
        return softmax_rows(*head, None, *tail, work)

    @glue
    def run(
        x, n, k, target, ignore_index, sample_weight, class_weight, options, scale, more, losses, sums, summed,
        kind, out,
    ):  # fmt: skip
        settings = stack(OPTIONS, np.float64)
        for i in range(OPTIONS):
            settings[i] = options[i]
        geometry, out_geometry = stack(GEOMETRY, np.int64), stack(GEOMETRY, np.int64)
        scratch, records = stack(size, compute), stack(RECORDS, compute)
        for i in range(RECORDS):
            records[i] = 0  # also where no row's are: what is computed of them is not used, but may take its time
        whole, numbers = stack(BUFFERED, np.int64), stack(BUFFERED, np.float64)
        room, ignored = stack(BUFFERED, row_dtype), stack(1, np.int64)
        low, reach = lies(x, n, geometry)
        flat = memory(x, low, reach)
        low, reach = lies(out, n, out_geometry)
        out_flat, out_geometry_given = memory(out, low, reach), beside(out, out_geometry)
        streaming = of_map and out.nbytes >= launch.STREAMED and not same(x, out)
        convert(ignore_index, 0, 1, ignored)
        ignore, of_classes = line_of(ignore_index, 0, 1, ignored), line_of(class_weight, 0, k, numbers)
        none, no_index = view(room, 0, 0), view(whole, 0, 0)
        step = min(launch.chunk_rows(n, k, launch.CHUNK_ROWS), BUFFERED if buffered else launch.CHUNK_ROWS)
        total, lost = 0.0, 0.0
        for start in range(0, n, step):
            count = min(step, n - start)
            convert(target, start, count, whole)
            convert(sample_weight, start, count, numbers)
            labels, weights = line_of(target, start, count, whole), line_of(sample_weight, start, count, numbers)
            loss, lse = line_of(losses, start, count, room), line_of(sums, start, count, room)
            results = (loss, lse, none, none, none, no_index, no_index, none, none)
            head = (flat, geometry, start, count, k, labels, ignore, weights, of_classes, settings, scale)
            tail = (records, results, summed, more, kind, out_flat, out_geometry_given, None, None, streaming)
            _, part = families(head, tail, k, geometry, scratch)
            total, lost = accumulate(total, lost, part)
            deliver(losses, start, count, room)
            deliver(sums, start, count, room)
        return total + lost

    return run
