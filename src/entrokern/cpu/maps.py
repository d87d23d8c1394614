"""The second sweep over a row, still in cache: gradient, Hessian, softmax, log-softmax."""

from __future__ import annotations

import numpy as np

from .. import _formulas
from .blocks import block_of, narrow, through_softcap, view, widen
from .blocks import load as fetch
from .compile import inline
from .finish import CAP, INV_TEMPERATURE, LN2, MAP_SCALE, SMOOTHING, UNIT, W_MEAN, Z_LOSS
from .math import cast, clipped, exp2, exp2_below, floored, log1p
from .memory import copy_out, load_first, prefetch_to_write, store, vector, width
from .row_groups import fill
from .simd import like_vector, where
from .statistics import block_size, first_position

GRAD, HESS, ENTROPY_GRAD, SOFTMAX, LOG_SOFTMAX = range(5)
MAPS = {
    "grad": GRAD,
    "hess": HESS,
    "entropy_grad": ENTROPY_GRAD,
    "softmax": SOFTMAX,
    "log_softmax": LOG_SOFTMAX,
}


@inline
def variance(e, S, factor):
    """``factor·e·(Z - e)``: the Hessian's ``p·(1-p)`` up to a factor.

    Of the largest logit, whose ``e^(z-m)`` is exactly 1, ``Z - e`` is `S` to its last digit.
    """
    return e * (where(e == 1.0, S, S + 1.0 - e) * factor)


# Each sweep fills `work` from a block, whole vectors at a time (`work` has room for the last one).


@inline
def shifted_logits(block, i, m, scale):
    """``(z - m)·log2 e`` of the logits from `i` on; nothing of ``e^(z-m)`` is left beyond the block's end."""
    return (load_first(block, i, block.size - i, like_vector(-np.inf, m)) - m) * scale


@inline
def scaled_softmax(block, m, scale, factor, work):
    """``factor·e^(z-m)``."""
    for i in range(0, block.size, width(m)):
        store(work, i, exp2_below(shifted_logits(block, i, m, scale)) * factor)


@inline
def scaled_variance(block, m, scale, factor, S, work):
    """`variance` of the classes' ``e^(z-m)``."""
    S, factor = like_vector(S, m), like_vector(factor, m)
    for i in range(0, block.size, width(m)):
        store(work, i, variance(exp2_below(shifted_logits(block, i, m, scale)), S, factor))


@inline
def scaled_entropy_gradient(block, m, scale, factor, mean, work):
    """``factor·e·(t - mean)`` with ``t = log2 e``: in ``log p + H`` the ``log Z`` has cancelled."""
    for i in range(0, block.size, width(m)):
        t = clipped(shifted_logits(block, i, m, scale))
        store(work, i, exp2_below(t) * (t - mean) * factor)


@inline
def shifted(block, m, inv_T, L, work):
    """``(z - m) - log Z``."""
    for i in range(0, block.size, width(m)):
        store(work, i, shifted_logits(block, i, m, inv_T) - L)


@inline
def smoothed_gradient(block, m, scale, Z, A, soft, class_weight, z_slope, factor, work):
    """``factor·(A·p - b + z_slope·p)`` with ``b = soft·w``, for the classes that are not the label's."""
    for i in range(0, block.size, width(m)):
        e = exp2_below(shifted_logits(block, i, m, scale))
        b = like_vector(soft, m)
        if class_weight.size:
            b = load_first(class_weight, i, block.size - i, b) * soft
        gradient = _formulas.softmax_gradient(A, b, e / Z, (Z - e) / Z) + e / Z * z_slope
        store(work, i, gradient * factor)


@inline
def write_block(work, n, out, at, stride, streaming):
    """The first `n` elements of `work` to `out`, in its storage type."""
    if stride == 1:
        copy_out(work, n, out, at, vector(work[0]), streaming)
    else:
        for i in range(n):
            out[at + i * stride] = narrow(work[i], out)


