"""Which operands a function is differentiated by, its value and gradients from one read of them, and the chain rule.

Of losses and logsumexp the kernels write the gradient beside the value, and all that is left to do is to multiply it
by what comes from above. Those of information, softmax and log-softmax are formulas of what is there anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import _arrays, _options
from .arrays import array_over, arrays_of, tensor_over

# By the functions' names, the operands that there are gradients by.
BY_KERNEL = {
    "entropy": ("p",),
    "cross_entropy": ("x",),
    "binary_cross_entropy": ("x",),
    "kl_divergence": ("p", "q"),
    "js_divergence": ("p", "q"),
    "logsumexp": ("x",),
    "linear_cross_entropy": ("hidden", "weight", "bias"),
}
BY_FORMULA = {"information": ("p",), "log_softmax": ("x",), "softmax": ("x",)}
OPERANDS = BY_KERNEL | BY_FORMULA

FORMULAS: dict[str, Callable[..., Tensor]] = {
    "information": lambda p, upstream, unit: -unit * upstream / p,
    "log_softmax": lambda y, upstream, axis: torch._log_softmax_backward_data(upstream, y, axis, y.dtype),
    "softmax": lambda y, upstream, axis: torch._softmax_backward_data(upstream, y, axis, y.dtype),
}

# Whether the backward pass that runs may be run again; PyTorch before 2.6 does not say.
graph_is_kept: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)

ONCE = (
    "a gradient that entrokern's kernels computed cannot be differentiated again (create_graph=True): they give no "
    "second derivatives; use torch's own loss where you need them"
)


def no_gradient(function: str, name: str) -> str:
    *others, last = OPERANDS.get(function, ("",))
    has = f"{', '.join(others)} and {last}" if others else last
    offered = f"has gradients by {has} alone" if has else "has no gradients"
    return f"{name} requires a gradient, and {function} {offered}; pass {name}.detach()"


def is_by_rows(function: str, reduction: str | None) -> bool:
    """Whether losses have gradients that one number per row does not multiply: by operands which the rows share."""
    return function == "linear_cross_entropy" and reduction == "none"


def value_and_gradients(
    function: Callable[..., Any], given: Mapping[str, Any], sides: Sequence[str], places: Mapping[str, Tensor]
) -> list[Tensor]:
    """The value and its gradients by the operands `sides`, which are written into `places` where it has them."""
    arrays = arrays_of(given)
    outputs = {side: array_over(side, place) for side, place in places.items()}
    if function.__name__ == "logsumexp" and sides:
        value, *gradients = _logsumexp_and_softmax(function, arrays, outputs.get("x"))
    elif sides:
        arrays["return_grad"] = _asking(function.__name__, sides)
        if outputs:
            of_layer = function.__name__ == "linear_cross_entropy"  # which takes a tuple of one too
            arrays["grad_out"] = tuple(outputs.values()) if of_layer or len(sides) == 2 else outputs[sides[0]]
        value, *gradients = function(**arrays)
    else:
        value, gradients = function(**arrays), []
    return [tensor_over(value), *([places[s] for s in sides] if places else map(tensor_over, gradients))]


def _asking(function: str, sides: Sequence[str]) -> Any:
    """`return_grad`, for the gradients by `sides`."""
    if function == "linear_cross_entropy":
        return tuple(sides)
    if len(BY_KERNEL[function]) == 1:
        return True
    return "both" if len(sides) == 2 else sides[0]


def _logsumexp_and_softmax(function: Any, arrays: Mapping[str, Any], out: Any) -> tuple[Any, Any]:
    """Logsumexp and its gradient, the softmax, from one read of the logits."""
    x, axis = _arrays.as_floating("x", arrays["x"]), arrays.get("axis", -1)
    job = function.__wrapped__(**arrays)
    softmax = _arrays.output("softmax", out, x.shape, _arrays.map_dtypes(x.dtype), x, alike=True)
    job.call.maps["softmax"] = _arrays.classes_last(softmax, axis % x.ndim)
    return job.run(), softmax


def empty_gradient(given: Mapping[str, Any], side: str) -> Tensor:
    """Where a gradient goes: of the operand's kind, or of two operands' broadcast shape and common dtype.

    That of float16 is float32: the gradient of a mean over many rows is too small for float16 before the loss scale
    has multiplied it.
    """
    like = given[side]
    operands = [given[name] for name in ("x", "p", "q") if name in given] or [like]  # a layer's have each its own
    shape, dtype = common_shape(operands), common_dtype(operands)
    if dtype is torch.float16:
        dtype = torch.float32
    return torch.empty_like(like, dtype=dtype) if like.shape == shape else like.new_empty(shape, dtype=dtype)


def common_shape(operands: Sequence[Tensor]) -> Any:
    return operands[0].shape if len(operands) == 1 else torch.broadcast_shapes(*(o.shape for o in operands))


def common_dtype(operands: Sequence[Tensor]) -> torch.dtype:
    """What the kernels compute with: integers as float64."""
    dtypes = [operand.dtype if operand.dtype.is_floating_point else torch.float64 for operand in operands]
    return functools.reduce(torch.promote_types, dtypes)


def along_classes(upstream: Tensor, gradient: Tensor, axis: int) -> Tensor:
    """What comes from above, one number per row or one for all, such that it broadcasts against the gradient."""
    return upstream.unsqueeze(axis) if 0 < upstream.dim() < gradient.dim() else upstream


def fitted(gradient: Tensor, like: tuple[torch.Size, torch.dtype]) -> Tensor:
    """A gradient in the shape and dtype of the operand that it is by: summed where that was broadcast."""
    shape, dtype = like
    if gradient.shape != shape:
        gradient = gradient.sum_to_size(shape)
    return gradient if gradient.dtype is dtype else gradient.to(dtype)


class FromKernel(Function):
    """A value whose gradients came with it.

    The gradients are outputs of this node too. Whoever differentiates them again arrives here, and is told.
    """

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], list[Tensor]], axis: int, *operands: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.axis, ctx.like = axis, [(operand.shape, operand.dtype) for operand in operands]
        value, *gradients = compute()
        ctx.save_for_backward(*gradients)
        return value, *gradients

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *of_gradients: Tensor | None) -> Any:
        if any(second is not None for second in of_gradients):
            raise NotImplementedError(ONCE)
        if upstream is None:
            return None, None, *of_gradients
        chain = _chained if torch.is_grad_enabled() else _chained_in_place
        chained = [chain(gradient, upstream, ctx.axis) for gradient in ctx.saved_tensors]
        return None, None, *map(fitted, chained, ctx.like)


def _chained(gradient: Tensor, upstream: Tensor, axis: int) -> Tensor:
    return gradient * along_classes(upstream, gradient, axis)


def _chained_in_place(gradient: Tensor, upstream: Tensor, axis: int) -> Tensor:
    """``gradient·upstream`` in the gradient's own memory, unless the graph is kept to be gone through again."""
    gradient = gradient.detach()
    if graph_is_kept():
        return torch.mul(gradient, along_classes(upstream, gradient, axis), out=torch.empty_like(gradient))
    if upstream.dim() == 0 and upstream.is_cpu and upstream.item() == 1:
        return gradient
    return gradient.mul_(along_classes(upstream, gradient, axis))


