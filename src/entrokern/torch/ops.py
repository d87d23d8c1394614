"""The functions as PyTorch's custom operators ``torch.ops.entrokern.NAME``: what a traced or compiled program calls.

To go through an operator takes longer than a small call does, and so eager calls go without (`gradients.py`); both
compute the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _options, divergences, entropies, linear, losses, primitives
from .arrays import arrays_of
from .gradients import (
    BY_FORMULA,
    FORMULAS,
    ONCE,
    OPERANDS,
    along_classes,
    common_dtype,
    common_shape,
    empty_gradient,
    fitted,
    gradients_of_rows,
    is_by_rows,
    no_gradient,
    value_and_gradients,
)

TYPES = {
    "x": "Tensor", "p": "Tensor", "q": "Tensor", "hidden": "Tensor", "bias": "Tensor?", "target": "Tensor",
    "class_weight": "Tensor?", "sample_weight": "Tensor?", "pos_weight": "Tensor?",
    "form": "str", "p_form": "str", "q_form": "str", "axis": "int?", "label_smoothing": "float",
    "ignore_index": "int?", "temperature": "float", "softcap": "float?", "z_loss": "float", "base": "float?",
    "weight": "float", "reduction": "str", "on_empty": "str", "validate": "bool",
}  # fmt: skip


class Operator:
    """A function as an operator: of its operands and options in the order of its signature.

    `kernel` computes, `fake` says of what shape and dtype the results are where no numbers flow, `keep` holds on to
    what `chain_rule` needs.
    """

    schema: Any
    kernel: Any
    fake: Any
    keep: Any
    chain_rule: Any

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.name = function, function.__name__
        self.operands = OPERANDS[self.name]
        parameters = inspect.signature(function).parameters.values()
        self.positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.defaults = {p.name: None if p.default is p.empty else p.default for p in parameters if p.name in TYPES}
        types = TYPES | dict.fromkeys(self.positional, "Tensor")  # `weight` is a layer's, or an option
        schema = self.schema(", ".join(f"{types[name]} {name}" for name in self.defaults))
        self.call = torch.library.custom_op(f"entrokern::{self.name}", self.kernel, mutates_args=(), schema=schema)
        self.call.register_fake(self.fake)
        self.call.register_autograd(self.chain_rule, setup_context=self.keep)

    def named(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.defaults, values, strict=True))


class Loss(Operator):
    """Also takes the names of the operands to differentiate by; after the value come the gradients, others empty."""

    def schema(self, arguments: str) -> str:
        return f"({arguments}, str[] sides) -> ({', '.join(['Tensor'] * (1 + len(self.operands)))})"

    def kernel(self, *values: Any) -> tuple[Tensor, ...]:
        given, sides = self.named(values[:-1]), values[-1]
        places = {side: empty_gradient(given, side) for side in sides}
        value, *_ = value_and_gradients(self.function, given, sides, places)
        return self._results(value, places)

    def fake(self, *values: Any) -> tuple[Tensor, ...]:
        given, sides = self.named(values[:-1]), values[-1]
        shape, dtype = self.rows_of(given)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        value = values[0].new_empty(shape if given.get("reduction", "none") == "none" else (), dtype=wide)
        return self._results(value, {side: empty_gradient(given, side) for side in sides})

    def rows_of(self, given: Mapping[str, Any]) -> tuple[Any, torch.dtype]:
        """The batch shape, and the dtype that the operands have in common."""
        operands = [given[name] for name in self.operands]
        shape, axis = common_shape(operands), given["axis"]
        if axis is not None:
            shape = [d for a, d in enumerate(shape) if a != axis % len(shape)]
        return shape, common_dtype(operands)

    def _results(self, value: Tensor, gradients: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return value, *(gradients[side] if side in gradients else value.new_empty(0) for side in self.operands)

    def keep(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        given = self.named(inputs[:-1])
        ctx.axis = given.get("axis", -1)
        ctx.like = {side: (given[side].shape, given[side].dtype) for side in inputs[-1]}
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    def chain_rule(self, ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(ONCE)
        found: dict[str, Any] = dict.fromkeys(self.defaults)
        for side, gradient in zip(self.operands, ctx.saved_tensors, strict=True):
            if upstream is not None and side in ctx.like:
                found[side] = fitted(gradient * along_classes(upstream, gradient, ctx.axis), ctx.like[side])
        return *found.values(), None


class LayerLoss(Loss):
    """Of a linear layer, whose operands the rows share: gradients of rows are computed in the backward pass."""

    def rows_of(self, given: Mapping[str, Any]) -> tuple[Any, torch.dtype]:
        return given["hidden"].shape[:-1], common_dtype([given["hidden"], given["weight"]])

    def keep(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        given = self.named(inputs[:-1])
        ctx.by_rows = is_by_rows(self.name, given["reduction"])
        if not ctx.by_rows:
            super().keep(ctx, inputs, output)
            return
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
        ctx.options = {name: value for name, value in given.items() if name not in ctx.tensors}
        ctx.save_for_backward(*(given[name] for name in ctx.tensors))

    def chain_rule(self, ctx: Any, upstream: Tensor | None, *others: None) -> tuple[Any, ...]:
        if not ctx.by_rows:
            return super().chain_rule(ctx, upstream, *others)
        found: dict[str, Any] = dict.fromkeys(self.defaults)
        sides = [n for n, needed in zip(self.defaults, ctx.needs_input_grad, strict=False) if needed]
        sides = [n for n in self.operands if n in sides]
        if upstream is not None:
            given = dict(zip(ctx.tensors, ctx.saved_tensors, strict=True)) | ctx.options
            found |= zip(sides, gradients_of_rows(self.function, given, sides, upstream), strict=True)
        return *found.values(), None


class Map(Operator):
    """Of one operand, and of its shape."""

    def schema(self, arguments: str) -> str:
        return f"({arguments}) -> Tensor"

    def kernel(self, *values: Any) -> Tensor:
        out = self.fake(*values)
        self.function(**arrays_of(self.named(values) | {"out": out}))
        return out

    def fake(self, *values: Any) -> Tensor:
        return torch.empty_like(values[0], dtype=common_dtype(values[:1]))

    def keep(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        given, of_operand = self.named(inputs), self.name == "information"
        ctx.option = _options.unit_of_base(given["base"]) if of_operand else given["axis"]
        ctx.save_for_backward(inputs[0] if of_operand else output)

    def chain_rule(self, ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        found = FORMULAS[self.name](*ctx.saved_tensors, upstream, ctx.option)
        return found, *([None] * (len(self.defaults) - 1))


def _operator(name: str) -> Operator:
    if name == "linear_cross_entropy":
        return LayerLoss(linear.linear_cross_entropy)
    room = next(module for module in (primitives, entropies, divergences, losses) if hasattr(module, name))
    function = getattr(room, name)
    return Map(function) if name in BY_FORMULA else Loss(function)


OPERATORS = {name: _operator(name) for name in OPERANDS}


def traced(function: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """A call in a program that is traced: of the function's operator, written so that PyTorch's compiler follows it."""
    name = function.__name__
    if name not in OPERATORS or not any(isinstance(value, Tensor) for value in (*args, *options.values())):
        return _left_out(function, args, options)
    operator = OPERATORS[name]
    given = {**dict(zip(operator.positional, args, strict=False)), **options}
    if len(given) < len(args) + len(options):
        raise TypeError(f"{name} takes {' and '.join(operator.positional)} by position, each once, all else by name")
    asked = given.pop("return_grad", False)
    required = []
    for key, value in given.items():
        if key not in operator.defaults:
            raise TypeError(f"{key} is not offered where {name} is traced or compiled; leave it out")
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            if key not in operator.operands:
                raise ValueError(no_gradient(name, key))
            required.append(key)
    values = [given.get(key, default) for key, default in operator.defaults.items()]
    if name in BY_FORMULA:
        return operator.call(*values)
    there = [side for side in operator.operands if given.get(side) is not None]
    if asked:
        named = there if asked in (True, "both") else [asked] if isinstance(asked, str) else list(asked)
        if not set(named) <= set(there):
            raise ValueError(f"return_grad={asked!r} is not known; choose of {', '.join(there)}")
        sides = [side for side in there if side in named]
    else:
        sides = [] if is_by_rows(name, given.get("reduction")) else [side for side in there if side in required]
    value, *gradients = operator.call(*values, sides)
    if not asked:
        return value
    gradients = [gradient for side, gradient in zip(operator.operands, gradients, strict=True) if side in sides]
    return value.detach(), *gradients


@torch._disable_dynamo  # as torch.compiler.disable, which would load the compiler at once
def _left_out(function: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """A call at which the compiler breaks its program in two."""
    return function(*args, **options)
