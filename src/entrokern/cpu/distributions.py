"""Distributions in any form as blocks of float64, and the kernels that sum over them.

Everything here computes in float64, also for 16- and 32-bit input: gradients and divergences are
differences of numbers that can be nearly equal.
"""

from __future__ import annotations

import numpy as np

from .. import _formulas
from .blocks import (
    BLOCK,
    CLASS_STRIDE,
    load,
    load_one,
    row_start,
    slot_of,
    store,
    store_constant,
    through_softcap,
    view,
)
from .compile import inline, inline_sums, kernel
from .math import LOG2E, exp, log, log1p
from .rows import first_bad_label, scan
from .statistics import block_max, class_of, first_position, row_record

LOGITS, LOG_PROBS, PROBS = range(3)
FORM_CODES = {"logits": LOGITS, "log_probs": LOG_PROBS, "probs": PROBS}

# Slots of the scratch array: the operands are loaded into the first two (`row_record` swaps them).
LOADED, SPARE, P, LOG_P, Q, LOG_Q, DIFFERENCE, RATIO, OUT_P, OUT_Q, SLOTS = range(11)


@inline
def normaliser(x, start, stride, k, form, scale, cap, stage):
    """A row's largest logit, ``log Z`` and ``S``; zeros where the form needs none.

    A row without a finite maximum has no softmax: everything NaN.
    """
    if form != LOGITS:
        return 0.0, 0.0, 0.0
    n = min(BLOCK, k)
    load(x, start, stride, n, cap, stage, 0)
    ahead = block_max(slot_of(stage, 0, n), -np.inf)
    m, S, _, _, _, _, _ = row_record(x, start, stride, k, start, ahead, 0, scale, cap, stage, False, np.inf)
    return (m, log1p(S), S) if -np.inf < m < np.inf else (m, np.nan, np.nan)


@inline
def read_distribution(x, start, stride, n, form, m, inv_T, S, cap, logs, stage, p, log_p):
    """A block of a distribution: its probabilities, and (with `logs`) its logarithms before ``- log Z``."""
    load(x, start, stride, n, cap, stage, LOADED)
    raw = slot_of(stage, LOADED, n)
    if form == PROBS:
        for i in range(n):
            v = raw[i]
            p[i] = v if v >= 0.0 else np.nan
        if logs:
            for i in range(n):
                log_p[i] = log(raw[i])
    elif form == LOG_PROBS:
        for i in range(n):
            log_p[i] = raw[i]
            p[i] = exp(raw[i])
    else:
        inv_Z = 1.0 / (1.0 + S)
        for i in range(n):
            d = (raw[i] - m) * inv_T
            log_p[i] = d
            p[i] = exp(d) * inv_Z


# --- two distributions ----------------------------------------------------------------------------


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


@inline_sums
def block_total(values):
    total = 0.0
    for i in range(values.size):
        total += values[i]
    return total


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


