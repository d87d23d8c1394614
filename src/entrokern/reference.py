"""The definition: every quantity in plain float64 NumPy, slow and readable.

The class axis is the last one. Names: ``z`` logits, ``p`` and ``q`` probabilities, ``m`` a row's
largest logit, ``Z = Σ e^(z-m)``, ``S = Z - 1`` (the sum without the largest logit itself),
``lse = m + log Z``. Each formula is written so that nothing large is subtracted from something
large: the comments say where.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from ._call import Call, check_targets

# --- logits ---------------------------------------------------------------------------------------


class RowStatistics(NamedTuple):
    """What softmax needs of each row; all but `argmax` keep the class axis with length 1."""

    argmax: Array
    m: Array
    log_Z: Array
    Z: Array
    S: Array


def row_statistics(z: Array) -> RowStatistics:
    """Max, normaliser and its logarithm. ``log Z = log1p(S)`` keeps its digits when one logit wins."""
    m = z.max(axis=-1, keepdims=True)
    argmax = z.argmax(axis=-1)[..., None]
    e = np.exp(z - m)
    np.put_along_axis(e, argmax, np.where(np.isfinite(m), 0.0, np.nan), axis=-1)
    S = e.sum(axis=-1, keepdims=True)
    return RowStatistics(argmax, m, np.log1p(S), 1.0 + S, S)


def logsumexp(z: Array) -> Array:
    row = row_statistics(z)
    return np.where(np.isinf(row.m), row.m, row.m + row.log_Z)[..., 0]


def log_softmax(z: Array) -> Array:
    row = row_statistics(z)
    # (z - m) - log Z, never z - lse: at |z| = 1e8 the logarithm would be lost in lse.
    return np.where(row.m == np.inf, z - row.m, (z - row.m) - row.log_Z)


def softmax(z: Array) -> Array:
    row = row_statistics(z)
    return np.exp(z - row.m) / row.Z


def one_minus_softmax(z: Array) -> Array:
    """``1 - p``: for the largest logit ``S / Z``, where the subtraction would round to 0."""
    row = row_statistics(z)
    rest = (row.Z - np.exp(z - row.m)) / row.Z
    np.put_along_axis(rest, row.argmax, row.S / row.Z, axis=-1)
    return rest


def surprise_of_logits(z: Array, row: RowStatistics | None = None) -> Array:
    """``-log p``: all terms of ``log Z + (m - z)`` are non-negative."""
    row = row_statistics(z) if row is None else row
    # A logit of +inf takes all the probability; its own surprise is undefined (inf - inf).
    return np.where(row.m == np.inf, row.m - z, row.log_Z + (row.m - z))


def soft_capped(x: Array, softcap: float | None) -> tuple[Array, Array | float]:
    """``c·tanh(x/c)`` and its slope, as ``1/cosh²``: ``1 - tanh²`` would round to 0 from x = 19c on."""
    if softcap is None:
        return x, 1.0
    e = np.exp(-2.0 * np.abs(x / softcap))
    return np.where(x == -np.inf, x, softcap * np.tanh(x / softcap)), 4.0 * e / ((1.0 + e) * (1.0 + e))


def transformed(x: Array, softcap: float | None, temperature: float) -> tuple[Array, Array, Array]:
    """``z - shift``, ``dz/dx`` and the shift, for ``z = softcap(x) / T``.

    The largest logit is subtracted before dividing by T, whose rounding would be that of the offset.
    """
    capped, slope = soft_capped(x, softcap)
    m = capped.max(axis=-1, keepdims=True)
    shift = np.where(np.isfinite(m), m, 0.0)
    return (capped - shift) / temperature, np.asarray(slope / temperature), shift / temperature


# --- one distribution -----------------------------------------------------------------------------


def times(weight: Array, value: Array) -> Array:
    """``weight · value`` where a weight of 0 gives 0, also times infinity; NaN stays NaN."""
    return np.where((weight == 0) & ~np.isnan(value), 0.0, weight * value)


def surprise(x: Array, form: str) -> Array:
    """``-log p`` of a distribution given in `form`."""
    if form == "logits":
        return surprise_of_logits(x)
    return -x if form == "log_probs" else -np.log(x)


def probabilities(x: Array, form: str) -> Array:
    if form == "logits":
        return softmax(x)
    return np.exp(x) if form == "log_probs" else np.where(x < 0, np.nan, x)


def entropy(x: Array, form: str) -> tuple[Array, Array]:
    """``H = Σ p·(-log p)`` and its gradient with respect to `x`."""
    p, I = probabilities(x, form), surprise(x, form)  # noqa: E741
    if form == "logits":
        # H = log Z + Σ p (m - z), and log p + H = (z - m) - Σ p (z - m): log Z cancels exactly.
        row = row_statistics(x)
        d = x - row.m
        mean = times(p, d).sum(axis=-1, keepdims=True)
        return (row.log_Z - mean)[..., 0], -times(p, d - mean)
    H = times(p, I).sum(axis=-1)
    return H, (times(p, I) - p if form == "log_probs" else I - 1.0)


def cross_entropy(x: Array, b: Array, form: str) -> tuple[Array, Array, Array]:
    """``Σ_c b_c·(-log p_c)`` with target weights ``b``, its gradient and its diagonal Hessian."""
    I = surprise(x, form)  # noqa: E741
    # A NaN makes its row NaN, also where the target is 0 (the NaN of inf - inf at +inf does not).
    loss = np.where(b == 0, 0.0, b * I).sum(axis=-1)
    undefined = np.isnan(b) | (np.isnan(I) & (x != np.inf))
    loss = np.where(undefined.any(axis=-1), np.nan, loss)
    if form == "log_probs":
        return loss, -b, np.zeros_like(b)
    if form == "probs":
        return loss, -times(b, 1.0 / x), np.zeros_like(b)
    A = b.sum(axis=-1, keepdims=True)
    p, rest = softmax(x), one_minus_softmax(x)
    # A·p - b, split so that the true class gives -(Σ of the others' p) and never p - 1.
    return loss, (A - b) * p - b * rest, A * p * rest


def target_weights(call: Call, x: Array) -> Array:
    """``b_c = w_c·target_c`` (smoothed), the same for labels and distributions."""
    k, eps = call.k, call.label_smoothing
    w = np.ones(k) if call.class_weight is None else call.class_weight
    if call.labels is not None:
        y = np.where(counted(call), call.labels, 0)
        hot = np.zeros(x.shape)
        np.put_along_axis(hot, y[..., None].astype(np.int64), 1.0, axis=-1)
    else:
        assert call.y is not None
        hot = call.y.astype(np.float64)
        hot = np.where(hot < 0, np.nan, hot)
    return w * ((1.0 - eps) * hot + eps / k)


# --- two distributions ----------------------------------------------------------------------------


def atanh_tail(s: Array) -> Array:
    """``(atanh(s) - s) / s³ = 1/3 + s²/5 + s⁴/7 + …`` for ``|s| < 1/3``."""
    return np.polynomial.polynomial.polyval(s * s, [1.0 / (2 * i + 3) for i in range(18)])


def expm1_tail(d: Array) -> Array:
    """``(e^-d - 1 + d) / d² = 1/2 - d/6 + d²/24 - …`` for ``|d| < 1``."""
    coefficients = np.cumprod([0.5] + [-1.0 / (i + 3) for i in range(18)])
    return np.polynomial.polynomial.polyval(d, coefficients)


def close(a: Array, b: Array) -> Array:
    """Where ``a/b`` lies between 1/2 and 2."""
    return (a < 2 * b) & (b < 2 * a)


def log_ratio(a: Array, b: Array, difference: Array) -> Array:
    """``log(a/b)``, from ``a - b`` where the two are close."""
    s = difference / (a + b)
    near = 2.0 * s * (1.0 + s * s * atanh_tail(s))
    ratio = a / b
    # The quotient of two probabilities can overflow; the difference of their logarithms cannot.
    far = np.where((ratio > 0) & (ratio < np.inf), np.log(ratio), np.log(a) - np.log(b))
    return np.where(close(a, b), near, far)


def divergence_terms(a: Array, b: Array, difference: Array, ratio: Array) -> Array:
    """``a·log(a/b) - a + b``, non-negative; `difference` is ``a - b`` and `ratio` is ``log(a/b)``.

    With ``s = (a-b)/(a+b)`` it is ``(a-b)·s·(1 + s(1+s)·tail(s))``: no cancellation for ``a ≈ b``.
    """
    s = difference / (a + b)
    near = difference * s * (1.0 + s * (1.0 + s) * atanh_tail(s))
    far = np.where(a == 0, -difference, a * ratio - difference)
    return np.where(close(a, b), near, far)


class Side(NamedTuple):
    """A distribution as it was given, element by element; of logits with what softmax needs of the rows."""

    x: Array
    form: str
    p: Array
    surprise: Array  # -log p
    row: RowStatistics | None


def side(x: Array, form: str, row: RowStatistics | None = None) -> Side:
    """`x` in its `form`; `row` is given where `x` is but a part of the rows."""
    if form != "logits":
        return Side(x, form, probabilities(x, form), surprise(x, form), None)
    row = row_statistics(x) if row is None else row
    return Side(x, form, np.exp(x - row.m) / row.Z, surprise_of_logits(x, row), row)


class Pair(NamedTuple):
    """Two distributions, element by element."""

    p: Array
    q: Array
    difference: Array  # p - q
    ratio: Array  # log(p/q)
    terms: Array  # p·log(p/q) - p + q


def pair(a: Side, b: Side) -> Pair:
    p, q = a.p, b.p
    if "probs" in (a.form, b.form):
        difference = p - q
        ratio = log_ratio(p, q, difference) if a.form == b.form else b.surprise - a.surprise
        ratio = np.where(p == q, 0.0, ratio)
        return Pair(p, q, difference, ratio, divergence_terms(p, q, difference, ratio))
    if a.row is not None and b.row is not None:
        # (a - m_a) - (b - m_b) first: for near operands it is small, and so is what it loses.
        d = ((a.x - a.row.m) - (b.x - b.row.m)) - (a.row.log_Z - b.row.log_Z)
    else:
        d = b.surprise - a.surprise
    d = np.where((p == 0) & (q == 0) & ~np.isnan(a.x) & ~np.isnan(b.x), 0.0, d)
    # p·(d + expm1(-d)): by its series where |d| < 1, else with q itself, which may be 0.
    near = np.abs(d) < 1
    small = np.where(near, d, 0.0)
    difference = np.where(near, -p * np.expm1(-small), p - q)
    terms = np.where(near, p * small * small * expm1_tail(small), np.where(p == 0, q, p * d - difference))
    return Pair(p, q, difference, d, terms)


class Mixture(NamedTuple):
    """Two distributions and ``m = w·p + (1-w)·q``."""

    log_p_m: Array  # log(p/m)
    log_q_m: Array  # log(q/m)
    terms: Array  # of JS, which sum to it: the added m - p and m - q cancel


def mixture(t: Pair, w: float) -> Mixture:
    m = w * t.p + (1.0 - w) * t.q
    dp, dq = (1.0 - w) * t.difference, -w * t.difference  # p - m and q - m without a subtraction
    empty = m == 0
    # Where both are 0 the ratio counts as 1: such a class adds nothing, nor does it to a gradient.
    rp, rq = (np.where(empty, 0.0, log_ratio(a, m, d)) for a, d in ((t.p, dp), (t.q, dq)))
    terms = w * divergence_terms(t.p, m, dp, rp) + (1.0 - w) * divergence_terms(t.q, m, dq, rq)
    return Mixture(rp, rq, np.where(empty, 0.0, terms))


def through_form(slope_of_log: Array, slope: Array, p: Array, form: str) -> Array:
    """A gradient with respect to a distribution as it was given.

    `slope` is the derivative by ``p``, `slope_of_log` the one by ``log p`` (``p`` times it, but finite
    where ``p`` is 0). Softmax turns the latter into ``g - p·Σg``.
    """
    if form == "probs":
        return slope
    if form == "log_probs":
        return slope_of_log
    return slope_of_log - p * slope_of_log.sum(axis=-1, keepdims=True)


def kl_divergence(x: Array, x_form: str, y: Array, y_form: str) -> tuple[Array, Array, Array]:
    """``Σ p·log(p/q)``, summed as ``Σ[p·log(p/q) - p + q] + Σ(p - q)``, and its two gradients."""
    t = pair(side(x, x_form), side(y, y_form))
    normalised = x_form == y_form == "logits"  # both sum to 1: the second sum is 0
    loss = t.terms.sum(axis=-1) + (0.0 if normalised else t.difference.sum(axis=-1))
    # A constant added to the slope by log p leaves the gradient by logits unchanged: add none there.
    one = 0.0 if x_form == "logits" else 1.0
    grad_p = through_form(times(t.p, t.ratio + one), t.ratio + one, t.p, x_form)
    # By q: -p/q as given; by its logarithm -p; by its logits q·Σp - p, from differences that stay small.
    if y_form == "logits":
        excess = 0.0 if x_form == "logits" else (t.p.sum(axis=-1, keepdims=True) - 1.0)
        grad_q = -t.difference + t.q * excess
    else:
        grad_q = through_form(-t.p, -np.where(t.p == 0, 0.0 * t.q, t.p / t.q), t.q, y_form)
    return loss, grad_p, grad_q


def js_divergence(x: Array, x_form: str, y: Array, y_form: str, w: float) -> tuple[Array, Array, Array]:
    """``w·KL(p‖m) + (1-w)·KL(q‖m)``, ``m = w·p + (1-w)·q``: the sum of its non-negative terms.

    ``w(p-m) + (1-w)(q-m) = 0``, so the terms ``a·log(a/m) - a + m`` need no second sum.
    """
    t = pair(side(x, x_form), side(y, y_form))
    of_m = mixture(t, w)
    rp, rq = of_m.log_p_m, of_m.log_q_m
    grad_p = through_form(w * times(t.p, rp), w * rp, t.p, x_form)
    grad_q = through_form((1.0 - w) * times(t.q, rq), (1.0 - w) * rq, t.q, y_form)
    return of_m.terms.sum(axis=-1), grad_p, grad_q


# --- elements -------------------------------------------------------------------------------------


def softplus(z: Array) -> Array:
    """``log(1 + e^z)``, never overflowing and relatively accurate for very negative z."""
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))


def sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, e) / (1.0 + e)


def log1mexp(x: Array) -> Array:
    """``log(1 - e^x)`` for ``x <= 0``."""
    return np.where(x > -np.log(2.0), np.log(-np.expm1(x)), np.log1p(-np.exp(x)))


def binary_cross_entropy(x: Array, a: Array, b: Array, form: str) -> tuple[Array, Array, Array]:
    """``-[a·log p + b·log(1-p)]`` by element (``a = w·t``, ``b = 1-t``), its gradient and Hessian."""
    if form == "logits":
        loss = times(a, softplus(-x)) + times(b, softplus(x))
        s, c = sigmoid(x), sigmoid(-x)  # c = 1 - s, with its digits kept
        return loss, b * s - a * c, (a + b) * s * c
    if form == "log_probs":
        loss = times(a, -x) + times(b, -log1mexp(x))
        return loss, times(b, 1.0 / np.expm1(-x)) - a, np.zeros_like(x)
    loss = times(a, -np.log(x)) + times(b, -np.log1p(-x))
    grad = times(b, 1.0 / (1.0 - x)) - times(a, 1.0 / x)
    return np.where(x < 0, np.nan, loss), np.where(x < 0, np.nan, grad), np.zeros_like(x)


def information(p: Array) -> Array:
    return np.where(p == 1, 0.0, -np.log(p))


def kl_estimate(log_p: Array, log_q: Array, estimator: str) -> Array:
    """Estimators of KL(P‖Q) from samples of P, with ``d = -log r = log p - log q``."""
    d = log_p - log_q
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d * d
    near = np.abs(d) < 1
    small = np.where(near, d, 0.0)
    return np.where(near, small * small * expm1_tail(small), np.where(d == np.inf, d, np.expm1(-d) + d))


# --- how a call reaches the formulas --------------------------------------------------------------


def run(call: Call) -> float:
    """Compute all of `call` in float64, write its outputs, return the sum of its losses."""
    check_targets(call)
    with np.errstate(all="ignore"):
        rows, maps = COMPUTE[call.quantity](call)
        for name, out in call.rows.items():
            out[...] = rows[name]
        for name, out in call.maps.items():
            out[...] = maps[name]
        return float(np.sum(rows["loss"])) if call.total else 0.0


Results = tuple[dict[str, Any], dict[str, Any]]


def counted(call: Call) -> Array:
    """Which rows count: not ignored, and of a weight other than exactly 0."""
    result = np.ones(call.row_shape, bool)
    if call.sample_weight is not None:
        result &= np.asarray(call.sample_weight != 0)
    if call.ignore_index is not None:
        if call.labels is not None:
            result &= call.labels != call.ignore_index
        elif call.y is not None:
            kept = call.y != call.ignore_index
            result &= kept if call.elementwise else kept.any(axis=-1)
    return result


def row_weights(call: Call) -> tuple[Array, Array]:
    """Each row's weight, and whether it counts."""
    s = np.ones(call.row_shape) if call.sample_weight is None else call.sample_weight.astype(np.float64)
    return s, counted(call)


