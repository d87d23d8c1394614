"""The terms of divergences and entropies as vector code, in the compute type of their operands.

``p·log(p/q) - p + q`` cancels where the two are close: there it is written in ``s = (p - q)/(p + q)``, in which
nothing does. Elsewhere `p` is first halved `n` times, to come close: ``log(p/q) = n·log 2 + 2·atanh(s)``, by
the same division and the same polynomial.
"""

from __future__ import annotations

from math import inf

from numba import types

from .. import _formulas
from .math import LN2_HIGH, LN2_LOW, MANTISSA, log1p_unit, log_normal, polynomial
from .simd import Value, emitted, larger, lower_half, magnitude, select, smaller, upper_half

# log 2 in two parts, of which the first times a whole number is exact
LN2 = {types.float32: (0.693359375, -2.12194440e-4), types.float64: (LN2_HIGH, LN2_LOW)}
SMALLEST = {types.float32: 2.0**-126, types.float64: 2.0**-1022}

# (atanh(s) - s) / s³ as a polynomial in s²: for |s| <= 1/3 and for |s| <= 1/2
THIRD = {
    types.float32: _formulas.ATANH_TAIL_F32,
    types.float64: _formulas.ATANH_TAIL,
}
HALF = {
    types.float32: (
        0.3333332236644149, 0.2000141242318757, 0.14241308480012463, 0.11684743517711882, 0.056159086806355625,
        0.1704567873875149,
    ),
    types.float64: (
        0.3333333333333333, 0.20000000000003954, 0.14285714284933276, 0.11111111175720612, 0.0909090619364377,
        0.0769238750477678, 0.0666521799845305, 0.05900393336483656, 0.05105759513001517, 0.05728927782107534,
        0.0021211491462564173, 0.15894832275342516, -0.17590331418801236, 0.2297088983047527,
    ),
}  # fmt: skip


EVEN = True  # instead of a weight of 1/2, to the kernels of JS: of another type, so that it has code of its own

# (e^-d - 1 + d) / d², for |d| <= 1
EXPM1_TAIL = {
    types.float32: _formulas.EXPM1_TAIL_F32,
    types.float64: _formulas.EXPM1_TAIL,
}  # fmt: skip


def whole(n: Value) -> Value:
    """A whole number of a few thousand as a float of its size."""
    if n.dtype == types.int32:
        return n.converted(types.float32)
    # By bits: only the newest machines have an instruction for int64 → float64.
    return (n + (0x4330000000000000 + 4096)).as_float() - (4503599627370496.0 + 4096.0)


def steps(p: Value, q: Value) -> Value:
    """How many times to halve `p` for it to come near `q`: the bits of positive floats grow like their logarithms.

    For ``p = 0`` the number is of no use, but finite.
    """
    bits = MANTISSA[p.dtype]
    return ((p.bits() - q.bits()) + (1 << (bits - 1))) >> bits


def halved(p: Value, n: Value) -> Value:
    return (p.bits() - (n << MANTISSA[p.dtype])).as_float()


def over(difference: Value, total: Value) -> Value:
    """``difference / total``, 0 where both are."""
    return difference / larger(total, total.constant(SMALLEST[total.dtype]))


def close_term(difference: Value, s: Value, tail: Value) -> Value:
    """``p·log(p/q) - p + q = (p-q)·s·(1 + s·(1+s)·tail)``: nothing cancels where `p` and `q` are close."""
    return difference * s * ((s * s + s) * tail + 1.0)


def far_term(p: Value, difference: Value, s: Value, n: Value, tail: Value) -> Value:
    """``p·log(p/q) - (p-q)`` where they are not; the largest part goes in last, unrounded."""
    (high, low), n = LN2[p.dtype], whole(n)
    rest = p * ((s + s) * (s * s * tail + 1.0) + n * low)
    return p * (n * high) + (rest - difference)


@emitted
def kl_term(p: Value, q: Value) -> Value:
    """``p·log(p/q) - (p-q)`` with ``p - q`` as `difference` rounds it, which makes the sum with that right.

    Close is what is within a factor of 2: there ``p - q`` is exact.
    """
    near = (p < q + q) & (q < p + p)
    n = select(near, p.bits().constant(0), steps(p, q))
    moved = halved(p, n)
    s = over(moved - q, moved + q)
    tail = polynomial(s * s, THIRD[p.dtype])
    return select(near, close_term(p - q, s, tail), far_term(p, p - q, s, n, tail))


