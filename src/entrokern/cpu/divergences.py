"""Kernel of two distributions: KL and Jensen-Shannon divergence, and their gradients, in float64."""

from __future__ import annotations

import numpy as np

from .. import _formulas
from .blocks import BLOCK, CLASS_STRIDE, row_start, slot_of, store
from .compile import inline, inline_sums, kernel
from .distributions import (
    DIFFERENCE,
    LOG_P,
    LOG_Q,
    LOGITS,
    OUT_P,
    OUT_Q,
    PROBS,
    RATIO,
    P,
    Q,
    accumulate,
    block_total,
    normaliser,
    read_distribution,
)
from .math import LOG2E, log
from .row_groups import fill, place_of


@inline
def compare(n, p_form, q_form, shift, stage):
    """``p - q`` and ``log(p/q)`` of the blocks P and Q; `shift` is ``log Z_p - log Z_q``."""
    p, log_p, q, log_q = (
        slot_of(stage, P, n),
        slot_of(stage, LOG_P, n),
        slot_of(stage, Q, n),
        slot_of(stage, LOG_Q, n),
    )
    difference, ratio = slot_of(stage, DIFFERENCE, n), slot_of(stage, RATIO, n)
    if p_form == PROBS and q_form == PROBS:
        extreme = False
        for i in range(n):
            quotient = p[i] / q[i]
            extreme |= (quotient == 0.0) | (quotient == np.inf)
            ratio[i] = log(quotient)
        if extreme:
            # The quotient of two probabilities can overflow; the difference of logarithms cannot.
            for i in range(n):
                quotient = p[i] / q[i]
                if quotient == 0.0 or quotient == np.inf:
                    ratio[i] = log(p[i]) - log(q[i])
        for i in range(n):
            difference[i] = p[i] - q[i]
            ratio[i] = 0.0 if p[i] == q[i] else _formulas.log_ratio(p[i], q[i], difference[i], ratio[i])
        return
    # (a - m_a) - (b - m_b) first: for near operands it is small, and so is what it loses.
    for i in range(n):
        d = (log_p[i] - log_q[i]) - shift
        ratio[i] = 0.0 if (p[i] == 0.0) & (q[i] == 0.0) else d
    if p_form == PROBS or q_form == PROBS:
        for i in range(n):
            difference[i] = p[i] - q[i]
            ratio[i] = 0.0 if p[i] == q[i] else ratio[i]
    else:
        for i in range(n):
            difference[i] = _formulas.difference_of_logs(p[i], q[i], ratio[i])


@inline_sums
def kl_block(n, of_logs, stage):
    """``Σ [p·log(p/q) - p + q]`` and ``Σ (p - q)``."""
    p, q = slot_of(stage, P, n), slot_of(stage, Q, n)
    difference, ratio = slot_of(stage, DIFFERENCE, n), slot_of(stage, RATIO, n)
    terms, excess = 0.0, 0.0
    if of_logs:
        for i in range(n):
            terms += _formulas.divergence_term_of_logs(p[i], q[i], ratio[i], difference[i])
            excess += difference[i]
    else:
        for i in range(n):
            terms += _formulas.divergence_term(p[i], q[i], difference[i], ratio[i])
            excess += difference[i]
    return terms, excess


@inline
def kl_slopes(n, p_form, q_form, stage):
    """The derivatives by ``p`` and ``q`` (by their logarithms unless given as probabilities)."""
    p, q, ratio = slot_of(stage, P, n), slot_of(stage, Q, n), slot_of(stage, RATIO, n)
    by_p, by_q = slot_of(stage, OUT_P, n), slot_of(stage, OUT_Q, n)
    # A constant in the slope by log p leaves the gradient by logits unchanged: add none there.
    one = 0.0 if p_form == LOGITS else 1.0
    for i in range(n):
        by_p[i] = ratio[i] + one if p_form == PROBS else _formulas.times(p[i], ratio[i] + one)
        by_q[i] = -p[i]
        if q_form == PROBS:
            by_q[i] = -(0.0 * q[i] if p[i] == 0.0 else p[i] / q[i])


@inline
def mixture_logs(n, w, stage):
    """Overwrite LOG_P and LOG_Q by ``log(p/m)`` and ``log(q/m)``, ``m = w·p + (1-w)·q``."""
    p, q, difference = slot_of(stage, P, n), slot_of(stage, Q, n), slot_of(stage, DIFFERENCE, n)
    log_p, log_q = slot_of(stage, LOG_P, n), slot_of(stage, LOG_Q, n)
    for i in range(n):
        m = w * p[i] + (1.0 - w) * q[i]
        ratio = _formulas.log_ratio(p[i], m, (1.0 - w) * difference[i], log(p[i] / m))
        log_p[i] = 0.0 if m == 0.0 else ratio
    for i in range(n):
        m = w * p[i] + (1.0 - w) * q[i]
        ratio = _formulas.log_ratio(q[i], m, -w * difference[i], log(q[i] / m))
        log_q[i] = 0.0 if m == 0.0 else ratio


