"""Cross-entropy of a linear layer, whose logits are never stored. `_linear.py` has the way there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np

from . import _arrays, _device, _guests, _options, _validate
from ._arrays import Array, ArrayLike
from ._call import Call, check_targets, one_or_all, raise_empty
from ._dispatch import library_of
from ._linear import Layer
from ._options import OnEmpty, Reduction
from .losses import cross_entropy_call

P = ParamSpec("P")
R = TypeVar("R")

OPERANDS = ("hidden", "weight", "bias")


@dataclass(slots=True)
class LinearJob:
    """A checked call and where its results go, as `_call.Job` is."""

    layer: Layer
    outputs: Sequence[Array]  # the loss first
    gradients: tuple[str, ...]  # by which operands, in the order of the outputs
    reduction: str
    on_empty: str
    validate: bool

    @property
    def call(self) -> Call:
        return self.layer.call

    @property
    def reduced(self) -> bool:
        return self.reduction != "none"

    def run(self) -> Any:
        self.check()
        with np.errstate(all="ignore"):
            self.compute()
        return self.deliver(self.outputs)

    def check(self) -> None:
        """Look at the target's values."""
        if self.validate or not self.layer.on_device:
            check_targets(self.call)
        if self.validate and self.call.y is not None:
            _validate.distribution("target", self.call.y, "probs")

    def compute(self) -> None:
        layer, loss = self.layer, self.outputs[0]
        if self.reduction == "none":
            layer.run(loss)
            return
        if self.reduction == "sum":
            loss[...] = layer.run(None)
            return
        denominator = layer.denominator()
        empty = denominator == 0
        if self.on_empty == "raise" and bool(empty):
            raise_empty()
        layer.scale = np.where(empty, 0.0, 1.0 / denominator)
        loss[...] = np.where(empty, 0.0 if self.on_empty == "zero" else np.nan, layer.run(None))

    @staticmethod
    def deliver(outputs: Sequence[Array]) -> Any:
        return one_or_all(outputs)


def served(function: Callable[P, R]) -> Callable[P, R]:
    """Run the job that `function` makes, on a device on that of the first operand; calls on arrays of other libraries
    are left to the rooms of these."""

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if _guests.is_traced is not None and _guests.is_traced():
            put: R = _guests.traced(call, args, options)
            return put
        if (room := _guests.guest_of((*args, *options.values()))) is not None:
            result: R = _guests.room(room).run(call, args, options)
            return result
        first = args[0] if args else options.get("hidden")
        with _device.device_of(first, "hidden") if _device.is_device_array(first) else nullcontext():
            job: Any = function(*args, **options)
            found: R = job.run()
            return found

    return call


