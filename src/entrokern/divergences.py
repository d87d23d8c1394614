"""Divergences of two distributions: document, normalise the call, return its `Job`, which `planned` runs.

The formulas are in `reference.py` (the definition) and `_formulas.py` (what the kernels compile).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from . import _arrays, _options, _validate
from ._arrays import Array, ArrayLike
from ._call import Call, Map, compute
from ._dispatch import library_of
from ._options import Estimator, Form, Reduction
from ._plans import planned


@planned
def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    p_form: Form = "probs",
    q_form: Form = "probs",
    axis: int = -1,
    temperature: float = 1.0,
    sample_weight: ArrayLike | None = None,
    base: float | None = None,
    reduction: Reduction = "none",
    return_grad: bool | Literal["p", "q", "both"] = False,
    out: Array | None = None,
    grad_out: Any = None,
    validate: bool = False,
) -> Any:
    """Kullback-Leibler divergence of each row: ``D(P‖Q) = Σ_c p_c·log(p_c/q_c)``.

    Parameters
    ----------
    p, q : array_like, shape (..., k)
        The truth and the model. They broadcast as in NumPy: n rows against one reference row.
    p_form, q_form : {"probs", "log_probs", "logits"}
        How each is given. Only logits are normalised.
    axis : int, default -1
        The class axis (of the broadcast shape).
    temperature : float, default 1
        Divides the sides given as logits; no ``T²`` factor.
    sample_weight : array_like, batch shape, optional
        Weight of each row; a row of weight 0 does not count.
    base : float, optional
        Base of the logarithm; nats by default.
    reduction : {"none", "sum", "mean"}
        One number per row, their weighted sum, or the sum over the sum of the weights.
    return_grad : {False, "q", "p", "both"}
        Also return the gradient by these operands as given, of the broadcast shape.
    out : ndarray, optional
        Where to write the divergence.
    grad_out : ndarray or pair of ndarrays, optional
        Where to write the gradient (a pair, `p`'s first, for ``"both"``); each may be exactly its own
        operand. Alone it asks for the gradient by `q`.
    validate : bool, default False
        Raise ``ValueError`` for probabilities below 0 or rows that do not sum to 1.

    Returns
    -------
    divergence : ndarray
        Batch shape, or 0-d; float32 for 16- and 32-bit ``result_type(p, q)``, else float64.
    grad, or grad_p and grad_q : ndarray, optional
        Of the broadcast shape and ``result_type(p, q)``.

    Raises
    ------
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    Summed as ``Σ[p·log(p/q) - p + q] + Σ(p - q)``: the terms are non-negative, so nothing cancels;
    the second sum is 0 for normalised operands. Probabilities are taken as given: where their sums
    differ the result can be negative. ``p > 0, q = 0`` gives ``+inf``. S. Kullback and R. A. Leibler,
    *On Information and Sufficiency* (1951).

    Examples
    --------
    >>> import entrokern as ek
    >>> print(ek.kl_divergence([0.7, 0.2, 0.1], [0.5, 0.2, 0.3]).round(6))
    0.125669
    """
    return _divergence(
        "kl_divergence", p, q, p_form, q_form, axis, temperature, sample_weight, base, reduction,
        return_grad, out, grad_out, validate, 0.5,
    )  # fmt: skip


@planned
def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    p_form: Form = "probs",
    q_form: Form = "probs",
    axis: int = -1,
    temperature: float = 1.0,
    sample_weight: ArrayLike | None = None,
    base: float | None = None,
    reduction: Reduction = "none",
    return_grad: bool | Literal["p", "q", "both"] = False,
    out: Array | None = None,
    grad_out: Any = None,
    weight: float = 0.5,
    validate: bool = False,
) -> Any:
    """Jensen-Shannon divergence of each row: ``w·KL(p‖m) + (1-w)·KL(q‖m)``, ``m = w·p + (1-w)·q``.

    The divergence itself, not its square root. All parameters but `weight` are those of
    `kl_divergence`.

    Parameters
    ----------
    p, q : array_like, shape (..., k)
        The two distributions; they broadcast as in NumPy.
    p_form, q_form : {"probs", "log_probs", "logits"}
        How each is given. Only logits are normalised.
    axis : int, default -1
        The class axis (of the broadcast shape).
    temperature : float, default 1
        Divides the sides given as logits.
    sample_weight : array_like, batch shape, optional
        Weight of each row; a row of weight 0 does not count.
    base : float, optional
        Base of the logarithm; nats by default.
    reduction : {"none", "sum", "mean"}
        One number per row, their weighted sum, or the sum over the sum of the weights.
    return_grad : {False, "q", "p", "both"}
        Also return the gradient by these operands as given.
    out : ndarray, optional
        Where to write the divergence.
    grad_out : ndarray or pair of ndarrays, optional
        Where to write the gradient (a pair for ``"both"``). Alone it asks for the gradient by `q`.
    weight : float, default 0.5
        ``w``, strictly between 0 and 1.
    validate : bool, default False
        Raise ``ValueError`` for probabilities below 0 or rows that do not sum to 1.

    Returns
    -------
    divergence : ndarray
        Batch shape, or 0-d; float32 for 16- and 32-bit ``result_type(p, q)``, else float64.
    grad, or grad_p and grad_q : ndarray, optional
        Of the broadcast shape and ``result_type(p, q)``.

    Raises
    ------
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    Summed from non-negative terms, so never negative; at most ``log 2`` for ``w = 1/2``. J. Lin,
    *Divergence Measures Based on the Shannon Entropy* (1991).

    Examples
    --------
    >>> import entrokern as ek
    >>> print(ek.js_divergence([1.0, 0.0], [0.0, 1.0], base=2))
    1.0
    """
    return _divergence(
        "js_divergence", p, q, p_form, q_form, axis, temperature, sample_weight, base, reduction,
        return_grad, out, grad_out, validate, _options.open_fraction("weight", weight),
    )  # fmt: skip


def _divergence(
    quantity: str,
    p: ArrayLike,
    q: ArrayLike,
    p_form: str,
    q_form: str,
    axis: int,
    temperature: float,
    sample_weight: ArrayLike | None,
    base: float | None,
    reduction: str,
    return_grad: bool | str,
    out: Array | None,
    grad_out: Any,
    validate: bool,
    weight: float,
) -> Any:
    _options.choice("p_form", p_form, _options.FORMS)
    _options.choice("q_form", q_form, _options.FORMS)
    sides, given = _gradient_sides(return_grad, grad_out)
    library_of(p=p, q=q, sample_weight=sample_weight, out=out, **{f"grad_out[{s}]": g for s, g in given.items()})
    temperature = _options.positive("temperature", temperature)
    if "logits" not in (p_form, q_form):
        _options.for_logits_only(p_form, temperature=(temperature, 1.0))
    a, b = _arrays.as_floating("p", p), _arrays.as_floating("q", q)
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(f"p of shape {a.shape} and q of shape {b.shape} do not broadcast together") from None
    wide_a, wide_b = (v if v.shape == shape else np.broadcast_to(v, shape) for v in (a, b))
    axis = _arrays.class_axis(wide_a, axis, "p and q")
    view_a, view_b = _arrays.classes_last(wide_a, axis), _arrays.classes_last(wide_b, axis)
    call = Call(
        quantity,
        view_a,
        form=p_form,
        y=view_b,
        y_form=q_form,
        sample_weight=_arrays.sample_weights(sample_weight, view_a.shape[:-1]),
        temperature=temperature,
        unit=_options.unit_of_base(base),
        js_weight=weight,
    )
    if _options.flag("validate", validate):
        _validate.distribution("p", view_a, p_form)
        _validate.distribution("q", view_b, q_form)
    dtype = _arrays.common_dtype(p=a, q=b)
    operands = {"p": wide_a, "q": wide_b}
    outputs = {
        f"grad_{side}": Map("grad_out" if len(sides) == 1 else f"grad_out[{i}]", given.get(side), operands[side], side)
        for i, side in enumerate(sides)
    }
    inputs = {"p": a, "q": b, "sample_weight": sample_weight}
    return compute(call, dtype, axis, reduction, "nan", out, outputs, inputs)


def _gradient_sides(return_grad: bool | str, grad_out: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Which gradients are asked for, in order, and the arrays given for them."""
    _options.choice("return_grad", return_grad, (False, "q", "p", "both"))
    sides = {False: (), "q": ("q",), "p": ("p",), "both": ("p", "q")}[return_grad]
    if grad_out is None:
        return sides, {}
    if isinstance(grad_out, (tuple, list)):
        if return_grad not in (False, "both") or len(grad_out) != 2:
            raise ValueError(
                f"grad_out is a {type(grad_out).__name__} of {len(grad_out)}; a pair (for p, for q) goes with "
                "return_grad='both', one array with 'p' or 'q'"
            )
        return ("p", "q"), {s: g for s, g in zip(("p", "q"), grad_out, strict=True) if g is not None}
    if return_grad == "both":
        raise ValueError("return_grad='both' takes a pair of arrays as grad_out: (for p, for q)")
    sides = sides or ("q",)
    return sides, {sides[0]: grad_out}


@planned
def kl_estimate(
    log_p: ArrayLike,
    log_q: ArrayLike,
    *,
    estimator: Estimator = "k1",
    reduction: Reduction = "mean",
    validate: bool = False,
) -> Array:
    """KL(P‖Q) estimated from samples drawn from P, given their log-probabilities under both.

    Parameters
    ----------
    log_p, log_q : array_like
        ``log p(x_i)`` and ``log q(x_i)`` of the samples, of shapes that broadcast.
    estimator : {"k1", "k2", "k3"}
        With ``r = q/p``: ``-log r`` (unbiased, can be negative), ``½·log² r`` (biased, less variance),
        ``(r - 1) - log r`` (unbiased, never negative).
    reduction : {"mean", "sum", "none"}
        The estimate, the sum, or the estimator of each sample.
    validate : bool, default False
        Raise ``ValueError`` for a log-probability above 0.

    Returns
    -------
    ndarray
        0-d, or of the broadcast shape; float32 for 16- and 32-bit input, else float64.

    Raises
    ------
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    J. Schulman, *Approximating KL Divergence* (2020).

    Examples
    --------
    >>> import numpy as np, entrokern as ek
    >>> p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.2, 0.3])
    >>> x = np.random.default_rng(0).choice(3, 100_000, p=p)
    >>> print(ek.kl_estimate(np.log(p[x]), np.log(q[x]), estimator="k3").round(3))
    0.125
    """
    library_of(log_p=log_p, log_q=log_q)
    _options.choice("estimator", estimator, _options.ESTIMATORS)
    a, b = _arrays.as_floating("log_p", log_p), _arrays.as_floating("log_q", log_q)
    try:
        a, b = (a, b) if a.shape == b.shape else np.broadcast_arrays(a, b)
    except ValueError:
        raise ValueError(f"log_p of shape {a.shape} and log_q of shape {b.shape} do not broadcast together") from None
    if _options.flag("validate", validate):
        _validate.not_positive("log_p", a)
        _validate.not_positive("log_q", b)
    x, y = np.atleast_1d(a), np.atleast_1d(b)
    call = Call("kl_estimate", x, form="log_probs", y=y, estimator=estimator, elementwise=True)
    dtype = _arrays.common_dtype(log_p=a, log_q=b)
    job: Any = compute(call, dtype, max(a.ndim - 1, 0), reduction, "nan", None, {}, {}, shape=a.shape)
    return job
