"""Vector mathematics of our own: exp2, exp, log, log1p in arithmetic that LLVM vectorises.

A call of libm inside a loop keeps the loop scalar (Numba has no vector library), so each function is
a polynomial without branches. The relative errors are measured by tests/test_math.py.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from .. import _formulas
from .compile import inline, overload
from .simd import Value, emitted, magnitude, scaled, scales, select

# --- powers of two, without libm ------------------------------------------------------------------


TO_WHOLE = {types.float32: 1.5 * 2.0**23, types.float64: 1.5 * 2.0**52}  # numbers about as large are whole
BIAS = {types.float32: 127, types.float64: 1023}  # of a float's exponent
MANTISSA = {types.float32: 23, types.float64: 52}


@emitted
def rint(t: Value) -> Value:
    """The nearest whole number to `t`, which is of moderate size."""
    return (t + TO_WHOLE[t.dtype]) - TO_WHOLE[t.dtype]


def _power(n: Value) -> Value:
    """``2^n`` for a whole number held as a float: shifted into a float's exponent."""
    return ((n + (TO_WHOLE[n.dtype] + BIAS[n.dtype])).bits() << MANTISSA[n.dtype]).as_float()


@emitted
def ldexp(x: Value, n: Value) -> Value:
    """``x · 2^n`` for a whole number `n` held as a float, in two steps: 2^n itself may be out of range.

    LLVM's own is a call of libm without AVX-512.
    """
    half = rint(n * 0.5)
    return x * _power(half) * _power(n - half)


# --- bits -----------------------------------------------------------------------------------------


def _reinterpret(source, target):
    @intrinsic
    def view(typing, x):
        def build(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), build

    return view


bits64 = _reinterpret(types.float64, types.int64)
float64_of = _reinterpret(types.int64, types.float64)
bits32 = _reinterpret(types.float32, types.uint32)
float32_of = _reinterpret(types.uint32, types.float32)


def cast(value, like):
    """`value` as the type of `like`."""
    raise NotImplementedError("compiled code only")


@overload(cast)
def _cast(value, like):
    like_type = like
    return lambda value, like: like_type(value)


# --- 2^t ------------------------------------------------------------------------------------------

EXP2_F32 = (
    0.6931471880262288, 0.24022650760568126, 0.05550357114219078, 0.009618082557277852, 0.0013390863364671234,
    0.0001545316294512069,
)  # fmt: skip
EXP2_F64 = (
    0.6931471805599453, 0.24022650695910097, 0.0555041086648216, 0.009618129107606888, 0.0013333558146416936,
    0.0001540353044173605, 1.525273382983612e-05, 1.321544258792169e-06, 1.0178062445845774e-07,
    7.072585949269223e-09, 4.4549605981865186e-10,
)  # fmt: skip
_F32 = tuple(np.float32(c) for c in (1.0, *EXP2_F32))
# Below these powers of two nothing is left even of a subnormal; -inf would give inf - inf in t - n.
_LOWEST_F32, _LOWEST_F64 = np.float32(-160.0), -1100.0


@inline
def _exp2_f32(t):
    c0, c1, c2, c3, c4, c5, c6 = _F32
    n = rint(t)
    r = t - n
    return ldexp(c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * c6))))), n)


@inline
def _exp2_f64(t):
    c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 = EXP2_F64
    n = rint(t)
    r = t - n
    high = c6 + r * (c7 + r * (c8 + r * (c9 + r * (c10 + r * c11))))
    return ldexp(1.0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * high))))), n)


def floored(t):
    """`t`, but no lower than where ``2^t`` is 0: ``t - rint(t)`` would be NaN at -inf. NaN stays."""
    raise NotImplementedError("compiled code only")


@overload(floored)
def _floored(t):
    lowest = _LOWEST_F32 if t == types.float32 else _LOWEST_F64
    return lambda t: lowest if t < lowest else t


def exp2(t):
    """``2^t`` for `floored` t <= 1023 (float32: 127). The constant term is 1: ``2^0`` is exactly 1."""
    raise NotImplementedError("compiled code only")


@overload(exp2)
def _exp2(t):
    if t == types.float32:
        return lambda t: _exp2_f32(t)
    return lambda t: _exp2_f64(t)


