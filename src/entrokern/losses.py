"""Losses of a prediction and its target: document, normalise the call, return its `Job`, which `planned` runs.

The formulas are in `reference.py` (the definition) and `_formulas.py` (what the kernels compile).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import _arrays, _device, _options, _validate
from ._arrays import Array, ArrayLike
from ._call import Call, Job, Map, check_targets, compute
from ._dispatch import library_of
from ._options import Form, OnEmpty, Reduction
from ._plans import planned


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
    return compute(call, array.dtype, axis, reduction, on_empty, out, outputs, inputs, made=weights_made(call))


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


def weights_made(call: Call) -> dict[str, Callable[[Any], Array | None]]:
    """What makes the class weights of a call: on a device they are those given."""
    if call.class_weight is None or _device.is_device_array(call.class_weight):
        return {}
    return {"class_weight": partial(_arrays.class_weights, k=call.k)}


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
    made = {"pos_weight": partial(_spread, name="pos_weight", shape=array.shape, axis=class_axis)}
    if elementwise:
        made["sample_weight"] = partial(_spread, name="sample_weight", shape=array.shape, axis=class_axis)
        weights = made["sample_weight"](sample_weight)
    else:
        weights = _arrays.sample_weights(sample_weight, view.shape[:-1])
    call = Call(
        "binary_cross_entropy",
        view,
        form=form,
        y=targets,
        pos_weight=made["pos_weight"](pos_weight),
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
    return compute(call, array.dtype, class_axis, reduction, on_empty, out, outputs, inputs, shape, made)


def _spread(value: Any, name: str, shape: tuple[int, ...], axis: int) -> Array | None:
    """Weights of elements, broadcast to x's `shape`, its class axis last."""
    weights = _arrays.broadcast_against(name, value, shape)
    return None if weights is None else _arrays.classes_last(np.atleast_1d(weights), axis)


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
    deliver = partial(_exp, _arrays.row_dtype(array.dtype))
    job: Any = Job(call, (mean,), "mean", on_empty, deliver=deliver, made=weights_made(call))
    return job


def _exp(dtype: np.dtype[Any], outputs: Sequence[Array]) -> Array:
    with np.errstate(over="ignore"):
        value: Any = np.exp(outputs[0])
        return value.astype(dtype) if _device.is_device_array(value) else np.asarray(value, dtype)
