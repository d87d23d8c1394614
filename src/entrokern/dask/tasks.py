"""What a Dask task computes of its blocks; `rows.py` says which tasks there are.

A task calls a public function up to its `Job`, which it runs itself: with one thread, on the backend that was in force
when the lazy call was made, and so that sums leave it in float64, before they are rounded to a result's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _arrays, _call, _device, _dispatch, _threads
from .._arrays import Array
from .._call import Call, Job
from ..linear import LinearJob

Place = tuple[slice, ...]  # where a block lies along the batch axes of its call; NaN where Dask does not know
RECORD = 3  # numbers of a block of reduced losses: their sum, and what a mean divides by, in two parts


@dataclass(frozen=True)
class Work:
    """`function` on a block of each of the operands `names`; with `reduced`, a record of the losses comes first."""

    function: Any
    names: tuple[str, ...]
    options: dict[str, Any]
    backend: str
    reduced: bool

    def __call__(self, place: Place, denominator: Any, *blocks: Any) -> Any:
        operands = dict(zip(self.names, map(only, blocks), strict=True))
        with _threads.one_thread(), naming_rows_of(place), device_of(operands):
            job: Job = self.function.__wrapped__(**operands, **self.options)
            total = run(job, denominator, self.backend)
            outputs = job.outputs
            if self.reduced:
                parts = _call.denominator_parts(_on_host(job.call))
                outputs = (record(place, total, *parts), *outputs[1:])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def scale_of(job: Job | LinearJob, denominator: Any) -> float:
    """What maps are multiplied by: 0 where no row counts."""
    if denominator is None:
        return 1.0
    if denominator == 0 and job.on_empty == "raise":
        _call.raise_empty()
    return 1.0 / float(denominator) if denominator else 0.0


def run(job: Job, denominator: Any, backend_name: str) -> float:
    """Write the results of a job, maps divided by the `denominator`; the sum of the losses, if asked for."""
    call, backend, scale = job.call, _dispatch.named(backend_name), scale_of(job, denominator)
    total = math.nan
    if _device.is_device_array(call.x):
        result = _device.empty((), np.dtype(np.float64), call.x) if call.total else None
        backend.execute(call, "sum" if call.total else "none", job.on_empty, result)
        if denominator is not None:
            for out in call.maps.values():
                out *= scale
        total = float(_arrays.on_host(result)) if call.total else math.nan
    else:
        call.map_scale = scale
        try:
            total = backend.run(call)
        except IndexError:
            _call.check_targets(call)  # names the lowest row, whichever was found first
            raise
    if denominator == 0:
        for out in call.maps.values():
            out[...] = 0
    return total


@dataclass(frozen=True)
class Count:
    """The record of what a mean divides by, from the operands `names` alone.

    Of the others, `absent` (the axes of the call that each has), only their shape in this block matters.
    """

    function: Any
    names: tuple[str, ...]
    options: dict[str, Any]
    axes: dict[str, tuple[int, ...]]  # of the call, that the operands have
    batch: tuple[int, ...]
    sizes: tuple[float, ...]  # of the call; what is not of the batch lies whole in each block
    absent: tuple[str, ...]

    def __call__(self, place: Place, _: None, *blocks: Any) -> Array:
        operands = {name: _arrays.on_host(only(block)) for name, block in zip(self.names, blocks, strict=True)}
        sizes = list(self.sizes)
        for a, where in zip(self.batch, place, strict=True):
            sizes[a] = where.stop - where.start
        for name, block in operands.items():
            for a, d in zip(self.axes[name], block.shape, strict=False):
                sizes[a] = d if math.isnan(sizes[a]) else max(d, sizes[a])
        for name in self.absent:
            is_labels = name == "target" and len(self.axes[name]) < len(sizes)
            nothing = np.zeros((), np.int64 if is_labels else np.float64)
            operands[name] = np.broadcast_to(nothing, [int(sizes[a]) for a in self.axes[name]])
        with naming_rows_of(place):
            call = self.function.__wrapped__(**operands, **self.options).call
            _call.check_targets(call)
            return record(place, 0.0, *_call.denominator_parts(call))


@dataclass(frozen=True)
class Finish:
    """The reduced loss from the sum of all records."""

    reduction: str
    on_empty: str
    dtype: np.dtype[Any]
    deliver: Callable[[Sequence[Array]], Array]
    backend: str

    def __call__(self, record: Any) -> Array:
        total, high, low = (float(v) for v in only(record))
        if self.reduction == "mean":
            total = _call.mean(total, _call.sum_of_parts(high, low), self.on_empty)
        with np.errstate(all="ignore"):
            result = self.deliver((np.asarray(total).astype(self.dtype),))
        if self.backend != "cuda":
            return result
        import cupy

        on_device: Array = cupy.asarray(result)
        return on_device


def denominator_of(record: Any) -> Array:
    return np.asarray(_call.sum_of_parts(*only(record)[1:]))


def added(records: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
    with np.errstate(all="ignore"):
        return np.sum(records, axis=axis, keepdims=keepdims)


def item(bundle: Any, i: int) -> Array:
    result: Array = only(bundle)[i]
    return result


def only(block: Any) -> Any:
    """A block as it is; along axes that the result lacks, Dask brings it in a list."""
    while isinstance(block, list):
        (block,) = block
    return block


def record(place: Place, *numbers: float) -> Array:
    return np.array(numbers).reshape((1,) * len(place) + (RECORD,))


def _on_host(call: Call) -> Call:
    """What tells the denominator, where NumPy can count it."""
    if not _device.is_device_array(call.x) or _call.counts_every_row(call):
        return call
    names = ["labels", "sample_weight", "class_weight"]
    names += ["y"] if call.ignore_index is not None else []
    call = replace(call, **{name: _arrays.on_host(getattr(call, name)) for name in names})
    _call.check_targets(call)  # the device has not
    return call


def device_of(operands: dict[str, Any]) -> AbstractContextManager[Any]:
    name, first = next(iter(operands.items()))
    return _device.device_of(first, name) if _device.is_device_array(first) else nullcontext()


@contextmanager
def naming_rows_of(place: Place, class_start: int = 0) -> Iterator[None]:
    """Call the rows (and elements of them) that errors name as in the whole arrays."""
    try:
        yield
    except (IndexError, ValueError) as error:
        starts = [where.start for where in place]
        if any(map(math.isnan, starts)):
            error.add_note("Rows are counted within their block: Dask does not know where in the whole that lies.")
            raise
        message = str(error)

        def rename(row: tuple[int, ...]) -> tuple[int, ...]:
            inside = (i + class_start for i in row[len(starts) :])  # of an element of the row
            return (*(int(i + start) for i, start in zip(row, starts, strict=False)), *inside)

        error.args = (_call.with_rows_renamed(message, rename),)
        raise