def weighted(call: Call, loss: Array, extra: Array | float, maps: dict[str, Array], unit: float) -> Results:
    """Weight row losses and their maps; what does not count is 0 whatever `x` holds there."""
    s, keep = row_weights(call)
    loss = np.where(keep, s * (unit * loss + extra), 0.0)
    scaled = {}
    for name, value in maps.items():
        # A row whose loss is undefined has no gradient; one of +inf (a logit of -inf) has.
        column = (s * call.map_scale, keep, np.isnan(loss))
        weight, kept, undefined = column if call.elementwise else tuple(c[..., None] for c in column)
        scaled[name] = np.where(kept, np.where(undefined, np.nan, weight * value), 0.0)
    return {"loss": loss}, scaled


def _cross_entropy(call: Call) -> Results:
    x = call.x.astype(np.float64)
    z, slope, shift = x, np.asarray(1.0), np.asarray([0.0])
    if call.form == "logits":
        z, slope, shift = transformed(x, call.softcap, call.temperature)
    loss, grad, hess = cross_entropy(z, target_weights(call, x), call.form)
    grad, z_term = call.unit * grad, np.zeros_like(loss)
    if call.z_loss:
        lse = shift[..., 0] + logsumexp(z)
        z_term = call.z_loss * lse * lse
        grad = grad + 2.0 * call.z_loss * lse[..., None] * softmax(z)
    maps = {"grad": grad * slope, "hess": call.unit * hess * slope * slope}
    return weighted(call, loss, z_term, maps, call.unit)


