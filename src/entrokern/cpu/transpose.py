"""From rows of memory to vectors of one class of many rows, and back; and rows of vectors reduced together.

All of it is shuffles of two vectors. A `tile` is class by class: its columns, each a vector of rows, lie
`step` apart.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .memory import element_pointer, element_size, first_lanes, masked_load, masked_store, narrowed, widened
from .simd import Value, Vector, larger, llvm_type, smaller

I64 = ir.IntType(64)


def _constant(number: int) -> Any:
    return ir.Constant(I64, number)


def _load(context: Any, builder: Any, kind: Any, array: Any, index: Any, lanes: int) -> Value:
    """`lanes` elements as they are stored."""
    pointer = element_pointer(context, builder, kind, array, index, lanes)
    return Value(builder, builder.load(pointer, align=element_size(kind)), Vector(kind.dtype, lanes))


def _store(context: Any, builder: Any, kind: Any, array: Any, index: Any, stored: Value) -> None:
    pointer = element_pointer(context, builder, kind, array, index, stored.kind.lanes)
    builder.store(stored.llvm, pointer, align=element_size(kind))


def _column(builder: Any, at: Any, step: Any, c: int) -> Any:
    """Where column c of a tile begins."""
    return builder.add(at, builder.mul(_constant(c), step))


def _columns(context: Any, builder: Any, kind: Any, tile: Any, at: Any, step: Any, count: int, lanes: int) -> Any:
    return [_load(context, builder, kind, tile, _column(builder, at, step, c), lanes) for c in range(count)]


# --- squares --------------------------------------------------------------------------------------


def transposed(rows: list[Value]) -> list[Value]:
    """The columns of a square of vectors, in log2(rows) rounds of shuffles of two.

    Vectors of several times as many lanes hold several squares, side by side.
    """
    lanes, step = rows[0].kind.lanes, 1
    while step < len(rows):
        # Swap, in every square of 2·step by 2·step, the upper right quarter with the lower left one.
        low = [i if not i & step else lanes + (i ^ step) for i in range(lanes)]
        high = [(i | step) if not i & step else lanes + i for i in range(lanes)]
        rows = [
            rows[i].shuffled(rows[i + step], low) if not i & step else rows[i - step].shuffled(rows[i], high)
            for i in range(len(rows))
        ]
        step *= 2
    return rows


def _joined(parts: list[Value]) -> Value:
    """Short vectors one behind the other in a long one."""
    while len(parts) > 1:
        lanes = parts[0].kind.lanes
        parts = [a.shuffled(b, list(range(2 * lanes))) for a, b in zip(parts[0::2], parts[1::2], strict=True)]
    return parts[0]


def _row_pointers(
    context: Any, builder: Any, kind: Any, x: Any, start: Any, stride: Any, count: Any, lanes: int, rows: int
) -> Iterator[Any]:
    """Addresses of `lanes` elements of each row; rows from `count` on are the last one again."""
    last = builder.sub(count, _constant(1))
    for r in range(rows):
        row = builder.select(builder.icmp_signed("<", _constant(r), count), _constant(r), last)
        yield element_pointer(context, builder, kind, x, builder.add(start, builder.mul(row, stride)), lanes)


def _load_columns(most: int) -> Any:
    @intrinsic
    def load_some_columns(typing, x, start, stride, rows, columns, tile, at, step, like):
        """Transpose rows of `x`, which begin `stride` apart, into columns of `tile`.

        As many rows as the vector `like` has lanes, and as many columns, or `most`. Beyond `rows` the last row is
        repeated; what stands beyond `columns` is not specified (no memory outside of the array is read).
        """

        def build(context, builder, signature, arguments):
            x_kind, tile_kind = signature.args[0], signature.args[5]
            array, start, stride, rows, columns, target, at, step, _ = arguments
            width = min(most, like.lanes)
            stored = Vector(x_kind.dtype, width)
            mask, nothing = first_lanes(builder, columns, width), ir.Constant(llvm_type(stored), ir.Undefined)
            pointers = _row_pointers(context, builder, x_kind, array, start, stride, rows, width, like.lanes)
            parts = [
                Value(builder, masked_load(builder, pointer, mask, nothing, element_size(x_kind)), stored)
                for pointer in pointers
            ]
            for c, column in enumerate(transposed([_joined(parts[r::width]) for r in range(width)])):
                numbers = widened(column, tile_kind.dtype)
                _store(context, builder, tile_kind, target, _column(builder, at, step, c), numbers)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, n, n, n, tile, n, n, like), build

    return load_some_columns


load_columns, load_8_columns = _load_columns(64), _load_columns(8)


@intrinsic
def store_columns(typing, tile, at, step, x, start, stride, rows, columns, like):
    """The reverse of `load_columns`: columns of `tile` into rows of `x`, in its storage type."""

    def build(context, builder, signature, arguments):
        tile_kind, x_kind = signature.args[0], signature.args[3]
        source, at, step, array, start, stride, rows, columns, _ = arguments
        mask = first_lanes(builder, columns, like.lanes)
        square = _columns(context, builder, tile_kind, source, at, step, like.lanes, like.lanes)
        for r, row in enumerate(transposed(square)):
            within = builder.icmp_signed(">", rows, _constant(r))
            with builder.if_then(within):
                i = builder.add(start, builder.mul(_constant(r), stride))
                pointer = element_pointer(context, builder, x_kind, array, i, like.lanes)
                value = narrowed(row, x_kind.dtype)
                masked_store(builder, value.llvm, pointer, mask, element_size(x_kind))
        return context.get_dummy_value()

    n = types.intp
    return types.void(tile, n, n, x, n, n, n, n, like), build


@intrinsic
def store_short_columns(typing, tile, at, step, line, start, stride, like):
    """Columns of `tile` into rows of `line`, whole vectors at a time: what a row writes beyond its end, the
    next one overwrites. `line` has room for what the last one writes."""

    def build(context, builder, signature, arguments):
        tile_kind, line_kind = signature.args[0], signature.args[3]
        source, at, step, array, start, stride, _ = arguments
        square = _columns(context, builder, tile_kind, source, at, step, like.lanes, like.lanes)
        for r, row in enumerate(transposed(square)):
            i = builder.add(start, builder.mul(_constant(r), stride))
            _store(context, builder, line_kind, array, i, row)
        return context.get_dummy_value()

    n = types.intp
    return types.void(tile, n, n, line, n, n, like), build


# --- rows of very few classes, one right behind the other: whole vectors of them ------------------


def _gathered(parts: list[Value], wanted: list[int]) -> Value:
    """The elements with these numbers out of all parts, one behind the other."""
    lanes = parts[0].kind.lanes
    result = parts[0].shuffled(parts[0], [p % lanes for p in wanted])
    for number, part in enumerate(parts[1:], 1):
        here = range(number * lanes, (number + 1) * lanes)
        result = result.shuffled(part, [lanes + here.index(p) if p in here else r for r, p in enumerate(wanted)])
    return result


def _load_packed(classes: int) -> Any:
    @intrinsic
    def load_packed(typing, x, start, tile, at, step, like):
        """A vector's worth of rows of so many classes each into columns of `tile`."""

        def build(context, builder, signature, arguments):
            x_kind, tile_kind, lanes = signature.args[0], signature.args[2], like.lanes
            array, start, target, at, step, _ = arguments
            starts = [builder.add(start, _constant(part * lanes)) for part in range(classes)]
            parts = [_load(context, builder, x_kind, array, i, lanes) for i in starts]
            for c in range(classes):
                column = _gathered(parts, [c + r * classes for r in range(lanes)])
                numbers = widened(column, tile_kind.dtype)
                _store(context, builder, tile_kind, target, _column(builder, at, step, c), numbers)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, tile, n, n, like), build

    return load_packed


