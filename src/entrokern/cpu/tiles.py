"""Tiles of as many rows as a vector has lanes, class by class: how kernels of few classes read any layout.

Rows whose classes lie side by side are transposed, classes of adjacent rows copied. The lanes of a tile
that is not full hold some finite row or other, and no result depends on them.
"""

from __future__ import annotations

import numpy as np

from .blocks import AXES, CLASS_STRIDE, SIZES, narrow, row_start
from .compile import inline
from .memory import load, load_first, store, store_next, width
from .simd import larger
from .transpose import load_2, load_3, load_4, load_8_columns, load_columns, store_columns

AHEAD = 2048  # elements
NO_LIMIT = 1 << 30


@inline
def row_step(geometry):
    """How far apart the rows of the last batch axis begin."""
    return geometry[SIZES + 2 * geometry[AXES] - 1]


@inline
def rows_in_line(geometry, row):
    """How many rows from `row` on are `row_step` apart (None for no array: any)."""
    if geometry is None:
        return NO_LIMIT
    axes = geometry[AXES]
    if axes == 1:
        return geometry[SIZES] - row
    last = geometry[SIZES + axes - 1]
    return last - row % last


@inline
def fill_tile(x, geometry, start, count, k, tile, v):
    """Read `k` classes of `count` rows from `start` on, as numbers of the type of `v`: one vector a class."""
    lanes, stride = width(v), geometry[CLASS_STRIDE]
    packed = stride == 1 and row_step(geometry) == k and count >= lanes
    if packed and k == 2:
        load_2(x, start, tile, 0, lanes, v)
    elif packed and k == 3:
        load_3(x, start, tile, 0, lanes, v)
    elif packed and k == 4:
        load_4(x, start, tile, 0, lanes, v)
    elif stride == 1 and k <= 8:
        load_8_columns(x, start, row_step(geometry), count, k, tile, 0, lanes, v)
    elif stride == 1:
        for c in range(0, k, lanes):
            load_columns(x, start + c, row_step(geometry), count, k - c, tile, c * lanes, lanes, v)
    else:
        for c in range(k):
            store(tile, c * lanes, load_first(x, start + c * stride, count, v))


@inline
def tile_top(tile, k, v):
    """The largest logit of each row of a tile; a NaN is passed over."""
    top, more = v - np.inf, v - np.inf
    for c in range(k):
        top, more = more, larger(load(tile, c * width(v), v), top)
    return larger(top, more)


@inline
def empty_tile(tile, out, geometry, row, count, k, results, r, some_left, v):
    """Write a tile to `count` rows of `out` from `row` on, but for those whose result, from `r` on, is NaN
    (`some_left` says whether there are any): an input that is written over is still needed there."""
    lanes, stride, start, step = width(v), geometry[CLASS_STRIDE], row_start(geometry, row), row_step(geometry)
    if stride == 1 and not some_left:
        for c in range(0, k, lanes):
            store_columns(tile, c * lanes, lanes, out, start + c, step, count, k - c, v)
    elif step == 1 and not some_left:
        for c in range(k):
            store_next(out, start + c * stride, count, load(tile, c * lanes, v))
    else:
        for i in range(count):
            if results[r + i] == results[r + i]:
                for c in range(k):
                    out[start + i * step + c * stride] = narrow(tile[c * lanes + i], out)


@inline
def rows_ahead(geometry, lanes):
    """How far on to ask for memory while a tile is at work, and how far apart its cache lines lie.

    A tile of few classes is done before memory can answer: then several tiles ahead.
    """
    stride = geometry[CLASS_STRIDE]
    if stride == 1:
        tile = lanes * row_step(geometry)
        return max(tile, AHEAD // max(tile, 1) * tile), lanes
    return lanes, stride
