"""Two distributions, of which a slice of classes is at hand: the second sweep of KL and JS divergence.

The first has found the normaliser of whole rows (of those that are logits). What is left are sums of non-negative
terms, which slices add up to, and gradients, which need some of these sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _arrays
from ._call import Call
from ._merge import Array, Statistics, get, put
from ._slices import bare, pieces, put_normaliser, row_results, runs_on_cpu
from .reference import Mixture, Pair, RowStatistics, Side, mixture, pair, side, times

# What the second read sums up.
SUMS = {
    "kl_divergence": ("kl_divergence", "mass"),
    "js_divergence": ("js_divergence", "slope_p", "slope_q"),
}


def normalisers(call: Call) -> Statistics:
    """What the slices of P and Q say of the softmax of their rows, where they are logits; in float64."""
    found: Statistics = {}
    for x, form, name in ((call.x, call.form, ""), (call.y, call.y_form, "q_")):
        if form == "logits":
            put_normaliser(found, row_results(bare(call, "score", x=x), "max", "log_Z", precise=True), name)
    return found


def terms(call: Call, rows: Statistics) -> Statistics:
    """Sums over the slice: of the divergence, and of what its gradients need; `rows` are the rows' normalisers."""
    sums: Statistics = {}
    with np.errstate(all="ignore"):
        found = _terms_by_kernel(call, rows) if runs_on_cpu(call) else _terms(call, rows)
    for name in SUMS[call.quantity]:
        put(sums, name, found[name])
    return sums


def gradients(call: Call, rows: Statistics, factor: Array) -> None:
    """Write the gradients that `call` asks for; `rows` are the rows' normalisers and sums, `factor` their weights."""
    with np.errstate(all="ignore"):
        undefined = np.isnan(get(rows, call.quantity))
        for name in ("max", "q_max"):
            undefined = undefined | ~np.isfinite(rows[name]) if name in rows else undefined
        factor = np.where(undefined & (factor != 0.0), np.nan, factor)
        if runs_on_cpu(call):
            _gradients_by_kernel(call, rows, factor)
            return
        for piece, t in _pairs(call, rows):
            sums = {name: get(rows, name)[piece][..., None] for name in SUMS[call.quantity]}
            for name, out in call.maps.items():
                form = call.form if name == "grad_p" else call.y_form
                f = (factor / call.temperature if form == "logits" else factor)[piece][..., None]
                gradient = _by_p(call, t, sums) if name == "grad_p" else _by_q(call, t, sums)
                out[piece] = np.where(f == 0.0, 0.0, f * gradient)


# --- on the CPU, the kernel of whole rows ---------------------------------------------------------------


def _terms_by_kernel(call: Call, rows: Statistics) -> Statistics:
    from .cpu.slices import SUMS_OF_PAIRS, pair_sums

    sums = pair_sums(call, _normalisers_in_line(call, rows)).reshape(1 + len(SUMS_OF_PAIRS), *call.row_shape)
    return {call.quantity: sums[0]} | dict(zip(SUMS_OF_PAIRS, sums[1:], strict=True))


def _gradients_by_kernel(call: Call, rows: Statistics, factor: Array) -> None:
    from .cpu.slices import SUMS_OF_PAIRS, write_pair_gradients

    # The slopes of KL by log p sum to KL itself; those by Q are not needed.
    known = {name: get(rows, name) for name in SUMS[call.quantity]}
    known |= {"slope_p": known[call.quantity]} if call.quantity == "kl_divergence" else {}
    sums = np.zeros((1 + len(SUMS_OF_PAIRS), call.n_rows))
    for at, name in enumerate((call.quantity, *SUMS_OF_PAIRS)):
        if name in known:
            sums[at] = known[name].reshape(-1)
    write_pair_gradients(call, _normalisers_in_line(call, rows), sums, factor.reshape(-1))


