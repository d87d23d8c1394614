"""How statistics of two slices of a row become those of both: arrays of one number per row, NumPy's or CuPy's.

A slice knows itself: ``(m, log Z)`` with ``lse = m/T + log Z``, and losses, entropies and divergences of its own
softmax. Joined with another slice its lse rises by ``softplus(lse_other - lse_own)``, and by the chain rule of
entropy that rise is all that its neighbours have to do with it. Every term is non-negative: nothing cancels.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from .reference import expm1_tail, softplus, times

Array: TypeAlias = Any  # NumPy's or CuPy's
Statistics: TypeAlias = dict[str, Array]

# A number that is carried on by many merges has another beside it: what their additions have rounded away.
LOST = "_lost"

# The surprises at all classes are summed in this unit: of any number of classes the sum is finite where their mean is.
SURPRISES = 2.0**32


def put(statistics: Statistics, name: str, value: Array, lost: Array | None = None) -> None:
    statistics[name] = value
    statistics[name + LOST] = np.zeros_like(value) if lost is None else lost


def get(statistics: Statistics, name: str) -> Array:
    return statistics[name] + statistics[name + LOST]


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """``a + b`` rounded, and what that rounded off, itself a float (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def plus(total: Array, lost: Array, value: Array) -> tuple[Array, Array]:
    """``total + value``, and what has been rounded off so far: many merges lose no more than one."""
    new, rest = two_sum(total, value)
    return new, lost + np.where(np.isfinite(new), rest, 0.0)


def add(merged: Statistics, a: Statistics, b: Statistics, name: str, *rises: Array) -> None:
    """``a + b`` and what else there is to add."""
    value, lost = plus(a[name], a[name + LOST] + b[name + LOST], b[name])
    for rise in rises:
        value, lost = plus(value, lost, rise)
    put(merged, name, value, lost)


def join(merged: Statistics, a: Statistics, b: Statistics, side: str, temperature: float) -> tuple[Array, Array]:
    """The normaliser of both slices; how far above each one's lse that of both lies."""
    m_a, m_b, log_Z = a[f"{side}max"], b[f"{side}max"], f"{side}log_Z"
    # Largest logits first: of two of 1e8, the difference is exact and the sum with log Z is not.
    apart = np.where(m_a == m_b, 0.0, m_a - m_b) / temperature
    apart = apart + ((a[log_Z] - b[log_Z]) + (a[log_Z + LOST] - b[log_Z + LOST]))
    rise_a, rise_b = softplus(-apart), softplus(apart)
    high = m_a >= m_b
    value, lost = (np.where(high, a[name], b[name]) for name in (log_Z, log_Z + LOST))
    value, lost = plus(value, lost, np.where(high, rise_a, rise_b))
    merged[f"{side}max"] = m = np.maximum(m_a, m_b)
    put(merged, log_Z, np.where(np.isinf(m), 0.0, value), np.where(np.isinf(m), 0.0, lost))
    return rise_a, rise_b


def average(
    merged: Statistics, a: Statistics, b: Statistics, name: str, shares: tuple[Array, Array], rises: tuple[Array, Array]
) -> None:
    """``P_a·(a + rise_a) + P_b·(b + rise_b)``, as the larger share's value and what changes it.

    So a small slice adds little and rounds little, however often.
    """
    heavy = shares[0] >= shares[1]

    def sides(of_a: Array, of_b: Array) -> tuple[Array, Array]:
        return np.where(heavy, of_a, of_b), np.where(heavy, of_b, of_a)

    P, P_other = sides(*shares)
    v, other = sides(a[name], b[name])
    lost, other_lost = sides(a[name + LOST], b[name + LOST])
    rise, other_rise = sides(*rises)
    change = times(P_other, (other - v) + other_rise) + times(P, rise)
    value, rest = plus(v, P * lost + P_other * other_lost, change)
    # Where one is infinite, differences of values say nothing.
    infinite = times(P, v + rise) + times(P_other, other + other_rise)
    finite = np.isfinite(v) & np.isfinite(other)
    put(merged, name, np.where(finite, value, infinite), np.where(finite, rest, 0.0))


def divergence_of_shares(p: Array, q: Array, delta: Array) -> Array:
    """``p·log(p/q) - p + q`` of shares of two distributions, from ``delta = log(p/q)``."""
    near = np.abs(delta) < 1.0
    small = np.where(near, delta, 0.0)
    return np.where(near, p * small * small * expm1_tail(small), times(p, delta) - (p - q))


# --- the statistics of both, by their names ---------------------------------------------------------


def added(a: Statistics, b: Statistics) -> Statistics:
    """Sums over two slices, of terms that know their whole rows."""
    total: Statistics = {}
    for name in a:
        if name + LOST in a:
            add(total, a, b, name)
    return total


def merged(a: Statistics, b: Statistics, temperature: float, class_mass_a: float, class_mass_b: float) -> Statistics:
    """The statistics of the classes of `a` and `b` together."""
    new: Statistics = {}
    of_p = join(new, a, b, "", temperature) if "max" in a else None
    of_q = join(new, a, b, "q_", temperature) if "q_max" in a else None
    for name in ("mass", "label_weight", "above", "kept"):
        if name in a:
            new[name] = a[name] + b[name]
    if "binary_cross_entropy" in a:
        add(new, a, b, "binary_cross_entropy")
    for name in ("ignored", "sample_weight"):  # the rows' own: the same in every slice
        if name in a:
            new[name] = a[name]
    for name, masses in (
        ("surprise", lambda: (a["mass"], b["mass"])),
        ("surprises", lambda: (class_mass_a / SURPRISES, class_mass_b / SURPRISES)),
    ):
        if name in a:
            # What lies in a slice is less probable in the whole, by as much as the slice's lse lies below.
            rises = () if of_p is None else (times(m, rise) for m, rise in zip(masses(), of_p, strict=True))
            add(new, a, b, name, *rises)
    if "argmax" in a:
        # On ties, the lowest class.
        first = (a["max"] > b["max"]) | ((a["max"] == b["max"]) & (a["argmax"] < b["argmax"]))
        new["argmax"] = np.where(first, a["argmax"], b["argmax"])
    if "entropy" in a:
        if of_p is None:
            add(new, a, b, "entropy")
        else:
            average(new, a, b, "entropy", shares(of_p), of_p)
    if "kl_divergence" in a:
        _merge_divergence(new, a, b, of_p, of_q)
    return new


def shares(rises: tuple[Array, Array]) -> tuple[Array, Array]:
    """The probability that lies in each slice."""
    return np.exp(-rises[0]), np.exp(-rises[1])


def _merge_divergence(new: Statistics, a: Statistics, b: Statistics, of_p: Any, of_q: Any) -> None:
    """KL by the chain rule: that within the slices, and that of their shares."""
    name = "kl_divergence"
    if of_p is None:
        rises = () if of_q is None else (times(s["mass"], rise) for s, rise in zip((a, b), of_q, strict=True))
        add(new, a, b, name, *rises)
        return
    if of_q is None:
        average(new, a, b, name, shares(of_p), (-of_p[0], -of_p[1]))
        return
    average(new, a, b, name, shares(of_p), (np.zeros_like(of_p[0]), np.zeros_like(of_p[1])))
    for p, q, fall_p, fall_q in zip(shares(of_p), shares(of_q), of_p, of_q, strict=True):
        delta = np.where(fall_p == fall_q, 0.0, fall_q - fall_p)
        value, lost = plus(new[name], new[name + LOST], divergence_of_shares(p, q, delta))
        put(new, name, value, lost)
