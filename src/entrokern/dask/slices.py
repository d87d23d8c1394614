"""What a Dask task computes of a slice of classes, and of what all slices of its rows have said.

`classes.py` says which tasks there are. A task gives its blocks to the public function, up to the `Job` that this makes
of them: the job's call has the options, checked, and the arrays as the formulas want them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _arrays, _call, _dispatch, _merge, _pairs, _slices, _threads
from .._arrays import Array
from .._call import Call, Job
from .._merge import Statistics
from ..partial import DIVERGENCES, Partial, combine, holding, of_slice
from .tasks import Place, device_of, naming_rows_of, only, record, run, scale_of

BINARY = "binary_cross_entropy"


@dataclass(frozen=True)
class Sliced:
    """`function` on blocks of its operands `names`, which hold a part of the classes."""

    function: Any
    names: tuple[str, ...]
    options: dict[str, Any]
    backend: str
    class_axis: int

    @contextmanager
    def job(self, place: Place, blocks: Any) -> Iterator[tuple[Job, int]]:
        """The job of the blocks, and the class that they begin with."""
        operands = dict(zip(self.names, map(only, blocks), strict=True))
        batch = tuple(where for a, where in enumerate(place) if a != self.class_axis)
        class_start = int(place[self.class_axis].start)
        with (
            _threads.one_thread(), _dispatch.pinned(self.backend), naming_rows_of(batch, class_start),
            device_of(operands), np.errstate(all="ignore"),
        ):  # fmt: skip
            yield self.function.__wrapped__(**operands, **self.options), class_start


# --- first reads --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstRead(Sliced):
    """What a slice says of its rows: of their softmax, and all that a score asks for."""

    outputs: tuple[str, ...] = ()
    precise: bool = False

    def __call__(self, place: Place, target_logit: Any, *blocks: Any) -> Partial:
        with self.job(place, blocks) as (job, class_start):
            call = job.call
            if call.quantity in DIVERGENCES:
                nothing: Statistics = {"ignored": np.zeros_like(call.x[..., 0], dtype=bool)}
                return holding(call, nothing | _pairs.normalisers(call) | row_weights(call))
            if call.quantity == BINARY:
                return holding(call, _binary(call) | row_weights(call))
            of_softmax = replace(call, quantity="score") if call.quantity == "softmax" else call
            logit = None if target_logit is None else only(target_logit)
            return of_slice(of_softmax, class_start, self.outputs, logit, self.precise)


def row_weights(call: Call) -> Statistics:
    weight = call.sample_weight
    return {} if weight is None else {"sample_weight": weight.astype(np.float64)}


def _binary(call: Call) -> Statistics:
    """The losses of a slice's elements, and how many of them count."""
    y: Any = call.y
    found: Statistics = {}
    bare = replace(call, sample_weight=None, unit=1.0)
    _merge.put(found, BINARY, _slices.row_results(bare, "loss")["loss"])
    ignored = np.zeros_like(y, dtype=bool) if call.ignore_index is None else y == call.ignore_index
    found["kept"] = np.count_nonzero(~ignored, axis=-1)
    return found


@dataclass(frozen=True)
class LabelLogit(Sliced):
    """The logit of each row's label, 0 where the slice does not hold it."""

    def __call__(self, place: Place, *blocks: Any) -> Statistics:
        with self.job(place, blocks) as (job, class_start):
            call = job.call
            local = _slices.local_labels(call, class_start)
            held = local != _slices.NOWHERE
            at = np.where(held, local, 0)[..., None]
            logits = np.take_along_axis(call.x, at, axis=-1)[..., 0].astype(np.float64)
            found: Statistics = {}
            _merge.put(found, "logit", np.where(held, logits, 0.0))
            return found


@dataclass(frozen=True)
class Terms(Sliced):
    """The second read of two distributions: sums that know the rows' normalisers."""

    def __call__(self, place: Place, whole: Any, *blocks: Any) -> Statistics:
        with self.job(place, blocks) as (job, _):
            return _pairs.terms(job.call, only(whole).arrays)


# --- trees --------------------------------------------------------------------------------------------


def as_it_is(block: Any, axis: Any, keepdims: bool) -> Any:
    return block


def flat(blocks: Any) -> Iterator[Any]:
    if not isinstance(blocks, list):
        yield blocks
        return
    for block in blocks:
        yield from flat(block)


def combined(blocks: Any, axis: Any, keepdims: bool) -> Partial:
    return combine(*flat(blocks))


def added(blocks: Any, axis: Any, keepdims: bool) -> Statistics:
    total, *others = flat(blocks)
    with np.errstate(all="ignore"):
        for other in others:
            total = _merge.added(total, other)
    result: Statistics = total
    return result


def logit_of(sums: Any) -> Array:
    result: Array = _merge.get(only(sums), "logit")
    return result


def with_sums(whole: Any, sums: Any) -> Partial:
    """The rows' normalisers and the sums of their second reads, together."""
    part: Partial = only(whole)
    return replace(part, arrays=part.arrays | only(sums))


# --- results ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowResults:
    """The results of rows, by name, from what all slices have said; with `reduced`, the record of their losses."""

    names: tuple[str, ...]
    reduced: bool
    ignore_index: int | None

    def __call__(self, place: Place, whole: Any, labels: Any) -> Any:
        part: Partial = only(whole)
        with naming_rows_of(place), np.errstate(all="ignore"):
            if "kept" in part.arrays:
                part = replace(part, arrays=part.arrays | {"ignored": part.arrays["kept"] == 0})
            if labels is not None:
                self._check(part, only(labels))
            if self.reduced:
                total, denominator = np.sum(part.loss(), dtype=np.float64), part.denominator()
                return record(place, float(_arrays.on_host(total)), float(_arrays.on_host(denominator)), 0.0)
            results = tuple(part.result(name) for name in self.names)
        return results[0] if len(results) == 1 else results

    def _check(self, part: Partial, labels: Array) -> None:
        """Labels out of range are found where all slices are known: none of them was held."""
        labels = _arrays.on_host(labels)
        rows = np.broadcast_to(np.float32(0), (*labels.shape, part.classes))
        _call.check_targets(Call("cross_entropy", rows, labels=labels, ignore_index=self.ignore_index))


@dataclass(frozen=True)
class Maps(Sliced):
    """Arrays of the slice's shape: the last read, when all is known of the rows."""

    def __call__(self, place: Place, whole: Any, denominator: Any, *blocks: Any) -> Any:
        with self.job(place, blocks) as (job, class_start):
            call, scale = job.call, scale_of(job, denominator)
            part: Partial = only(whole)
            if call.quantity in DIVERGENCES:
                weight = part.weight
                factor = scale * call.unit * np.ones_like(part.some) * (1.0 if weight is None else weight)
                _pairs.gradients(call, part.arrays, factor)
            elif call.quantity == BINARY:
                run(job, denominator, self.backend)
                counts = (part.arrays["kept"] > 0) & (True if part.weight is None else part.weight != 0)
                undefined = np.isnan(_merge.get(part.arrays, BINARY)) & counts  # in another slice too
                for out in call.maps.values():
                    out[...] = np.where(undefined[..., None], np.nan, out) if scale != 0.0 else 0
            else:
                _slices.write_maps(part, call, class_start, scale)
            maps = job.outputs[-len(call.maps) :]
        return maps[0] if len(maps) == 1 else tuple(maps)
