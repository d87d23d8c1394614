"""The primitives under every loss from logits: logsumexp, log-softmax and softmax."""

from __future__ import annotations

from typing import Any

from . import _arrays, _options
from ._arrays import Array
from ._call import Call, Job, compute_maps
from ._dispatch import library_of
from ._plans import planned


@planned
def logsumexp(x: Any, *, axis: int = -1, out: Array | None = None, validate: bool = False) -> Array:
    """``log Σ_c e^(x_c)`` of each row.

    Parameters
    ----------
    x : array_like, shape (..., k)
        Logits.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        Where to write: batch shape; float32 for 16- and 32-bit `x`, else float64.
    validate : bool, default False
        Accepted as everywhere; any real logits are valid.

    Returns
    -------
    ndarray
        Batch shape; float32 for 16- and 32-bit `x`, else float64.

    Raises
    ------
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    ``m + log1p(Σ_{j≠max} e^(x_j - m))`` with the largest logit ``m``: never overflows.

    Examples
    --------
    >>> import entrokern as ek
    >>> print(ek.logsumexp([1000.0, 1000.0]).round(6))
    1000.693147
    """
    array, axis = _operand(x, axis, out, validate)
    call = Call("softmax", _arrays.classes_last(array, axis))
    result = _arrays.output("out", out, call.row_shape, (_arrays.row_dtype(array.dtype),), array)
    if out is not None:
        _arrays.refuse_overlap({"out": result}, {"x": array}, {})
    call.rows["lse"] = result
    job: Any = Job(call, (result,), given=() if out is None else (result,))
    return job


@planned
def log_softmax(x: Any, *, axis: int = -1, out: Array | None = None, validate: bool = False) -> Array:
    """``x - logsumexp(x)`` along the class axis.

    Parameters
    ----------
    x : array_like, shape (..., k)
        Logits.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        Where to write: shape and dtype of `x` (float32 also for 16-bit `x`); may be exactly `x`.
    validate : bool, default False
        Accepted as everywhere; any real logits are valid.

    Returns
    -------
    ndarray
        Shape and dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    ``(x - m) - log1p(S)``: a log-probability near 0 keeps its digits.

    Examples
    --------
    >>> import entrokern as ek
    >>> ek.log_softmax([0.0, 40.0])
    array([-4.00000000e+01, -4.24835426e-18])
    """
    array, axis = _operand(x, axis, out, validate)
    job: Any = compute_maps(Call("softmax", _arrays.classes_last(array, axis)), array, axis, log_softmax=out)
    return job


@planned
def softmax(x: Any, *, axis: int = -1, out: Array | None = None, validate: bool = False) -> Array:
    """``e^(x_c) / Σ_j e^(x_j)`` along the class axis.

    Parameters
    ----------
    x : array_like, shape (..., k)
        Logits.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        Where to write: shape and dtype of `x` (float32 also for 16-bit `x`); may be exactly `x`.
    validate : bool, default False
        Accepted as everywhere; any real logits are valid.

    Returns
    -------
    ndarray
        Shape and dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    As the quotient ``e^(x - m) / Z``, which is more accurate than ``e^(x - lse)``: P. Blanchard, D. J.
    Higham and N. J. Higham, *Accurately computing the log-sum-exp and softmax functions* (2021).

    Examples
    --------
    >>> import entrokern as ek
    >>> ek.softmax([0.0, 0.0])
    array([0.5, 0.5])
    """
    array, axis = _operand(x, axis, out, validate)
    job: Any = compute_maps(Call("softmax", _arrays.classes_last(array, axis)), array, axis, softmax=out)
    return job


def _operand(x: Any, axis: Any, out: Any, validate: Any) -> tuple[Array, int]:
    library_of(x=x, out=out)
    _options.flag("validate", validate)
    array = _arrays.as_floating("x", x)
    return array, _arrays.class_axis(array, axis)