@kernel
def divergence_rows(
    x, x_geometry, y, y_geometry, first, n, k, js, w, p_form, q_form, temperature, unit, map_scale, weights, stage,
    results, grad_p, grad_p_geometry, grad_q, grad_q_geometry,
):  # fmt: skip
    """KL (or, with `js`, Jensen-Shannon) divergence of rows, and its gradients (``None``: not wanted)."""
    inv_T, scale = 1.0 / temperature, LOG2E / temperature
    x_stride, y_stride = x_geometry[CLASS_STRIDE], y_geometry[CLASS_STRIDE]
    of_logs = p_form != PROBS and q_form != PROBS
    logs = p_form != PROBS or q_form != PROBS  # two tables of probabilities are compared by their quotient
    for i in range(n):
        weight = weights[i] if weights.size else 1.0
        x_start, y_start = row_start(x_geometry, first + i), row_start(y_geometry, first + i)
        m_p, L_p, S_p = normaliser(x, x_start, x_stride, k, p_form, scale, 0.0, stage)
        m_q, L_q, S_q = normaliser(y, y_start, y_stride, k, q_form, scale, 0.0, stage)
        # Where the other operand is probabilities, logarithms are compared as they are.
        loss, excess, sum_p, by_p, by_q = 0.0, 0.0, 0.0, 0.0, 0.0
        wants = grad_p is not None or grad_q is not None
        for sweep in range(2 if wants and weight != 0.0 else 1):
            for b in range(0, k, BLOCK):
                size = min(BLOCK, k - b)
                p, q = slot_of(stage, P, size), slot_of(stage, Q, size)
                log_p, log_q = slot_of(stage, LOG_P, size), slot_of(stage, LOG_Q, size)
                read_distribution(
                    x,
                    x_start + b * x_stride,
                    x_stride,
                    size,
                    p_form,
                    m_p,
                    inv_T,
                    S_p,
                    0.0,
                    logs,
                    stage,
                    p,
                    log_p,
                )
                read_distribution(
                    y,
                    y_start + b * y_stride,
                    y_stride,
                    size,
                    q_form,
                    m_q,
                    inv_T,
                    S_q,
                    0.0,
                    logs,
                    stage,
                    q,
                    log_q,
                )
                compare(size, p_form, q_form, L_p - L_q, stage)
                if js:
                    mixture_logs(size, w, stage)
                if sweep == 0:
                    if js:
                        loss += js_block(size, w, stage)
                    else:
                        terms, over = kl_block(size, of_logs, stage)
                        loss += terms
                        excess += over
                    sum_p += block_total(p)
                if wants:
                    if js:
                        js_slopes(size, w, p_form, q_form, stage)
                    else:
                        kl_slopes(size, p_form, q_form, stage)
                    slopes_p, slopes_q = slot_of(stage, OUT_P, size), slot_of(stage, OUT_Q, size)
                    if sweep == 0:
                        by_p += block_total(slopes_p)
                        by_q += block_total(slopes_q)
                        continue
                    factor = weight * unit * map_scale
                    if not js and q_form == LOGITS:
                        # q·Σp - p, from differences that stay small.
                        over = 0.0 if p_form == LOGITS else sum_p - 1.0
                        difference = slot_of(stage, DIFFERENCE, size)
                        for c in range(size):
                            slopes_q[c] = q[c] * over - difference[c]
                        by_q = 0.0
                    if grad_p is not None:
                        at = row_start(grad_p_geometry, first + i) + b * grad_p_geometry[CLASS_STRIDE]
                        f = factor * inv_T if p_form == LOGITS else factor
                        write_gradient(size, slopes_p, p, p_form, by_p, f, grad_p, at, grad_p_geometry[CLASS_STRIDE])
                    if grad_q is not None:
                        at = row_start(grad_q_geometry, first + i) + b * grad_q_geometry[CLASS_STRIDE]
                        f = factor * inv_T if q_form == LOGITS else factor
                        write_gradient(size, slopes_q, q, q_form, by_q, f, grad_q, at, grad_q_geometry[CLASS_STRIDE])
            if sweep == 0:
                if not js and not (p_form == LOGITS and q_form == LOGITS):
                    loss += excess  # two softmaxes both sum to 1
                results[0, i] = weight * unit * loss if weight != 0.0 else 0.0
                if weight == 0.0 or loss != loss:
                    fill = 0.0 if weight == 0.0 else np.nan
                    if grad_p is not None:
                        at = row_start(grad_p_geometry, first + i)
                        store_constant(fill, k, grad_p, at, grad_p_geometry[CLASS_STRIDE])
                    if grad_q is not None:
                        at = row_start(grad_q_geometry, first + i)
                        store_constant(fill, k, grad_q, at, grad_q_geometry[CLASS_STRIDE])
                    break


# --- one distribution -----------------------------------------------------------------------------


@inline_sums
def entropy_block(n, stage):
    p, log_p = slot_of(stage, P, n), slot_of(stage, LOG_P, n)
    total = 0.0
    for i in range(n):
        total -= _formulas.times(p[i], log_p[i])
    return total


