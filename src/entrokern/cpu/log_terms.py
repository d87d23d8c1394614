"""Terms of divergences and entropies of log-probabilities, also beside probabilities, as vector code.

There ``p·log(p/q)`` is p times a difference that is at hand, and nothing is gained by parting it into
``p·log(p/q) - p + q`` and ``p - q``: rounding ``log p`` and ``log q`` once, which is what those who rounded them have
done, changes the sum by more than rounding their difference does. A probability, however, counts as exact. Beside
logarithms near 0 all that there is of the difference may come from it, and so of ``log p = e·log 2 + f - h`` and
``e^a = s·(1 + w)`` only the small parts, h and w, are rounded as float32; the rest is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from numba import types

from .math import log_normal, log_parts, power_and_excess
from .simd import Value, emitted, larger, lower_half, select, upper_half

FLOOR = -(2.0**20)  # a logarithm as good as -inf …
NOTHING = -746.0  # … as is one whose exponential is 0 also in float64
LN2 = 0.6931471805599453


def _floored(a: Value) -> Value:
    """`a`, finite also at -inf. NaN stays."""
    return larger(a.constant(FLOOR), a)


def _beside(some: Value, b: Value) -> Value:
    """`b` above the floor; below it -inf where there is `some` of p, which leaves the row to the careful kernel, and
    where there is none any finite number."""
    return select(b < FLOOR, select(some, b.constant(-inf), b.constant(0.0)), b)


def _exp(a: Value) -> Value:
    s, w = power_and_excess(a)
    return s * w + s


# --- of two logarithms, or of one ---------------------------------------------------------------------


@emitted
def present(a: Value) -> Value:
    """Above 0 where ``e^a`` is."""
    return a - NOTHING


@emitted
def log_kl_term(a: Value, b: Value) -> Value:
    """``e^a·(a - b)``"""
    floored = _floored(a)
    return _exp(floored) * (floored - _beside(a > NOTHING, b))


@emitted
def log_entropy_term(a: Value) -> Value:
    """``-e^a·a``"""
    a = _floored(a)
    return _exp(a) * -a


# --- of a probability and a logarithm, by halves of the lanes in float64 (float64: all of them) ------------------

Half = Callable[[Value], Value]


def _log(p: Value, half: Half) -> Value:
    if p.dtype == types.float64:
        return log_normal(p)
    e, f, h = log_parts(p)
    return half(e) * LN2 + (half(f) - half(h))


def _beside_log(p: Value, b: Value, half: Half) -> Value:
    """``p·(log p - b)``"""
    return half(p) * (_log(p, half) - half(_beside(p > 0.0, b)))


def _of_log(a: Value, q: Value, half: Half) -> Value:
    """``e^a·(a - log q)``"""
    s, w = power_and_excess(_floored(a))
    # What is not finite is no number that the logarithm was made for: NaN.
    return (half(s) * half(w) + half(s)) * (half(_floored(a) - (q - q)) - _log(q, half))


def _lower(a: Value) -> Value:
    return a if a.dtype == types.float64 else lower_half(a)


@emitted
def add_beside_log_lower(total: Value, p: Value, b: Value) -> Value:
    """Add ``p·(log p - b)`` of the first half of the lanes."""
    return total + _beside_log(p, b, _lower)


@emitted
def add_beside_log_upper(total: Value, p: Value, b: Value) -> Value:
    """Add that of the other half (float64: there is none)."""
    return total if p.dtype == types.float64 else total + _beside_log(p, b, upper_half)


@emitted
def add_of_log_lower(total: Value, a: Value, q: Value) -> Value:
    """Add ``e^a·(a - log q)`` of the first half of the lanes."""
    return total + _of_log(a, q, _lower)


@emitted
def add_of_log_upper(total: Value, a: Value, q: Value) -> Value:
    """Add that of the other half (float64: there is none)."""
    return total if a.dtype == types.float64 else total + _of_log(a, q, upper_half)


# --- derivatives, of rows whose terms are finite ----------------------------------------------------------


@emitted
def log_entropy_slope(a: Value) -> Value:
    """``-e^a·(a + 1)``"""
    a = _floored(a)
    return _exp(a) * (-1.0 - a)


@emitted
def minus_exp(a: Value) -> Value:
    return -_exp(_floored(a))


@emitted
def log_kl_slope(a: Value, b: Value) -> Value:
    """``e^a·(a - b + 1)``"""
    floored = _floored(a)
    return _exp(floored) * (floored - _beside(a > NOTHING, b) + 1.0)


@emitted
def of_log_slope(a: Value, q: Value) -> Value:
    """``e^a·(a - log q + 1)``"""
    a = _floored(a)
    return _exp(a) * (a - log_normal(q) + 1.0)


@emitted
def beside_log_slope(p: Value, b: Value) -> Value:
    """``log p - b + 1``; -inf for ``p = 0``, but ``log(0/0) = 0``."""
    none = select(b < NOTHING, b.constant(0.0), b.constant(-inf))
    return select(p == 0.0, none, log_normal(p) - b) + 1.0


@emitted
def of_log_slope_q(a: Value, q: Value) -> Value:
    """``-e^a/q``, 0 where there is nothing of p."""
    p = _exp(_floored(a))
    return select(p == 0.0, p, -p / q)
