"""Each public function as compiled code: its arguments looked at by type, and the function that runs in its place.

What that does is what `losses` and `primitives` document. A result that is one number is one here, not an array of no
dimensions; an error has a message without the values that came, but for labels.
"""

from __future__ import annotations

import numpy as np
from numba import types

from .. import _options
from ..cpu.maps import ENTROPY_GRAD, GRAD, LOG_SOFTMAX, SOFTMAX
from ..cpu.quantities import LOG2E
from . import arguments, distributions
from .arguments import numpy_dtype, plain
from .memory import in_line, in_whole_elements, overlap, same, stack
from .rows import (
    answer,
    array_for,
    cap_of,
    count_of,
    denominator,
    fill,
    first_bad_label,
    is_of_shape,
    mean_class_weight,
    part_of,
    rows_and_classes,
    shape_of,
    unit_of,
)
from .softmaxes import softmax as softmax_rows

NO_OPTIONS = (1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)  # as `cpu.finish` orders them

BAD_LABEL = (
    "a label is neither a class (0 to k - 1) nor ignore_index; the same call from Python names its row. "
    "For labels of -100 pass ignore_index=-100"
)
BAD_TEMPERATURE = "temperature must be finite and greater than 0"
NO_CLASS = "there is no class (k = 0); pass at least one class"
NO_LOGARITHM = "base has no logarithm; pass 2 for bits, 10 for digits or None for nats"
OTHER_SHAPE = "an output has another shape than the result"
OTHER_WEIGHTS = "sample_weight does not fit: pass one number for each row"
STRIDES = "x or an output has strides that are not whole elements; pass a copy"
OVERLAP = "an output overlaps another array in memory; pass arrays of their own (grad_out may be exactly x)"
NOTHING_COUNTS = (
    "no row counts: the mean's denominator is 0 (all rows ignored or of weight 0, or no rows); "
    "pass on_empty='nan' or 'zero' to get a value"
)


