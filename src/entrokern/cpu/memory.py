"""Vectors to and from memory: whole or in part, widened from any storage type.

16-bit floats are stored as integers of two types (float16: int16, bfloat16: uint16) and become float32
in registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from .compile import inline
from .simd import LLVM, Value, Vector, emitted, llvm_type, machine_has, select, suffix, vector_of

FLOAT16, BFLOAT16 = types.int16, types.uint16
I16, I32 = ir.IntType(16), ir.IntType(32)


@emitted
def vector(number: Value) -> Value:
    """A scalar in every lane of a vector of its type."""
    return number.splat(vector_of(number.dtype))


@intrinsic
def width(typing, like):
    """How many lanes a vector has."""

    def build(context, builder, signature, arguments):
        return context.get_constant(types.intp, like.lanes)

    return types.intp(like), build


@intrinsic
def first_mask(typing, count, like):
    """A mask of the first `count` lanes."""

    def build(context, builder, signature, arguments):
        return first_lanes(builder, arguments[0], like.lanes)

    return Vector(types.boolean, like.lanes)(types.intp, like), build


# --- 16-bit floats --------------------------------------------------------------------------------


def _has_half() -> bool:
    """Whether the machine converts float16 in one instruction."""
    return machine_has("f16c", "aarch64", "arm64")


def _bits32(stored: Value) -> Value:
    return stored.like(stored.builder.zext(stored.llvm, llvm_type(Vector(types.int32, stored.kind.lanes))), types.int32)


def widened(stored: Value, dtype: Any) -> Value:
    """What was stored, as numbers of type `dtype`."""
    if stored.dtype == BFLOAT16:
        stored = (_bits32(stored) << 16).as_float()
    elif stored.dtype == FLOAT16:
        stored = _half_widened(stored)
    return stored.converted(dtype)


def _half_widened(stored: Value) -> Value:
    builder, lanes = stored.builder, stored.kind.lanes
    if _has_half():
        half = builder.bitcast(stored.llvm, ir.VectorType(ir.HalfType(), lanes))
        return stored.like(builder.fpext(half, ir.VectorType(LLVM[types.float32], lanes)), types.float32)
    u = _bits32(stored)
    magnitude = (u & 0x7FFF) << 13
    # Multiplying by 2^112 moves the exponent's bias, and makes subnormal halves normal.
    value = magnitude.as_float() * 2.0**112
    special = (magnitude | 0x7F800000).as_float()  # inf and NaN
    value = select(magnitude >= 0x0F800000, special, value)
    return (value.bits() | ((u & 0x8000) << 16)).as_float()


def narrowed(value: Value, storage: Any) -> Value:
    """Numbers as they are stored."""
    if storage == BFLOAT16:
        value = value.converted(types.float32)
        u = value.bits()
        odd = (u >> 16) & 1
        u = select(value == value, (u + 0x7FFF + odd) >> 16, u.constant(0x7FC0))
        return value.like(value.builder.trunc(u.llvm, ir.VectorType(I16, value.kind.lanes)), BFLOAT16)
    if storage == FLOAT16:
        return _half_narrowed(value.converted(types.float32))
    return value.converted(storage)


def _half_narrowed(value: Value) -> Value:
    builder, lanes = value.builder, value.kind.lanes
    if _has_half():
        half = builder.fptrunc(value.llvm, ir.VectorType(ir.HalfType(), lanes))
        return value.like(builder.bitcast(half, ir.VectorType(I16, lanes)), FLOAT16)
    u = value.bits()
    sign = (u >> 16) & 0x8000
    magnitude = u & 0x7FFFFFFF
    odd = (magnitude >> 13) & 1
    normal = (magnitude - 0x38000000 + 0xFFF + odd) >> 13
    # Adding 1/2 aligns a subnormal half with the last bits of a float32 and rounds it on the way.
    subnormal = (magnitude.as_float() + 0.5).bits() - 0x3F000000
    half = select(magnitude < 0x38800000, subnormal, normal)
    half = select(magnitude >= 0x47800000, half.constant(0x7C00), half)
    half = select(value != value, half.constant(0x7E00), half) | sign
    return value.like(builder.trunc(half.llvm, ir.VectorType(I16, lanes)), FLOAT16)


# --- loads and stores -----------------------------------------------------------------------------


def _storage_vector(array: Any, lanes: int) -> Vector:
    return Vector(array.dtype, lanes)


def element_pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, lanes: int) -> Any:
    """The address of element `index` as that of a vector."""
    data = arrayobj.make_array(kind)(context, builder, array).data
    at = builder.gep(data, [index])
    return builder.bitcast(at, ir.VectorType(at.type.pointee, lanes).as_pointer())


def first_lanes(builder: Any, count: Any, lanes: int) -> Any:
    """A mask of the first `count` lanes."""
    numbers = ir.VectorType(I32, lanes)
    iota = ir.Constant(numbers, [ir.Constant(I32, i) for i in range(lanes)])
    one = builder.insert_element(ir.Constant(numbers, ir.Undefined), builder.trunc(count, I32), ir.Constant(I32, 0))
    every = builder.shuffle_vector(one, ir.Constant(numbers, ir.Undefined), ir.Constant(numbers, None))
    return builder.icmp_signed("<", iota, every)


def element_size(kind: Any) -> int:
    return int(kind.dtype.bitwidth // 8)


def masked_load(builder: Any, pointer: Any, mask: Any, fill: Any, size: int) -> Any:
    kind = pointer.type.pointee
    signature = ir.FunctionType(kind, [pointer.type, I32, mask.type, kind])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.load.{suffix(kind)}.p0")
    return builder.call(function, [pointer, ir.Constant(I32, size), mask, fill])


def masked_store(builder: Any, value: Any, pointer: Any, mask: Any, size: int) -> None:
    signature = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, I32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.store.{suffix(value.type)}.p0")
    builder.call(function, [value, pointer, ir.Constant(I32, size), mask])


@intrinsic
def load(typing, x, i, like):
    """As many elements of `x` from `i` as the vector `like` has lanes, as numbers of its type."""

    def build(context, builder, signature, arguments):
        kind = signature.args[0]
        pointer = element_pointer(context, builder, kind, arguments[0], arguments[1], like.lanes)
        stored = Value(builder, builder.load(pointer, align=element_size(kind)), _storage_vector(kind, like.lanes))
        return widened(stored, like.dtype).llvm

    return like(x, types.intp, like), build


@intrinsic
def load_first(typing, x, i, count, fill):
    """`load` of the first `count` elements only; the other lanes are those of `fill`."""

    def build(context, builder, signature, arguments):
        kind, like = signature.args[0], fill
        pointer = element_pointer(context, builder, kind, arguments[0], arguments[1], like.lanes)
        mask = first_lanes(builder, arguments[2], like.lanes)
        storage = _storage_vector(kind, like.lanes)
        if kind.dtype == like.dtype:
            return masked_load(builder, pointer, mask, arguments[3], element_size(kind))
        nothing = ir.Constant(llvm_type(storage), None)
        stored = Value(builder, masked_load(builder, pointer, mask, nothing, element_size(kind)), storage)
        return builder.select(mask, widened(stored, like.dtype).llvm, arguments[3])

    return fill(x, types.intp, types.intp, fill), build


@intrinsic
def store(typing, x, i, value):
    """Write all lanes to `x` from `i` on, in its storage type."""

    def build(context, builder, signature, arguments):
        kind = signature.args[0]
        pointer = element_pointer(context, builder, kind, arguments[0], arguments[1], value.lanes)
        stored = narrowed(Value(builder, arguments[2], value), kind.dtype)
        builder.store(stored.llvm, pointer, align=element_size(kind))
        return context.get_dummy_value()

    return types.void(x, types.intp, value), build


@intrinsic
def store_first(typing, x, i, count, value):
    """`store` of the first `count` lanes only."""

    def build(context, builder, signature, arguments):
        kind = signature.args[0]
        pointer = element_pointer(context, builder, kind, arguments[0], arguments[1], value.lanes)
        stored = narrowed(Value(builder, arguments[3], value), kind.dtype)
        mask = first_lanes(builder, arguments[2], value.lanes)
        masked_store(builder, stored.llvm, pointer, mask, element_size(kind))
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, value), build


# Loads in part do not wake the machine's prefetcher: along an array, whole vectors are loaded whole.


@inline
def load_next(x, i, count, fill):
    """`load_first`, where most often all lanes are wanted."""
    return load(x, i, fill) if count >= width(fill) else load_first(x, i, count, fill)


@inline
def store_next(x, i, count, value):
    """`store_first`, where most often all lanes are wanted."""
    if count >= width(value):
        store(x, i, value)
    else:
        store_first(x, i, count, value)


@intrinsic
def stream(typing, x, i, value):
    """`store` past the caches to an address that is a multiple of the vector's size: nothing is read first."""

    def build(context, builder, signature, arguments):
        kind = signature.args[0]
        pointer = element_pointer(context, builder, kind, arguments[0], arguments[1], value.lanes)
        stored = narrowed(Value(builder, arguments[2], value), kind.dtype)
        write = builder.store(stored.llvm, pointer, align=element_size(kind) * value.lanes)
        write.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
        return context.get_dummy_value()

    return types.void(x, types.intp, value), build


