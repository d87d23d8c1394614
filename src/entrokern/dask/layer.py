"""The cross-entropy of a linear layer: the rows of `hidden` lie in blocks, and each task has all of the layer.

The gradients by the layer are sums over the blocks, which a tree adds in the dtype of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _arrays, _call, _dispatch, _threads
from .._arrays import Array
from .._linear import rounded
from ..linear import LinearJob
from .calls import CLASSES, MAIN, ROWS, TARGET, LazyArray, LazyCall, chunks_of, cut_alike, da, is_dask, named, sizes_of
from .calls import split as operands_and_options
from .graph import Result, blockwise, of_all, records_of
from .rows import denominator
from .tasks import Finish, Place, Work, added, naming_rows_of, only, record, scale_of

ROLES = {
    "hidden": MAIN, "weight": CLASSES, "bias": CLASSES, "target": TARGET, "class_weight": CLASSES,
    "sample_weight": ROWS,
}  # fmt: skip


@dataclass(frozen=True)
class LayerCall(LazyCall):
    """The last two axes of the call are those of the layer's weight, backwards: ``batch + (d, k)``."""

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(range(len(self.sizes) - 2))


@dataclass(frozen=True)
class LayerWork(Work):
    """The loss and the gradients of a block of rows, those by the layer in the dtype that they are added in."""

    names_of_gradients: tuple[str, ...]

    def __call__(self, place: Place, denominator: Any, *blocks: Any) -> Any:
        operands = dict(zip(self.names, map(only, blocks), strict=True))
        with _threads.one_thread(), _dispatch.pinned(self.backend), naming_rows_of(place):
            dtype = _arrays.row_dtype(_arrays.common_dtype(hidden=operands["hidden"], weight=operands["weight"]))
            places = [None if n == "hidden" else np.empty(operands[n].shape, dtype) for n in self.names_of_gradients]
            job: LinearJob = self.function.__wrapped__(**operands, **self.options, grad_out=places)
            job.check()
            loss, *gradients = job.outputs
            with np.errstate(all="ignore"):
                if self.reduced:
                    if denominator is not None:
                        job.layer.scale = np.asarray(scale_of(job, denominator))
                    total = float(job.layer.run(None)) * (1.0 if denominator is None else float(denominator))
                    loss = record(place, total, *_call.denominator_parts(job.call))
                else:
                    job.layer.run(loss)
            for i, name in enumerate(self.names_of_gradients):
                if name != "hidden":
                    gradients[i] = gradients[i].reshape((1,) * len(place) + gradients[i].shape)
        return (loss, *gradients) if gradients else loss