def gradients_of_rows(
    function: Callable[..., Any], given: Mapping[str, Any], sides: Sequence[str], upstream: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of losses with an upstream each: those of their sum, so weighted."""
    if torch.is_grad_enabled():
        raise NotImplementedError(ONCE)
    weight = given.get("sample_weight")
    if weight is not None:
        upstream = upstream * torch.as_tensor(weight, device=upstream.device)
    asking = {"reduction": "sum", "sample_weight": upstream, "return_grad": tuple(sides)}
    gradients: tuple[Tensor, ...] = function(**{**given, **asking})[1:]
    return gradients


class FromRows(Function):
    """Losses of rows by operands that the rows share: their gradients have to wait for what comes from above."""

    @staticmethod
    def forward(ctx: Any, function: Any, options: dict[str, Any], names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        ctx.function, ctx.options, ctx.names = function, options, names
        ctx.save_for_backward(*tensors)
        value: Tensor = tensor_over(function(**arrays_of(dict(zip(names, tensors, strict=True)) | options)))
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        sides = [name for name, needed in zip(ctx.names, ctx.needs_input_grad[3:], strict=True) if needed]
        given = dict(zip(ctx.names, ctx.saved_tensors, strict=True)) | ctx.options
        sides = [name for name in OPERANDS[ctx.function.__name__] if name in sides]
        found = dict(zip(sides, gradients_of_rows(ctx.function, given, sides, upstream), strict=True))
        return None, None, None, *map(found.get, ctx.names)


class FromFormula(Function):
    """A value whose gradient is a formula of it, or of the operand; differentiable as often as the formula is."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Tensor], name: str, option: Any, operand: Tensor) -> Tensor:
        value = compute()
        ctx.name, ctx.option = name, option
        ctx.save_for_backward(operand if name == "information" else value)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, None, None, FORMULAS[ctx.name](*ctx.saved_tensors, upstream, ctx.option)


def differentiable(function: Callable[..., Any], given: Mapping[str, Any], sides: Sequence[str]) -> Tensor:
    """The function's value, to be differentiated by the operands `sides`."""
    operands = [given[side] for side in sides]
    name = function.__name__
    if name in BY_FORMULA:
        option = _options.unit_of_base(given.get("base")) if name == "information" else given.get("axis", -1)
        value: Tensor = FromFormula.apply(lambda: tensor_over(function(**arrays_of(given))), name, option, *operands)
        return value
    if is_by_rows(name, given.get("reduction")):
        tensors = {key: v for key, v in given.items() if isinstance(v, Tensor)}
        options = {key: v for key, v in given.items() if key not in tensors}
        losses: Tensor = FromRows.apply(function, options, tuple(tensors), *tensors.values())
        return losses
    half = any(operand.dtype is torch.float16 for operand in operands)
    places = {side: empty_gradient(given, side) for side in sides} if half else {}
    value, *_ = FromKernel.apply(
        lambda: value_and_gradients(function, given, sides, places), given.get("axis", -1), *operands
    )
    return value
