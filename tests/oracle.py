"""The oracle: section 4's contract, computed from the exact stored inputs.

`evaluate` computes any call twice over: its results, in 50-digit mpmath (`MP`) or 64-bit-mantissa
long double (`LONG`, for rows too long for mpmath), and the error that section 4 allows. It is written
from DESIGN section 2, not from the package: it shares no code with it.

The rule behind every bound: an output may be off by ``4·eps·(|f| + what rounding each input once
could cause)``. What an input's rounding is depends on how the distribution was given: a logit's
shifted value ``x_j - m``, a log-probability itself; a probability counts as exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from exact import LONG, MP, Array, Field, Side, excess, inverse, side, times, total, transformed

__all__ = ["LONG", "MP", "Result", "Results", "evaluate"]


class Result(NamedTuple):
    """An output's value and the error allowed.

    ``|error| ≤ 4·eps·scale + 4·2⁻⁵³·exact + 4·2⁻⁵²·given + tiny``. `given` is the size of two
    independent operands of which the output is the difference (``A·p - b``): where they nearly cancel,
    the rounding of the float64 that every backend computes it in is all that is left of the result.
    """

    value: Array
    scale: Array
    given: Any = 0.0
    exact: Any = 0.0


Results = dict[str, Result]


# --- the quantities -------------------------------------------------------------------------------


def target_weights(F: Field, x: Array, target: Array, o: dict[str, Any]) -> tuple[Array, Array]:
    """``b_c`` as in section 2, and which rows are not ignored."""
    k = x.shape[-1]
    eps = F.array(o.get("label_smoothing", 0.0))
    w = F.array(np.ones(k) if o.get("class_weight") is None else o["class_weight"])
    kept = np.ones(x.shape[:-1], bool)
    if target.shape != x.shape:
        if o.get("ignore_index") is not None:
            kept = target != o["ignore_index"]
        target = np.arange(k) == np.where(kept, target, 0)[..., None]
    return w * ((1 - eps) * F.array(target) + eps / k), kept


def cross_entropy(F: Field, x: Array, target: Array, o: dict[str, Any]) -> tuple[Results, Array]:
    form = o.get("form", "logits")
    b, kept = target_weights(F, x, np.asarray(target), o)
    unit = 1 / F.log(F.array(o["base"])) if o.get("base") else F.array(1)
    zeta = F.array(o.get("z_loss", 0.0))
    if form == "logits":
        z, slope, moved, slope_moved, shift = transformed(F, F.array(x), o)
    else:
        z, slope, moved, slope_moved, shift = F.array(x), F.array(1), None, F.array(0), F.array(0)
    s = side(F, form, z, moved)
    loss = times(b, -s.u)
    loss_size = total(abs(loss)) + s.rounding(-b)
    lse = shift + s.m + s.log_Z
    value = unit * total(loss) + zeta * lse * lse
    scale = unit * loss_size + zeta * (lse * lse + 2 * abs(lse) * (s.log_Z + total(times(s.p, s.moved))))
    results = {"loss": Result(value[..., 0], scale[..., 0])}
    if form == "log_probs":
        results["grad"] = Result(-unit * b, unit * b)
    elif form == "probs":
        results["grad"] = Result(-unit * times(b, inverse(z)), unit * times(b, inverse(z)))
    else:
        A = total(b)
        pull = unit * A + 2 * zeta * lse
        value = unit * ((A - b) * s.p - b * s.rest) + 2 * zeta * lse * s.p
        scale = s.rounding_each(pull * s.p)
        scale = scale + 2 * zeta * s.p * (abs(lse) + s.log_Z + total(times(s.p, s.moved)))
        # A label without smoothing or weights is no difference: the true class has no p to lose.
        labelled = np.asarray(target).shape != x.shape and not o.get("label_smoothing") and not o.get("z_loss")
        given = 0 * s.p if labelled else abs(pull) * s.p + unit * b
        size = abs(value) * (1 + slope_moved)
        results["grad"] = Result(value * slope, (size + scale) * slope, given * slope)
        value = unit * A * s.p * s.rest
        scale = value + s.rounding_each(unit * A * s.p * (1 - 2 * s.p))
        results["hess"] = Result(value * slope * slope, scale * slope * slope)
    return results, kept


def score(F: Field, x: Array, target: Array | None, o: dict[str, Any]) -> Results:
    results: Results = {}
    kept = np.ones(x.shape[:-1], bool)
    if target is not None:
        results, kept = weighted(F, *cross_entropy(F, x, target, o), o), kept
        if target.shape != x.shape and o.get("ignore_index") is not None:
            kept = target != o["ignore_index"]
    z, _, moved, _, shift = transformed(F, F.array(x), o)
    s = side(F, "logits", z, moved)
    unit = 1 / F.log(F.array(o["base"])) if o.get("base") else F.array(1)
    spread = total(times(s.p, s.moved))
    lse = shift + s.m + s.log_Z
    # Near zero the two parts of lse cancel: it is accurate absolutely.
    results["lse"] = Result(lse[..., 0], (abs(lse) + s.log_Z + spread)[..., 0])
    H = total(times(s.p, -s.u))
    results["entropy"] = Result((unit * H)[..., 0], (unit * (H + s.rounding(-times(s.p, s.u) - s.p)))[..., 0])
    top = np.argmax(z, axis=-1)[..., None]
    moved_p = s.p + s.rounding_each(s.p)
    results["max_prob"] = Result(*(np.take_along_axis(v, top, axis=-1)[..., 0] for v in (s.p, moved_p)))
    results["argmax"] = Result(top[..., 0], 0 * top[..., 0])
    if target is not None and np.asarray(target).shape != x.shape:
        y = np.where(kept, target, 0)[..., None]
        hot = F.array(np.arange(x.shape[-1]) == y)
        value = np.take_along_axis(s.u, y, axis=-1)[..., 0]
        scale = (abs(np.take_along_axis(s.u, y, axis=-1)) + s.rounding(hot))[..., 0]
        results["log_prob"] = Result(np.where(kept, value, np.nan), scale)
        own = np.take_along_axis(z, y, axis=-1)
        rank = (z > own).sum(axis=-1)
        # Under a softcap, logits as good as equal to the label's stand above or below it by whose tanh it is.
        unsure = (abs(z - own) <= 2.0**-50 * abs(own)).sum(axis=-1) - 1 if o.get("softcap") else 0 * rank
        results["rank"] = Result(np.where(kept, rank, -1), np.where(kept, unsure, 0))
    return results


def softmax(F: Field, x: Array) -> Results:
    s = side(F, "logits", F.array(x))
    spread = total(times(s.p, s.moved))
    lse = s.m + s.log_Z
    moved = s.rest * s.moved + (spread - times(s.p, s.moved))
    return {
        "logsumexp": Result(lse[..., 0], (abs(lse) + s.log_Z + spread)[..., 0]),
        "softmax": Result(s.p, s.p + s.rounding_each(s.p)),
        "log_softmax": Result(s.u, abs(s.u) + moved),
    }


def entropy(F: Field, x: Array, o: dict[str, Any]) -> tuple[Results, Array]:
    form = o.get("form", "probs")
    s = side(F, form, F.array(x))
    unit = 1 / F.log(F.array(o["base"])) if o.get("base") else F.array(1)
    pu = times(s.p, s.u)
    H = -total(pu)
    results = {"loss": Result((unit * H)[..., 0], (unit * (total(abs(pu)) + s.rounding(-pu - s.p)))[..., 0])}
    if form == "logits":
        value = -pu - s.p * H
        scale = abs(value) + s.rounding_each(value - s.p, -pu - s.p, s.p)
        given = abs(pu) + s.p * H
    elif form == "log_probs":
        value = -pu - s.p
        scale = abs(value) + s.rounding_each(value - s.p)
        given = abs(pu) + s.p
    else:
        value = -s.u - 1
        scale, given = abs(value), abs(s.u) + 1
    results["grad"] = Result(unit * value, unit * scale, unit * given)
    return results, np.ones(x.shape[:-1], bool)


def divergence(F: Field, function: str, x: Array, y: Array, o: dict[str, Any]) -> tuple[Results, Array]:
    p_form, q_form = o.get("p_form", "probs"), o.get("q_form", "probs")
    shape = np.broadcast_shapes(x.shape, y.shape)
    T = F.array(o.get("temperature", 1.0))
    x, y = np.broadcast_to(F.array(x), shape), np.broadcast_to(F.array(y), shape)
    p, q = (
        side(F, form, transformed(F, v, {"temperature": T}).z if form == "logits" else v)
        for form, v in ((p_form, x), (q_form, y))
    )
    unit = 1 / F.log(F.array(o["base"])) if o.get("base") else F.array(1)
    same = np.isneginf(p.u.astype(float)) & np.isneginf(q.u.astype(float))
    delta = np.where(same, 0, np.where(same, 0, p.u) - np.where(same, 0, q.u))  # log(p/q)
    if p_form == q_form == "probs":
        gap = p.p - q.p
        near = 2 * abs(gap) < q.p
        delta = np.where(near, F.log1p(np.where(near, gap, 0) / np.where(near, q.p, 1)), delta)
    if function == "kl_divergence":
        results = _kl(F, p, q, delta)
    else:
        results = _js(F, p, q, delta, F.array(o.get("weight", 0.5)))
    slopes = {
        "loss": unit,
        "grad_p": unit / (T if p_form == "logits" else 1),
        "grad_q": unit / (T if q_form == "logits" else 1),
    }
    return {name: Result(*(slopes[name] * v for v in r)) for name, r in results.items()}, np.ones(shape[:-1], bool)


def computed(p: Side, q: Side) -> Array:
    """How much of ``log(p/q)`` counts as given where probabilities meet another form.

    Those not given as probabilities are computed, in float64: rounded once as a logarithm, and once as
    a probability.
    """
    if p.form == q.form or "probs" not in (p.form, q.form):
        return np.zeros(p.p.shape, int)
    return abs(p.u) + abs(q.u) + 1


def _kl(F: Field, p: Side, q: Side, delta: Array) -> Results:
    r = delta
    terms = np.where(p.p == 0, q.p, times(p.p, excess(F, r)))
    near = abs(np.where(np.isfinite(r.astype(float)), r, 2)) < 1
    gap = np.where(near, -p.p * F.expm1(-np.where(near, r, 0 * F.array(1))), p.p - q.p)
    normalised = p.form == q.form == "logits"
    K = total(terms) + (0 if normalised else total(gap))
    pr = times(p.p, r)
    scale = total(abs(terms)) + p.rounding(pr + p.p) + q.rounding(-p.p)
    exact = 0 * total(abs(gap)) if normalised else total(abs(gap))
    once = computed(p, q)
    given = total(times(abs(pr) + p.p, once))
    results = {"loss": Result(K[..., 0], scale[..., 0], given[..., 0], exact[..., 0])}
    if p.form == "logits":
        mean = total(pr)
        value = pr - p.p * mean
        scale = p.rounding_each(value + p.p, pr + p.p, p.p) + q.rounding_each(-p.p, -p.p, p.p)
        given = abs(pr) + p.p * abs(mean) + times(p.p, once) + p.p * total(times(p.p, once))
    elif p.form == "log_probs":
        value = pr + p.p
        scale = p.rounding_each(pr + 2 * p.p) + q.rounding_each(-p.p)
        given = abs(pr) + p.p + times(p.p, once)
    else:
        value = r + 1
        scale = q.rounding_each(0 * r - 1)
        given = abs(r) + 1 + once
    results["grad_p"] = Result(value, abs(value) + scale, given)
    if q.form == "logits":
        P = F.array(1) if p.form == "logits" else total(p.p)
        value = q.p * P - p.p
        by_p = (-p.p, -p.p, q.p) if p.form == "log_probs" else (-p.p,)
        scale = q.rounding_each(q.p * P) + p.rounding_each(*by_p)
        given = q.p * P + p.p
    elif q.form == "log_probs":
        value, given = -p.p, 0 * p.p
        scale = p.rounding_each(-p.p)
    else:
        value = -times(p.p, inverse(q.p))
        scale, given = p.rounding_each(value), 0 * p.p
    results["grad_q"] = Result(value, abs(value) + scale, given)
    return results


def _js(F: Field, p: Side, q: Side, delta: Array, w: Array) -> Results:
    def half(p: Side, q: Side, delta: Array, w: Array) -> tuple[Array, Array, Result]:
        """Of the side `p` of weight `w`: ``w·p·log(p/m)``, ``w·[p·log(p/m) - p + m]``, and the gradient."""
        rho = -F.log1p((1 - w) * F.expm1(-delta))  # log(p/m) = -log(w + (1-w)·q/p)
        m = w * p.p + (1 - w) * q.p
        t = (1 - w) * q.p / np.where(m == 0, 1, m)
        part = w * times(p.p, rho)
        if p.form == "logits":
            mean = total(part)
            value = part - p.p * mean
            scale = p.rounding_each(value + w * p.p * t, part + w * p.p * t, p.p)
            scale = scale + q.rounding_each(-w * p.p * t, -w * p.p * t, p.p)
            given = abs(part) + p.p * (abs(mean) + w * total(times(p.p * t, once))) + w * times(p.p * t, once)
        elif p.form == "log_probs":
            value, given = part, w * times(p.p * t, once)
            scale = p.rounding_each(part + w * p.p * t) + q.rounding_each(-w * p.p * t)
        else:
            value, given = w * rho, w * times(t, once)
            scale = q.rounding_each(-w * t)
        terms = w * np.where(p.p == 0, m, times(p.p, excess(F, rho)))
        return part, terms, Result(value, abs(value) + scale, given)

    once = computed(p, q)
    part_p, terms_p, grad_p = half(p, q, delta, w)
    part_q, terms_q, grad_q = half(q, p, -delta, 1 - w)
    J = total(terms_p + terms_q)
    scale = abs(J) + p.rounding(part_p) + q.rounding(part_q)
    given = total(times(abs(part_p) + abs(part_q), once))
    return {"loss": Result(J[..., 0], scale[..., 0], given[..., 0]), "grad_p": grad_p, "grad_q": grad_q}


def softplus(F: Field, z: Array) -> Array:
    return np.where(z > 0, z, 0) + F.log1p(F.exp(-abs(z)))


def sigmoid(F: Field, z: Array) -> Array:
    e = F.exp(-abs(z))
    return np.where(z >= 0, 1 + 0 * e, e) / (1 + e)


def binary_cross_entropy(F: Field, x: Array, target: Array, o: dict[str, Any]) -> tuple[Results, Array]:
    form, unit = o.get("form", "logits"), 1 / F.log(F.array(o["base"])) if o.get("base") else F.array(1)
    eps = F.array(o.get("label_smoothing", 0.0))
    target = np.asarray(target)
    kept = np.ones(target.shape, bool) if o.get("ignore_index") is None else target != o["ignore_index"]
    t = F.array(np.where(kept, target, 0))
    weight = np.ones(x.shape) if o.get("pos_weight") is None else np.broadcast_to(o["pos_weight"], x.shape)
    a = F.array(weight) * ((1 - eps) * t + eps / 2)
    b = (1 - eps) * (1 - t) + eps / 2
    z = F.array(x)
    if form == "logits":
        s, c = sigmoid(F, z), sigmoid(F, -z)
        loss = times(a, softplus(F, -z)) + times(b, softplus(F, z))
        grad, hess = b * s - a * c, (a + b) * s * c
        results = {
            "loss": Result(loss, loss + times(abs(grad), abs(z))),
            "grad": Result(grad, abs(grad) + times(hess, abs(z)), b * s + a * c),
            "hess": Result(hess, hess + times(hess * abs(c - s), abs(z))),
        }
    elif form == "log_probs":
        odds = inverse(F.expm1(-z))  # p / (1 - p)
        loss = times(a, -z) + times(b, F.log1p(odds))
        grad = times(b, odds) - a
        results = {
            "loss": Result(loss, loss + times(abs(grad), abs(z))),
            "grad": Result(grad, abs(grad) + abs(b * odds * (1 + odds) * z), b * odds + a),
        }
    else:
        loss = times(a, -F.log(z)) + times(b, -F.log1p(-z))
        grad = times(b, inverse(1 - z)) - times(a, inverse(z))
        results = {
            "loss": Result(loss, loss),
            "grad": Result(grad, abs(grad), times(b, inverse(1 - z)) + times(a, inverse(z))),
        }
    zeroed = {n: Result(*(unit * np.where(kept, v, 0) for v in r[:3])) for n, r in results.items()}
    if o.get("axis") is None:
        return zeroed, kept
    value, scale, *_ = zeroed["loss"]
    zeroed["loss"] = Result(total(value)[..., 0], total(scale)[..., 0])
    return zeroed, kept.any(axis=-1)


def kl_estimate(F: Field, log_p: Array, log_q: Array, o: dict[str, Any]) -> tuple[Results, Array]:
    d = F.array(log_p) - F.array(log_q)
    value = {"k1": d, "k2": d * d / 2, "k3": excess(F, d)}[o.get("estimator", "k1")]
    return {"loss": Result(value, abs(value), 0 * d)}, np.ones(d.shape, bool)


# --- weights, reductions, one entry ---------------------------------------------------------------


def weighted(F: Field, results: Results, kept: Array, o: dict[str, Any], scale: Any = 1) -> Results:
    """Multiply by the sample weight (and `scale` the maps); what does not count is 0."""
    given = o.get("sample_weight")
    shape = results["loss"].value.shape
    kept = kept & (np.ones(shape, bool) if given is None else np.broadcast_to(given, shape) != 0)
    s = F.array(np.where(kept, 1 if given is None else np.broadcast_to(given, shape), 0))
    maps_have_classes = any(r.value.ndim > s.ndim for r in results.values())
    column = s[..., None] if maps_have_classes else s
    return {
        name: Result(*(times(s if name == "loss" else column * scale, np.broadcast_to(v, r.value.shape)) for v in r))
        for name, r in results.items()
    }


def evaluate(F: Field, function: str, args: list[Any], o: dict[str, Any]) -> Results:
    """Every output of a call on the last axis (asked for or not), with the error allowed."""
    with np.errstate(all="ignore"):
        return _evaluate(F, function, args, o)


def _evaluate(F: Field, function: str, args: list[Any], o: dict[str, Any]) -> Results:
    if function == "information":
        unit = 1 / F.log(F.array(o["base"])) if o.get("base") else F.array(1)
        value = -unit * F.log(F.array(args[0]))
        return {"information": Result(value, abs(value))}
    if function in ("logsumexp", "softmax", "log_softmax"):
        return softmax(F, args[0])
    if function == "score":
        return score(F, args[0], args[1] if len(args) > 1 else None, o)
    if function in ("cross_entropy", "perplexity"):
        results, kept = cross_entropy(F, *args, o)
    elif function == "binary_cross_entropy":
        results, kept = binary_cross_entropy(F, *args, o)
    elif function == "entropy":
        results, kept = entropy(F, *args, o)
    elif function == "kl_estimate":
        results, kept = kl_estimate(F, *args, o)
    else:
        results, kept = divergence(F, function, *args, o)
    default = "none" if function in ("entropy", "kl_divergence", "js_divergence") else "mean"
    reduction = o.get("reduction", default)
    if reduction == "none":
        return weighted(F, results, kept, o)
    denominator = F.array(1)
    if reduction == "mean":
        weight = np.where(
            kept,
            1.0 if o.get("sample_weight") is None else np.broadcast_to(o["sample_weight"], kept.shape),
            0.0,
        )
        weight = F.array(weight)
        labelled = function in ("cross_entropy", "perplexity") and np.asarray(args[1]).shape != args[0].shape
        if labelled and o.get("class_weight") is not None:
            weight = weight * F.array(o["class_weight"])[np.where(kept, args[1], 0)]
        denominator = weight.sum()
    empty = denominator == 0
    results = weighted(F, results, kept, o, 0 if empty else 1 / denominator)
    loss = results["loss"]
    by = F.array(np.nan) if empty else 1 / denominator
    # A sum of n numbers in float64 by blocks: one rounding for each doubling of n.
    exact = abs(loss.value).sum() * np.log2(2 + loss.value.size)
    exact = exact + np.sum(loss.exact)
    summed = (np.asarray(np.sum(v) * by) for v in (loss.value, loss.scale, loss.given, exact))
    results["loss"] = Result(*summed)
    if function == "perplexity":
        value, *errors = results["loss"]
        grown = F.exp(value)
        scale, given, exact = (grown * e for e in errors)
        results["loss"] = Result(grown, grown + scale, given, exact)
    return results