def _normalisers_in_line(call: Call, rows: Statistics) -> Array:
    """``m, log Z, Z - 1`` of P and of Q, a row in each column: NaN without a softmax, 0 where the form needs none."""
    found = np.zeros((6, call.n_rows))
    for at, form, name in ((0, call.form, ""), (3, call.y_form, "q_")):
        if form == "logits":
            m = rows[f"{name}max"].reshape(-1)
            log_Z = np.where(np.isfinite(m), get(rows, f"{name}log_Z").reshape(-1), np.nan)
            found[at : at + 3] = m, log_Z, np.expm1(log_Z)
    return found


# --- elsewhere, formulas ------------------------------------------------------------------------------


def _terms(call: Call, rows: Statistics) -> Statistics:
    w = call.js_weight
    sums = {name: _arrays.empty(call.row_shape, np.dtype(np.float64), call.x) for name in SUMS[call.quantity]}
    for piece, t in _pairs(call, rows):
        if call.quantity == "kl_divergence":
            excess = 0.0 if call.form == call.y_form == "logits" else t.difference.sum(axis=-1)
            found = [t.terms.sum(axis=-1) + excess, t.p.sum(axis=-1)]
        else:
            of_m = mixture(t, w)
            found = [part.sum(axis=-1) for part in (of_m.terms, *_slopes(t, of_m, w))]
        for total, value in zip(sums.values(), found, strict=True):
            total[piece] = value
    return sums


# Gradients as in `reference`, with sums over whole rows in place of those over the slice.


def _by_p(call: Call, t: Pair, sums: Statistics) -> Array:
    if call.quantity == "js_divergence":
        of_m = mixture(t, call.js_weight)
        slope, _ = _slopes(t, of_m, call.js_weight)
        return _through(call.form, call.js_weight * of_m.log_p_m, slope, t.p, sums["slope_p"])
    if call.form == "logits":
        return times(t.p, t.ratio) - t.p * sums[call.quantity]
    return t.ratio + 1.0 if call.form == "probs" else times(t.p, t.ratio + 1.0)


def _by_q(call: Call, t: Pair, sums: Statistics) -> Array:
    if call.quantity == "js_divergence":
        of_m = mixture(t, call.js_weight)
        _, slope = _slopes(t, of_m, call.js_weight)
        return _through(call.y_form, (1.0 - call.js_weight) * of_m.log_q_m, slope, t.q, sums["slope_q"])
    if call.y_form == "logits":
        return -t.difference + t.q * (0.0 if call.form == "logits" else sums["mass"] - 1.0)
    return -t.p if call.y_form == "log_probs" else -np.where(t.p == 0, 0.0 * t.q, t.p / t.q)


def _slopes(t: Pair, of_m: Mixture, w: float) -> tuple[Array, Array]:
    """The derivatives of JS by ``log p`` and ``log q``."""
    return w * times(t.p, of_m.log_p_m), (1.0 - w) * times(t.q, of_m.log_q_m)


def _through(form: str, slope: Array, slope_of_log: Array, p: Array, total: Array) -> Array:
    if form == "logits":
        return slope_of_log - p * total
    return slope if form == "probs" else slope_of_log


def _pairs(call: Call, rows: Statistics) -> Any:
    """The two slices, compared element by element, some rows at a time."""
    y: Any = call.y
    for piece in pieces(call.x.shape):
        p, q = (
            _side(x[piece].astype(np.float64), form, call.temperature, rows, name, piece)
            for x, form, name in ((call.x, call.form, ""), (y, call.y_form, "q_"))
        )
        yield piece, pair(p, q)


def _side(x: Array, form: str, temperature: float, rows: Statistics, name: str, piece: Any) -> Side:
    if form != "logits":
        return side(x, form)
    m = rows[f"{name}max"][piece][..., None]
    log_Z = get(rows, f"{name}log_Z")[piece][..., None]
    # The largest logit is subtracted before dividing by T, whose rounding would be that of the offset.
    shifted = (x - np.where(np.isfinite(m), m, 0.0)) / temperature
    zero: Array = np.zeros_like(m)
    return side(shifted, form, RowStatistics(zero, zero, log_Z, np.exp(log_Z), np.expm1(log_Z)))
