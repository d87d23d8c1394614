"""Memory as kernels see it: strided operands in, contiguous blocks of the compute type out.

An operand is a flat array over its whole memory and a small integer array, its geometry: the class
stride, the offset of the first element, and shape and stride of each batch axis. Whatever the layout
or dtype, arithmetic runs over contiguous blocks; `stage` says how a block comes about: ``None`` reads
contiguous rows of the compute type in place, a scratch array receives a converted copy.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from .compile import inline, overload
from .math import bits32, exp, float32_of
from .simd import magnitude

BLOCK = 1024  # elements: small enough that several fit in L1, long enough to hide the loop's ends

# geometry = [class stride, offset, number of batch axes, their sizes …, their strides …]
CLASS_STRIDE, OFFSET, AXES, SIZES = 0, 1, 2, 3


def _build_view(context, builder, kind, array, start, n):
    """A view of `n` elements from `start`: a pointer and a length, without checks or reference counts."""
    source = arrayobj.make_array(kind)(context, builder, array)
    result = arrayobj.make_array(kind)(context, builder)
    size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    arrayobj.populate_array(
        result,
        data=builder.gep(source.data, [start]),
        shape=cgutils.pack_array(builder, [n]),
        strides=cgutils.pack_array(builder, [size]),
        itemsize=size,
        meminfo=None,
    )
    return result._getvalue()


@intrinsic
def view(typing, array, start, n):
    """``array[start : start + n]`` of a contiguous 1-d array, for bounds known to be right.

    Loops must index views from 0: for ``array[start + i]`` Numba allows a negative index, which makes
    LLVM gather element by element instead of loading vectors.
    """

    def build(context, builder, signature, arguments):
        return _build_view(context, builder, signature.return_type, *arguments)

    return array(array, types.intp, types.intp), build


@intrinsic
def slot_of(typing, stage, number, n):
    """The first `n` elements of slot `number` of a scratch array."""

    def build(context, builder, signature, arguments):
        scratch, at, length = arguments
        offset = builder.mul(at, context.get_constant(types.intp, BLOCK))
        return _build_view(context, builder, signature.return_type, scratch, offset, length)

    return stage(stage, types.intp, types.intp), build


@intrinsic
def block_of(typing, x, start, n, stage, slot):
    """The block that `load` has read: in `x` itself, or in slot `slot` of `stage`."""
    staged = not isinstance(stage, types.NoneType)

    def build(context, builder, signature, arguments):
        in_place, at, length, scratch, number = arguments
        if not staged:
            return _build_view(context, builder, signature.return_type, in_place, at, length)
        offset = builder.mul(number, context.get_constant(types.intp, BLOCK))
        return _build_view(context, builder, signature.return_type, scratch, offset, length)

    return (stage if staged else x)(x, types.intp, types.intp, stage, types.intp), build


@inline
def row_start(geometry, row):
    """Where row number `row` (in C order of the batch) begins in the flat array."""
    axes = geometry[AXES]
    offset = geometry[OFFSET]
    if axes == 1:
        return offset + row * geometry[SIZES + 1]
    for axis in range(axes - 1, -1, -1):
        size = geometry[SIZES + axis]
        offset += (row % size) * geometry[SIZES + axes + axis]
        row //= size
    return offset


# --- 16-bit floats: float16 arrives as int16, bfloat16 as uint16, so that their types differ --------


@inline
def _widen_bfloat16(bits):
    return float32_of(np.uint32(bits) << np.uint32(16))


@inline
def _widen_float16(bits):
    u = np.uint32(np.uint16(bits))
    magnitude = (u & np.uint32(0x7FFF)) << np.uint32(13)
    # Multiplying by 2^112 moves the exponent's bias, and makes subnormal halves normal.
    value = float32_of(magnitude) * np.float32(5.192296858534828e33)
    special = float32_of(magnitude | np.uint32(0x7F800000))  # inf and NaN
    value = special if magnitude >= np.uint32(0x0F800000) else value
    return float32_of(bits32(value) | ((u & np.uint32(0x8000)) << np.uint32(16)))


@inline
def _narrow_bfloat16(value):
    u = bits32(value)
    nearest_even = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(nearest_even if value == value else np.uint32(0x7FC0))


@inline
def _narrow_float16(value):
    u = bits32(value)
    sign = (u >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = u & np.uint32(0x7FFFFFFF)
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    normal = (magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    # Adding 1/2 aligns a subnormal half with the last bits of a float32 and rounds it on the way.
    subnormal = bits32(float32_of(magnitude) + np.float32(0.5)) - np.uint32(0x3F000000)
    half = subnormal if magnitude < np.uint32(0x38800000) else normal
    half = np.uint32(0x7C00) if magnitude >= np.uint32(0x47800000) else half
    half = np.uint32(0x7E00) if value != value else half
    return np.int16(half | sign)


def widen(value):
    """A stored element as a number."""
    raise NotImplementedError("compiled code only")


@overload(widen)
def _widen(value):
    if value == types.int16:
        return lambda value: _widen_float16(value)
    if value == types.uint16:
        return lambda value: _widen_bfloat16(value)
    return lambda value: value


def narrow(value, like):
    """A number as an element of the storage type of the array `like`."""
    raise NotImplementedError("compiled code only")


@overload(narrow)
def _narrow(value, like):
    if like.dtype == types.int16:
        return lambda value, like: _narrow_float16(np.float32(value))
    if like.dtype == types.uint16:
        return lambda value, like: _narrow_bfloat16(np.float32(value))
    return lambda value, like: value


# --- blocks ---------------------------------------------------------------------------------------


@inline
def soft_capped(value, cap):
    """``c·tanh(x/c)``; -inf stays -inf, so that a class can be masked."""
    return value if value == -np.inf else cap * math.tanh(value / cap)


@inline
def through_softcap(values, x, start, stride, cap):
    """The chain rule for ``c·tanh(x/c)``: ``1 - tanh²`` is ``4u/(1+u)²`` with ``u = e^(-2|x|/c)``.

    From `x` as given: of the capped value only the last digits would tell, where it is near the cap.
    """
    for i in range(values.size):
        u = exp(-2.0 * magnitude(np.float64(widen(x[start + i * stride]))) / cap)
        values[i] *= 4.0 * u / ((1.0 + u) * (1.0 + u))


@inline
def _fill(x, start, stride, block, cap):
    if stride == 1:
        source = view(x, start, block.size)
        for i in range(block.size):
            block[i] = widen(source[i])
    else:
        for i in range(block.size):
            block[i] = widen(x[start + i * stride])
    if cap > 0.0:
        for i in range(block.size):
            block[i] = soft_capped(block[i], cap)


def load(x, start, stride, n, cap, stage, slot):
    """Make `n` elements of `x` from `start` ready as the block `slot`: see `block_of`."""
    raise NotImplementedError("compiled code only")


@overload(load)
def _load(x, start, stride, n, cap, stage, slot):
    if stage == types.none:
        return lambda x, start, stride, n, cap, stage, slot: None

    def staged(x, start, stride, n, cap, stage, slot):
        _fill(x, start, stride, view(stage, slot * BLOCK, n), cap)

    return staged


def load_one(x, at, cap, like):
    """The element at `at` as the compute type of the array `like` (or `x`'s own for None)."""
    raise NotImplementedError("compiled code only")


@overload(load_one)
def _load_one(x, at, cap, like):
    if like == types.none:
        return lambda x, at, cap, like: widen(x[at])
    compute = like.dtype

    def staged(x, at, cap, like):
        value = compute(widen(x[at]))
        return compute(soft_capped(value, cap)) if cap > 0.0 else value

    return staged


@inline
def store(block, out, start, stride):
    """Write a block to `out` from `start` on, in its storage type."""
    if stride == 1:
        target = view(out, start, block.size)
        for i in range(block.size):
            target[i] = narrow(block[i], out)
    else:
        for i in range(block.size):
            out[start + i * stride] = narrow(block[i], out)


@inline
def store_constant(value, n, out, start, stride):
    for i in range(n):
        out[start + i * stride] = narrow(value, out)
