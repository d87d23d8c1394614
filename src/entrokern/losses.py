"""The public losses: document, normalise the call, return its `Job`, which `planned` runs and remembers.

The formulas are in `reference.py` (the definition) and `_formulas.py` (what the kernels compile).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from . import _arrays, _device, _options, _validate
from ._arrays import Array
from ._call import Call, Job, Map, check_targets, compute, compute_maps
from ._dispatch import library_of
from ._plans import planned

ArrayLike: TypeAlias = Any
Form: TypeAlias = Literal["logits", "log_probs", "probs"]
Reduction: TypeAlias = Literal["none", "sum", "mean"]
OnEmpty: TypeAlias = Literal["nan", "zero", "raise"]


@planned
def information(p: ArrayLike, *, base: float | None = None, out: Array | None = None, validate: bool = False) -> Array:
    """Information content of probabilities, elementwise: ``I(p) = -log p``.

    Parameters
    ----------
    p : array_like, any shape
        Probabilities: float16, bfloat16, float32, float64; integers are computed as float64.
    base : float, optional
        Base of the logarithm; nats by default, 2 for bits.
    out : ndarray, optional
        Where to write the result: shape and dtype of `p` (float32 also for 16-bit `p`).
    validate : bool, default False
        Raise ``ValueError`` for a probability below 0 (otherwise its result is NaN).

    Returns
    -------
    ndarray
        Shape and dtype of `p`. ``+inf`` where `p` is 0.

    Raises
    ------
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    C. E. Shannon, *A Mathematical Theory of Communication* (1948), section 6.

    Examples
    --------
    >>> import entrokern as ek
    >>> ek.information([1.0, 0.5, 0.25], base=2)
    array([0., 1., 2.])
    """
    library_of(p=p, out=out)
    x = _arrays.as_floating("p", p)
    if _options.flag("validate", validate):
        _validate.not_negative("p", x)
    call = Call("information", np.atleast_1d(x), form="probs", unit=_options.unit_of_base(base))
    job: Any = compute_maps(call, x, information=out)
    return job


@planned
def entropy(
    p: ArrayLike,
    *,
    form: Form = "probs",
    axis: int = -1,
    base: float | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: Reduction = "none",
    return_grad: bool = False,
    out: Array | None = None,
    grad_out: Array | None = None,
    validate: bool = False,
) -> Any:
    """Entropy of each row: ``H(P) = -Σ_c p_c·log p_c``.

    Parameters
    ----------
    p : array_like, shape (..., k)
        The distributions, one per row, in `form`.
    form : {"probs", "log_probs", "logits"}
        How they are given. Probabilities are taken as they are, never normalised.
    axis : int, default -1
        The class axis; the others are the batch.
    base : float, optional
        Base of the logarithm; nats by default.
    sample_weight : array_like, batch shape, optional
        Weight of each row; a row of weight 0 does not count.
    reduction : {"none", "sum", "mean"}
        One number per row, their weighted sum, or the sum over the sum of the weights.
    return_grad : bool, default False
        Also return the gradient with respect to `p` as given.
    out, grad_out : ndarray, optional
        Where to write; `grad_out` implies `return_grad` and may be exactly `p`.
    validate : bool, default False
        Raise ``ValueError`` for probabilities below 0 or rows that do not sum to 1.

    Returns
    -------
    H : ndarray
        Batch shape, or 0-d; float32 for 16- and 32-bit input, else float64.
    grad : ndarray, optional
        Shape and dtype of `p`.

    Raises
    ------
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    ``0·log 0 = 0``. From logits, ``H = log Z + Σ p·(m - z)`` with the largest logit ``m``: a sum of
    non-negative terms. Shannon (1948), section 6.

    Examples
    --------
    >>> import entrokern as ek
    >>> ek.entropy([[0.5, 0.5], [1.0, 0.0]])
    array([0.69314718, 0.        ])
    """
    library_of(p=p, sample_weight=sample_weight, out=out, grad_out=grad_out)
    _options.choice("form", form, _options.FORMS)
    x = _arrays.as_floating("p", p)
    axis = _arrays.class_axis(x, axis, "p")
    view = _arrays.classes_last(x, axis)
    call = Call(
        "entropy",
        view,
        form=form,
        sample_weight=_arrays.sample_weights(sample_weight, view.shape[:-1]),
        unit=_options.unit_of_base(base),
    )
    if _options.flag("validate", validate):
        _validate.distribution("p", view, form)
    wanted = _options.flag("return_grad", return_grad) or grad_out is not None
    outputs = {"grad": Map("grad_out", grad_out, x, "p")} if wanted else {}
    return compute(call, x.dtype, axis, reduction, "nan", out, outputs, {"p": x, "sample_weight": sample_weight})


@planned
def cross_entropy(
    x: ArrayLike,
    target: ArrayLike,
    *,
    form: Form = "logits",
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    base: float | None = None,
    reduction: Reduction = "mean",
    on_empty: OnEmpty = "nan",
    return_grad: bool = False,
    return_hess: bool = False,
    out: Array | None = None,
    grad_out: Array | None = None,
    hess_out: Array | None = None,
    validate: bool = False,
) -> Any:
    """Cross-entropy of predicted distributions with labels or target distributions.

    Parameters
    ----------
    x : array_like, shape (..., k)
        Predictions, one row each, in `form`.
    target : array_like
        Integer labels of the batch shape, or distributions (also integer or bool one-hot tables) of
        the shape of `x`. The shape decides.
    form : {"logits", "log_probs", "probs"}
        How the predictions are given; only logits are normalised.
    axis : int, default -1
        The class axis; the others are the batch.
    class_weight : array_like, shape (k,), optional
        Weight ``w_c`` of each class, finite and not negative.
    sample_weight : array_like, batch shape, optional
        Weight ``s`` of each row; a row of weight 0 does not count.
    label_smoothing : float, default 0
        ``ε`` in [0, 1]: the share of the target spread evenly over the classes.
    ignore_index : int, optional
        Rows with this label do not count: loss 0, gradient 0. Labels only.
    temperature, softcap : float, optional
        The loss is of ``z = softcap(x) / temperature``, ``softcap(x) = c·tanh(x/c)``. Logits only.
    z_loss : float, default 0
        Adds ``z_loss·lse(z)²``. Logits only.
    base : float, optional
        Base of the logarithm (not of the z-loss); nats by default.
    reduction : {"mean", "sum", "none"}
        ``Σℓ / Σ s·w_y`` (``Σℓ / Σ s`` for distributions), ``Σℓ``, or each ``ℓ``.
    on_empty : {"nan", "zero", "raise"}
        What a mean is when its denominator is 0. The gradient is then 0.
    return_grad, return_hess : bool, default False
        Also return the gradient and the diagonal of the Hessian of the value returned, by `x` as given.
    out, grad_out, hess_out : ndarray, optional
        Where to write; giving one implies asking for it. `grad_out` may be exactly `x`.
    validate : bool, default False
        Raise ``ValueError`` for distributions with values below 0 or sums other than 1.

    Returns
    -------
    loss : ndarray
        Batch shape, or 0-d; float32 for 16- and 32-bit `x`, else float64.
    grad, hess : ndarray, optional
        Shape and dtype of `x`, in this order, those asked for.

    Raises
    ------
    IndexError
        A label outside ``0 … k-1`` that is not `ignore_index`; the outputs given are filled with NaN.
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    ``ℓ = s·[(1-ε)·w_y·(lse - z_y) + (ε/k)·Σ_c w_c·(lse - z_c) + z_loss·lse²]`` for a label ``y``,
    ``ℓ = s·[Σ_c w_c·q'_c·(lse - z_c) + z_loss·lse²]`` for a distribution, ``q' = (1-ε)q + ε/k``: the
    meaning of weights, smoothing and ignored labels is PyTorch's. A loss near 0 keeps its digits:
    ``log1p(Σ_{j≠max} e^(z_j - m))``. The z-loss is from B. Zoph et al., *ST-MoE* (2022), section 3.

    Examples
    --------
    >>> import entrokern as ek
    >>> logits = [[2.0, 0.0, -1.0], [0.0, 40.0, 0.0]]
    >>> ek.cross_entropy(logits, [0, 1], reduction="none")
    array([1.69846020e-01, 8.49670851e-18])
    """
    library_of(
        x=x, target=target, class_weight=class_weight, sample_weight=sample_weight,
        out=out, grad_out=grad_out, hess_out=hess_out,
    )  # fmt: skip
    wants_grad = _options.flag("return_grad", return_grad) or grad_out is not None
    wants_hess = _options.flag("return_hess", return_hess) or hess_out is not None
    array, axis, call = cross_entropy_call(
        x, target, form, axis, class_weight, sample_weight, label_smoothing, ignore_index,
        temperature, softcap, z_loss, base, validate,
    )  # fmt: skip
    refuse_no_target(call)
    if wants_hess:
        if form != "logits":
            raise ValueError(f"return_hess needs logits, but form={form!r}; leave it out or pass form='logits'")
        refuse_hessian(call)
    outputs = {}
    if wants_grad:
        outputs["grad"] = Map("grad_out", grad_out, array, "x")
    if wants_hess:
        outputs["hess"] = Map("hess_out", hess_out, array)
    inputs = {"x": array, "target": target, "class_weight": class_weight, "sample_weight": sample_weight}
    return compute(call, array.dtype, axis, reduction, on_empty, out, outputs, inputs)


def cross_entropy_call(
    x: ArrayLike,
    target: ArrayLike | None,
    form: str,
    axis: int,
    class_weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    label_smoothing: float,
    ignore_index: int | None,
    temperature: float,
    softcap: float | None,
    z_loss: float,
    base: float | None,
    validate: bool,
    quantity: str = "cross_entropy",
) -> tuple[Array, int, Call]:
    """The options of `cross_entropy`, checked: `x` as an array, its class axis, and the call."""
    _options.choice("form", form, _options.FORMS)
    _options.for_logits_only(form, temperature=(temperature, 1.0), softcap=(softcap, None), z_loss=(z_loss, 0.0))
    validate = _options.flag("validate", validate)
    array = _arrays.as_floating("x", x)
    axis = _arrays.class_axis(array, axis)
    view = _arrays.classes_last(array, axis)
    labels, dense = (None, None) if target is None else _arrays.split_target(array, axis, target)
    if ignore_index is not None:
        ignore_index = _options.index("ignore_index", ignore_index)
        if dense is not None:
            raise ValueError(
                f"ignore_index={ignore_index} needs integer labels, but target is a distribution; "
                "give the rows to leave out sample_weight 0"
            )
    call = Call(
        quantity,
        view,
        form=form,
        y=dense,
        labels=labels,
        class_weight=_arrays.class_weights(class_weight, view.shape[-1], validate=validate),
        sample_weight=_arrays.sample_weights(sample_weight, view.shape[:-1]),
        label_smoothing=_options.fraction("label_smoothing", label_smoothing),
        ignore_index=ignore_index,
        temperature=_options.positive("temperature", temperature),
        softcap=None if softcap is None else _options.positive("softcap", softcap),
        z_loss=_options.non_negative("z_loss", z_loss),
        unit=_options.unit_of_base(base),
    )
    if validate:
        check_targets(call)
        _validate.distribution("x", view, form)
        if dense is not None:
            _validate.distribution("target", dense, "probs")
    return array, axis, call


def refuse_no_target(call: Call) -> None:
    if call.labels is None and call.y is None:
        raise TypeError("target is None; pass integer labels of the batch shape, or distributions of x's shape")


def refuse_hessian(call: Call) -> None:
    """The Hessian is that of plain CE: its diagonal with a softcap or z-loss is not offered."""
    for name, value, default in (("softcap", call.softcap, None), ("z_loss", call.z_loss, 0.0)):
        if value != default:
            raise ValueError(f"return_hess with {name}={value!r} is not offered; leave one of them out")


@planned
def binary_cross_entropy(
    x: ArrayLike,
    target: ArrayLike,
    *,
    form: Form = "logits",
    axis: int | None = None,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    base: float | None = None,
    reduction: Reduction = "mean",
    on_empty: OnEmpty = "nan",
    return_grad: bool = False,
    return_hess: bool = False,
    out: Array | None = None,
    grad_out: Array | None = None,
    hess_out: Array | None = None,
    validate: bool = False,
) -> Any:
    """Binary cross-entropy, elementwise; with `axis`, first summed over it (multi-label rows).

    Parameters
    ----------
    x : array_like, any shape
        Predictions for the positive class, in `form`.
    target : array_like, shape of `x`
        Bools, integers 0 and 1, or probabilities of the positive class.
    form : {"logits", "log_probs", "probs"}
        How `x` is given.
    axis : int, optional
        Sum the elements along this axis to one loss per row before weighting and reducing.
    pos_weight : array_like, broadcasts against `x`, optional
        Weight of the positive part.
    sample_weight : array_like, optional
        Weight of each element, broadcast against `x`; with `axis`, of each row (batch shape).
    label_smoothing : float, default 0
        ``t ← (1-ε)·t + ε/2``.
    ignore_index : int, optional
        Elements with this target do not count.
    base : float, optional
        Base of the logarithm; nats by default.
    reduction : {"mean", "sum", "none"}
        ``Σℓ / Σs``, ``Σℓ`` or each ``ℓ``.
    on_empty : {"nan", "zero", "raise"}
        What a mean is when its denominator is 0. The gradient is then 0.
    return_grad, return_hess : bool, default False
        Also return the gradient and the Hessian's diagonal of the value returned, by `x` as given.
    out, grad_out, hess_out : ndarray, optional
        Where to write; giving one implies asking for it. `grad_out` may be exactly `x`.
    validate : bool, default False
        Raise ``ValueError`` for float targets (or probabilities `x`) outside [0, 1].

    Returns
    -------
    loss : ndarray
        Shape of `x` (without `axis`), or 0-d; float32 for 16- and 32-bit `x`, else float64.
    grad, hess : ndarray, optional
        Shape and dtype of `x`, in this order, those asked for.

    Raises
    ------
    IndexError
        An integer target other than 0, 1 and `ignore_index`; the outputs given are filled with NaN.
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    ``ℓ = s·[pos_weight·t·softplus(-z) + (1-t)·softplus(z)]``, each part 0 where its weight is 0. It is
    the cross-entropy of ``k = 2`` classes with logits ``(0, z)``.

    Examples
    --------
    >>> import entrokern as ek
    >>> ek.binary_cross_entropy([0.0, 40.0], [1, 1], reduction="none")
    array([6.93147181e-01, 4.24835426e-18])
    """
    library_of(
        x=x, target=target, pos_weight=pos_weight, sample_weight=sample_weight,
        out=out, grad_out=grad_out, hess_out=hess_out,
    )  # fmt: skip
    _options.choice("form", form, _options.FORMS)
    wants_grad = _options.flag("return_grad", return_grad) or grad_out is not None
    wants_hess = _options.flag("return_hess", return_hess) or hess_out is not None
    if wants_hess and form != "logits":
        raise ValueError(f"return_hess needs logits, but form={form!r}; leave it out or pass form='logits'")
    array = _arrays.as_floating("x", x)
    t = _arrays.as_real("target", target, bools=True)
    if t.shape != array.shape:
        raise ValueError(
            f"target of shape {t.shape} does not fit x of shape {array.shape}; pass one target per element"
        )
    elementwise = axis is None
    class_axis = max(array.ndim - 1, 0) if elementwise else _arrays.class_axis(array, axis)
    view = _arrays.classes_last(np.atleast_1d(array), class_axis)
    targets = _arrays.classes_last(np.atleast_1d(t), class_axis)
    pos = _arrays.broadcast_against("pos_weight", pos_weight, array.shape)
    if elementwise:
        weights = _arrays.broadcast_against("sample_weight", sample_weight, array.shape)
        weights = None if weights is None else np.atleast_1d(weights)
    else:
        weights = _arrays.sample_weights(sample_weight, view.shape[:-1])
    call = Call(
        "binary_cross_entropy",
        view,
        form=form,
        y=targets,
        pos_weight=None if pos is None else _arrays.classes_last(np.atleast_1d(pos), class_axis),
        sample_weight=weights,
        label_smoothing=_options.fraction("label_smoothing", label_smoothing),
        ignore_index=None if ignore_index is None else _options.index("ignore_index", ignore_index),
        unit=_options.unit_of_base(base),
        elementwise=elementwise,
    )
    if _options.flag("validate", validate):
        check_targets(call)
        _validate.unit_interval("target", targets, call.ignore_index)
        _validate.binary_predictions("x", view, form)
    outputs = {}
    if wants_grad:
        outputs["grad"] = Map("grad_out", grad_out, array, "x")
    if wants_hess:
        outputs["hess"] = Map("hess_out", hess_out, array)
    inputs = {"x": array, "target": t, "pos_weight": pos_weight, "sample_weight": sample_weight}
    shape = array.shape if elementwise else None  # 0-d stays 0-d
    return compute(call, array.dtype, class_axis, reduction, on_empty, out, outputs, inputs, shape)


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
    estimator: Literal["k1", "k2", "k3"] = "k1",
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


@planned
def perplexity(
    x: ArrayLike,
    target: ArrayLike,
    *,
    form: Form = "logits",
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    on_empty: OnEmpty = "nan",
    validate: bool = False,
) -> Array:
    """Perplexity: ``exp`` of the mean cross-entropy.

    Parameters
    ----------
    x, target, form, axis, class_weight, sample_weight, label_smoothing, ignore_index
        As in `cross_entropy`.
    temperature, softcap, on_empty, validate
        As in `cross_entropy`.

    Returns
    -------
    ndarray
        0-d; float32 for 16- and 32-bit `x`, else float64.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `cross_entropy`. ``on_empty="zero"`` gives ``exp(0) = 1``.

    Notes
    -----
    F. Jelinek et al., *Perplexity: a measure of the difficulty of speech recognition tasks* (1977).

    Examples
    --------
    >>> import entrokern as ek
    >>> print(ek.perplexity([[0.0, 0.0, 0.0, 0.0]], [2]).round(6))
    4.0
    """
    library_of(x=x, target=target, class_weight=class_weight, sample_weight=sample_weight)
    _options.choice("on_empty", on_empty, _options.ON_EMPTY)
    array, _, call = cross_entropy_call(
        x, target, form, axis, class_weight, sample_weight, label_smoothing, ignore_index,
        temperature, softcap, 0.0, None, validate,
    )  # fmt: skip
    refuse_no_target(call)
    # In float64 to the end: the exponential would multiply the rounding of a float32 mean.
    mean = _arrays.output("out", None, (), (np.dtype(np.float64),), array)
    call.total = True
    job: Any = Job(call, (mean,), "mean", on_empty, deliver=partial(_exp, _arrays.row_dtype(array.dtype)))
    return job


def _exp(dtype: np.dtype[Any], outputs: Sequence[Array]) -> Array:
    with np.errstate(over="ignore"):
        value: Any = np.exp(outputs[0])
        return value.astype(dtype) if _device.is_device_array(value) else np.asarray(value, dtype)
