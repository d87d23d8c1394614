"""Memory inside a user's function: scratch on the stack, operands as the kernels take them, and what overlaps."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np import arrayobj

from ..cpu.blocks import AXES, CLASS_STRIDE, OFFSET, SIZES
from ..cpu.compile import InlineCompiler

# The flags of what runs around the kernels, whatever those of the user's function are. What allocates nothing counts
# no references (`_nrt`): some of them take as long as a short row. Only intrinsics give arrays back there.
FLAGS: dict[str, Any] = {"fastmath": set(), "error_model": "numpy", "nogil": True, "pipeline_class": InlineCompiler}
GLUE = {**FLAGS, "_nrt": False}
glue = njit(**GLUE)

GEOMETRY = SIZES + 2  # numbers, of one batch axis
ALIGNED = 64  # bytes: a vector
I64 = ir.IntType(64)


def _array(context, builder, kind, data, shape):
    """An array over memory that somebody else owns."""
    result = arrayobj.make_array(kind)(context, builder)
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    steps = [size]
    for n in reversed(shape[1:]):
        steps.insert(0, steps[0] * n)
    arrayobj.populate_array(
        result,
        data=data,
        shape=cgutils.pack_array(builder, [n if isinstance(n, ir.Value) else ir.Constant(I64, n) for n in shape]),
        strides=cgutils.pack_array(builder, [ir.Constant(I64, s) for s in steps]),
        itemsize=ir.Constant(I64, size),
        meminfo=None,
    )
    return result._getvalue()


def _on_stack(typing, shape, dtype):
    kind = types.Array(dtype.dtype, len(shape), "C")

    def build(context, builder, signature, arguments):
        data = cgutils.alloca_once(builder, context.get_data_type(kind.dtype), size=int(np.prod(shape)))
        data.align = ALIGNED
        return _array(context, builder, kind, data, shape)

    return kind, build


# Of the function that asks for it, and gone when that returns: never to be handed out.


@intrinsic(prefer_literal=True)
def stack(typing, count, dtype):
    """`count` (a constant) numbers of `dtype` on the stack, of whatever value."""
    kind, build = _on_stack(typing, (count.literal_value,), dtype)
    return kind(count, dtype), build


@intrinsic(prefer_literal=True)
def stack_row(typing, count, dtype):
    """`stack` of shape ``(1, count)``."""
    kind, build = _on_stack(typing, (1, count.literal_value), dtype)
    return kind(count, dtype), build


def _data(context, builder, kind, array):
    return arrayobj.make_array(kind)(context, builder, array).data


@intrinsic
def memory(typing, array, low, count):
    """`count` elements of an array's memory from `low` elements before (below 0) or behind its first, in a line; of
    none, none.

    Writeable, too, where the array is read-only: Numba types such arrays apart, and every kernel would be compiled
    twice. No kernel writes an operand.
    """
    if isinstance(array, types.NoneType):
        return _same_as(0)(array, types.intp, types.intp)
    kind = types.Array(array.dtype, 1, "C")

    def build(context, builder, signature, arguments):
        data = builder.gep(_data(context, builder, array, arguments[0]), [arguments[1]])
        return _array(context, builder, kind, data, [arguments[2]])

    return kind(array, types.intp, types.intp), build


@intrinsic
def line_of(typing, values, start, count, room):
    """`count` numbers of rows from `start` on, in a line: in `values` if they lie so there, else from the start of
    `room`; of none, no number."""
    if isinstance(values, types.Array) and in_line(values, room.dtype):

        def build(context, builder, signature, arguments):
            data = builder.gep(_data(context, builder, values, arguments[0]), [arguments[1]])
            return _array(context, builder, room, data, [arguments[2]])

    else:
        none = isinstance(values, types.NoneType)

        def build(context, builder, signature, arguments):
            count = ir.Constant(I64, 0) if none else arguments[2]
            return _array(context, builder, room, _data(context, builder, room, arguments[3]), [count])

    return room(values, types.intp, types.intp, room), build


@intrinsic
def beside(typing, array, value):
    """`value`, or none where there is no array."""
    return _same_as(0 if isinstance(array, types.NoneType) else 1)(array, value)


def _same_as(position):
    """An intrinsic that gives one of its arguments back."""

    def build(context, builder, signature, arguments):
        return arguments[position]

    return lambda *kinds: (kinds[position](*kinds), build)


@intrinsic
def address(typing, array):
    """Where an array's first element lies."""

    def build(context, builder, signature, arguments):
        return builder.ptrtoint(_data(context, builder, array, arguments[0]), I64)

    return types.intp(array), build


@glue
def reach(array):
    """How many bytes before and behind its first element an array's memory goes, that element apart."""
    low, high = 0, 0
    for axis in range(array.ndim):
        far = (array.shape[axis] - 1) * array.strides[axis]
        low, high = low + min(far, 0), high + max(far, 0)
    return low, high