@inline_sums
def js_block(n, w, stage):
    p, q, difference = slot_of(stage, P, n), slot_of(stage, Q, n), slot_of(stage, DIFFERENCE, n)
    log_p, log_q = slot_of(stage, LOG_P, n), slot_of(stage, LOG_Q, n)
    total = 0.0
    for i in range(n):
        m = w * p[i] + (1.0 - w) * q[i]
        total += _formulas.js_term(w, p[i], q[i], m, difference[i], log_p[i], log_q[i])
    return total


@inline
def js_slopes(n, w, p_form, q_form, stage):
    p, q = slot_of(stage, P, n), slot_of(stage, Q, n)
    log_p, log_q = slot_of(stage, LOG_P, n), slot_of(stage, LOG_Q, n)
    by_p, by_q = slot_of(stage, OUT_P, n), slot_of(stage, OUT_Q, n)
    for i in range(n):
        by_p[i] = w * (log_p[i] if p_form == PROBS else _formulas.times(p[i], log_p[i]))
        by_q[i] = (1.0 - w) * (log_q[i] if q_form == PROBS else _formulas.times(q[i], log_q[i]))


@inline
def write_gradient(n, slopes, probabilities, form, total, factor, out, start, stride):
    """``factor·(g - p·Σg)`` for logits, ``factor·g`` for the other forms."""
    if form == LOGITS:
        for i in range(n):
            slopes[i] = factor * (slopes[i] - probabilities[i] * total)
    else:
        for i in range(n):
            slopes[i] *= factor
    store(slopes, out, start, stride)


# --- the sweeps over a row, or over a slice of it; `of_p` and `of_q` are ``m, log Z, S`` of the whole row --------


@inline
def read_pair(x, x_start, x_stride, y, y_start, y_stride, n, js, w, p_form, q_form, inv_T, of_p, of_q, stage):
    """A block of P and of Q, and what lies between them."""
    (m_p, L_p, S_p), (m_q, L_q, S_q) = of_p, of_q
    logs = p_form != PROBS or q_form != PROBS  # two tables of probabilities are compared by their quotient
    p, q = slot_of(stage, P, n), slot_of(stage, Q, n)
    log_p, log_q = slot_of(stage, LOG_P, n), slot_of(stage, LOG_Q, n)
    read_distribution(x, x_start, x_stride, n, p_form, m_p, inv_T, S_p, 0.0, logs, stage, p, log_p)
    read_distribution(y, y_start, y_stride, n, q_form, m_q, inv_T, S_q, 0.0, logs, stage, q, log_q)
    # Where the other operand is probabilities, logarithms are compared as they are.
    compare(n, p_form, q_form, L_p - L_q, stage)
    if js:
        mixture_logs(n, w, stage)


@inline
def pair_slopes(n, js, w, p_form, q_form, stage):
    if js:
        js_slopes(n, w, p_form, q_form, stage)
    else:
        kl_slopes(n, p_form, q_form, stage)


@inline
def sum_pair(
    x, x_start, x_stride, y, y_start, y_stride, k, js, w, p_form, q_form, inv_T, of_p, of_q, with_slopes, stage
):  # fmt: skip
    """What `k` classes add to the divergence, to ``Σ p``, and (with slopes) to the sums of the slopes by P and Q."""
    of_logs = p_form != PROBS and q_form != PROBS
    loss, excess, sum_p, by_p, by_q = 0.0, 0.0, 0.0, 0.0, 0.0
    loss_lost, excess_lost, sum_p_lost, by_p_lost, by_q_lost = 0.0, 0.0, 0.0, 0.0, 0.0
    for b in range(0, k, BLOCK):
        size = min(BLOCK, k - b)
        read_pair(
            x, x_start + b * x_stride, x_stride, y, y_start + b * y_stride, y_stride, size, js, w, p_form, q_form,
            inv_T, of_p, of_q, stage,
        )  # fmt: skip
        if js:
            loss, loss_lost = accumulate(loss, loss_lost, js_block(size, w, stage))
        else:
            terms, over = kl_block(size, of_logs, stage)
            loss, loss_lost = accumulate(loss, loss_lost, terms)
            excess, excess_lost = accumulate(excess, excess_lost, over)
        sum_p, sum_p_lost = accumulate(sum_p, sum_p_lost, block_total(slot_of(stage, P, size)))
        if with_slopes:
            pair_slopes(size, js, w, p_form, q_form, stage)
            by_p, by_p_lost = accumulate(by_p, by_p_lost, block_total(slot_of(stage, OUT_P, size)))
            by_q, by_q_lost = accumulate(by_q, by_q_lost, block_total(slot_of(stage, OUT_Q, size)))
    loss += loss_lost
    if not js and not (p_form == LOGITS and q_form == LOGITS):
        loss += excess + excess_lost  # two softmaxes both sum to 1
    return loss, sum_p + sum_p_lost, by_p + by_p_lost, by_q + by_q_lost


