"""Layers of a graph: lazy arrays whose blocks a function makes of the blocks of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from dask.layers import ArraySliceDep

from .. import _arrays
from .calls import Chunks, LazyArray, LazyCall, da, is_dask
from .tasks import RECORD, Count, Work, added, item, only

HOST = np.empty(())


class Result(NamedTuple):
    """A lazy array: which axes of the call it has (and beyond them its own), how they are cut, dtype and library."""

    axes: tuple[int, ...]
    chunks: tuple[Chunks, ...]
    dtype: np.dtype[Any]
    like: Any = HOST


def records_of(call: LazyCall) -> Result:
    """One record from each block of rows."""
    ones = [(1,) * len(call.chunks[a]) for a in call.batch]
    return Result((*call.batch, len(call.sizes)), (*ones, (RECORD,)), np.dtype(np.float64))


def of_all(call: LazyCall, finish: Any, records: LazyArray, dtype: np.dtype[Any], like: Any = HOST) -> LazyArray:
    """``finish(record)`` of the sum of all records; 0-d."""
    axis = tuple(range(records.ndim - 1))
    meta = np.empty((0,) * records.ndim)
    if axis:
        records = da.reduction(records, chunk=added, aggregate=added, axis=axis, dtype=records.dtype, meta=meta)
    return layer(call, finish, [records, (0,)], Result((), (), dtype, like))


def blockwise(
    call: LazyCall, work: Work | Count, results: Sequence[Result], denominator: LazyArray | float | None = None
) -> list[LazyArray]:
    """The results of `work` on the blocks of its operands; of several, each task makes all."""
    batch = call.batch
    chunks: Any = tuple(call.chunks[a] for a in batch)
    pairs: list[Any] = [ArraySliceDep(chunks), batch, denominator, () if is_dask(denominator) else None]
    for name in work.names:
        pairs += [call.operands[name], call.axes[name]]
    every = tuple(range(len(call.sizes)))
    if len(results) == 1 and set(every) <= set(results[0].axes):
        return [layer(call, work, pairs, results[0])]
    # With the class axis, of one block: Dask fuses what loads a block only into tasks whose result has all its axes.
    one_block: Any = tuple((1,) if a == call.class_axis else call.chunks[a] for a in every)
    bundles = layer(call, work, pairs, Result(every, one_block, np.dtype(object)))
    if len(results) == 1:
        return [layer(call, only, [bundles, every], results[0])]
    return [layer(call, item, [bundles, every, i, None], result) for i, result in enumerate(results)]


def layer(call: LazyCall, work: Any, pairs: list[Any], result: Result) -> LazyArray:
    """The blocks of `result`, each from the blocks of the arrays in `pairs` (with their axes, as Dask takes them)."""
    present = {a for axes in pairs[1::2] if axes is not None for a in axes}
    chunks = dict(zip(result.axes, result.chunks, strict=True))
    return da.blockwise(
        work,
        result.axes,
        *pairs,
        align_arrays=False,
        new_axes={a: c for a, c in chunks.items() if a not in present},
        adjust_chunks={a: c for a, c in chunks.items() if a in present},
        token=call.function.__name__,
        dtype=result.dtype,
        meta=_arrays.empty((0,) * len(result.axes), result.dtype, result.like),
    )