def over_layer(function: Callable[..., Any], args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    operands, options = operands_and_options(named(function, args, given), ROLES)
    call = _checked(function, operands, options)
    job: Any = call.job
    names, every = job.gradients, len(call.sizes)
    d, k = every - 2, every - 1
    axes = {"hidden": (*call.batch, d), "weight": (k, d), "bias": (k,)}
    row, rows = job.outputs[0].dtype, tuple(call.chunks[a] for a in call.batch)
    results = [records_of(call) if job.reduced else Result(call.batch, rows, row)]
    for name, out in zip(names, job.outputs[1:], strict=True):
        if name == "hidden":
            results.append(Result(axes[name], (*rows, call.chunks[d]), out.dtype))
        else:
            ones = [(1,) * len(blocks) for blocks in rows]
            results.append(Result((*call.batch, *axes[name]), (*ones, *(call.chunks[a] for a in axes[name])), row))
    plain = call.options | {"return_grad": names, "reduction": "sum" if job.reduced else "none"}
    divided = job.reduction == "mean" and names
    divisor = denominator(call, plain | {"return_grad": False}) if divided else None
    work = LayerWork(function, tuple(call.operands), plain, call.backend, job.reduced, names)
    loss, *gradients = blockwise(call, work, results, divisor)
    if job.reduced:
        loss = of_all(call, Finish(job.reduction, job.on_empty, row, _call.one_or_all, call.backend), loss, row)
    for i, (name, out) in enumerate(zip(names, job.outputs[1:], strict=True)):
        if name != "hidden":
            gradients[i] = _summed(call, gradients[i], out.dtype)
    return _call.one_or_all((loss, *gradients))


def _summed(call: LazyCall, blocks: LazyArray, dtype: np.dtype[Any]) -> LazyArray:
    total = blocks
    if call.batch:
        meta = np.empty((0,) * blocks.ndim, blocks.dtype)
        total = da.reduction(blocks, chunk=added, aggregate=added, axis=call.batch, dtype=blocks.dtype, meta=meta)
    return total if dtype == total.dtype else total.map_blocks(_narrowed, dtype, dtype=dtype)


def _narrowed(total: Array, dtype: np.dtype[Any]) -> Array:
    return rounded(total, dtype).astype(dtype)


def _checked(function: Any, operands: dict[str, Any], options: dict[str, Any]) -> LayerCall:
    """The call, if its arguments are allowed together: by its own checks of stand-ins, of no rows' values."""
    for name in ("hidden", "weight", "target"):
        if name not in operands:
            raise TypeError(f"{name} is None; pass an array")
    samples = {n: v._meta if is_dask(v) else v for n, v in operands.items()}
    if _dispatch.library_of(**samples) != "numpy":
        raise TypeError("linear_cross_entropy takes Dask arrays of NumPy's blocks; call .compute() on those of CuPy's")
    operands = {n: v if is_dask(v) else _arrays.asarray(n, v) for n, v in operands.items()}
    batch = tuple(range(max(0, operands["hidden"].ndim - 1)))
    d, k = len(batch), len(batch) + 1
    of_target = batch if operands["target"].ndim == len(batch) else (*batch, k)
    axes = {
        "hidden": (*batch, d), "weight": (k, d), "bias": (k,), "target": of_target, "class_weight": (k,),
        "sample_weight": batch,
    }  # fmt: skip
    axes = {n: axes[n] for n in operands}
    _refuse_cut_layers(operands, axes, d)
    sizes = sizes_of(operands, axes, k + 1)

    def stand_in(name: str, rows: float) -> Array:
        """In the whole of the layer, and as many of the rows as that."""
        array = operands[name]
        if not is_dask(array) and axes[name][:1] == (k,):
            return array
        known = [sizes[a] if math.isnan(s) else s for s, a in zip(array.shape, axes[name], strict=False)]
        shape = [
            int(min(1 if math.isnan(s) else s, math.inf if a >= d else rows))
            for s, a in zip(known, axes[name], strict=False)
        ]
        shape += [int(s) for s in array.shape[len(shape) :]]  # of a rank that does not fit
        return np.broadcast_to(np.zeros((), array.dtype.newbyteorder("=")), shape)

    plain: dict[str, Any] = options | {"validate": False}
    function.__wrapped__(**{n: stand_in(n, math.inf) for n in operands}, **plain | {"return_grad": False})
    job = function.__wrapped__(**{n: stand_in(n, 1) for n in operands}, **plain)
    roles = {n: ROLES[n] for n in operands}
    chunks = tuple(chunks_of(a, operands, roles, axes, sizes, None) for a in range(k + 1))
    operands = {n: cut_alike(n, operands[n], axes[n], chunks, sizes, roles[n]) for n in operands}
    chosen = _dispatch.chosen("numpy")
    return LayerCall(function, operands, options, axes, sizes, chunks, None, job, chosen, samples["hidden"])


def _refuse_cut_layers(operands: Mapping[str, Any], axes: Mapping[str, tuple[int, ...]], d: int) -> None:
    for name, array in operands.items():
        for i, a in enumerate(axes[name][: array.ndim]):
            if a >= d and is_dask(array) and array.numblocks[i] > 1:
                raise ValueError(
                    f"{name} lies in {array.numblocks[i]} blocks along axis {i}, and linear_cross_entropy takes rows "
                    f"and the layer whole; bring them together: {name}.rechunk({{{i}: -1}})"
                )