def cross_entropy(
    x, target, *, form="logits", axis=-1, class_weight=None, sample_weight=None, label_smoothing=0.0,
    ignore_index=None, temperature=1.0, softcap=None, z_loss=0.0, base=None, reduction="mean", on_empty="nan",
    return_grad=False, return_hess=False, out=None, grad_out=None, hess_out=None, validate=False,
):  # fmt: skip
    arguments.refuse(
        form=(form, "logits"), axis=(axis, -1), return_hess=(return_hess, False), hess_out=(hess_out, None),
        validate=(validate, False),
    )  # fmt: skip
    x = arguments.rows("x", x)
    arguments.labels(target, x)
    arguments.class_weights(class_weight)
    arguments.weights("sample_weight", sample_weight, x.ndim - 1)
    arguments.index("ignore_index", ignore_index)
    arguments.numbers(label_smoothing=label_smoothing, temperature=temperature, z_loss=z_loss)
    arguments.optional_numbers(softcap=softcap, base=base)
    by_rows, reduction, of_nothing = arguments.losses(reduction, on_empty, out, x)
    arguments.output("grad_out", grad_out, x.dtype, x.ndim)
    with_grad = arguments.choice("return_grad", return_grad, (False, True)) or plain(grad_out) is not None
    mean, dtype = reduction == "mean", numpy_dtype(x.dtype)

    capped = plain(softcap) is not None
    mixed = with_grad and not plain(label_smoothing) == plain(z_loss) == 0.0
    compute = np.float64 if capped or mixed else dtype  # as in `quantities.compute_dtype`
    buffered = not (
        in_line(target, types.int64) and in_line(plain(sample_weight), types.float64) and in_line(plain(out), x.dtype)
    )
    run = softmax_rows(compute, dtype, with_grad, x.ndim == 1 or capped or mixed, capped or x.layout != "C", buffered)

    def compiled(
        x, target, form="logits", axis=-1, class_weight=None, sample_weight=None, label_smoothing=0.0,
        ignore_index=None, temperature=1.0, softcap=None, z_loss=0.0, base=None, reduction="mean", on_empty="nan",
        return_grad=False, return_hess=False, out=None, grad_out=None, hess_out=None, validate=False,
    ):  # fmt: skip
        n, k = rows_and_classes(x)
        unit, cap, w_mean = unit_of(base), cap_of(softcap), mean_class_weight(class_weight, k)
        if k == 0:
            raise ValueError(NO_CLASS)
        if count_of(target, n) != n or count_of(sample_weight, n) != n:
            raise ValueError("target or sample_weight does not fit x: pass one label and one weight for each row")
        if w_mean != w_mean:
            raise ValueError("class_weight must be k numbers that are finite and 0 or greater")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError("label_smoothing is out of range; it must lie in [0, 1]")
        if not 0.0 < temperature < np.inf or cap != cap or not 0.0 <= z_loss < np.inf:
            raise ValueError(
                "temperature and softcap must be finite and greater than 0, z_loss finite and 0 or greater"
            )
        if unit == 0.0:
            raise ValueError(NO_LOGARITHM)
        if not (is_of_shape(grad_out, x.shape) and count_of(out, n) == n):
            raise ValueError(OTHER_SHAPE)
        if not (in_whole_elements(x) and in_whole_elements(grad_out)):
            raise ValueError(STRIDES)
        if (
            overlap(out, x) or overlap(out, target) or overlap(out, sample_weight) or overlap(out, class_weight)
            or overlap(out, grad_out) or (overlap(grad_out, x) and not same(grad_out, x))
            or overlap(grad_out, target) or overlap(grad_out, sample_weight) or overlap(grad_out, class_weight)
        ):  # fmt: skip
            raise ValueError(OVERLAP)
        bad = first_bad_label(target, n, k, ignore_index)
        if bad >= 0:
            fill(out, np.nan)
            if not same(grad_out, x):
                fill(grad_out, np.nan)
            raise IndexError(BAD_LABEL)
        count, scale = 1.0, 1.0
        if mean:
            count = denominator(n, target, ignore_index, sample_weight, class_weight)
            if count == 0.0 and of_nothing < 0.0:
                raise ValueError(NOTHING_COUNTS)
            if with_grad:
                scale = 1.0 / count if count != 0.0 else 0.0
        losses = array_for(out, n, dtype) if by_rows else None
        gradient = array_for(grad_out, x.shape, dtype) if with_grad else None
        inv_T = 1.0 / temperature
        options = (inv_T, unit, np.float64(label_smoothing), np.float64(z_loss), cap, scale, w_mean)
        value = run(
            x, n, k, target, ignore_index, sample_weight, class_weight, options, compute(LOG2E / temperature), False,
            losses, None, not by_rows, GRAD, gradient,
        )  # fmt: skip
        if mean:
            value = value / count if count != 0.0 else of_nothing
            if with_grad and count == 0.0:
                fill(gradient, 0.0)
        loss = answer(value, losses, out, dtype)
        if with_grad:
            return loss, gradient
        return loss

    return compiled