def _score(call: Call) -> Results:
    x = call.x.astype(np.float64)
    z, _, shift = transformed(x, call.softcap, call.temperature)
    row = row_statistics(z)
    rows: dict[str, Any] = {}
    maps: dict[str, Any] = {}
    if call.labels is not None or call.y is not None:
        rows, maps = _cross_entropy(call)
    undefined = np.isnan(row.m[..., 0])
    rows["lse"] = shift[..., 0] + logsumexp(z)
    rows["entropy"] = call.unit * entropy(z, "logits")[0]
    rows["max_prob"] = 1.0 / row.Z[..., 0]
    rows["max"] = soft_capped(x, call.softcap)[0].max(axis=-1)
    rows["log_Z"] = row.log_Z[..., 0]
    rows["argmax"] = np.where(undefined, -1, row.argmax[..., 0])
    if call.labels is not None:
        ignored = np.zeros(call.row_shape, bool) if call.ignore_index is None else call.labels == call.ignore_index
        y = np.where(ignored, 0, call.labels).astype(np.int64)[..., None]
        log_prob = -np.take_along_axis(surprise_of_logits(z), y, axis=-1)[..., 0]
        rows["log_prob"] = np.where(ignored, np.nan, log_prob)
        capped, _ = soft_capped(x, call.softcap)
        larger = (capped > np.take_along_axis(capped, y, axis=-1)).sum(axis=-1)
        rows["rank"] = np.where(ignored | undefined, -1, larger)
    return rows, maps