def _store_packed(classes: int) -> Any:
    @intrinsic
    def store_packed(typing, tile, at, step, line, start, like):
        """The reverse of `load_packed`."""

        def build(context, builder, signature, arguments):
            tile_kind, line_kind, lanes = signature.args[0], signature.args[3], like.lanes
            source, at, step, array, start, _ = arguments
            columns = _columns(context, builder, tile_kind, source, at, step, classes, lanes)
            for part in range(classes):
                elements = range(part * lanes, (part + 1) * lanes)
                row = _gathered(columns, [e % classes * lanes + e // classes for e in elements])
                _store(context, builder, line_kind, array, builder.add(start, _constant(part * lanes)), row)
            return context.get_dummy_value()

        n = types.intp
        return types.void(tile, n, n, line, n, like), build

    return store_packed


load_2, load_3, load_4 = (_load_packed(classes) for classes in (2, 3, 4))
store_2, store_3, store_4 = (_store_packed(classes) for classes in (2, 3, 4))


# --- rows of vectors, reduced ---------------------------------------------------------------------


def reduced(rows: list[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """One vector, whose lane r combines all lanes of ``rows[r]``, in the same order for every row."""
    lanes = len(rows)
    while len(rows) > 1:
        # Neighbouring lanes of two vectors: those of the first go to the lower half, of the second to the upper.
        rows = [
            combine(a.shuffled(b, list(range(0, 2 * lanes, 2))), a.shuffled(b, list(range(1, 2 * lanes, 2))))
            for a, b in zip(rows[0::2], rows[1::2], strict=True)
        ]
    return rows[0]


def _reduction(combine: Callable[[Value, Value], Value]) -> Any:
    @intrinsic
    def reduce_rows(typing, tile, like):
        def build(context, builder, signature, arguments):
            kind, lanes = signature.args[0], like.lanes
            rows = _columns(context, builder, kind, arguments[0], _constant(0), _constant(lanes), lanes, lanes)
            return reduced(rows, combine).llvm

        return like(tile, like), build

    return reduce_rows


# The sum, the largest and the smallest element of every row of a square tile: one row per lane.
rows_sum, rows_max, rows_min = _reduction(operator.add), _reduction(larger), _reduction(smaller)
