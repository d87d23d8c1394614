"""Vectors as values: what a kernel writes is what the machine runs, not what a vectoriser may make of it.

A `Vector` is 64 bytes of numbers (16 float32, 8 float64), one register with AVX-512 and several of a
narrower machine: LLVM splits what does not fit. `Value` wraps an LLVM value so that arithmetic on it
emits instructions; `emitted` makes a Python function of such values callable from compiled code, for
scalars and vectors alike. Memory is in `memory.py`, mathematics in `math.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, register_model

BYTES = 64


class Vector(types.Type):
    """`lanes` numbers of type `dtype` (or booleans: a mask)."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"vector({dtype} x {lanes})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.lanes))


def vector_of(dtype: Any) -> Vector:
    return Vector(dtype, BYTES * 8 // dtype.bitwidth)


LLVM = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.boolean: ir.IntType(1),
    types.int16: ir.IntType(16),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
}
INTEGER_OF = {types.float32: types.int32, types.float64: types.int64}


def llvm_type(kind: Any) -> Any:
    if isinstance(kind, Vector):
        return ir.VectorType(llvm_type(kind.dtype), kind.lanes)
    return LLVM[kind] if kind in LLVM else ir.IntType(kind.bitwidth)


def suffix(llvm: Any) -> str:
    """How LLVM's intrinsics call a type."""
    if isinstance(llvm, ir.VectorType):
        return f"v{llvm.count}{suffix(llvm.element)}"
    return {"float": "f32", "double": "f64"}.get(str(llvm), str(llvm))