@inline
def write_map(
    kind, x, start, stride, k, classes, out, out_start, out_stride, hess, hess_start, hess_stride, m, S, spread,
    max_block, label, y_logit, weight, w_y, class_weight, options, scale, stage, slot, work, streaming,
):  # fmt: skip
    """Write `k` of a row's `classes` of the map `kind` to `out`, and of the Hessian to `hess`, if there are such.

    The row's record is given by `m`, `S` and `spread`, and the block that begins at `max_block` holds the largest
    logit. `out` may be the row itself: block by block, the Hessian comes first.
    """
    if kind <= ENTROPY_GRAD and (label == -2 or weight == 0.0):
        fill(0.0, k, out, out_start, out_stride)
        fill(0.0, k, hess, hess_start, hess_stride)
        return
    undefined = S != S or m != m or m == -np.inf or m == np.inf
    if undefined and not (kind == LOG_SOFTMAX and m == np.inf and not holds_nan(x, start, stride, k)):
        fill(np.nan, k, out, out_start, out_stride)
        fill(np.nan, k, hess, hess_start, hess_stride)
        return
    cap, inv_T = options[CAP], options[INV_TEMPERATURE]
    m_ = vector(cast(m, scale))
    Z = 1.0 + S
    factor = weight * options[MAP_SCALE] * inv_T
    unit, eps = options[UNIT], options[SMOOTHING]
    A = (1.0 - eps) * w_y + eps * options[W_MEAN]
    plain = eps == 0.0 and options[Z_LOSS] == 0.0
    L = log1p(S) if kind == LOG_SOFTMAX or not plain else 0.0
    z_slope = 2.0 * options[Z_LOSS] * (m * inv_T + L) / unit
    factor *= unit
    if out is not None:
        prefetch_to_write(out, out_start + 2 * k * out_stride)  # the line that two rows share, not written whole
    size = block_size(k)
    for b in range(0, k, size):
        n = min(size, k - b)
        fetch(x, start + b * stride, stride, n, cap, stage, slot)
        block = block_of(x, start + b * stride, n, stage, slot)
        if hess is not None:
            scaled_variance(block, m_, scale, cast(factor * inv_T * A / Z / Z, scale), cast(S, scale), work)
            write_block(work, n, hess, hess_start + b * hess_stride, hess_stride, streaming)
        if out is None:
            continue
        if kind == GRAD:
            if plain:
                scaled_softmax(block, m_, scale, cast(factor * w_y / Z, scale), work)
            else:
                weights = view(class_weight, b, n if class_weight.size else 0)
                smoothed_gradient(
                    block, m_, scale, cast(Z, scale), cast(A, scale), cast(eps / classes, scale), weights,
                    cast(z_slope, scale), cast(factor, scale), work,
                )  # fmt: skip
                if b == max_block:
                    at = first_position(block, cast(m, scale), m_)
                    soft = eps / classes * (class_weight[b + at] if class_weight.size else 1.0)
                    work[at] = factor * (_formulas.softmax_gradient(A, soft, 1.0 / Z, S / Z) + z_slope / Z)
            if b <= label < b + n:
                # Where the label's logit is the largest (or ties with it), 1 - p is S/Z to its last digit.
                e = exp2(floored((y_logit - m) * inv_T * 1.4426950408889634))
                rest = S / Z if y_logit == m else (Z - e) / Z
                b_y = (1.0 - eps) * w_y + eps / classes * (class_weight[label] if class_weight.size else 1.0)
                own = (A - b_y) if not plain else 0.0
                b_y = b_y if not plain else w_y
                work[label - b] = factor * ((own + z_slope) * (e / Z) - b_y * rest)
        elif kind == ENTROPY_GRAD:
            mean = cast(spread / Z, scale)
            scaled_entropy_gradient(block, m_, scale, cast(-factor * LN2 / Z, scale), mean, work)
        elif kind == SOFTMAX:
            scaled_softmax(block, m_, scale, cast(1.0 / Z, scale), work)
        else:
            shifted(block, m_, cast(inv_T, scale), cast(0.0 if undefined else L, scale), work)
        if cap > 0.0:
            through_softcap(view(work, 0, n), x, start + b * stride, stride, cap)
        write_block(work, n, out, out_start + b * out_stride, out_stride, streaming)


@inline
def holds_nan(x, start, stride, k):
    found = False
    for c in range(k):
        v = widen(x[start + c * stride])
        found |= v != v
    return found
