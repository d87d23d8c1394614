"""JAX arrays in, JAX arrays out: the public functions, also under `jax.jit`, `jax.grad`, `jax.jvp` and `jax.vmap`.

Arrays that have values are computed at once, where they lie, as NumPy's are. Of traced ones the call becomes a custom
call of the compiled program (`ffi.py`), which runs the public function on the program's own memory (`host.py`); what
that raises, for a bad label too, is the program's error. NumPy arrays and lists may stand beside JAX arrays.

Losses are differentiable by their predictions (divergences by both operands, `linear_cross_entropy` by hidden, weight
and bias), once; `derivatives.py` says how.

>>> import entrokern as ek, jax, jax.numpy as jnp
>>> logits, labels = jnp.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), jnp.array([0, 2])
>>> loss, gradient = jax.jit(jax.value_and_grad(ek.cross_entropy))(logits, labels)
>>> print(loss.round(4), gradient.shape, jax.vmap(ek.cross_entropy)(logits, labels).round(4))
0.8606 (2, 3) [0.1698 1.5514]

Without ``jax_enable_x64`` results are what JAX makes of them: float32 and int32 where they would be float64 and int64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .calls import HostCall, refuse_outputs
from .derivatives import differentiable, is_differentiable
from .host import at_once, evaluate, on_host, where

LARGE = 1 << 20  # bytes, from where results are written where JAX takes them without a copy


def run(function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What the public `function` gives for these arguments, some of them arrays of JAX."""
    refuse_outputs(function.__name__, options)
    values = (*args, *options.values())
    arrays = [value for value in values if isinstance(value, jax.Array)]
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        call, operands = HostCall.of(function, args, options, traced=True)
        return differentiable(call, *operands) if is_differentiable(call) else evaluate(call, operands)
    if sum(array.nbytes for array in arrays) >= LARGE:
        return at_once(*HostCall.of(function, args, options, traced=False))
    found = function(
        *(on_host(f"argument {i}", value) for i, value in enumerate(args)),
        **{name: on_host(name, value) for name, value in options.items()},
    )
    device = where(arrays)
    return jax.tree.map(jnp.asarray if device is None else lambda array: jax.device_put(array, device), found)


def unwrapped(value: Any) -> Any:
    """NumPy's array over the memory of an array of JAX on the CPU; anything else as it is."""
    return on_host("an argument", value)