class Value:
    """An LLVM value with its Numba type; operators emit instructions.

    Products and sums may be contracted to fused multiply-adds; nothing else may be reordered or assumed.
    """

    __slots__ = ("builder", "kind", "llvm")

    def __init__(self, builder: Any, llvm: Any, kind: Any) -> None:
        self.builder, self.llvm, self.kind = builder, llvm, kind

    # --- types ---

    @property
    def dtype(self) -> Any:
        return self.kind.dtype if isinstance(self.kind, Vector) else self.kind

    @property
    def floating(self) -> bool:
        return isinstance(self.dtype, types.Float)

    def like(self, llvm: Any, dtype: Any = None) -> Value:
        """`llvm` as a value of this one's shape."""
        dtype = self.dtype if dtype is None else dtype
        kind = Vector(dtype, self.kind.lanes) if isinstance(self.kind, Vector) else dtype
        return Value(self.builder, llvm, kind)

    def constant(self, number: Any) -> Value:
        """A number as a value of this one's type."""
        element = LLVM[self.dtype]
        if isinstance(self.kind, Vector):
            one = ir.Constant(element, number)
            return self.like(ir.Constant(llvm_type(self.kind), [one] * self.kind.lanes))
        return self.like(ir.Constant(element, number))

    def converted(self, dtype: Any) -> Value:
        """The numbers as another type."""
        builder, old = self.builder, self.dtype
        if old == dtype:
            return self
        kind = Vector(dtype, self.kind.lanes) if isinstance(self.kind, Vector) else dtype
        target = llvm_type(kind)
        if self.floating and isinstance(dtype, types.Float):
            op = builder.fpext if dtype.bitwidth > old.bitwidth else builder.fptrunc
        elif self.floating:
            op = builder.fptosi
        elif isinstance(dtype, types.Float):
            op = builder.uitofp if old == types.boolean or not getattr(old, "signed", True) else builder.sitofp
        elif dtype.bitwidth < old.bitwidth:
            op = builder.trunc
        else:
            op = builder.zext if old == types.boolean or not getattr(old, "signed", True) else builder.sext
        return Value(builder, op(self.llvm, target), kind)

    def splat(self, kind: Vector) -> Value:
        """A scalar in every lane."""
        one, builder = self.converted(kind.dtype), self.builder
        target = llvm_type(kind)
        first = builder.insert_element(ir.Constant(target, ir.Undefined), one.llvm, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), None)
        return Value(builder, builder.shuffle_vector(first, ir.Constant(target, ir.Undefined), zeros), kind)

    def _paired(self, other: Any) -> tuple[Value, Value]:
        if not isinstance(other, Value):
            return self, self.constant(other)
        if isinstance(self.kind, Vector):
            return self, other if isinstance(other.kind, Vector) else other.splat(self.kind)
        if isinstance(other.kind, Vector):
            return self.splat(other.kind), other
        return self, other.converted(self.dtype)

    # --- arithmetic ---

    def _arithmetic(self, other: Any, floating: str, integer: str) -> Value:
        a, b = self._paired(other)
        if a.floating:
            return a.like(getattr(a.builder, floating)(a.llvm, b.llvm, flags=("contract",)))
        return a.like(getattr(a.builder, integer)(a.llvm, b.llvm))

    def __add__(self, other: Any) -> Value:
        return self._arithmetic(other, "fadd", "add")

    def __sub__(self, other: Any) -> Value:
        return self._arithmetic(other, "fsub", "sub")

    def __mul__(self, other: Any) -> Value:
        return self._arithmetic(other, "fmul", "mul")

    def __truediv__(self, other: Any) -> Value:
        return self._arithmetic(other, "fdiv", "sdiv")

    def __radd__(self, other: Any) -> Value:
        return self + other

    def __rmul__(self, other: Any) -> Value:
        return self * other

    def __rsub__(self, other: Any) -> Value:
        return self.constant(other) - self

    def __rtruediv__(self, other: Any) -> Value:
        return self.constant(other) / self

    def __neg__(self) -> Value:
        return self.like(self.builder.fneg(self.llvm))

    # --- comparisons: masks; false where either is NaN, but for != ---

    def _compared(self, op: str, other: Any) -> Value:
        a, b = self._paired(other)
        if a.floating:
            compare = a.builder.fcmp_unordered if op == "!=" else a.builder.fcmp_ordered
        else:
            compare = a.builder.icmp_signed
        return a.like(compare(op, a.llvm, b.llvm), types.boolean)

    def __lt__(self, other: Any) -> Value:
        return self._compared("<", other)

    def __le__(self, other: Any) -> Value:
        return self._compared("<=", other)

    def __gt__(self, other: Any) -> Value:
        return self._compared(">", other)

    def __ge__(self, other: Any) -> Value:
        return self._compared(">=", other)

    def __eq__(self, other: Any) -> Value:  # type: ignore[override]
        return self._compared("==", other)

    def __ne__(self, other: Any) -> Value:  # type: ignore[override]
        return self._compared("!=", other)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Any) -> Value:
        a, b = self._paired(other)
        return a.like(a.builder.and_(a.llvm, b.llvm))

    def __or__(self, other: Any) -> Value:
        a, b = self._paired(other)
        return a.like(a.builder.or_(a.llvm, b.llvm))

    def __invert__(self) -> Value:
        return self.like(self.builder.not_(self.llvm))

    def __lshift__(self, bits: int) -> Value:
        return self.like(self.builder.shl(self.llvm, self.constant(bits).llvm))

    def __rshift__(self, bits: int) -> Value:
        return self.like(self.builder.ashr(self.llvm, self.constant(bits).llvm))

    # --- the rest ---

    def bits(self) -> Value:
        """A float's bits as an integer of its size."""
        kind = self.like(None, INTEGER_OF[self.dtype])
        return self.like(self.builder.bitcast(self.llvm, llvm_type(kind.kind)), INTEGER_OF[self.dtype])

    def as_float(self) -> Value:
        """Bits as the float of their size."""
        dtype = types.float32 if self.dtype.bitwidth == 32 else types.float64
        kind = self.like(None, dtype)
        return self.like(self.builder.bitcast(self.llvm, llvm_type(kind.kind)), dtype)

    def call(self, name: str, *others: Value) -> Value:
        """An LLVM intrinsic of one floating type."""
        arguments = [self.llvm, *(other.llvm for other in others)]
        kind = self.llvm.type
        signature = ir.FunctionType(kind, [kind] * len(arguments))
        function = cgutils.get_or_insert_function(self.builder.module, signature, f"{name}.{suffix(kind)}")
        return self.like(self.builder.call(function, arguments))

    def reduce(self, name: str, *flags: str) -> Value:
        """All lanes as one scalar, by an LLVM reduction (in any order)."""
        element = LLVM[self.dtype]
        start = [ir.Constant(element, -0.0)] if name == "fadd" else []
        types_of = [*(element for _ in start), self.llvm.type]
        full = f"llvm.vector.reduce.{name}.{suffix(self.llvm.type)}"
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(element, types_of), full)
        call = self.builder.call(function, [*start, self.llvm], fastmath=flags)
        return Value(self.builder, call, self.dtype)

    def shuffled(self, other: Value, lanes: list[int]) -> Value:
        """The lanes with these numbers, out of this vector's and then the other's."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        llvm = self.builder.shuffle_vector(self.llvm, other.llvm, mask)
        return Value(self.builder, llvm, Vector(self.dtype, len(lanes)))


def select(mask: Value, a: Value, b: Value) -> Value:
    """`a` where the mask is set, else `b`; either may be a number."""
    model = next(
        v for v in (a, b) if isinstance(v, Value) and (isinstance(v.kind, Vector) or mask.kind == types.boolean)
    )
    (_, a), (_, b) = model._paired(a), model._paired(b)
    return model.like(model.builder.select(mask.llvm, a.llvm, b.llvm))


@cache
def machine_has(*features: str) -> bool:
    """Whether the machine that is compiled for has one of these features, as LLVM calls them."""
    triple, _, found = cpu_target.target_context.codegen().magic_tuple()
    return any(f"+{feature}" in found.split(",") or triple.startswith(feature) for feature in features)


def scales(x: Value) -> bool:
    """Whether `scaled` is there for `x`."""
    return isinstance(x.kind, Vector) and machine_has("avx512f")


def scaled(x: Value, n: Value) -> Value:
    """``x · 2^n`` for whole `n`, rounded once; 0 for ``n = -inf``, whatever `x` is (also NaN)."""
    bits, lanes = x.dtype.bitwidth, BYTES * 8 // x.dtype.bitwidth
    if x.kind.lanes > lanes:
        halves = [range(x.kind.lanes // 2), range(x.kind.lanes // 2, x.kind.lanes)]
        low, high = (scaled(x.shuffled(x, list(half)), n.shuffled(n, list(half))) for half in halves)
        return low.shuffled(high, list(range(x.kind.lanes)))
    vector, mask, i32 = x.llvm.type, ir.IntType(max(8, lanes)), ir.IntType(32)
    name = f"llvm.x86.avx512.mask.scalef.p{'s' if bits == 32 else 'd'}.512"
    signature = ir.FunctionType(vector, [vector, vector, vector, mask, i32])
    function = cgutils.get_or_insert_function(x.builder.module, signature, name)
    every, as_set = ir.Constant(mask, (1 << lanes) - 1), ir.Constant(i32, 4)  # all lanes, the usual rounding
    return x.like(x.builder.call(function, [x.llvm, n.llvm, x.llvm, every, as_set]))


# --- functions of values, for compiled code -------------------------------------------------------


def _build(function: Callable[..., Value], builder: Any, llvm: Any, kinds: Any) -> Value:
    return function(*(Value(builder, value, kind) for value, kind in zip(llvm, kinds, strict=True)))


@cache
def _result_type(function: Callable[..., Value], kinds: tuple[Any, ...]) -> Any:
    """What comes out: found by emitting the instructions into a module that is thrown away.

    Asked again in every round of type inference, so the answers are kept.
    """
    scratch = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), [llvm_type(kind) for kind in kinds]), "f")
    builder = ir.IRBuilder(scratch.append_basic_block())
    return _build(function, builder, scratch.args, kinds).kind


def _register(function: Callable[..., Any], scalars_too: bool) -> None:
    class Template(AbstractTemplate):
        key = function

        def generic(self, args: Any, kws: Any) -> Any:
            kinds = [types.unliteral(kind) for kind in args]
            if scalars_too or any(isinstance(kind, Vector) for kind in kinds):
                return signature(_result_type(function, tuple(kinds)), *kinds)
            return None

    infer_global(function, types.Function(Template))


def _lower(function: Callable[..., Any], *kinds: Any) -> None:
    @lower_builtin(function, *kinds)  # type: ignore[untyped-decorator]
    def lower(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _build(function, builder, arguments, sig.args).llvm


def emitted(function: Callable[..., Value]) -> Any:
    """Make a function of `Value`s callable from compiled code, for vectors and scalars."""
    _register(function, scalars_too=True)
    _lower(function, types.VarArg(types.Any))
    return function


def _operator(op: Callable[..., Any]) -> None:
    _register(op, scalars_too=False)
    if op in (operator.neg, operator.invert):
        _lower(op, Vector)
    else:
        for kinds in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
            _lower(op, *kinds)


for _op in (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.lt, operator.le,
    operator.gt, operator.ge, operator.eq, operator.ne, operator.and_, operator.or_, operator.invert,
    operator.iadd, operator.isub, operator.imul, operator.iand, operator.ior,
):  # fmt: skip
    _operator(_op)

where = emitted(select)


@emitted
def larger(a: Value, b: Value) -> Value:
    """The larger of two; `b` where either is NaN (one instruction)."""
    return select(a > b, a, b)


@emitted
def smaller(a: Value, b: Value) -> Value:
    return select(a < b, a, b)


@emitted
def magnitude(a: Value) -> Value:
    return a.call("llvm.fabs")


@emitted
def any_lane(mask: Value) -> Value:
    return mask.reduce("or")


def _lanes_as_bits(mask: Value) -> Any:
    bits = mask.builder.bitcast(mask.llvm, ir.IntType(mask.kind.lanes))
    return mask.builder.zext(bits, ir.IntType(64))


@emitted
def lane_numbers(like: Value) -> Value:
    """0, 1, 2 … in the lanes of a vector of the type of `like`."""
    return like.like(ir.Constant(llvm_type(like.kind), list(range(like.kind.lanes))))


@emitted
def first_lane(mask: Value) -> Value:
    """The number of the first lane that is set."""
    first = mask.builder.cttz(_lanes_as_bits(mask), ir.Constant(ir.IntType(1), 0))
    return Value(mask.builder, first, types.int64)


@emitted
def lanes_set(mask: Value) -> Value:
    """How many lanes are set."""
    return Value(mask.builder, mask.builder.ctpop(_lanes_as_bits(mask)), types.int64)


@emitted
def lanes_sum(a: Value) -> Value:
    """The sum of all lanes, in float64."""
    return a.converted(types.float64).reduce("fadd", "reassoc")


@emitted
def lanes_max(a: Value) -> Value:
    """The largest lane; what comes out for NaN is not specified."""
    return a.reduce("fmax", "nnan", "nsz")


@emitted
def lower_half(a: Value) -> Value:
    """The first half of the lanes, as float64."""
    return a.shuffled(a, list(range(a.kind.lanes // 2))).converted(types.float64)


@emitted
def upper_half(a: Value) -> Value:
    return a.shuffled(a, list(range(a.kind.lanes // 2, a.kind.lanes))).converted(types.float64)


@emitted
def like_vector(number: Value, vector: Value) -> Value:
    """A scalar in every lane of a vector of the type of `vector`."""
    return number.splat(vector.kind)