@emitted
def difference(p: Value, q: Value) -> Value:
    return p - q


def _of_mixture(p: Value, m: Value, difference: Value) -> Value:
    """``p·log(p/m) - p + m`` with ``p - m`` given: of equal operands it is exactly 0, whatever `m` rounds to.

    Close is what is within a factor of 2.6: here both ``p·log(p/m)`` and ``p - m`` are rounded, and cancel.
    """
    n = steps(p, m)
    near = (n > -2) & (n < 2)
    moved = halved(p, n)
    s = over(select(near, difference, moved - m), select(near, p, moved) + m)
    tail = polynomial(s * s, HALF[p.dtype])
    return select(near, close_term(difference, s, tail), far_term(p, difference, s, n, tail))


def _even_js_term(p: Value, q: Value, difference: Value) -> Value:
    """`_js_term` for w = 1/2: ``(p+q)/4·[(1+t)·log(1+t) + (1-t)·log(1-t)]`` with ``t = |p-q|/(p+q)``.

    One division instead of two. The logarithms cancel where t is small; their series does not.
    """
    distance, both = magnitude(difference), p + q
    t = over(distance, both)
    u = t * t
    near = distance * t * (u * polynomial(u, _formulas.EVEN_JS) + 1.0) * 0.25
    one_minus_t = larger(1.0 - t, t.constant(2.0**-26))  # t may round to 1: then hardly anything is left of the smaller
    far = (larger(p, q) * log1p_unit(t) + smaller(p, q) * log_normal(one_minus_t)) * 0.5
    return select(t <= 0.7, near, far)


def _weight(p: Value, w: Value) -> Value:
    """The weight of the first operand: `w` itself, or 1/2 where it is the sign for that (see `EVEN`)."""
    return p.constant(0.5) if w.kind == types.boolean else w


@emitted
def mixture(p: Value, q: Value, w: Value) -> Value:
    w = _weight(p, w)
    return p * w + q * (1.0 - w)


def _js_term(p: Value, q: Value, difference: Value, w: Value) -> Value:
    """``w·[p·log(p/m) - p + m] + (1-w)·[q·log(q/m) - q + m]``: the added ``m - p`` and ``m - q`` cancel."""
    if w.kind == types.boolean and p.dtype == types.float32:
        return _even_js_term(p, q, difference)
    w = _weight(p, w)
    rest = 1.0 - w
    m = p * w + q * rest
    return w * _of_mixture(p, m, difference * rest) + rest * _of_mixture(q, m, difference * -w)


@emitted
def js_term(p: Value, q: Value, w: Value) -> Value:
    """The term of JS of two probabilities."""
    return _js_term(p, q, p - q, w)


@emitted
def softmax_js_term(p: Value, q: Value, difference: Value, w: Value) -> Value:
    """The term of JS of two softmaxes, whose difference is known better than they are."""
    return _js_term(p, q, difference, w)


@emitted
def entropy_term(p: Value) -> Value:
    """``-p·log p``, 0 for 0; what comes out for subnormal numbers is finite, no more."""
    return select(p == 0.0, p, -p * log_normal(p))


@emitted
def near_difference(difference: Value, delta: Value) -> Value:
    """What `softmax_kl_difference` took from δ; 0 for what it took from p and q (float64: all of it)."""
    if difference.dtype == types.float64:
        return difference
    return select(_near(delta), difference, difference.constant(0.0))


def _far_difference(e_p: Value, e_q: Value, delta: Value, p_factor: Value, q_factor: Value) -> Value:
    return select(_near(delta), p_factor.constant(0.0), e_p * p_factor - e_q * q_factor)


@emitted
def far_lower(e_p: Value, e_q: Value, delta: Value, p_factor: Value, q_factor: Value) -> Value:
    """What `near_difference` leaves out, of the first half of the lanes, in float64 from exponentials and factors."""
    if e_p.dtype == types.float64:
        return p_factor.constant(0.0)
    return _far_difference(lower_half(e_p), lower_half(e_q), lower_half(delta), p_factor, q_factor)


