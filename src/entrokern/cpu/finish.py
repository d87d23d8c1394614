"""From a row's record to its results: one place for the corner cases of rows and lanes."""

from __future__ import annotations

import numpy as np

from .. import _formulas
from .compile import inline

# Rows of the results array, and the bits that ask for them.
LOSS, LSE, LOG_PROB, ENTROPY, ARGMAX, RANK, MAX_PROB = range(7)
ROW_RESULTS = ("loss", "lse", "log_prob", "entropy", "argmax", "rank", "max_prob")

# Scalar options, in one float64 array.
INV_TEMPERATURE, UNIT, SMOOTHING, Z_LOSS, CAP, MAP_SCALE, W_MEAN, N_OPTIONS = range(8)

LN2 = 0.6931471805599453


@inline
def finish_row(
    results, i, m, S, L, spread, above, argmax, y_logit, label, weight, w_y, gaps, options, details
):  # fmt: skip
    """Write the results of one row whose largest logit `m` is finite (or that holds a NaN).

    `label` is -1 for no label at all and -2 for an ignored one; `weight` is the sample weight, `gaps`
    the mean over the classes of ``w_c·(m - x_c)``. Without `details` only the loss and lse are written.
    """
    inv_T = options[INV_TEMPERATURE]
    nan_row = (S != S) | (m != m)
    lse = m * inv_T + L
    results[LSE, i] = lse
    gap = (m - y_logit) * inv_T
    if label != -1:
        results[LOSS, i] = _row_loss(L, gap, lse, weight, w_y, gaps * inv_T, label, options, nan_row)
    if not details:
        return
    Z = 1.0 + S
    # Σ p·(m - z), from Σ e^(z-m)·log2 e^(z-m), to which the largest logit itself adds 0.
    results[ENTROPY, i] = options[UNIT] * _formulas.entropy_from_logits(L, -LN2 * spread / Z)
    results[MAX_PROB, i] = 1.0 / Z
    results[ARGMAX, i] = -1.0 if nan_row else argmax
    if label == -1:
        # Without labels the row's loss is its entropy.
        results[LOSS, i] = weight * results[ENTROPY, i] if weight != 0.0 else 0.0
    else:
        results[LOG_PROB, i] = np.nan if label == -2 else -(L + gap)
        results[RANK, i] = -1.0 if nan_row or label == -2 else above


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
def finish_infinite(results, i, m, first, above, y_logit, label, weight, smoothed_at_inf):
    """The row's largest logit is -inf (no class is possible) or +inf (one takes everything)."""
    results[LSE, i] = m
    results[ENTROPY, i] = np.nan
    results[MAX_PROB, i] = np.nan
    results[ARGMAX, i] = first
    if label == -1:
        results[LOSS, i] = np.nan if weight != 0.0 else 0.0
        return
    counted = label != -2
    # inf - inf is undefined: the label's own logit is the infinite one.
    undefined = m == -np.inf or y_logit == np.inf
    surprise = np.nan if undefined else np.inf
    results[LOG_PROB, i] = -surprise if counted else np.nan
    results[RANK, i] = above if counted else -1.0
    loss = np.nan if smoothed_at_inf else surprise
    results[LOSS, i] = weight * loss if counted and weight != 0.0 else 0.0
