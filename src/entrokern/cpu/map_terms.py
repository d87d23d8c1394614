"""What the maps of a group of rows need of each row, one row per lane; and the rows that have none of it."""

from __future__ import annotations

import numpy as np

from .blocks import load_one
from .compile import inline
from .finish import CLASS_WEIGHT, GROUP, INV_TEMPERATURE, MAP_SCALE, MAX, UNIT, WEIGHT, Y_LOGIT, S
from .maps import GRAD, HESS, LOG_SOFTMAX
from .math import exp2_below
from .memory import first_mask, load, load_next, vector
from .simd import like_vector, magnitude, where


@inline
def true_class_gradient(sums, m, y_logit, scale, factor):
    """``-factor·(1 - p_y)``: the others' share, ``S/Z`` to its last digit where the label's logit is the largest."""
    Z = sums + 1.0
    others_than_y = Z - exp2_below((y_logit - m) * scale)
    return -factor * where(y_logit == m, sums, others_than_y) / Z


@inline
def map_terms(kind, records, at, low, count, labels, options, scale, weighed):
    """Of `count` rows from `low` on, whose records begin at `at`: the factor of ``e^(z-m)``, what the label's class
    has instead, and which class that is."""
    v = vector(scale)
    m, sums = load(records, MAX * GROUP + at, v), load(records, S * GROUP + at, v)
    factor, own, y = like_vector(1.0, v), like_vector(0.0, v), like_vector(-1.0, v)
    if kind == GRAD:
        factor = like_vector(options[MAP_SCALE] * options[UNIT] * options[INV_TEMPERATURE], v)
        if weighed:
            factor *= load(records, WEIGHT * GROUP + at, v) * load(records, CLASS_WEIGHT * GROUP + at, v)
        y = load_next(labels, low, count, y)
        own = true_class_gradient(sums, m, load(records, Y_LOGIT * GROUP + at, v), scale, factor)
    return factor / (sums + 1.0), own, y


@inline
def special(records, at, count, like, weighed):
    """Which of `count` rows, whose records begin at `at`, have no finite maximum or no weight."""
    m, sums = load(records, MAX * GROUP + at, like), load(records, S * GROUP + at, like)
    found = (sums != sums) | ~(magnitude(m) < np.inf)
    if weighed:
        found |= load(records, WEIGHT * GROUP + at, like) == 0.0
    return first_mask(count, like) & found


@inline
def special_row(kind, x, start, stride, k, records, r, weighed, target, at, step):
    """Write the map of a row into `target`, if it is a `special` one."""
    m, sums = np.float64(records[MAX * GROUP + r]), np.float64(records[S * GROUP + r])
    if kind <= HESS and weighed and records[WEIGHT * GROUP + r] == 0.0:
        for c in range(k):
            target[at + c * step] = 0
    elif sums != sums or not (-np.inf < m < np.inf):
        undefined_row(kind, x, start, stride, k, m, target, at, step)


@inline
def undefined_row(kind, x, start, stride, k, m, target, at, step):
    """A map's row without a finite maximum: NaN, but for log-softmax ``x - inf``."""
    has_nan = m != m
    for c in range(k):
        v = load_one(x, start + c * stride, 0.0, target)
        has_nan |= v != v
    for c in range(k):
        v = np.float64(load_one(x, start + c * stride, 0.0, target))
        target[at + c * step] = v - np.inf if kind == LOG_SOFTMAX and m == np.inf and not has_nan else np.nan
