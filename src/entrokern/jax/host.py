"""Running a call on the host: at once on arrays that are there, or within a compiled program.

Both ways the public function writes into memory that JAX then owns. What XLA calls (`_run`) computes nothing with JAX:
that could wait for the very computation that waits for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from .._arrays import Array
from . import ffi
from .calls import OF_CLASSES, HostCall

BROADCAST = ("p", "q", "log_p", "log_q", "pos_weight")  # what may have fewer axes than the call

TARGET = "entrokern"
ALIGNED = 64  # bytes: what lies so, JAX takes without a copy

_read = functools.lru_cache(HostCall.read)


def evaluate(call: HostCall, operands: Sequence[Any]) -> Any:
    """What `call` gives, as arrays of JAX."""
    if any(isinstance(array, jax.core.Tracer) for array in operands):
        return jax.tree.unflatten(call.tree, _staged(call, *operands))
    return at_once(call, operands)


def at_once(call: HostCall, operands: Sequence[Any]) -> Any:
    arrays = [on_host(operand.name, array) for operand, array in zip(call.operands, operands, strict=True)]
    results = [_aligned(result.shape, jax.dtypes.canonicalize_dtype(result.dtype)) for result in call.results]
    fill(call, arrays, results)
    return jax.tree.unflatten(call.tree, [jax.device_put(array, where(operands)) for array in results])


def on_host(name: str, value: Any) -> Any:
    """NumPy's array over an array of JAX; anything else as it is."""
    if not isinstance(value, jax.Array):
        return value
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is traced: it has no values yet, and this takes arrays that have; call it outside of jax.jit, "
            "jax.grad and jax.vmap, or use a function that takes traced arrays (cross_entropy, score and their kin)"
        )
    refuse_accelerators({device.platform for device in value.devices()})
    return np.asarray(value)


def where(values: Iterable[Any]) -> Any:
    """The device that results belong to: that of an operand which somebody put there, else JAX's choice."""
    for value in values:
        if isinstance(value, jax.Array) and value.committed and len(value.devices()) == 1:
            return value.device
    return None


def refuse_accelerators(platforms: Iterable[str]) -> None:
    for platform in platforms:
        if platform != "cpu":
            raise NotImplementedError(
                f"JAX arrays are taken on the CPU, and these are on {platform.upper()}; bring them there with "
                "jax.device_put(x, jax.devices('cpu')[0]), or to CuPy with cupy.from_dlpack(x)"
            )


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _staged(call: HostCall, *operands: Any) -> list[Any]:
    shaped: Any = jax.ShapeDtypeStruct
    outcome = [shaped(r.shape, jax.dtypes.canonicalize_dtype(r.dtype)) for r in call.results]
    return list(jax.ffi.ffi_call(TARGET, outcome, vmap_method="expand_dims")(*operands, call=call.text))


def _refuse_derivative(call: HostCall, primals: Any, tangents: Any) -> Any:
    if call["return_grad"]:
        raise NotImplementedError(
            f"the gradient of {call.function} has no derivative: losses are differentiable once, "
            "what return_grad gives is not; for second derivatives write the loss with jax.numpy"
        )
    raise NotImplementedError(
        f"{call.function} has no derivative; differentiate cross_entropy, binary_cross_entropy, entropy, "
        "kl_divergence, js_divergence, linear_cross_entropy, logsumexp, log_softmax, softmax or information, or put "
        "jax.lax.stop_gradient around its arguments"
    )


_staged.defjvp(_refuse_derivative)


def _run(text: bytes, operands: Sequence[Array], results: Sequence[Array]) -> None:
    fill(_read(text), operands, results)


def _refuse(platform: str) -> ffi.Compute:
    return lambda *_: refuse_accelerators((platform,))


ffi.register(TARGET, "cpu", _run)
for _platform in ("CUDA", "ROCM"):
    ffi.register(TARGET, _platform, _refuse(_platform))


def fill(call: HostCall, operands: Sequence[Array], results: Sequence[Array]) -> None:
    """Compute `call` into `results`.

    `jax.vmap` puts axes in front of those of the call, of size 1 in operands that all examples share. Each example is
    a call, and all are one call where rows stay rows.
    """
    given = {operand.name: array for operand, array in zip(call.operands, operands, strict=True)}
    options = dict(call.options)
    in_front = operands[0].ndim - len(call.operands[0].shape)
    batch = np.broadcast_shapes(*(array.shape[:in_front] for array in operands))
    one_set_of_classes = all(math.prod(given[n].shape[:in_front]) == 1 for n in OF_CLASSES if n in given)
    if not batch:
        _compute(call, given, options, results)
    elif one_set_of_classes and (call.keeps_rows or call.is_one_counted_row):
        if not call.keeps_rows:
            options["reduction"] = "none"
        if options.get("axis") is not None and options["axis"] >= 0:
            options["axis"] += in_front
        _compute(call, {name: _widened(call, name, array, batch) for name, array in given.items()}, options, results)
    else:
        wide = {name: np.broadcast_to(array, batch + array.shape[in_front:]) for name, array in given.items()}
        for place in np.ndindex(batch):
            example = {name: array[place] for name, array in wide.items()}
            _compute(call, example, options, [result[(*place, ...)] for result in results])


def _compute(
    call: HostCall, operands: Mapping[str, Array], options: Mapping[str, Any], results: Sequence[Array]
) -> None:
    written: dict[str, list[Array | None]] = {}
    for result, array in zip(call.results, results, strict=True):
        if result.argument is not None:
            fits = result.dtype == array.dtype  # else JAX narrows it, and it is copied below
            written.setdefault(result.argument, []).append(array if fits else None)
    outputs: dict[str, Any] = {}
    for name, arrays in written.items():
        many = len(arrays) > 1 or (name == "grad_out" and call.function == "linear_cross_entropy")
        if any(array is not None for array in arrays):
            outputs[name] = tuple(arrays) if many else arrays[0]
    found = jax.tree.leaves(call.public(**operands, **options, **outputs))
    for array, value in zip(results, found, strict=True):
        if value is not array:
            with np.errstate(all="ignore"):
                array[...] = value


def _widened(call: HostCall, name: str, array: Array, batch: tuple[int, ...]) -> Array:
    """An operand with all axes of the batch, and with those of the call that broadcasting would put in front."""
    shape = array.shape[len(batch) :]
    if name in OF_CLASSES:
        return array.reshape(shape)
    if name in BROADCAST or (name == "sample_weight" and call.is_elementwise):
        shape = (1,) * (call.ndim - len(shape)) + shape
    array = array.reshape(array.shape[: len(batch)] + shape)
    return array if array.shape == batch + shape else np.broadcast_to(array, batch + shape)
