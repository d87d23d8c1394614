"""Information and entropy: document, normalise the call, return its `Job`, which `planned` runs.

The formulas are in `reference.py` (the definition) and `_formulas.py` (what the kernels compile).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _arrays, _options, _validate
from ._arrays import Array, ArrayLike
from ._call import Call, Map, compute, compute_maps
from ._dispatch import library_of
from ._options import Form, Reduction
from ._plans import planned


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
