"""Calls whose rows lie whole in their blocks: the public function on each of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _call, _dispatch
from .calls import LazyArray, LazyCall, Options, are_known
from .graph import Result, blockwise, of_all, records_of
from .tasks import Count, Finish, Work, denominator_of


def over_rows(call: LazyCall) -> Any:
    """Rows that lie whole in their blocks."""
    job, every = call.job, tuple(range(len(call.sizes)))
    results, options = [], dict(call.options)
    if job.reduced:
        results.append(records_of(call))
        options |= {"reduction": "sum"} if "reduction" in options else {}
    for out in job.outputs[job.reduced :]:
        axes = every if out.ndim == len(every) else call.batch
        results.append(Result(axes, tuple(call.chunks[a] for a in axes), out.dtype, call.meta))
    divided = job.reduction == "mean" and len(results) > 1
    divisor = denominator(call, options) if divided else None
    work = Work(call.function, tuple(call.operands), options, call.backend, job.reduced)
    arrays = blockwise(call, work, results, divisor)
    if not job.reduced:
        return job.deliver(arrays)
    finish = Finish(job.reduction, job.on_empty, job.outputs[0].dtype, job.deliver, call.backend)
    dtype = job.deliver((np.zeros((), finish.dtype),)).dtype if len(arrays) == 1 else finish.dtype
    loss = of_all(call, finish, arrays[0], dtype, call.meta)
    return _call.one_or_all((loss, *arrays[1:]))


def denominator(call: LazyCall, options: Options) -> LazyArray | float:
    """What a mean divides by, which the gradients of all rows wait for: of labels and weights, never of `x`."""
    one = call.job.call
    n = math.prod(call.sizes[a] for a in call.batch)
    if _call.counts_every_row(one) and not math.isnan(n):
        return float(n)
    weighted = one.labels is not None and one.class_weight is not None
    looked_at = {"sample_weight": True, "class_weight": weighted, "target": weighted or one.ignore_index is not None}
    names = [n for n in call.operands if looked_at.get(n)]
    counted = {a for n in names for a, d in zip(call.axes[n], call.operands[n].shape, strict=True) if d != 1}
    if any(a not in counted for a in call.batch if not are_known(call.chunks[a])):
        names = list(call.operands)  # nothing else says how many rows there are
    absent = tuple(n for n in call.operands if n not in names and n in (*_dispatch.MAIN, "target"))
    count = Count(call.function, tuple(names), options, call.axes, call.batch, call.sizes, absent)
    (counted,) = blockwise(call, count, [records_of(call)])
    return of_all(call, denominator_of, counted, counted.dtype)