@intrinsic
def fence(typing):
    """Make what was streamed visible to other threads."""

    def build(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def until_aligned(typing, x, i, like):
    """How many elements lie between `i` and the next multiple of a vector's size in memory."""

    def build(context, builder, signature, arguments):
        kind = signature.args[0]
        size, i64 = element_size(kind), ir.IntType(64)
        address = builder.ptrtoint(element_pointer(context, builder, kind, arguments[0], arguments[1], 1), i64)
        missing = builder.and_(builder.neg(address), ir.Constant(i64, size * like.lanes - 1))
        return builder.udiv(missing, ir.Constant(i64, size))

    return types.intp(x, types.intp, like), build


@inline
def copy_out(work, n, out, at, like, streaming):
    """The first `n` elements of `work` to `out` from `at` on; `streaming`: past the caches."""
    w, i = width(like), 0
    if streaming:
        i = min(n, until_aligned(out, at, like))
        if i > 0:
            store_first(out, at, i, load(work, 0, like))
        while i + w <= n:
            stream(out, at + i, load(work, i, like))
            i += w
    while i + w <= n:
        store(out, at + i, load(work, i, like))
        i += w
    if i < n:
        store_first(out, at + i, n - i, load(work, i, like))


def _prefetch(write):
    @intrinsic
    def ask(typing, x, i):
        def build(context, builder, signature, arguments):
            pointer = element_pointer(context, builder, signature.args[0], arguments[0], arguments[1], 1)
            pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())  # one type for arrays of all types
            kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(function, [pointer, *(ir.Constant(I32, c) for c in (write, 3, 1))])
            return context.get_dummy_value()

        return types.void(x, types.intp), build

    return ask


# Ask for the cache line of element `i`, which may lie beyond the end of `x`. Loads in part and of many
# short rows do not wake the machine's own prefetcher.
prefetch, prefetch_to_write = _prefetch(0), _prefetch(1)