@kernel
def entropy_rows(x, geometry, first, n, k, form, unit, map_scale, weights, stage, results, grad, grad_geometry):
    """Entropy of rows of probabilities or log-probabilities, and its gradient (``None``: not wanted)."""
    stride = geometry[CLASS_STRIDE]
    for i in range(n):
        weight = weights[i] if weights.size else 1.0
        start = row_start(geometry, first + i)
        loss = 0.0
        for sweep in range(1 if grad is None else 2):
            for b in range(0, k, BLOCK):
                size = min(BLOCK, k - b)
                p, log_p = slot_of(stage, P, size), slot_of(stage, LOG_P, size)
                read_distribution(x, start + b * stride, stride, size, form, 0.0, 1.0, 0.0, 0.0, True, stage, p, log_p)
                if sweep == 0:
                    loss += entropy_block(size, stage)
                elif grad is not None:
                    out = slot_of(stage, OUT_P, size)
                    factor = weight * unit * map_scale
                    for c in range(size):
                        out[c] = -(log_p[c] + 1.0) if form == PROBS else -(_formulas.times(p[c], log_p[c]) + p[c])
                        out[c] *= factor
                    grad_stride = grad_geometry[CLASS_STRIDE]
                    store(out, grad, row_start(grad_geometry, first + i) + b * grad_stride, grad_stride)
            if sweep == 0:
                results[0, i] = weight * unit * loss if weight != 0.0 else 0.0
                if grad is not None and (weight == 0.0 or loss != loss):
                    fill = 0.0 if weight == 0.0 else np.nan
                    at = row_start(grad_geometry, first + i)
                    store_constant(fill, k, grad, at, grad_geometry[CLASS_STRIDE])
                    break


# --- cross-entropy with target distributions, or of given probabilities ----------------------------


@inline
def read_target(y, start, stride, b, n, k, dense, label, smoothing, class_weight, stage, target):
    """``b_c = w_c·((1-ε)·target_c + ε/k)`` of a dense target or of a label."""
    if dense:
        load(y, start + b * stride, stride, n, 0.0, stage, LOADED)
        raw = slot_of(stage, LOADED, n)
        for i in range(n):
            v = raw[i] if raw[i] >= 0.0 else np.nan
            target[i] = (1.0 - smoothing) * v + smoothing / k
    else:
        for i in range(n):
            target[i] = smoothing / k
        if b <= label < b + n:
            target[label - b] += 1.0 - smoothing
    if class_weight.size:
        weights = view(class_weight, b, n)
        for i in range(n):
            target[i] *= weights[i]


@inline_sums
def cross_entropy_block(n, log_Z, stage):
    """``Σ b·(log Z - d)`` of terms that are non-negative for logits, and ``Σ b``.

    The logarithm counts also where the target is 0: if it is NaN, so is the row.
    """
    log_p, target = slot_of(stage, LOG_P, n), slot_of(stage, Q, n)
    total, A = 0.0, 0.0
    for i in range(n):
        total += _formulas.times(target[i], log_Z - log_p[i])
        A += target[i]
    return total, A