@served
def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
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
    return_grad: bool | str | Sequence[str] = False,
    out: Array | None = None,
    grad_out: Sequence[Array | None] | None = None,
    validate: bool = False,
) -> Any:
    """Cross-entropy of the logits ``hidden @ weight.T + bias``, which are never stored.

    Parameters
    ----------
    hidden : array_like, shape (..., d)
        What the layer is applied to, one row each.
    weight : array_like, shape (k, d)
        The layer's weight, one row per class.
    target : array_like
        Integer labels of the batch shape, or distributions of shape (..., k). The shape decides.
    bias : array_like, shape (k,), optional
        Added to the logits.
    class_weight, sample_weight, label_smoothing, ignore_index, temperature, softcap, z_loss, base, reduction, on_empty
        As in `cross_entropy`.
    return_grad : bool, str or sequence of str, default False
        Also return the gradients of the value returned, by all operands or by those named: any of ``"hidden"``,
        ``"weight"``, ``"bias"``.
    out : ndarray, optional
        Where to write the loss.
    grad_out : sequence of ndarray, optional
        Where to write the gradients: an array (or ``None`` for a new one) for each that is returned, in their order;
        of all operands unless `return_grad` names some. Each of its operand's shape and dtype, or float32 for a
        16-bit one. None may overlap an operand.
    validate : bool, default False
        Raise ``ValueError`` for target distributions with values below 0 or sums other than 1.

    Returns
    -------
    loss : ndarray
        Batch shape, or 0-d; float32 for 16- and 32-bit ``result_type(hidden, weight)``, else float64.
    grad_hidden, grad_weight, grad_bias : ndarray, optional
        Each of its operand's shape and dtype, those asked for.

    Raises
    ------
    IndexError
        A label outside ``0 … k-1`` that is not `ignore_index`; nothing has been written. (On a GPU such a row is NaN.)
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    Tiles of logits come from BLAS (on a GPU, from CuPy) and become their own gradient in place, from which two more
    products make the operands'. Beside the outputs this takes less than 64 MB, whatever n and k. Rows of more than
    about 300 000 classes (90 000 without gradients) are cut into slices, whose logits gradients need a second time. So
    do gradients by 16-bit weights of more than 6 million elements, unless `grad_out` gives a float32 array for them:
    they are rounded once, after a sum in float32 over all rows.

    The logits are those of a matrix product in the type of the loss: each may be off by the rounding of ``d``
    products and sums, ``eps·Σ|hidden·weight|`` and a small factor. From there on the loss is as accurate as
    `cross_entropy`. The same call gives the same bits with the same BLAS and number of its threads; a row's bits may
    depend on how many others there are. BLAS has threads of its own, which `set_num_threads` does not govern.

    E. Wijmans et al., *Cut Your Losses in Large-Vocabulary Language Models* (2024), do so in one GPU kernel.

    Examples
    --------
    >>> import numpy as np
    >>> import entrokern as ek
    >>> hidden, weight = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> loss, grad_hidden, grad_weight = ek.linear_cross_entropy(hidden, weight, [0, 2], return_grad=True)
    >>> print(loss.round(6))
    0.810309
    >>> print(bool(np.isclose(loss, ek.cross_entropy(hidden @ weight.T, [0, 2]))))
    True
    """
    names = gradients_wanted(return_grad, grad_out, bias is not None)
    bias, target, class_weight, sample_weight = (
        _brought(name, value, weight)
        for name, value in (
            ("bias", bias), ("target", target), ("class_weight", class_weight), ("sample_weight", sample_weight)
        )
    )  # fmt: skip
    given = dict(zip(names, grad_out or (None,) * len(names), strict=True))
    operands: dict[str, Any] = {"hidden": hidden, "weight": weight, "bias": bias}
    arguments = {f"grad_out[{i}]": given[name] for i, name in enumerate(names)}
    library_of(
        hidden=hidden, weight=weight, target=target, bias=bias, class_weight=class_weight,
        sample_weight=sample_weight, out=out, **arguments,
    )  # fmt: skip
    h, w, b = _operands(hidden, weight, bias)
    batch, k = h.shape[:-1], w.shape[0]
    dtype = _arrays.row_dtype(_arrays.common_dtype(hidden=h, weight=w))
    t = _target(target, batch, k)
    # What `cross_entropy` says of its options, said of logits that are not there.
    stand_in = np.broadcast_to(_arrays.empty((1,) * (len(batch) + 1), dtype, w), (*batch, k))
    call = cross_entropy_call(
        stand_in, t, "logits", -1, class_weight, sample_weight, label_smoothing, ignore_index, temperature, softcap,
        z_loss, base, False,
    )[2]  # fmt: skip
    _options.choice("reduction", reduction, _options.REDUCTIONS)
    _options.choice("on_empty", on_empty, _options.ON_EMPTY)
    loss = _arrays.output("out", out, batch if reduction == "none" else (), (dtype,), w)
    like: dict[str, Any] = {"hidden": h, "weight": w, "bias": b}
    gradients = {
        name: _arrays.output(
            argument, given[name], like[name].shape, _arrays.map_dtypes(like[name].dtype), like[name], alike=True
        )
        for name, argument in zip(names, arguments, strict=True)
    }
    outputs = {"out": loss} | dict(zip(arguments, gradients.values(), strict=True))
    inputs = operands | like | {"target": t, "class_weight": class_weight, "sample_weight": sample_weight}
    inputs = {name: array for name, array in inputs.items() if _is_array(array)}
    _arrays.refuse_overlap({n: o for n, o in outputs.items() if n != "out" or out is not None}, inputs, {})
    layer = Layer(call, h, w, b, gradients)
    return LinearJob(
        layer, (loss, *gradients.values()), names, reduction, on_empty, _options.flag("validate", validate)
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or _device.is_device_array(value)


def gradients_wanted(return_grad: Any, grad_out: Any, with_bias: bool) -> tuple[str, ...]:
    """Which gradients are returned, in order."""
    there = OPERANDS if with_bias else OPERANDS[:2]
    if isinstance(return_grad, str):
        return_grad = (return_grad,)
    if isinstance(return_grad, (tuple, list)):
        for name in return_grad:
            if name not in there:
                why = "there is no bias" if name == "bias" else f"choose of {', '.join(map(repr, there))}"
                raise ValueError(f"return_grad names {name!r}: {why}")
        names = tuple(name for name in there if name in return_grad)
    else:
        names = there if _options.flag("return_grad", return_grad) or grad_out is not None else ()
    if grad_out is None:
        return names
    if not isinstance(grad_out, (tuple, list)) or len(grad_out) != len(names):
        came = f"{len(grad_out)} of them" if isinstance(grad_out, (tuple, list)) else f"a {type(grad_out).__name__}"
        raise ValueError(
            f"grad_out is {came}; pass a tuple of {len(names)} arrays, for the gradients by {', '.join(names)}"
        )
    return names


def _brought(name: str, value: Any, weight: Any) -> Any:
    """`value` on the device of `weight`, if that lies on one and `value` is what may be anywhere: a list, a number."""
    if not _device.is_device_array(weight) or not isinstance(value, (list, tuple, int)):
        return value
    host = _arrays.as_real(name, value)
    array: Any = _device.empty(host.shape, host.dtype, _device.asarray("weight", weight))
    array.set(host)
    return array


def _operands(hidden: Any, weight: Any, bias: Any) -> tuple[Array, Array, Array | None]:
    h, w = _arrays.as_floating("hidden", hidden), _arrays.as_floating("weight", weight)
    b = None if bias is None else _arrays.as_floating("bias", bias)
    if h.ndim == 0:
        raise ValueError("hidden is 0-dimensional; pass at least one row, shape (d,)")
    if w.ndim != 2 or w.shape[0] == 0:
        raise ValueError(f"weight has shape {w.shape}; expected (k, d): one row for each of at least one class")
    if w.shape[1] != h.shape[-1]:
        hint = "; pass weight.T" if w.shape[0] == h.shape[-1] else ""
        raise ValueError(
            f"weight of shape {w.shape} does not fit hidden of shape {h.shape}: expected (k, {h.shape[-1]}){hint}"
        )
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"bias has shape {b.shape}; expected one number per class: {w.shape[:1]}")
    return h, w, b


def _target(target: Any, batch: tuple[int, ...], k: int) -> Array:
    if target is None:
        raise TypeError(f"target is None; pass integer labels of shape {batch} or distributions of shape {(*batch, k)}")
    t = _arrays.as_real("target", target, bools=True)
    if t.shape not in (batch, (*batch, k)):
        raise ValueError(
            f"target of shape {t.shape} does not fit logits of shape {(*batch, k)}: expected integer labels of shape "
            f"{batch} or distributions of the logits' shape"
        )
    return t