def _entropy(call: Call) -> Results:
    loss, grad = entropy(call.x.astype(np.float64), call.form)
    return weighted(call, loss, 0.0, {"grad": call.unit * grad}, call.unit)


def _softmax(call: Call) -> Results:
    x = call.x.astype(np.float64)
    rows = {"lse": logsumexp(x)}
    return rows, {"softmax": softmax(x), "log_softmax": log_softmax(x)}


def _divergence(call: Call) -> Results:
    assert call.y is not None
    x, y = call.x.astype(np.float64), call.y.astype(np.float64)
    a = transformed(x, None, call.temperature)[0] if call.form == "logits" else x
    b = transformed(y, None, call.temperature)[0] if call.y_form == "logits" else y
    if call.quantity == "kl_divergence":
        loss, grad_p, grad_q = kl_divergence(a, call.form, b, call.y_form)
    else:
        loss, grad_p, grad_q = js_divergence(a, call.form, b, call.y_form, call.js_weight)
    slope_p = call.unit / (call.temperature if call.form == "logits" else 1.0)
    slope_q = call.unit / (call.temperature if call.y_form == "logits" else 1.0)
    return weighted(call, loss, 0.0, {"grad_p": slope_p * grad_p, "grad_q": slope_q * grad_q}, call.unit)


