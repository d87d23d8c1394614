"""Calls whose rows lie in several blocks of classes: slices say what they hold, and a tree merges what they said.

No row is put together. A first read of every slice gives the statistics of `partial`; where a result needs more (the
terms of two softmaxes, or a map), the slices are read again with what the whole rows are known to be.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from dask.layers import ArraySliceDep

from .. import _call
from ..partial import DIVERGENCES
from .calls import LazyArray, LazyCall, Options, are_known, da, is_dask
from .graph import Result, layer, of_all, records_of
from .rows import denominator
from .slices import (
    BINARY,
    FirstRead,
    LabelLogit,
    Maps,
    RowResults,
    Terms,
    added,
    as_it_is,
    combined,
    logit_of,
    with_sums,
)
from .tasks import Finish, denominator_of, item

OBJECT = np.dtype(object)


def over_classes(call: LazyCall) -> Any:
    """Rows whose classes lie in several blocks."""
    if call.options["validate"]:
        raise ValueError(
            f"validate=True looks at whole rows, and the classes lie in {len(call.chunks[_axis(call)])} blocks along "
            f"axis {call.class_axis}; leave it out, or bring them together: .rechunk({{{call.class_axis}: -1}})"
        )
    job = call.job
    asked, maps = tuple(job.call.rows), tuple(job.call.maps)
    whole = _whole(call, asked, maps)
    rows = _rows(call, whole, asked, job.reduced) if asked or job.reduced else []
    divisor = _divisor(call, rows[0]) if job.reduction == "mean" and maps else None
    arrays = _maps(call, whole, divisor, maps)
    if not job.reduced:
        # In the order of the job's: results of rows are its arrays themselves, maps it may see from another side.
        of_rows, of_maps = dict(zip(asked, rows, strict=True)), iter(arrays)
        found = [[of_rows[name] for name, row in job.call.rows.items() if row is out] for out in job.outputs]
        return job.deliver([row[0] if row else next(of_maps) for row in found])
    finish = Finish(job.reduction, job.on_empty, job.outputs[0].dtype, job.deliver, call.backend)
    dtype = finish.dtype if arrays else job.deliver((np.zeros((), finish.dtype),)).dtype
    loss = of_all(call, finish, rows[0], dtype, call.meta)
    return _call.one_or_all((loss, *arrays))


def _axis(call: LazyCall) -> int:
    assert call.class_axis is not None
    return call.class_axis


def _whole(call: LazyCall, asked: tuple[str, ...], maps: tuple[str, ...]) -> LazyArray:
    """One `Partial` for each block of rows: all that is known of them."""
    one, options = call.job.call, _options_of_rows(call, asked)
    names = tuple(n for n in ("entropy", "argmax", "rank") if n in asked) if call.function.__name__ == "score" else ()
    logit = None
    if "rank" in names:
        sums = _tree(call, _slices(call, LabelLogit(**_sliced(call, options))), added)
        logit = layer(call, logit_of, [sums, call.batch], _of_rows(call, np.dtype(np.float64)))
    precise = bool(maps)  # which are differences of numbers that can be nearly equal
    first = FirstRead(**_sliced(call, options), outputs=names, precise=precise)
    whole = _tree(call, _slices(call, first, logit), combined)
    if one.quantity in DIVERGENCES:
        terms = _slices(call, Terms(**_sliced(call, options)), whole)
        whole = layer(
            call, with_sums, [whole, call.batch, _tree(call, terms, added), call.batch], _of_rows(call, OBJECT)
        )
    return whole


def _options_of_rows(call: LazyCall, asked: tuple[str, ...]) -> Options:
    """The call's options with nothing asked for but results of rows."""
    plain: Options = {"reduction": "none", "return_grad": False, "return_hess": False}
    if call.function.__name__ == "score":
        plain["outputs"] = tuple(n for n in asked if n != "rank") or ("lse",)
    return call.options | {name: value for name, value in plain.items() if name in call.options}


def _sliced(call: LazyCall, options: Options) -> dict[str, Any]:
    """What all tasks of slices are told."""
    return {
        "function": call.function, "names": tuple(call.operands), "options": options, "backend": call.backend,
        "class_axis": _axis(call),
    }  # fmt: skip