@emitted
def far_upper(e_p: Value, e_q: Value, delta: Value, p_factor: Value, q_factor: Value) -> Value:
    """The same of the other half."""
    if e_p.dtype == types.float64:
        return p_factor.constant(0.0)
    return _far_difference(upper_half(e_p), upper_half(e_q), upper_half(delta), p_factor, q_factor)


# --- derivatives by probabilities, in float64 of operands of 32 bits and less, whose quotients do not overflow ---


@emitted
def other_weight(w: Value) -> Value:
    """``1 - w``; of the sign for 1/2 itself."""
    return w if w.kind == types.boolean else 1.0 - w


@emitted
def entropy_slope(p: Value) -> Value:
    """``-(log p + 1)``"""
    return -(select(p == 0.0, p.constant(-inf), log_normal(p)) + 1.0)


def _log_quotient(p: Value, q: Value) -> Value:
    """``log(p/q)`` by one division; -inf for ``p = 0``, but ``log(0/0) = 0``."""
    (high, low), n = LN2[p.dtype], steps(p, q)
    moved = halved(p, n)
    s, n = over(moved - q, moved + q), whole(n)
    u = s * s
    result = n * high + ((s + s) * (u * polynomial(u, THIRD[p.dtype]) + 1.0) + n * low)
    return select(p == 0.0, select(q == 0.0, p, p.constant(-inf)), result)


@emitted
def kl_slope_p(p: Value, q: Value) -> Value:
    """``log(p/q) + 1``, with ``log(0/0) = 0``."""
    return _log_quotient(p, q) + 1.0


@emitted
def kl_slope_q(p: Value, q: Value) -> Value:
    """``-p/q``, 0 for ``p = 0``."""
    return select(p == 0.0, p, -p / q)


@emitted
def js_slope(p: Value, q: Value, w: Value) -> Value:
    """``w·log(p/m)`` with ``m = w·p + (1-w)·q`` and ``log(0/0) = 0``."""
    w = _weight(p, w)
    # Of equal operands m may be another number by its last digit.
    return w * select(p == q, p.constant(0.0), _log_quotient(p, p * w + q * (1.0 - w)))


@emitted
def pair_delta(gaps: Value, inv_T: Value, shift: Value) -> Value:
    """``δ = log(p/q)`` of two softmaxes, from ``(a - m_a) - (b - m_b)`` and ``log Z_p - log Z_q``.

    Where p is 0, a large negative number instead of -inf or NaN: times p it is nothing. A large positive one is
    taken for infinity, which leaves the row to the careful kernel: p may be subnormal, and ``p·δ`` not.
    """
    delta = gaps * inv_T - shift
    delta = select(delta > 2.0**20, delta.constant(inf), delta)
    return larger(delta, delta.constant(-1e30))


def _near(delta: Value) -> Value:
    return magnitude(delta) < 1.0


@emitted
def softmax_kl_term(p: Value, q: Value, delta: Value) -> Value:
    """``p·(δ + expm1(-δ))`` with ``δ = log(p/q)``: by its series where ``|δ| < 1``, else with `q` itself."""
    mean = p * delta
    return select(_near(delta), mean * (delta * polynomial(delta, EXPM1_TAIL[p.dtype])), mean - (p - q))


@emitted
def softmax_kl_difference(p: Value, q: Value, delta: Value) -> Value:
    """``p - q = -p·expm1(-δ)``."""
    mean = p * delta
    return select(_near(delta), mean - mean * (delta * polynomial(delta, EXPM1_TAIL[p.dtype])), p - q)


@emitted
def without_shift(terms: Value, h: Value, curvature: Value) -> Value:
    """The sum of the terms as it would be without the common error `h` of all δ, that of ``log Z_p - log Z_q``.

    Were δ right, ``Σ (p - q)`` would be 0; an error of h makes it h, and adds ``curvature·h²/2`` to the terms (KL: 1,
    JS: ``w·(1-w)``), which is all there is to see where the operands are equal but for the last digits.
    """
    total = terms - 0.5 * curvature * h * h
    return select(total < 0.0, total.constant(0.0), total)


@emitted
def js_curvature(like: Value, w: Value) -> Value:
    w = _weight(like, w)
    return w * (1.0 - w)


@emitted
def zero_times(b: Value, gap: Value) -> Value:
    """``b·gap``, 0 for ``b = 0`` also where the gap is infinite."""
    return select(b == 0.0, b, b * gap)


