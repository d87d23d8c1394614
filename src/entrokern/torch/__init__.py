"""PyTorch's tensors in, tensors out: the public functions, differentiable, and losses of ``torch.nn`` on them.

Tensors are read where they lie, by the kernels of the CPU or, through CuPy, of CUDA on PyTorch's current stream. Where
an operand requires a gradient, the forward pass computes that beside the value, and the backward pass multiplies it by
what comes from above.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .. import _guests
from ..score import Score
from . import modules
from .arrays import OUTPUTS, array_over, arrays_of, on_stream_of, tensor_over
from .gradients import OPERANDS, differentiable, no_gradient
from .modules import *  # noqa: F403  (as many as PyTorch has)
from .ops import OPERATORS, traced

__all__ = modules.__all__

PLAIN = {Tensor, Parameter}
ASKING = {"return_grad", "return_hess", "grad_out", "hess_out"}

_positional: dict[str, list[str]] = {}


def run(function: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """What the public `function` gives for these arguments, some of them tensors: tensors on their device."""
    given = _named(function, args, options)
    tensors, required, on_host = [], [], True
    for name, value in given.items():
        if isinstance(value, Tensor):
            tensors.append(value)
            on_host = on_host and value.is_cpu
            if value.requires_grad:
                required.append(name)
    if forward_ad._current_level >= 0:
        _refuse_tangents(given)
    if _is_symbolic(tensors) and function.__name__ in OPERATORS:
        _refuse_tracked(tensors)
        return traced(function, args, options)
    sides = _sides(function.__name__, given, required) if torch.is_grad_enabled() else ()
    if on_host:
        return _run(function, given, len(args), sides)
    with on_stream_of(tensors):
        return _run(function, given, len(args), sides)


def unwrapped(value: Any) -> Any:
    """The array over a tensor's memory, without its history; what is no tensor as it is."""
    return array_over("an operand", value) if isinstance(value, Tensor) else value


def _named(function: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name."""
    names = _positional.get(function.__name__)
    if names is None:
        parameters = inspect.signature(function).parameters.values()
        names = _positional[function.__name__] = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    given = {**dict(zip(names, args, strict=False)), **options}
    if len(given) < len(args) + len(options):
        function.__wrapped__(*args, **options)  # type: ignore[attr-defined]  # says in Python's own words what is wrong
    return given


def _is_symbolic(tensors: list[Tensor]) -> bool:
    """Whether there is more to it than what the tensors hold: a subclass, a mode or a transform is to see the call."""
    return (
        not PLAIN.issuperset(map(type, tensors))
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def _refuse_tangents(given: Mapping[str, Any]) -> None:
    """Forward-mode differentiation would go on with the values alone."""
    for name, value in given.items():
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(f"{name} carries a tangent, and entrokern has no forward-mode derivatives")


def _refuse_tracked(tensors: list[Tensor]) -> None:
    """`torch.func.grad` and its kin do not look for what operators say of their gradients."""
    levels = torch._C._functorch
    for tensor in tensors:
        while levels.is_functorch_wrapped_tensor(tensor):
            if levels.is_gradtrackingtensor(tensor):
                raise NotImplementedError(
                    "entrokern has no gradients for torch.func (grad, vjp, jacrev, hessian); use torch.autograd.grad "
                    "or backward, or pass return_grad=True"
                )
            tensor = levels.get_unwrapped(tensor)


def _sides(function: str, given: Mapping[str, Any], required: list[str]) -> tuple[str, ...]:
    """The operands to differentiate by: those that require it, unless gradients are asked for as results."""
    pair = given.get("grad_out")
    if isinstance(pair, (tuple, list)):
        required += [f"grad_out[{i}]" for i, v in enumerate(pair) if isinstance(v, Tensor) and v.requires_grad]
    if not required:
        return ()
    for name in required:
        if name.partition("[")[0] in OUTPUTS:
            raise ValueError(f"{name} requires a gradient and would be written over; pass {name}.detach()")
    if function == "score" or any(given[name] not in (None, False) for name in ASKING.intersection(given)):
        return ()
    for name in required:
        if name not in OPERANDS.get(function, ()):
            raise ValueError(no_gradient(function, name))
    if given.get("out") is not None:
        raise ValueError(f"out is given beside {required[0]}, which requires a gradient; pass {required[0]}.detach()")
    return tuple(name for name in OPERANDS[function] if name in required)


def _run(function: Callable[..., Any], given: dict[str, Any], positional: int, sides: tuple[str, ...]) -> Any:
    if sides:
        return differentiable(function, given, sides)
    arrays = arrays_of(given)
    names = list(given)
    result = function(*(arrays[n] for n in names[:positional]), **{n: arrays[n] for n in names[positional:]})
    return _as_tensors(result, {} if OUTPUTS.isdisjoint(given) else _places(given, arrays))


def _memory(tensor: Tensor) -> Any:
    """The array over a tensor's memory; None where a gradient is to be known, or anybody else sees the call."""
    if (tensor.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0 or _is_symbolic([tensor]):
        return None
    try:
        return array_over("an operand", tensor) if tensor.is_cpu else None
    except TypeError:
        return None


def _as_tensors(result: Any, places: Mapping[int, Tensor]) -> Any:
    """The results as tensors: those that were given to be written themselves."""
    if isinstance(result, Score):
        return Score(**{name: _as_tensors(getattr(result, name), places) for name in Score.__slots__})
    if isinstance(result, tuple):
        return tuple(_as_tensors(value, places) for value in result)
    return places[id(result)] if id(result) in places else tensor_over(result)


def _places(given: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[int, Tensor]:
    """The tensors that were given to be written, by the arrays over them; PyTorch is told that they are other now."""
    places: dict[int, Tensor] = {}
    for name in OUTPUTS.intersection(given):
        pair = isinstance(given[name], (tuple, list))
        tensors, over = (given[name], arrays[name]) if pair else ((given[name],), (arrays[name],))
        places |= {id(array): tensor for array, tensor in zip(over, tensors, strict=True) if tensor is not None}
    for tensor in places.values():
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
    return places


_guests.is_traced, _guests.traced = torch.compiler.is_compiling, traced
for _type in PLAIN:
    _guests.array_over[_type], _guests.result_of[_type] = _memory, functools.partial(_as_tensors, places={})
