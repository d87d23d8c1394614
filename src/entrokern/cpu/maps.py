"""The second sweep over a row, still in cache: gradient, Hessian, softmax, log-softmax."""

from __future__ import annotations

import numpy as np

from .. import _formulas
from .blocks import BLOCK, block_of, load, store, store_constant, through_softcap, view
from .compile import inline
from .finish import CAP, INV_TEMPERATURE, LN2, MAP_SCALE, SMOOTHING, UNIT, W_MEAN, Z_LOSS
from .math import cast, exp2, floored, log1p

GRAD, HESS, ENTROPY_GRAD, SOFTMAX, LOG_SOFTMAX = range(5)
MAPS = {
    "grad": GRAD,
    "hess": HESS,
    "entropy_grad": ENTROPY_GRAD,
    "softmax": SOFTMAX,
    "log_softmax": LOG_SOFTMAX,
}


@inline
def scaled_softmax(block, m, scale, factor, work):
    """``factor·e^(z-m)``."""
    for i in range(block.size):
        work[i] = factor * exp2(floored((block[i] - m) * scale))


@inline
def scaled_variance(block, m, scale, factor, Z, work):
    """``factor·e·(Z - e)``: the Hessian's ``p·(1-p)`` up to a factor."""
    for i in range(block.size):
        e = exp2(floored((block[i] - m) * scale))
        work[i] = factor * e * (Z - e)


@inline
def scaled_entropy_gradient(block, m, scale, factor, mean, work):
    """``factor·e·(t - mean)`` with ``t = log2 e``: in ``log p + H`` the ``log Z`` has cancelled."""
    for i in range(block.size):
        t = floored((block[i] - m) * scale)
        work[i] = factor * exp2(t) * (t - mean)


@inline
def shifted(block, m, inv_T, L, work):
    """``(z - m) - log Z``."""
    for i in range(block.size):
        work[i] = (block[i] - m) * inv_T - L


@inline
def smoothed_gradient(block, m, scale, Z, A, soft, class_weight, z_slope, factor, work):
    """``factor·(A·p - b + z_slope·p)`` with ``b = soft·w``, for the classes that are not the label's."""
    for i in range(block.size):
        e = np.float64(exp2(floored((block[i] - m) * scale)))
        p = e / Z
        b = soft * class_weight[i] if class_weight.size else soft
        work[i] = factor * (_formulas.softmax_gradient(A, b, p, (Z - e) / Z) + z_slope * p)


@inline
def write_map(
    kind, x, start, stride, k, out, out_start, out_stride, m, S, spread, argmax,
    label, y_logit, weight, w_y, class_weight, options, scale, stage, slot, work,
):  # fmt: skip
    """Write one row of the map `kind`; its record is given by `m`, `S` and `spread`."""
    if kind <= ENTROPY_GRAD and (label == -2 or weight == 0.0):
        store_constant(0.0, k, out, out_start, out_stride)
        return
    undefined = S != S or m != m or m == -np.inf or m == np.inf
    if undefined and not (kind == LOG_SOFTMAX and m == np.inf):
        store_constant(np.nan, k, out, out_start, out_stride)
        return
    cap, inv_T = options[CAP], options[INV_TEMPERATURE]
    m_ = cast(m, scale)
    Z = 1.0 + S
    factor = weight * options[MAP_SCALE] * inv_T
    unit, eps = options[UNIT], options[SMOOTHING]
    A = (1.0 - eps) * w_y + eps * options[W_MEAN]
    plain = eps == 0.0 and options[Z_LOSS] == 0.0
    L = log1p(S) if kind == LOG_SOFTMAX or not plain else 0.0
    z_slope = 2.0 * options[Z_LOSS] * (m * inv_T + L) / unit
    factor *= unit
    for b in range(0, k, BLOCK):
        n = min(BLOCK, k - b)
        load(x, start + b * stride, stride, n, cap, stage, slot)
        block, target = block_of(x, start + b * stride, n, stage, slot), view(work, 0, n)
        if kind == GRAD:
            if plain:
                scaled_softmax(block, m_, scale, cast(factor * w_y / Z, scale), target)
            else:
                weights = view(class_weight, b, n if class_weight.size else 0)
                smoothed_gradient(block, m_, scale, Z, A, eps / k, weights, z_slope, factor, target)
                if b <= argmax < b + n:
                    soft = eps / k * (class_weight[argmax] if class_weight.size else 1.0)
                    target[argmax - b] = factor * (_formulas.softmax_gradient(A, soft, 1.0 / Z, S / Z) + z_slope / Z)
            if b <= label < b + n:
                # Where the label's logit is the largest (or ties with it), 1 - p is S/Z to its last digit.
                e = exp2(floored((y_logit - m) * inv_T * 1.4426950408889634))
                rest = S / Z if y_logit == m else (Z - e) / Z
                b_y = (1.0 - eps) * w_y + eps / k * (class_weight[label] if class_weight.size else 1.0)
                own = (A - b_y) if not plain else 0.0
                b_y = b_y if not plain else w_y
                target[label - b] = factor * ((own + z_slope) * (e / Z) - b_y * rest)
        elif kind == HESS:
            scaled_variance(block, m_, scale, cast(factor * inv_T * A / Z / Z, scale), cast(Z, scale), target)
            if b <= argmax < b + n:
                target[argmax - b] = factor * inv_T * A * (1.0 / Z) * (S / Z)
        elif kind == ENTROPY_GRAD:
            mean = cast(spread / Z, scale)
            scaled_entropy_gradient(block, m_, scale, cast(-factor * LN2 / Z, scale), mean, target)
        elif kind == SOFTMAX:
            scaled_softmax(block, m_, scale, cast(1.0 / Z, scale), target)
        else:
            shifted(block, m_, cast(inv_T, scale), cast(0.0 if undefined else L, scale), target)
        if cap > 0.0:
            through_softcap(target, x, start + b * stride, stride, cap)
        store(target, out, out_start + b * out_stride, out_stride)
