"""Tiles of as many rows as a vector has lanes, class by class: how kernels of few classes read any layout.

Rows whose classes lie side by side are transposed, classes of adjacent rows copied. The lanes of a tile
that is not full hold some finite row or other, and no result depends on them.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .blocks import AXES, CLASS_STRIDE, SIZES
from .compile import inline
from .memory import _pointer as element_pointer
from .memory import load_columns, load_first, store, widened, width
from .simd import Value, Vector

AHEAD = 2048  # elements


def _load_packed(classes):
    @intrinsic
    def load_packed(typing, x, start, tile, like):
        """A vector's worth of rows of so many classes, one row right behind the other: whole vectors are loaded."""

        def build(context, builder, signature, arguments):
            x_kind, tile_kind = signature.args[0], signature.args[2]
            array, start, target, _ = arguments
            lanes, i64 = like.lanes, ir.IntType(64)
            parts = []
            for part in range(classes):
                i = builder.add(start, ir.Constant(i64, part * lanes))
                pointer = element_pointer(context, builder, x_kind, array, i, lanes)
                loaded = builder.load(pointer, align=x_kind.dtype.bitwidth // 8)
                parts.append(Value(builder, loaded, Vector(x_kind.dtype, lanes)))
            for c in range(classes):
                column, wanted = parts[0], [c + r * classes for r in range(lanes)]
                for number, part in enumerate(parts[1:], 1):
                    # What lies in an earlier part is in `column` already, but for the first, in its own lane.
                    low, last = number * lanes, 2 * lanes - 1
                    sources = [
                        (p if number == 1 else r) if p < low else min(lanes + p - low, last)
                        for r, p in enumerate(wanted)
                    ]
                    column = column.shuffled(part, sources)
                pointer = element_pointer(context, builder, tile_kind, target, ir.Constant(i64, c * lanes), lanes)
                numbers = widened(context, column, tile_kind.dtype)
                builder.store(numbers.llvm, pointer, align=tile_kind.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(x, types.intp, tile, like), build

    return load_packed


load_2, load_3, load_4 = _load_packed(2), _load_packed(3), _load_packed(4)


@inline
def row_step(geometry):
    """How far apart the rows of the last batch axis begin."""
    return geometry[SIZES + 2 * geometry[AXES] - 1]


@inline
def rows_in_line(geometry, row):
    """How many rows from `row` on are `row_step` apart."""
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
        load_2(x, start, tile, v)
    elif packed and k == 3:
        load_3(x, start, tile, v)
    elif packed and k == 4:
        load_4(x, start, tile, v)
    elif stride == 1:
        for c in range(0, k, lanes):
            load_columns(x, start + c, row_step(geometry), count, k - c, tile, c * lanes, lanes, v)
    else:
        for c in range(k):
            store(tile, c * lanes, load_first(x, start + c * stride, count, v))


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