@kernel
def cross_entropy_rows(
    x, geometry, y, y_geometry, first, n, k, form, labels, ignore, weights, class_weight, smoothing, temperature,
    cap, z_loss, unit, map_scale, stage, results, kind, out, out_geometry,
):  # fmt: skip
    """CE of rows against dense targets (`labels` empty) or labels, in any form; kind 0 gradient, 1 Hessian.

    Returns the index of the first bad label, before anything is computed, or -1.
    """
    bad = first_bad_label(labels, k, ignore)
    if bad >= 0:
        return bad
    inv_T, scale, dense = 1.0 / temperature, LOG2E / temperature, labels.size == 0
    stride, y_stride = geometry[CLASS_STRIDE], y_geometry[CLASS_STRIDE]
    for i in range(n):
        label = -1 if dense else class_of(labels[i], ignore)
        weight = weights[i] if weights.size and label != -2 else (0.0 if label == -2 else 1.0)
        if weight == 0.0:
            results[0, i] = 0.0
            if out is not None:
                store_constant(0.0, k, out, row_start(out_geometry, first + i), out_geometry[CLASS_STRIDE])
            continue
        start = row_start(geometry, first + i)
        y_start = row_start(y_geometry, first + i) if dense else 0
        m, L, S = normaliser(x, start, stride, k, form, scale, cap, stage)
        Z, lse = 1.0 + S, m * inv_T + L
        loss, A, argmax = 0.0, 0.0, -1
        undefined = False
        for sweep in range(1 if out is None else 2):
            for b in range(0, k, BLOCK):
                size = min(BLOCK, k - b)
                p, log_p, target = (
                    slot_of(stage, P, size),
                    slot_of(stage, LOG_P, size),
                    slot_of(stage, Q, size),
                )
                read_target(y, y_start, y_stride, b, size, k, dense, label, smoothing, class_weight, stage, target)
                read_distribution(x, start + b * stride, stride, size, form, m, inv_T, S, cap, True, stage, p, log_p)
                if sweep == 0:
                    terms, part = cross_entropy_block(size, L, stage)
                    loss += terms
                    A += part
                    if argmax < 0 and form == LOGITS:
                        position = first_position(slot_of(stage, LOADED, size), m)
                        argmax = b + position if position < size else -1
                elif out is not None:
                    gradient = slot_of(stage, OUT_P, size)
                    factor = weight * map_scale
                    if form == LOGITS:
                        inv_Z, factor = 1.0 / Z, factor * inv_T
                        for c in range(size):
                            rest = S * inv_Z if b + c == argmax else 1.0 - p[c]
                            if kind == 0:
                                gradient[c] = unit * _formulas.softmax_gradient(A, target[c], p[c], rest)
                                gradient[c] += 2.0 * z_loss * lse * p[c] if z_loss != 0.0 else 0.0
                            else:
                                gradient[c] = unit * inv_T * A * p[c] * rest
                            gradient[c] *= factor
                        if cap > 0.0:
                            through_softcap(gradient, x, start + b * stride, stride, cap)
                    elif form == LOG_PROBS:
                        for c in range(size):
                            gradient[c] = -factor * unit * target[c]
                    else:
                        for c in range(size):
                            gradient[c] = -factor * unit * _formulas.times(target[c], 1.0 / p[c])
                    out_stride = out_geometry[CLASS_STRIDE]
                    store(gradient, out, row_start(out_geometry, first + i) + b * out_stride, out_stride)
            if sweep == 0:
                if form == LOGITS and not -np.inf < m < np.inf:
                    loss, undefined = infinite_loss(
                        x, start, stride, y, y_start, y_stride, k, dense, label, smoothing, class_weight, cap,
                        loss, A, stage,
                    )  # fmt: skip
                    lse = np.inf
                value = unit * loss
                if z_loss != 0.0:
                    value += z_loss * lse * lse
                results[0, i] = weight * value
                if out is not None and (undefined or loss != loss):
                    store_constant(np.nan, k, out, row_start(out_geometry, first + i), out_geometry[CLASS_STRIDE])
                    break
    return -1


@inline
def infinite_loss(
    x, start, stride, y, y_start, y_stride, k, dense, label, smoothing, class_weight, cap, loss, A, stage
):  # fmt: skip
    """CE of a row whose largest logit is infinite: NaN, or +inf where all of the target lies elsewhere."""
    has_nan, m, _, _, _ = scan(x, start, stride, k, np.inf, class_weight, cap, stage)
    if has_nan or m == -np.inf or A != A:
        return np.nan, True
    for b in range(0, k, BLOCK):
        size = min(BLOCK, k - b)
        target = slot_of(stage, Q, size)
        read_target(y, y_start, y_stride, b, size, k, dense, label, smoothing, class_weight, stage, target)
        for c in range(size):
            if target[c] > 0.0 and load_one(x, start + (b + c) * stride, cap, stage) == np.inf:
                return np.nan, True
    return (np.inf if A > 0.0 else 0.0), True