# --- e^x, log, log1p in float64 -------------------------------------------------------------------

LOG2E = 1.4426950408889634
# ln 2 in two parts; the first has trailing zeros, so that its product with a whole number is exact.
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
EXP = (
    0.5000000000000001, 0.16666666666666669, 0.04166666666662404, 0.008333333333330055, 0.0013888888917258759,
    0.00019841269863088255, 2.4801521225986432e-05, 2.7557268406190795e-06, 2.7620121717381933e-07,
    2.51004110820149e-08,
)  # fmt: skip


@inline
def exp(x):
    """``e^x`` in float64: 0 below and inf above the range."""
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 = EXP
    x = -760.0 if x < -760.0 else x
    x = 760.0 if x > 760.0 else x
    n = rint(x * LOG2E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    high = c4 + r * (c5 + r * (c6 + r * (c7 + r * (c8 + r * c9))))
    tail = c0 + r * (c1 + r * (c2 + r * (c3 + r * high)))
    return ldexp(1.0 + (r + r * r * tail), n)


_HALF_SQRT = 0x3FE6A09E667F3BCD  # bits of sqrt(1/2): mantissas are taken from [sqrt(1/2), sqrt(2))
_EXPONENT_MAGIC = 0x4330000000000000  # bits of 2^52: an integer below it becomes a float by adding bits
_TWO_54 = 18014398509481984.0


@inline
def log(x):
    """``log x`` in float64: -inf at 0, NaN below."""
    tiny = x < 2.2250738585072014e-308
    scaled = x * _TWO_54 if tiny else x  # subnormal numbers have no exponent to read
    bits = bits64(scaled)
    offset = bits - _HALF_SQRT
    exponent = offset >> 52
    # Converting by bits vectorises also where there is no instruction for int64 → float64.
    e = float64_of(_EXPONENT_MAGIC + (exponent + 2048)) - 4503599627372544.0
    e = e - 54.0 if tiny else e
    f = float64_of(bits - (exponent << 52)) - 1.0
    s = f / (2.0 + f)
    half_square = 0.5 * f * f
    # log(1+f) = 2·atanh(s) = f - (f²/2 - s·(f²/2 + R)), which leaves f unrounded.
    u = s * s
    R = 2.0 * u * _formulas.atanh_tail(u)
    result = (e * LN2_LOW - (half_square - s * (half_square + R))) + f + e * LN2_HIGH
    result = -np.inf if x == 0.0 else result
    result = np.nan if x < 0.0 else result
    # inf and NaN stay what they are.
    return result if x < np.inf else x


@inline
def log1p(x):
    """``log(1 + x)`` in float64; what the addition rounds away is put back to first order."""
    u = 1.0 + x
    lost = (x - (u - 1.0)) / u
    result = log(u) + (lost if u > 0.0 else 0.0)
    return result if x < np.inf else x


# --- the same for vectors (and scalars): functions of `Value`s --------------------------------------
#
# 2^t is a polynomial times a power of two, made by shifting a whole number into a float's exponent. The
# whole number comes from adding `MAGIC`: 1.5·2^23 rounds to units, and the bias of the exponent is in it
# already. `RAISED` more keeps what is subnormal in the end normal until the sum is known.

RAISED = {types.float32: 64, types.float64: 512}
MAGIC = {types.float32: 1.5 * 2.0**23 + 127 + 64, types.float64: 1.5 * 2.0**52 + 1023 + 512}
LOWEST = {types.float32: -186.0, types.float64: -1500.0}  # so low that not even many of them leave a trace
EXP2 = {types.float32: (1.0, *EXP2_F32), types.float64: (1.0, *EXP2_F64)}


def polynomial(x: Value, coefficients: tuple[float, ...]) -> Value:
    """Coefficients are given lowest power first."""
    result = x.constant(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + c
    return result


@emitted
def clipped(t: Value) -> Value:
    """`t`, but no lower than where nothing is left of ``2^t``: finite also at -inf. NaN stays."""
    lowest = LOWEST[t.dtype]
    return select(t < lowest, t.constant(lowest), t)


@emitted
def raised_exp2(t: Value) -> Value:
    """``2^(t + 64)`` (float64: ``t + 512``) for ``t <= 0``, -inf included; NaN stays. See `lowered`."""
    dtype = t.dtype
    if scales(t):
        return _scaled_power(t, tuple(c * 2.0 ** RAISED[dtype] for c in EXP2[dtype]))
    t = clipped(t)
    u = t + MAGIC[dtype]
    n = u - MAGIC[dtype]
    return polynomial(t - n, EXP2[dtype]) * (u.bits() << MANTISSA[dtype]).as_float()


def _scaled_power(t: Value, coefficients: tuple[float, ...]) -> Value:
    """``2^t`` by the instruction that scales by powers of two: at -inf, and where nothing is left, it gives 0."""
    n = t.call("llvm.rint")
    return scaled(polynomial(t - n, coefficients), n)


@emitted
def lowered(e: Value) -> Value:
    """What `raised_exp2` (or a sum of them) stands for."""
    return e * 2.0 ** -RAISED[e.dtype]


@emitted
def exp2_below(t: Value) -> Value:
    """``2^t`` for ``t <= 0``, -inf included; NaN stays."""
    return _scaled_power(t, EXP2[t.dtype]) if scales(t) else lowered(raised_exp2(t))


@emitted
def exp2_or_excess(t: Value) -> Value:
    """``2^t`` for ``t <= 0``; where it is nearer to 1 than to 1/2, ``2^t - 1`` with all its digits, and the sign
    set (also of -0): so the two can be told apart. -inf gives 0, NaN stays."""
    dtype = t.dtype
    if scales(t):
        n = t.call("llvm.rint")
        w = (t - n) * polynomial(t - n, EXP2[dtype][1:])
        e = scaled(w + 1.0, n)
    else:
        t = clipped(t)
        u = t + MAGIC[dtype]
        n = u - MAGIC[dtype]
        w = (t - n) * polynomial(t - n, EXP2[dtype][1:])
        e = lowered((w + 1.0) * (u.bits() << MANTISSA[dtype]).as_float())
    return select(n == 0.0, -magnitude(w), e)


def power_and_excess(x: Value) -> tuple[Value, Value]:
    """``s`` and ``w`` in ``e^x = s·(1 + w)`` for finite `x`: a power of two, and what has all digits of a small `x`.

    Beyond the range neither is finite, or only one; NaN stays.
    """
    t, dtype = x * LOG2E, x.dtype
    if scales(t):
        n = t.call("llvm.rint")
        s = scaled(t.constant(1.0), n)
    else:
        t = select(t < RAISED[dtype] - 4.0, clipped(t), t.constant(np.inf))
        u = t + MAGIC[dtype]
        n = u - MAGIC[dtype]
        s = lowered((u.bits() << MANTISSA[dtype]).as_float())
    return s, (t - n) * polynomial(t - n, EXP2[dtype][1:])


# log(1+f) = f - f²/2 + f³·P(f) for mantissas from sqrt(1/2) to sqrt(2)
LOG_F32 = (
    0.33333331180030046, -0.24999996950957882, 0.200007157488921, -0.16667802319501254, 0.1424905764569748,
    -0.12425687331451106, 0.1168541992348674, -0.11479733846637635, 0.06971611471451178,
)  # fmt: skip
_HALF_SQRT_F32 = 0x3F3504F3


def split(x: Value) -> tuple[Value, Value]:
    """The exponent ``e`` (as a float) and ``f`` in ``x = 2^e·(1 + f)``, ``1 + f`` from sqrt(1/2) to sqrt(2).

    For normal positive `x`.
    """
    bits = x.bits()
    if x.dtype == types.float32:
        exponent = (bits - _HALF_SQRT_F32) >> 23
        return exponent.converted(types.float32), (bits - (exponent << 23)).as_float() - 1.0
    exponent = (bits - _HALF_SQRT) >> 52
    # Converting by bits: only the newest machines have an instruction for int64 → float64.
    e = (exponent + (_EXPONENT_MAGIC + 2048)).as_float() - 4503599627372544.0
    return e, (bits - (exponent << 52)).as_float() - 1.0


def log_parts(x: Value) -> tuple[Value, Value, Value]:
    """``e, f, h`` in ``log x = e·log 2 + f - h`` for normal positive numbers of float32: all but h is exact, and
    h no larger than f²."""
    e, f = split(x)
    f2 = f * f
    return e, f, 0.5 * f2 - f * f2 * polynomial(f, LOG_F32)


@emitted
def log_normal(x: Value) -> Value:
    """``log x`` for normal positive numbers, without care for any other."""
    if x.dtype == types.float32:
        e, f, h = log_parts(x)
        # ln 2 in two parts, of which the first times e is exact.
        return (f - (h + e * 2.12194440e-4)) + e * 0.693359375
    e, f = split(x)
    half_square = 0.5 * f * f
    s = f / (f + 2.0)
    u = s * s
    R = 2.0 * u * polynomial(u, _formulas.ATANH_TAIL)
    return (e * LN2_LOW - (half_square - s * (half_square + R))) + f + e * LN2_HIGH


@emitted
def any_log(x: Value) -> Value:
    """``log x``: -inf at 0, NaN below; inf and NaN stay what they are."""
    up = 25 if x.dtype == types.float32 else 54
    tiny = x < {types.float32: 2.0**-126, types.float64: 2.0**-1022}[x.dtype]
    # Subnormal numbers have no exponent to read.
    result = log_normal(select(tiny, x * 2.0**up, x)) - select(
        tiny, x.constant(up * 0.6931471805599453), x.constant(0.0)
    )
    result = select(x == 0.0, x.constant(-np.inf), result)
    result = select(x < 0.0, x.constant(np.nan), result)
    return select(x < np.inf, result, x)


@emitted
def log1p_positive(x: Value) -> Value:
    """``log(1 + x)`` for ``x >= 0``; what the addition rounds away is put back to first order."""
    u = x + 1.0
    return log_normal(u) + (x - (u - 1.0)) / u


@emitted
def log1m(x: Value) -> Value:
    """``log(1 - x)`` for x from 0 to 1, -inf at 1; NaN for any other."""
    u = 1.0 - x
    lost = (x + (u - 1.0)) / u
    result = log_normal(u) - lost
    result = select(u == 0.0, x.constant(-np.inf), result)
    return select((x >= 0.0) & (u >= 0.0), result, x.constant(np.nan))


# --- what binary cross-entropy needs ----------------------------------------------------------------

# (log(1 + e) - e) / e² for e from 0 to 1: the first term is added exactly, and nothing is divided. In float64
# as a function of e - 1/2, whose powers nearly vanish: those of e would cancel at 1.
LOG1P_F64 = (
    -0.37813956756734246, 0.1792249369360372, -0.09323036636366903, 0.051083446105400214, -0.028943183164417283,
    0.016788742491281195, -0.009909900766966412, 0.005929011560812204, -0.0035856647738059092, 0.002187647578711031,
    -0.0013445311748124863, 0.0008313430140896173, -0.0005165390978673409, 0.0003234659852105291,
    -0.00020487932243587793, 0.00012544905313590306, -7.1087154352201e-05, 5.274514668129752e-05,
    -5.112682490425043e-05, 2.5329913998566056e-05,
)  # fmt: skip


@emitted
def exp_minus_magnitude(x: Value) -> Value:
    """``e^-|x|``"""
    return exp2_below(magnitude(x) * -LOG2E)


@emitted
def log1p_unit(e: Value) -> Value:
    """``log(1 + e)`` for e from 0 to 1."""
    square = e * e
    if e.dtype == types.float32:
        return e + square * polynomial(e, _formulas.LOG1P_F32)
    v = e - 0.5
    v2 = v * v
    # Even and odd powers apart: two chains of half the latency.
    even, odd = polynomial(v2, LOG1P_F64[0::2]), polynomial(v2, LOG1P_F64[1::2])
    return e + square * (even + v * odd)


@emitted
def signed_exp(x: Value) -> Value:
    """``e^x`` in float64, of any sign: 0 below and inf above the range."""
    x = select(x < -760.0, x.constant(-760.0), x)
    x = select(x > 760.0, x.constant(760.0), x)
    n = rint(x * LOG2E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    return ldexp(1.0 + (r + r * r * polynomial(r, EXP)), n)