def in_whole_elements(array):
    """Whether no stride ends amid an element, as it can in records; there is none where there is no array."""
    raise NotImplementedError("compiled code only")


@overload(in_whole_elements, jit_options=GLUE)
def _in_whole_elements(array):
    if not isinstance(array, types.Array) or array.layout == "C":
        return lambda array: True

    def look(array):
        whole = True
        for axis in range(array.ndim):
            whole &= array.strides[axis] % array.itemsize == 0
        return whole

    return look


def lies(array, n, geometry):
    """Where the memory of an array of shape ``(n, k)``, or of one row for all of them, ``(k,)``, begins before its
    first element, and how many elements it has; into `geometry` how they lie there: what `cpu.operands` makes of
    NumPy's arrays."""
    raise NotImplementedError("compiled code only")


@overload(lies, jit_options=GLUE)
def _lies(array, n, geometry):
    if isinstance(array, types.NoneType):
        return lambda array, n, geometry: (0, 0)

    def look(array, n, geometry):
        low, high = reach(array)
        size = array.itemsize
        geometry[CLASS_STRIDE] = array.strides[array.ndim - 1] // size
        geometry[OFFSET], geometry[AXES], geometry[SIZES] = -low // size, 1, n
        geometry[SIZES + 1] = array.strides[0] // size if array.ndim == 2 and array.shape[0] == n else 0
        return low // size, (high - low) // size + 1

    return look


# --- an output and what it may not touch ------------------------------------------------------------


@glue
def extent(array):
    """Where an array's memory begins and ends."""
    low, high = reach(array)
    return address(array) + low, address(array) + high + array.itemsize


@glue
def _overlap(a, b):
    (a_start, a_end), (b_start, b_end) = extent(a), extent(b)
    return a.size > 0 and b.size > 0 and a_start < b_end and b_start < a_end


def overlap(a, b):
    """Whether the memory that two arrays lie in has a part in common; never where one of them is none."""
    raise NotImplementedError("compiled code only")


@overload(overlap, jit_options=GLUE)
def _overlap_of(a, b):
    if isinstance(a, types.Array) and isinstance(b, types.Array):
        return lambda a, b: _overlap(a, b)
    return lambda a, b: False


def same(a, b):
    """Whether two arrays are the same elements at the same places."""
    raise NotImplementedError("compiled code only")


@overload(same, jit_options=GLUE)
def _same(a, b):
    if isinstance(a, types.Array) and isinstance(b, types.Array) and a.dtype == b.dtype and a.ndim == b.ndim:
        return lambda a, b: address(a) == address(b) and a.shape == b.shape and a.strides == b.strides
    return lambda a, b: False


# --- numbers of the rows ----------------------------------------------------------------------------
# Kernels take labels as int64 and weights as float64 in a line. What comes otherwise is converted, some rows at a time.


def in_line(kind, dtype):
    """Whether kernels read, or write, the numbers of rows of this type where they are."""
    return not isinstance(kind, types.Array) or (kind.layout == "C" and kind.dtype == dtype)


def number_at(values, i):
    """The label, as int64, or the weight, as float64, of row `i`; of no weights 1."""
    raise NotImplementedError("compiled code only")


@overload(number_at, jit_options=GLUE)
def _number_at(values, i):
    if isinstance(values, types.NoneType):
        return lambda values, i: 1.0
    if isinstance(values, types.Array):
        return lambda values, i: number(values[i])
    return lambda values, i: number(values)


def number(value):
    """A label as int64 (beyond it, the largest: no class either), a weight as float64."""
    raise NotImplementedError("compiled code only")


@overload(number, jit_options=GLUE)
def _number(value):
    if value == types.uint64:
        return lambda value: np.int64(min(value, np.uint64(2**63 - 1)))
    if isinstance(value, types.Integer):
        return lambda value: np.int64(value)
    return lambda value: np.float64(value)


def convert(values, start, count, room):
    """Bring the numbers of rows into `room`, as its dtype, unless they lie in a line of it: see `line_of`."""
    raise NotImplementedError("compiled code only")


@overload(convert, jit_options=GLUE)
def _convert(values, start, count, room):
    if isinstance(values, types.NoneType) or (isinstance(values, types.Array) and in_line(values, room.dtype)):
        return lambda values, start, count, room: None

    def fill(values, start, count, room):
        for i in range(count):
            room[i] = number_at(values, start + i)

    return fill


def deliver(values, start, count, room):
    """Bring results from `room` to where they belong, if they are not there."""
    raise NotImplementedError("compiled code only")


@overload(deliver, jit_options=GLUE)
def _deliver(values, start, count, room):
    if in_line(values, room.dtype):
        return lambda values, start, count, room: None

    def copy(values, start, count, room):
        for i in range(count):
            values[start + i] = room[i]

    return copy
