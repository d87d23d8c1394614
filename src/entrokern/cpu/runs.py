"""Runs of elements next to each other: whole vectors in place where memory allows, else a copy of a block.

The elementwise kernels take an operand as ``(flat, geometry, spare)`` (or None), where `spare` holds a
block of the same storage type: what lies scattered is gathered into it as it is stored, and widened on
the way into registers like anything else.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .blocks import AXES, CLASS_STRIDE, SIZES, row_start
from .compile import inline
from .memory import _pointer as vector_pointer
from .memory import first_lanes, load, load_first, store, store_first
from .simd import Value, Vector, emitted

RUN = 1024  # elements of a block at most


# --- from operands to runs ------------------------------------------------------------------------


@inline
def in_line(geometry, rows, n):
    """Whether `n` columns of each of `rows` rows lie next to each other."""
    return geometry[CLASS_STRIDE] == 1 and (rows == 1 or (geometry[AXES] == 1 and geometry[SIZES + 1] == n))


@inline
def _gathered(operand, row, rows, column, n):
    flat, geometry, spare = operand
    stride = geometry[CLASS_STRIDE]
    if in_line(geometry, rows, n):
        return flat, row_start(geometry, row) + column
    for r in range(rows):
        start = row_start(geometry, row + r) + column * stride
        for c in range(n):
            spare[r * n + c] = flat[start + c * stride]
    return spare, 0


@inline
def _placed(operand, row, rows, column, n):
    flat, geometry, spare = operand
    if in_line(geometry, rows, n):
        return flat, row_start(geometry, row) + column
    return spare, 0


def gathered(operand, row, rows, column, n):
    """Columns ``column … column + n - 1`` of `rows` rows as a run: an array, and where in it the run begins.

    More than one row is taken only where `n` columns are all of them.
    """
    raise NotImplementedError("compiled code only")


def placed(operand, row, rows, column, n):
    """Where a run of results goes: into the output itself, or first into its spare block (see `scattered`)."""
    raise NotImplementedError("compiled code only")


def _unless_none(function, compiled):
    @overload(function)
    def choose(operand, row, rows, column, n):
        if operand == types.none:
            return lambda operand, row, rows, column, n: (None, 0)
        return lambda operand, row, rows, column, n: compiled(operand, row, rows, column, n)


_unless_none(gathered, _gathered)
_unless_none(placed, _placed)


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


def lanes_of(vector):
    """How many numbers a vector holds."""
    raise NotImplementedError("compiled code only")


@overload(lanes_of)
def _lanes_of(vector):
    lanes = vector.lanes
    return lambda vector: lanes


@intrinsic
def within(typing, count, like):
    """A mask of the first `count` lanes."""

    def build(context, builder, signature, arguments):
        return first_lanes(builder, arguments[0], like.lanes)

    return Vector(types.boolean, like.lanes)(types.intp, like), build


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
def sums_by_lane(typing, tile, like):
    """The sums of as many vectors, one after the other in `tile`, as each has lanes: one sum in each lane."""

    def build(context, builder, signature, arguments):
        kind, lanes = signature.args[0], like.lanes
        rows = []
        for r in range(lanes):
            at = ir.Constant(ir.IntType(64), r * lanes)
            pointer = vector_pointer(context, builder, kind, arguments[0], at, lanes)
            rows.append(Value(builder, builder.load(pointer, align=kind.dtype.bitwidth // 8), like))
        step = 1
        while len(rows) > 1:
            # Of every two vectors: neighbours (at a distance of `step`) of the one added up in lanes without the
            # bit `step`, those of the other in lanes with it.
            low = [i if not i & step else lanes + (i ^ step) for i in range(lanes)]
            high = [(i | step) if not i & step else lanes + i for i in range(lanes)]
            pairs = zip(rows[0::2], rows[1::2], strict=True)
            rows = [a.shuffled(b, low) + a.shuffled(b, high) for a, b in pairs]
            step *= 2
        return rows[0].llvm

    return like(tile, like), build


def read(run, i, count, otherwise):
    """A vector from element `i` of a run on; `otherwise` in lanes beyond `count`, and where there is no operand."""
    raise NotImplementedError("compiled code only")


@overload(read)
def _read(run, i, count, otherwise):
    if run[0] == types.none:
        return lambda run, i, count, otherwise: otherwise
    if count == types.none:
        return lambda run, i, count, otherwise: load(run[0], run[1] + i, otherwise)
    return lambda run, i, count, otherwise: load_first(run[0], run[1] + i, count, otherwise)


def write(run, i, count, value):
    """The reverse of `read`; nothing where there is no output."""
    raise NotImplementedError("compiled code only")


@overload(write)
def _write(run, i, count, value):
    if run[0] == types.none:
        return lambda run, i, count, value: None
    if count == types.none:
        return lambda run, i, count, value: store(run[0], run[1] + i, value)
    return lambda run, i, count, value: store_first(run[0], run[1] + i, count, value)