@inline
def write_pair(
    x, x_start, x_stride, y, y_start, y_stride, k, js, w, p_form, q_form, inv_T, of_p, of_q, stage, sums, factor,
    grad_p, p_start, p_stride, grad_q, q_start, q_stride,
):  # fmt: skip
    """``factor`` times the gradients of `k` classes; `sums` are the `sum_pair` of the whole row."""
    _, sum_p, by_p, by_q = sums
    if not js and q_form == LOGITS:
        by_q = 0.0  # it is in the slopes
    for b in range(0, k, BLOCK):
        size = min(BLOCK, k - b)
        read_pair(
            x, x_start + b * x_stride, x_stride, y, y_start + b * y_stride, y_stride, size, js, w, p_form, q_form,
            inv_T, of_p, of_q, stage,
        )  # fmt: skip
        pair_slopes(size, js, w, p_form, q_form, stage)
        p, q = slot_of(stage, P, size), slot_of(stage, Q, size)
        slopes_p, slopes_q = slot_of(stage, OUT_P, size), slot_of(stage, OUT_Q, size)
        if not js and q_form == LOGITS:
            # q·Σp - p, from differences that stay small.
            over = 0.0 if p_form == LOGITS else sum_p - 1.0
            difference = slot_of(stage, DIFFERENCE, size)
            for c in range(size):
                slopes_q[c] = q[c] * over - difference[c]
        if grad_p is not None:
            f = factor * inv_T if p_form == LOGITS else factor
            write_gradient(size, slopes_p, p, p_form, by_p, f, grad_p, p_start + b * p_stride, p_stride)
        if grad_q is not None:
            f = factor * inv_T if q_form == LOGITS else factor
            write_gradient(size, slopes_q, q, q_form, by_q, f, grad_q, q_start + b * q_stride, q_stride)


@kernel
def divergence_rows(
    x, x_geometry, y, y_geometry, first, rows, k, js, w, p_form, q_form, temperature, unit, map_scale, weights, stage,
    results, grad_p, p_geometry, grad_q, q_geometry,
):  # fmt: skip
    """KL (or, with `js`, Jensen-Shannon) divergence of the given rows, and its gradients (``None``: not wanted)."""
    inv_T, scale = 1.0 / temperature, LOG2E / temperature
    x_stride, y_stride = x_geometry[CLASS_STRIDE], y_geometry[CLASS_STRIDE]
    wants = grad_p is not None or grad_q is not None
    for i in rows:
        weight = weights[i] if weights.size else 1.0
        x_start, y_start = row_start(x_geometry, first + i), row_start(y_geometry, first + i)
        (p_start, p_stride), (q_start, q_stride) = place_of(p_geometry, first + i), place_of(q_geometry, first + i)
        of_p = normaliser(x, x_start, x_stride, k, p_form, scale, 0.0, stage)
        of_q = normaliser(y, y_start, y_stride, k, q_form, scale, 0.0, stage)
        sums = sum_pair(
            x, x_start, x_stride, y, y_start, y_stride, k, js, w, p_form, q_form, inv_T, of_p, of_q, wants, stage
        )
        loss = sums[0]
        results[0, i] = weight * unit * loss if weight != 0.0 else 0.0
        if weight == 0.0 or loss != loss:
            value = 0.0 if weight == 0.0 else np.nan
            fill(value, k, grad_p, p_start, p_stride)
            fill(value, k, grad_q, q_start, q_stride)
        elif grad_p is not None or grad_q is not None:
            write_pair(
                x, x_start, x_stride, y, y_start, y_stride, k, js, w, p_form, q_form, inv_T, of_p, of_q, stage, sums,
                weight * unit * map_scale, grad_p, p_start, p_stride, grad_q, q_start, q_stride,
            )  # fmt: skip