def _of_rows(call: LazyCall, dtype: np.dtype[Any], like: Any = None) -> Result:
    chunks = tuple(call.chunks[a] for a in call.batch)
    return Result(call.batch, chunks, dtype, np.empty(()) if like is None else like)


def _slices(call: LazyCall, work: Any, *beside: Any, results: list[Result] | None = None) -> Any:
    """``work(place, *beside, *blocks)`` for every slice; what goes `beside` has a block for each block of rows."""
    every = tuple(range(len(call.sizes)))
    chunks: Any = call.chunks
    pairs: list[Any] = [ArraySliceDep(chunks), every]
    for value in beside:
        pairs += [value, (call.batch if value.ndim else ()) if is_dask(value) else None]
    for name in work.names:
        pairs += [call.operands[name], call.axes[name]]
    if results is not None and len(results) == 1:
        return [layer(call, work, pairs, results[0])]
    bundles = layer(call, work, pairs, Result(every, call.chunks, OBJECT))
    if results is None:
        return bundles
    return [layer(call, item, [bundles, every, i, None], result) for i, result in enumerate(results)]


def _tree(call: LazyCall, slices: LazyArray, merge: Any) -> LazyArray:
    """What the slices of each row have said, merged along the class axis, a few at a time."""
    return da.reduction(
        slices, chunk=as_it_is, combine=merge, aggregate=merge, axis=_axis(call), concatenate=False, dtype=OBJECT,
        meta=np.empty((0,) * len(call.batch), OBJECT),
    )  # fmt: skip


def _rows(call: LazyCall, whole: LazyArray, asked: tuple[str, ...], reduced: bool) -> list[LazyArray]:
    """Results of rows by name, or the record of each block's losses."""
    chunks: Any = tuple(call.chunks[a] for a in call.batch)
    labels = call.operands["target"] if call.job.call.labels is not None else None
    work = RowResults(asked, reduced, call.job.call.ignore_index)
    pairs = [ArraySliceDep(chunks), call.batch, whole, call.batch, labels, None if labels is None else call.batch]
    if reduced:
        return [layer(call, work, pairs, records_of(call))]
    dtypes = {name: row.dtype for name, row in call.job.call.rows.items()}
    results = [_of_rows(call, dtypes[name], call.meta) for name in asked]
    if len(results) == 1:
        return [layer(call, work, pairs, results[0])]
    bundles = layer(call, work, pairs, _of_rows(call, OBJECT))
    return [layer(call, item, [bundles, call.batch, i, None], result) for i, result in enumerate(results)]


def _divisor(call: LazyCall, records: LazyArray) -> Any:
    """What a mean divides by: from labels and weights where that can be, else from the records of all rows."""
    # Whether a row of binary targets counts, all of its slices say.
    by_slices = call.job.call.quantity == BINARY and call.job.call.ignore_index is not None
    if by_slices or not all(are_known(call.chunks[a]) for a in call.batch):
        return of_all(call, denominator_of, records, records.dtype)
    axis = _axis(call)
    together = dict(call.operands)
    if "class_weight" in together:
        together["class_weight"] = together["class_weight"].rechunk(-1)  # a number per class
    chunks = tuple((math.fsum(c),) if a == axis else c for a, c in enumerate(call.chunks))
    return denominator(replace(call, operands=together, chunks=chunks), dict(call.options))


def _maps(call: LazyCall, whole: LazyArray, divisor: Any, maps: tuple[str, ...]) -> list[LazyArray]:
    """Arrays of the operands' shape, each block from its slice and what is known of its rows."""
    if not maps:
        return []
    options = dict(call.options)
    if "reduction" in options:
        options["reduction"] = "sum"
    if "outputs" in options:
        options["outputs"] = maps
    every = tuple(range(len(call.sizes)))
    results = [Result(every, call.chunks, out.dtype, call.meta) for out in call.job.call.maps.values()]
    arrays: list[LazyArray] = _slices(call, Maps(**_sliced(call, options)), whole, divisor, results=results)
    return arrays