@emitted
def is_excess(e: Value) -> Value:
    """Which numbers of `exp2_or_excess` are ``2^t - 1``."""
    return e.bits() < 0


def _target_slope(e: Value, excess: Value, b: Value, A: Value, S: Value) -> Value:
    """``A·e^z - b·Z`` with ``Z = 1 + S``: of numbers near each other only what is exact is subtracted."""
    return (select(excess, A, A.constant(0.0)) - b) + A * e - b * S


@emitted
def target_slope(e: Value, lower: Value, upper: Value, A: Value, S: Value, A_upper: Value, S_upper: Value) -> Value:
    """``A·e^z - b·Z`` from what `exp2_or_excess` gives, in float64; `lower` and `upper` are the halves of the
    targets b, ``A = Σb``."""
    excess, lanes = is_excess(e), e.kind.lanes
    halves = [list(range(lanes // 2)), list(range(lanes // 2, lanes))]
    parts = [
        _target_slope(e.shuffled(e, half).converted(types.float64), excess.shuffled(excess, half), b, a, s)
        for half, b, a, s in zip(halves, (lower, upper), (A, A_upper), (S, S_upper), strict=True)
    ]
    return parts[0].converted(e.dtype).shuffled(parts[1].converted(e.dtype), list(range(lanes)))


# --- sums in float64, and what the fast way leaves to the careful one -------------------------------


@emitted
def add_lower(total: Value, a: Value) -> Value:
    """Add the first half of the lanes of float32 to a sum in float64 (float64: all lanes)."""
    return total + (a if a.dtype == types.float64 else lower_half(a))


@emitted
def add_upper(total: Value, a: Value) -> Value:
    """Add the other half (float64: there is none)."""
    return total if a.dtype == types.float64 else total + upper_half(a)


@emitted
def add_product_lower(total: Value, a: Value, b: Value) -> Value:
    """Add ``a·b`` of the first half of the lanes, multiplied in float64 (float64: of all lanes)."""
    return total + (a * b if a.dtype == types.float64 else lower_half(a) * lower_half(b))


@emitted
def add_product_upper(total: Value, a: Value, b: Value) -> Value:
    """Of the other half (float64: there is none)."""
    return total if a.dtype == types.float64 else total + upper_half(a) * upper_half(b)


@emitted
def zeros_of(lower: Value, upper: Value, like: Value) -> Value:
    """A mask of what is 0 in either half of the lanes, given in float64."""
    if like.dtype == types.float64:
        return lower == 0.0
    return (lower == 0.0).shuffled(upper == 0.0, list(range(like.kind.lanes)))


@emitted
def lost_lower(lost: Value, total: Value, new: Value, a: Value) -> Value:
    """`lost` and what ``new = add_lower(total, a)`` has rounded away of a float64; float32 loses nothing there."""
    return lost + ((total - new) + a) if a.dtype == types.float64 else lost


@emitted
def joined(lower: Value, upper: Value, like: Value) -> Value:
    """Both halves of the lanes, given in float64, as one vector of the type of `like` (float64: the first)."""
    if like.dtype == types.float64:
        return lower
    lanes = list(range(like.kind.lanes))
    return lower.converted(like.dtype).shuffled(upper.converted(like.dtype), lanes)


@emitted
def bits(a: Value) -> Value:
    return a.bits()


@emitted
def join_signs(signs: Value, a: Value) -> Value:
    """`signs` turns negative, and stays so, with the first number below 0."""
    return signs | a.bits()


@emitted
def negative(signs: Value) -> Value:
    return signs < 0


@emitted
def lowest_below(p: Value, q: Value, low: Value) -> Value:
    """The smaller of `low` and `q`, where there is any `p`."""
    return select(p > 0.0, smaller(q, low), low)


@emitted
def refused(signs: Value, low: Value) -> Value:
    """Whether the terms were not made for what they were given."""
    return (signs < 0) | (low < SMALLEST[low.dtype])


@emitted
def doubtful(total: Value, of: Value) -> Value:
    """Whether a sum is not finite, or so small that subnormal numbers, which terms know little of, might matter."""
    size = larger(total, -total)
    lowest = {types.float32: 2.0**-80, types.float64: 2.0**-960}[of.dtype]
    return ~((size == 0.0) | ((size > lowest) & (size < float("inf"))))
