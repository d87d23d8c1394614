"""Runs of elements next to each other: whole vectors in place where memory allows, else a copy of a block.

The elementwise kernels take an operand as ``(flat, geometry, spare)`` (or None), where `spare` holds a
block of the same storage type: what lies scattered is gathered into it as it is stored, and widened on
the way into registers like anything else.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .blocks import AXES, CLASS_STRIDE, SIZES, row_start
from .compile import inline, overload
from .memory import element_pointer as vector_pointer
from .memory import first_lanes, masked_load, masked_store, narrowed, widened
from .simd import Value, Vector, emitted, llvm_type
from .transpose import reduced

RUN = 1024  # elements of a block at most

# --- from operands to runs ------------------------------------------------------------------------


@inline
def in_line(geometry, rows, n):
    """Whether `n` columns of each of `rows` rows lie next to each other."""
    return geometry[CLASS_STRIDE] == 1 and (rows == 1 or (geometry[AXES] == 1 and geometry[SIZES + 1] == n))


def gathered(operand, row, rows, column, n):
    """Columns ``column … column + n - 1`` of `rows` rows as a run: an array, and where in it the run begins.

    More than one row is taken only where `n` columns are all of them.
    """
    raise NotImplementedError("compiled code only")


@overload(gathered)
def _gathered(operand, row, rows, column, n):
    if operand == types.none:
        return lambda operand, row, rows, column, n: (None, 0)

    def gather(operand, row, rows, column, n):
        flat, geometry, spare = operand
        if in_line(geometry, rows, n):
            return flat, row_start(geometry, row) + column
        stride = geometry[CLASS_STRIDE]
        for r in range(rows):
            start = row_start(geometry, row + r) + column * stride
            if stride == 0:
                for c in range(n):
                    spare[r * n + c] = flat[start]
            else:
                for c in range(n):
                    spare[r * n + c] = flat[start + c * stride]
        return spare, 0

    return gather


def placed(operand, row, rows, column, n):
    """Where a run of results goes: into the output itself, or first into its spare block (see `scattered`)."""
    raise NotImplementedError("compiled code only")


@overload(placed)
def _placed(operand, row, rows, column, n):
    if operand == types.none:
        return lambda operand, row, rows, column, n: (None, 0)

    def place(operand, row, rows, column, n):
        flat, geometry, spare = operand
        return (flat, row_start(geometry, row) + column) if in_line(geometry, rows, n) else (spare, 0)

    return place


@inline
def scattered(operand, row, rows, column, n):
    """Bring a run that was written into the spare block to its places."""
    if operand is not None:
        flat, geometry, spare = operand
        stride = geometry[CLASS_STRIDE]
        if not in_line(geometry, rows, n):
            for r in range(rows):
                start = row_start(geometry, row + r) + column * stride
                for c in range(n):
                    flat[start + c * stride] = spare[r * n + c]


# --- from runs to vectors: `count` is None for a whole vector, or how many of its lanes there are ------


@emitted
def fourfold(v: Value) -> Value:
    """Zeros in four registers side by side: instructions of four independent chains, interleaved."""
    return Value(v.builder, None, Vector(v.dtype, 4 * v.kind.lanes)).constant(0.0)


@emitted
def quarters(v: Value) -> Value:
    """The sum of the four registers of a fourfold vector."""
    for lanes in (v.kind.lanes // 2, v.kind.lanes // 4):
        v = v.shuffled(v, list(range(lanes))) + v.shuffled(v, list(range(lanes, 2 * lanes)))
    return v


@intrinsic
def sums_by_lane(typing, rows, at, stride, n, zero):
    """Sums of the first `n` elements of as many rows, `stride` apart, as a vector has lanes: one in each lane."""

    def build(context, builder, signature, arguments):
        array, at, stride, n, zero = arguments
        kind = signature.args[0]
        like = signature.return_type
        lanes, mask = like.lanes, first_lanes(builder, n, like.lanes)
        vectors = []
        for r in range(lanes):
            index = builder.add(at, builder.mul(ir.Constant(ir.IntType(64), r), stride))
            pointer = vector_pointer(context, builder, kind, array, index, lanes)
            row = masked_load(builder, pointer, mask, zero, kind.dtype.bitwidth // 8)
            vectors.append(Value(builder, row, like))
        return reduced(vectors, operator.add).llvm

    return zero(rows, types.intp, types.intp, types.intp, zero), build


def _address(context, builder, kind, run, i, lanes):
    """Where element `i` of a run ``(array, at)`` lies."""
    index = builder.add(builder.extract_value(run, 1), i)
    return vector_pointer(context, builder, kind, builder.extract_value(run, 0), index, lanes)


@intrinsic
def read(typing, run, i, count, otherwise):
    """A vector from element `i` of a run on; `otherwise` in lanes beyond `count`, and where there is no operand."""
    kind, lanes, partly = run[0], otherwise.lanes, count != types.none

    def build(context, builder, signature, arguments):
        if kind == types.none:
            return arguments[3]
        pointer = _address(context, builder, kind, arguments[0], arguments[1], lanes)
        storage, size = Vector(kind.dtype, lanes), kind.dtype.bitwidth // 8
        if not partly:
            stored = builder.load(pointer, align=size)
            return widened(Value(builder, stored, storage), otherwise.dtype).llvm
        mask = first_lanes(builder, arguments[2], lanes)
        stored = masked_load(builder, pointer, mask, ir.Constant(llvm_type(storage), None), size)
        return builder.select(mask, widened(Value(builder, stored, storage), otherwise.dtype).llvm, arguments[3])

    return otherwise(run, types.intp, types.intp if partly else types.none, otherwise), build


@intrinsic
def write(typing, run, i, count, value):
    """The reverse of `read`; nothing where there is no output."""
    kind, lanes, partly = run[0], value.lanes, count != types.none

    def build(context, builder, signature, arguments):
        if kind != types.none:
            pointer = _address(context, builder, kind, arguments[0], arguments[1], lanes)
            stored, size = narrowed(Value(builder, arguments[3], value), kind.dtype), kind.dtype.bitwidth // 8
            if partly:
                masked_store(builder, stored.llvm, pointer, first_lanes(builder, arguments[2], lanes), size)
            else:
                builder.store(stored.llvm, pointer, align=size)
        return context.get_dummy_value()

    return types.void(run, types.intp, types.intp if partly else types.none, value), build