def entropy(
    p, *, form="probs", axis=-1, base=None, sample_weight=None, reduction="none", return_grad=False, out=None,
    grad_out=None, validate=False,
):  # fmt: skip
    arguments.refuse(axis=(axis, -1), validate=(validate, False))
    p = arguments.rows("p", p)
    form = arguments.choice("form", form, _options.FORMS)
    arguments.weights("sample_weight", sample_weight, p.ndim - 1)
    arguments.optional_numbers(base=base)
    by_rows, reduction, of_nothing = arguments.losses(reduction, "nan", out, p)
    arguments.output("grad_out", grad_out, p.dtype, p.ndim)
    with_grad = arguments.choice("return_grad", return_grad, (False, True)) or plain(grad_out) is not None
    mean, dtype = reduction == "mean", numpy_dtype(p.dtype)

    single, contiguous, of_logits = p.ndim == 1, p.layout == "C", form == "logits"
    if of_logits:
        run = softmax_rows(dtype, dtype, with_grad, single or with_grad, not contiguous, True)
    else:
        run = distributions.entropy(dtype, form, with_grad, single, contiguous)

    def compiled(
        p, form="probs", axis=-1, base=None, sample_weight=None, reduction="none", return_grad=False, out=None,
        grad_out=None, validate=False,
    ):  # fmt: skip
        n, k = rows_and_classes(p)
        unit = unit_of(base)
        if k == 0:
            raise ValueError(NO_CLASS)
        if count_of(sample_weight, n) != n:
            raise ValueError(OTHER_WEIGHTS)
        if unit == 0.0:
            raise ValueError(NO_LOGARITHM)
        if not (is_of_shape(grad_out, p.shape) and count_of(out, n) == n):
            raise ValueError(OTHER_SHAPE)
        if not (in_whole_elements(p) and in_whole_elements(grad_out)):
            raise ValueError(STRIDES)
        if (
            overlap(out, p) or overlap(out, sample_weight) or overlap(out, grad_out)
            or (overlap(grad_out, p) and not same(grad_out, p)) or overlap(grad_out, sample_weight)
        ):  # fmt: skip
            raise ValueError(OVERLAP)
        count, scale = 1.0, 1.0
        if mean:
            count = denominator(n, None, None, sample_weight, None)
            if with_grad:
                scale = 1.0 / count if count != 0.0 else 0.0
        losses = array_for(out, n, dtype) if by_rows else None
        gradient = array_for(grad_out, p.shape, dtype) if with_grad else None
        if of_logits:
            value = run(
                p, n, k, None, None, sample_weight, None, (1.0, unit, 0.0, 0.0, 0.0, scale, 1.0), dtype(LOG2E), True,
                losses, None, not by_rows, ENTROPY_GRAD, gradient,
            )  # fmt: skip
        else:
            value = run(p, n, k, sample_weight, unit, scale, losses, gradient)
        if mean:
            value = value / count if count != 0.0 else of_nothing
            if with_grad and count == 0.0:
                fill(gradient, 0.0)
        loss = answer(value, losses, out, dtype)
        if with_grad:
            return loss, gradient
        return loss

    return compiled


def kl_divergence(
    p, q, *, p_form="probs", q_form="probs", axis=-1, temperature=1.0, sample_weight=None, base=None, reduction="none",
    return_grad=False, out=None, grad_out=None, validate=False,
):  # fmt: skip
    arguments.refuse(axis=(axis, -1), validate=(validate, False))
    p, q = arguments.rows("p", p), arguments.rows("q", q)
    wide = p if p.ndim >= q.ndim else q
    arguments.same_dtype(p, q)
    p_form = arguments.choice("p_form", p_form, _options.FORMS)
    q_form = arguments.choice("q_form", q_form, _options.FORMS)
    arguments.weights("sample_weight", sample_weight, wide.ndim - 1)
    arguments.numbers(temperature=temperature)
    if "logits" not in (p_form, q_form):
        arguments.refuse(temperature=(temperature, 1.0))
    arguments.optional_numbers(base=base)
    by_rows, reduction, of_nothing = arguments.losses(reduction, "nan", out, wide)
    sides = arguments.sides(return_grad, grad_out, wide)
    by_p, by_q = "p" in sides, "q" in sides
    mean, dtype = reduction == "mean", numpy_dtype(p.dtype)
    contiguous = p.layout == q.layout == "C"
    run = distributions.kl_divergence(dtype, p_form, q_form, by_p or by_q, wide.ndim == 1, contiguous)

    def compiled(
        p, q, p_form="probs", q_form="probs", axis=-1, temperature=1.0, sample_weight=None, base=None,
        reduction="none", return_grad=False, out=None, grad_out=None, validate=False,
    ):  # fmt: skip
        (p_rows, k), (q_rows, q_k) = rows_and_classes(p), rows_and_classes(q)
        n, unit = (q_rows if p_rows == 1 else p_rows), unit_of(base)
        if k != q_k or (p_rows != n and p_rows != 1) or (q_rows != n and q_rows != 1):
            raise ValueError("p and q do not broadcast together: pass the same shape, or one row for all")
        if k == 0:
            raise ValueError(NO_CLASS)
        if count_of(sample_weight, n) != n:
            raise ValueError(OTHER_WEIGHTS)
        if not 0.0 < temperature < np.inf:
            raise ValueError(BAD_TEMPERATURE)
        if unit == 0.0:
            raise ValueError(NO_LOGARITHM)
        given_p, given_q = part_of(grad_out, 0) if by_p else None, part_of(grad_out, 1) if by_q else None
        shape = shape_of(n, k, p, q)
        if not (is_of_shape(given_p, shape) and is_of_shape(given_q, shape) and count_of(out, n) == n):
            raise ValueError(OTHER_SHAPE)
        if not (
            in_whole_elements(p) and in_whole_elements(q) and in_whole_elements(given_p) and in_whole_elements(given_q)
        ):
            raise ValueError(STRIDES)
        if (
            overlap(out, p) or overlap(out, q) or overlap(out, sample_weight) or overlap(out, given_p)
            or overlap(out, given_q) or overlap(given_p, given_q) or overlap(given_p, q) or overlap(given_q, p)
            or (overlap(given_p, p) and not same(given_p, p)) or (overlap(given_q, q) and not same(given_q, q))
            or overlap(given_p, sample_weight) or overlap(given_q, sample_weight)
        ):  # fmt: skip
            raise ValueError(OVERLAP)
        count, scale = 1.0, 1.0
        if mean:
            count = denominator(n, None, None, sample_weight, None)
            if by_p or by_q:
                scale = 1.0 / count if count != 0.0 else 0.0
        losses = array_for(out, n, dtype) if by_rows else None
        grad_p = array_for(given_p, shape, dtype) if by_p else None
        grad_q = array_for(given_q, shape, dtype) if by_q else None
        value = run(p, q, n, k, sample_weight, np.float64(temperature), unit, scale, losses, grad_p, grad_q)
        if mean:
            value = value / count if count != 0.0 else of_nothing
            if count == 0.0:
                fill(grad_p, 0.0)
                fill(grad_q, 0.0)
        loss = answer(value, losses, out, dtype)
        if by_p and by_q:
            return loss, grad_p, grad_q
        if by_p:
            return loss, grad_p
        if by_q:
            return loss, grad_q
        return loss

    return compiled


