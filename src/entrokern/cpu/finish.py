"""From records to results: one place for the corner cases of rows and lanes.

A kernel puts the record of each row into the results array (flat, `n` numbers for each kind), and then
finishes a group of rows at once: the logarithms of the group are vector code, which for one row at a
time would cost as much as a short row itself.
"""

from __future__ import annotations

import numpy as np

from .. import _formulas
from .blocks import view
from .compile import inline
from .math import log1p
from .statistics import class_of

# What stands in the results array in the end …
LOSS, LSE, LOG_PROB, ENTROPY, ARGMAX, RANK, MAX_PROB, GAPS = range(8)
ROW_RESULTS = ("loss", "lse", "log_prob", "entropy", "argmax", "rank", "max_prob", "gaps")
# … and, before a row is finished, in the same places.
SUM, MAX, Y_LOGIT, SPREAD, ABOVE, LOG_Z = LOSS, LSE, LOG_PROB, ENTROPY, RANK, MAX_PROB

GROUP = 64  # rows finished at once

# Scalar options, in one float64 array.
INV_TEMPERATURE, UNIT, SMOOTHING, Z_LOSS, CAP, MAP_SCALE, W_MEAN = range(7)

LN2 = 0.6931471805599453


@inline
def put_record(results, n, i, m, S, spread, argmax, above, y_logit, gaps):
    """Keep the record of row `i` until it is finished; `gaps` is the mean over c of ``w_c·(m - x_c)``."""
    results[SUM * n + i] = S
    results[MAX * n + i] = m
    results[SPREAD * n + i] = spread
    results[ARGMAX * n + i] = argmax
    results[ABOVE * n + i] = above
    results[Y_LOGIT * n + i] = y_logit
    results[GAPS * n + i] = gaps


@inline
def finish_rows(results, n, low, high, labels, ignore, weights, class_weight, options, details):
    """Turn the records of rows ``low … high - 1`` into their results."""
    sums, logs = view(results, SUM * n + low, high - low), view(results, LOG_Z * n + low, high - low)
    for j in range(high - low):
        logs[j] = log1p(sums[j])
    for i in range(low, high):
        m = results[MAX * n + i]
        if m == np.inf or m == -np.inf:
            results[MAX_PROB * n + i] = np.nan  # the rest was said by `put_infinite`
        else:
            label = class_of(labels[i], ignore) if labels.size else -1
            weight = weights[i] if weights.size else 1.0
            w_y = class_weight[label] if class_weight.size and label >= 0 else 1.0
            _finish_row(results, n, i, label, weight, w_y, options, details)


@inline
def _finish_row(results, n, i, label, weight, w_y, options, details):
    """The results of one row whose largest logit is finite (or that holds a NaN).

    `label` is -1 for no label at all and -2 for an ignored one; `weight` is the sample weight. Without
    `details` only the loss and lse are written.
    """
    S, m, L = results[SUM * n + i], results[MAX * n + i], results[LOG_Z * n + i]
    spread, y_logit = results[SPREAD * n + i], results[Y_LOGIT * n + i]
    inv_T = options[INV_TEMPERATURE]
    nan_row = (S != S) | (m != m)
    lse = m * inv_T + L
    results[LSE * n + i] = lse
    gap = (m - y_logit) * inv_T
    if label != -1:
        gaps = results[GAPS * n + i] * inv_T
        results[LOSS * n + i] = _row_loss(L, gap, lse, weight, w_y, gaps, label, options, nan_row)
    if not details:
        return
    Z = 1.0 + S
    # Σ p·(m - z), from Σ e^(z-m)·log2 e^(z-m), to which the largest logit itself adds 0.
    entropy = options[UNIT] * _formulas.entropy_from_logits(L, -LN2 * spread / Z)
    results[ENTROPY * n + i] = entropy
    results[MAX_PROB * n + i] = 1.0 / Z
    if nan_row:
        results[ARGMAX * n + i] = -1.0
    if label == -1:
        # Without labels the row's loss is its entropy.
        results[LOSS * n + i] = weight * entropy if weight != 0.0 else 0.0
        return
    results[LOG_PROB * n + i] = np.nan if label == -2 else -(L + gap)
    if nan_row or label == -2:
        results[RANK * n + i] = -1.0


@inline
def _row_loss(L, gap, lse, weight, w_y, gaps, label, options, nan_row):
    if label == -2 or weight == 0.0:
        return 0.0
    if nan_row:
        return np.nan
    eps = options[SMOOTHING]
    loss = _formulas.label_loss((1.0 - eps) * w_y, eps, L, gap, options[W_MEAN], gaps)
    loss *= options[UNIT]
    if options[Z_LOSS] != 0.0:
        loss += options[Z_LOSS] * lse * lse
    return weight * loss


@inline
def put_infinite(results, n, i, m, first, above, y_logit, label, weight, smoothed_at_inf):
    """The results of a row whose largest logit is -inf (no class is possible) or +inf (one takes all)."""
    counted = label != -2
    # inf - inf is undefined: the label's own logit is the infinite one (or there is no label).
    undefined = m == -np.inf or y_logit == np.inf
    surprise = np.nan if undefined else np.inf
    loss = np.nan if smoothed_at_inf else surprise
    results[LSE * n + i] = m
    results[ENTROPY * n + i] = np.nan
    results[ARGMAX * n + i] = first
    results[LOG_PROB * n + i] = -surprise if counted else np.nan
    results[RANK * n + i] = above if counted else -1.0
    results[LOSS * n + i] = weight * loss if counted and weight != 0.0 else 0.0