def _binary_cross_entropy(call: Call) -> Results:
    assert call.y is not None
    x, t = call.x.astype(np.float64), call.y.astype(np.float64)
    kept = np.ones(t.shape, bool) if call.ignore_index is None else t != call.ignore_index
    t, eps = np.where(kept, t, 0.0), call.label_smoothing
    pos_weight = 1.0 if call.pos_weight is None else call.pos_weight.astype(np.float64)
    # The negative part smoothed on its own: 1 - t would lose the digits of a small eps.
    a, b = pos_weight * ((1.0 - eps) * t + 0.5 * eps), (1.0 - eps) * (1.0 - t) + 0.5 * eps
    loss, grad, hess = binary_cross_entropy(x, a, b, call.form)
    loss, grad, hess = (np.where(kept, v, 0.0) for v in (loss, grad, hess))
    if not call.elementwise:
        loss = loss.sum(axis=-1)
    return weighted(call, loss, 0.0, {"grad": call.unit * grad, "hess": call.unit * hess}, call.unit)


def _information(call: Call) -> Results:
    return {}, {"information": call.unit * information(call.x.astype(np.float64))}


def _kl_estimate(call: Call) -> Results:
    assert call.y is not None
    return {"loss": kl_estimate(call.x.astype(np.float64), call.y.astype(np.float64), call.estimator)}, {}


COMPUTE = {
    "cross_entropy": _cross_entropy,
    "binary_cross_entropy": _binary_cross_entropy,
    "entropy": _entropy,
    "kl_divergence": _divergence,
    "js_divergence": _divergence,
    "kl_estimate": _kl_estimate,
    "information": _information,
    "softmax": _softmax,
    "score": _score,
}
