"""The oracle's numbers: 50-digit or long double, and one distribution with how rounding moves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

mpmath.mp.dps = 50


class Field(NamedTuple):
    """Numbers to compute with: how to convert to them (exactly), and their functions."""

    array: Callable[[Any], Array]
    exp: Callable[[Array], Array]
    log: Callable[[Array], Array]
    log1p: Callable[[Array], Array]
    expm1: Callable[[Array], Array]
    tanh: Callable[[Array], Array]


def _each(function: Callable[[Any], Any]) -> Callable[[Any], Array]:
    ufunc = np.frompyfunc(function, 1, 1)
    return lambda values: np.asarray(ufunc(values), object)


def _log(v: Any) -> Any:
    return mpmath.nan if v < 0 else mpmath.log(v)


MP = Field(
    lambda values: _each(mpmath.mpf)(np.asarray(values).astype(np.float64)),
    _each(mpmath.exp),
    _each(_log),
    _each(mpmath.log1p),
    _each(mpmath.expm1),
    _each(mpmath.tanh),
)
LONG = Field(lambda values: np.asarray(values).astype(np.longdouble), np.exp, np.log, np.log1p, np.expm1, np.tanh)


AT_ONCE = 1 << 13  # numbers, of those k² for each row


def times(weight: Array, value: Array) -> Array:
    """``weight · value``, 0 where the weight is 0 (also times infinity)."""
    zero = weight == 0
    return np.where(zero, 0 * np.where(zero, weight, 0), np.where(zero, 0, weight) * np.where(zero, 0, value))


def excess(F: Field, r: Array) -> Array:
    """``r + e^-r - 1``, by its series near 0, where long double would cancel."""
    near = abs(np.where(np.isfinite(r.astype(float)), r, 2)) < 0.25
    x = np.where(near, r, 0 * F.array(1))
    term = x * x / 2
    series = term
    for i in range(3, 24):
        term = term * -x / i
        series = series + term
    far = np.where(near, 0 * F.array(1), r)
    return np.where(near, series, far + F.expm1(-far))


def inverse(values: Array) -> Array:
    """``1/v``, infinite for 0 (where mpmath would raise)."""
    zero = values == 0
    return np.where(zero, np.inf, 1 / np.where(zero, 1, values))


def total(values: Array) -> Array:
    return values.sum(axis=-1, keepdims=True)


# --- one distribution -----------------------------------------------------------------------------


class Side(NamedTuple):
    """A distribution: probabilities, their logarithms, ``1 - p``, and how far rounding moves an input."""

    form: str
    p: Array
    u: Array  # log p
    rest: Array  # 1 - p, from the other probabilities where p is near 1
    moved: Array  # |x_j - m| for logits, |x_j| for log-probabilities
    m: Array
    log_Z: Array

    def rounding(self, J: Array) -> Array:
        """``Σ_j |∂f/∂x_j|·moved_j`` of one number per row; `J` is ``∂f/∂(log p_j)``."""
        if self.form == "probs":
            return np.zeros((*J.shape[:-1], 1), int)
        by_x = J - self.p * total(J) if self.form == "logits" else J
        return total(times(abs(by_x), self.moved))

    def rounding_each(self, D: Array, E: Array | None = None, a: Array | None = None) -> Array:
        """The same of an ``(n, k)`` output ``f_i`` with ``∂f_i/∂(log p_j) = [i=j]·D_i - a_i·E_j``."""
        if self.form == "probs":
            return np.zeros(D.shape, int)
        if E is None:
            E = a = np.zeros(D.shape, int)
        assert a is not None
        own = times(abs(D), self.moved)
        if self.form == "log_probs":
            cross = times(abs(E), self.moved)
            return times(abs(D - a * E), self.moved) + abs(a) * (total(cross) - cross)
        # By logits: [i=j]·D_i - a_i·E_j - p_j·(D_i - a_i·ΣE).
        n_entries = D.size * D.shape[-1]
        if not (a != 0).any() or n_entries > 20_000_000:
            # The plain case; and, by the triangle inequality, a little more than the exact sum where
            # that is k² terms per row for many long rows (parity only: accuracy tests stay below).
            spread = times(self.p, self.moved)
            others = total(spread) - spread
            cross = times(abs(E), self.moved)
            return (
                self.rest * own
                + times(abs(D - a * total(E)), others)
                + abs(a) * (total(cross) + times(abs(total(E)), spread))
            )
        narrow = [np.asarray(v).astype(np.longdouble) for v in (D, E, a, self.p, self.moved)]
        D, E, a, p, moved = narrow
        rest, k = D - a * total(E), D.shape[-1]
        step = max(1, AT_ONCE // D.size)
        blocks = [slice(i, min(i + step, k)) for i in range(0, k, step)]

        def of_outputs(i: slice) -> Array:
            cross = -a[..., i, None] * E[..., None, :] - p[..., None, :] * rest[..., i, None]
            at = np.arange(i.start, i.stop)
            cross[..., at - i.start, at] += D[..., i]
            np.abs(cross, out=cross)
            if np.isfinite(moved).all():  # a product of matrices: `times` goes over all of it five times
                return (cross @ moved[..., None])[..., 0]
            return times(cross, np.broadcast_to(moved[..., None, :], cross.shape)).sum(axis=-1)

        return np.concatenate([of_outputs(i) for i in blocks], axis=-1)


def side(F: Field, form: str, x: Array, moved: Array | None = None) -> Side:
    if form != "logits":
        u = x if form == "log_probs" else F.log(x)
        p = F.exp(x) if form == "log_probs" else np.where(x < 0, F.array(np.nan), x)
        zero = 0 * total(np.where(np.isneginf(x.astype(float)), 0, x))
        return Side(form, p, u, 1 - p, abs(x), zero, zero)
    at = np.argmax(x, axis=-1)[..., None]
    m = np.take_along_axis(x, at, axis=-1)
    e = F.exp(x - m)
    others = e.copy()
    np.put_along_axis(others, at, 0, axis=-1)
    S = total(others)
    rest = (1 + S - e) / (1 + S)
    np.put_along_axis(rest, at, S / (1 + S), axis=-1)
    log_Z = F.log1p(S)
    return Side(form, e / (1 + S), (x - m) - log_Z, rest, m - x if moved is None else moved, m, log_Z)


class Transformed(NamedTuple):
    """``z - shift``, ``dz/dx``, how far rounding moves z, and ``dz/dx`` relative to itself."""

    z: Array
    slope: Array
    moved: Array
    slope_moved: Array
    shift: Array


def transformed(F: Field, x: Array, o: dict[str, Any]) -> Transformed:
    """``z = softcap(x) / T``. With a cap, rounding ``x/c`` and the capped value once each counts too."""
    cap, T = o.get("softcap"), F.array(o.get("temperature", 1.0))
    finite = np.isfinite(x.astype(float))
    m = np.max(x, axis=-1, keepdims=True)
    distance = np.where(finite, m - np.where(finite, x, 0), np.inf)
    z, slope, moved, slope_moved = x, np.where(finite, 1, F.array(1)), distance, 0 * np.where(finite, x, 0)
    if cap is not None:
        y = np.where(finite, x, 0) / cap
        e = F.exp(-2 * abs(y))
        slope = np.where(finite, 4 * e / ((1 + e) * (1 + e)), 0)
        z = np.where(finite, cap * F.tanh(y), x)
        moved = np.where(finite, slope * distance + abs(z), distance)
        slope_moved = np.where(finite, 2 * (abs(y) + distance / cap), 0)
    m = np.max(z, axis=-1, keepdims=True)
    shift = np.where(np.isfinite(m.astype(float)), m, 0)
    return Transformed((z - shift) / T, slope / T, moved / T, slope_moved, shift / T)
