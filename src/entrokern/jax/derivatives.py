"""Derivatives of the public functions, for `jax.grad` and `jax.jvp`: a loss and its gradient come from one read.

Functions whose derivative is written in their own results (softmax and its kin) are differentiable any number of times,
losses once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

import entrokern

from .. import _options
from .calls import HostCall
from .host import evaluate

# The operands that a loss has a derivative by.
LOSSES = {
    "entropy": ("p",),
    "cross_entropy": ("x",),
    "binary_cross_entropy": ("x",),
    "kl_divergence": ("p", "q"),
    "js_divergence": ("p", "q"),
    "linear_cross_entropy": ("hidden", "weight", "bias"),
}


def _information(call: HostCall, p: Any, _: Any, dp: Any) -> Any:
    return -_options.unit_of_base(call["base"]) * dp / p


def _logsumexp(call: HostCall, x: Any, _: Any, dx: Any) -> Any:
    return (entrokern.softmax(x, axis=call["axis"]) * dx).sum(call["axis"])


def _log_softmax(call: HostCall, _: Any, y: Any, dx: Any) -> Any:
    return dx - (jnp.exp(y) * dx).sum(call["axis"], keepdims=True)


def _softmax(call: HostCall, _: Any, y: Any, dx: Any) -> Any:
    return y * (dx - (y * dx).sum(call["axis"], keepdims=True))


# The change of a result with that of its operand, by both and the latter.
MAPS: dict[str, Callable[[HostCall, Any, Any, Any], Any]] = {
    "information": _information,
    "logsumexp": _logsumexp,
    "log_softmax": _log_softmax,
    "softmax": _softmax,
}


def is_differentiable(call: HostCall) -> bool:
    return call.function in MAPS or (call.function in LOSSES and not call["return_grad"] and not call["return_hess"])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def differentiable(call: HostCall, *operands: Any) -> Any:
    """What `call` gives, its derivative known to JAX."""
    return evaluate(call, operands)


def _derivative(call: HostCall, operands: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    moves = {
        operand.name: tangent
        for operand, tangent in zip(call.operands, tangents, strict=True)
        if not isinstance(tangent, SymbolicZero) and jnp.issubdtype(operand.dtype, jnp.inexact)
    }
    if call.function in MAPS:
        result = differentiable(call, *operands)
        wide = jnp.promote_types(result.dtype, jnp.float32)
        (tangent,) = (move.astype(wide) for move in moves.values())
        change = MAPS[call.function](call, operands[0].astype(wide), result.astype(wide), tangent)
        return result, change.astype(result.dtype)
    _refuse_others(call, moves)
    loss, *gradients = evaluate(call.asking(return_grad=_asking(call.function, moves)), operands)
    changes = (
        g.astype(loss.dtype) * move.astype(loss.dtype) for g, move in zip(gradients, moves.values(), strict=True)
    )
    if call["reduction"] != "none":
        return loss, sum(change.sum() for change in changes)
    axis = -1 if call.function == "linear_cross_entropy" else call["axis"]
    return loss, sum(change if axis is None else change.sum(axis) for change in changes)


differentiable.defjvp(_derivative, symbolic_zeros=True)


def _asking(function: str, moves: dict[str, Any]) -> Any:
    """`return_grad`, for the gradients by what moves."""
    if function == "linear_cross_entropy":
        return tuple(moves)
    return True if len(LOSSES[function]) == 1 else "both" if len(moves) == 2 else next(iter(moves))


def _refuse_others(call: HostCall, moves: dict[str, Any]) -> None:
    """What has no derivative, and losses of rows by what the rows share: an array per row, as large as that."""
    if call.function == "linear_cross_entropy" and call["reduction"] == "none" and moves.keys() - {"hidden"}:
        shared = " and ".join(name for name in moves if name != "hidden")
        raise NotImplementedError(
            f"the losses of rows, reduction='none', have a derivative by hidden alone, not by {shared}; differentiate "
            "their sum or mean, and give each row's factor as sample_weight"
        )
    for name in moves:
        if name not in LOSSES[call.function]:
            raise NotImplementedError(
                f"{call.function} has no derivative by {name}; put jax.lax.stop_gradient around it"
                + (", or multiply the losses of reduction='none' by it" if name == "sample_weight" else "")
            )