def logsumexp(x, *, axis=-1, out=None, validate=False):
    arguments.refuse(axis=(axis, -1), validate=(validate, False))
    x = arguments.rows("x", x)
    arguments.output("out", out, x.dtype, x.ndim - 1)
    dtype, single = numpy_dtype(x.dtype), x.ndim == 1
    run = softmax_rows(dtype, dtype, False, single, x.layout != "C", not in_line(plain(out), x.dtype))

    def compiled(x, axis=-1, out=None, validate=False):
        n, k = rows_and_classes(x)
        if k == 0:
            raise ValueError(NO_CLASS)
        if count_of(out, n) != n:
            raise ValueError(OTHER_SHAPE)
        if not in_whole_elements(x):
            raise ValueError(STRIDES)
        if overlap(out, x):
            raise ValueError(OVERLAP)
        sums = stack(1, dtype) if single else array_for(out, n, dtype)
        run(x, n, k, None, None, None, None, NO_OPTIONS, dtype(LOG2E), False, None, sums, False, 0, None)
        if single:
            return answer(sums[0], None, out, dtype)
        return sums

    return compiled


def softmax(x, *, axis=-1, out=None, validate=False):
    return _map(SOFTMAX, x, axis, out, validate)


def log_softmax(x, *, axis=-1, out=None, validate=False):
    return _map(LOG_SOFTMAX, x, axis, out, validate)


def _map(kind, x, axis, out, validate):
    """A result of the shape of `x`."""
    arguments.refuse(axis=(axis, -1), validate=(validate, False))
    x = arguments.rows("x", x)
    arguments.output("out", out, x.dtype, x.ndim)
    dtype = numpy_dtype(x.dtype)
    run = softmax_rows(dtype, dtype, True, x.ndim == 1, x.layout != "C", False)

    def compiled(x, axis=-1, out=None, validate=False):
        n, k = rows_and_classes(x)
        if k == 0:
            raise ValueError(NO_CLASS)
        if not is_of_shape(out, x.shape):
            raise ValueError(OTHER_SHAPE)
        if not (in_whole_elements(x) and in_whole_elements(out)):
            raise ValueError(STRIDES)
        if overlap(out, x) and not same(out, x):
            raise ValueError(OVERLAP)
        result = array_for(out, x.shape, dtype)
        run(x, n, k, None, None, None, None, NO_OPTIONS, dtype(LOG2E), False, None, None, False, kind, result)
        return result

    return compiled
