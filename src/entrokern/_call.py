"""One call, normalised once: the record that every backend reads, and what all backends share.

The public functions build a `Call` (all views have the class axis last), `execute` hands it to the
backend and finishes the reduction. A backend never sees user input that has not been checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, _dispatch, _options
from ._arrays import Array, flat_chunk

CHUNK = 1 << 16  # rows per step wherever the host itself walks over rows
LEADING_BITS = -1 << 29  # of a float64: its sign, exponent and the first 24 bits of its digits
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(slots=True)
class Call:
    """What to compute and where to write it.

    Shapes: ``x`` and ``y`` are ``batch + (k,)``; ``labels`` and ``sample_weight`` are ``batch``
    (``sample_weight`` is ``batch + (k,)`` where a quantity is elementwise).
    """

    quantity: str
    x: Array
    y: Array | None = None  # dense target of CE and BCE, second operand of a divergence
    labels: Array | None = None
    sample_weight: Array | None = None
    class_weight: Array | None = None
    pos_weight: Array | None = None
    form: str = "logits"
    y_form: str = "probs"
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    temperature: float = 1.0
    softcap: float | None = None
    z_loss: float = 0.0
    unit: float = 1.0  # 1 / ln base
    js_weight: float = 0.5
    estimator: str = "k1"
    elementwise: bool = False  # every element is a row of its own
    total: bool = False  # whether the sum of the losses is asked for
    rows: dict[str, Array] = field(default_factory=dict)  # row results asked for, by name
    maps: dict[str, Array] = field(default_factory=dict)  # (n, k) results asked for, by name
    map_scale: float = 1.0  # gradients are of the value returned: 1 / denominator for a mean
    prepared: Callable[..., Any] | None = None  # what a backend made ready for this call and those like it

    @property
    def k(self) -> int:
        return int(self.x.shape[-1])

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.x.shape if self.elementwise else self.x.shape[:-1]

    @property
    def n_rows(self) -> int:
        return math.prod(self.row_shape)


def chunks(n: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n, CHUNK):
        yield start, min(n, start + CHUNK)


def bad_labels(labels: Array, k: int, ignore_index: int | None) -> Array:
    """Which labels are neither a class nor ignored."""
    bad = labels < 0
    if k <= np.iinfo(labels.dtype).max:  # else no label is too large, and the comparison has no common type
        bad = bad | (labels >= k)
    return bad & (labels != ignore_index) if can_be(labels.dtype, ignore_index) else bad


def bad_binary_targets(t: Array, ignore_index: int | None) -> Array:
    bad = (t != 0) & (t != 1)
    return bad & (t != ignore_index) if can_be(t.dtype, ignore_index) else bad


def can_be(dtype: np.dtype[Any], ignore_index: int | None) -> bool:
    """Whether an integer of type `dtype` can be the one to ignore."""
    if ignore_index is None or dtype.kind == "b":
        return ignore_index in (0, 1)
    limits = np.iinfo(dtype)
    return limits.min <= ignore_index <= limits.max


def has_checked_targets(call: Call) -> bool:
    """Whether the call has integer targets, which can be out of range."""
    if call.quantity == "binary_cross_entropy":
        return call.y is not None and call.y.dtype.kind in "iu"
    return call.labels is not None


def check_targets(call: Call) -> None:
    """Raise ``IndexError`` for the lowest row whose integer target is out of range."""
    if not has_checked_targets(call):
        return
    binary = call.quantity == "binary_cross_entropy"
    targets = call.y if binary else call.labels
    assert targets is not None
    targets = _arrays.in_line(targets)
    for start, stop in chunks(targets.size):
        chunk = flat_chunk(targets, start, stop)
        bad = bad_binary_targets(chunk, call.ignore_index) if binary else bad_labels(chunk, call.k, call.ignore_index)
        if not bad.any():
            continue
        at = int(bad.argmax())
        place = np.unravel_index(start + at, targets.shape) if targets.ndim != 1 else (start + at,)
        where = int(place[0]) if len(place) == 1 else tuple(int(i) for i in place)
        value = int(chunk[at])
        hint = (
            "; pass `ignore_index=-100` to leave such rows out" if value == -100 and call.ignore_index is None else ""
        )
        if binary:
            allowed = "0 and 1" if call.ignore_index is None else f"0, 1 and ignore_index={call.ignore_index}"
            raise IndexError(f"target {value} at row {where} is out of range: integer targets are {allowed}{hint}")
        raise IndexError(
            f"label {value} of row {where} is out of range for k = {call.k} classes (0 to {call.k - 1}){hint}"
        )


def with_rows_renamed(message: str, rename: Callable[[tuple[int, ...]], tuple[int, ...]]) -> str:
    """An error's `message` with the rows that it names called as in a larger array that theirs is a part of."""

    def renamed(match: re.Match[str]) -> str:
        place = rename(tuple(int(i) for i in re.findall(r"\d+", match[0])))
        return f"row {place[0] if len(place) == 1 else place}"

    return re.sub(r"\brow (\d+|\(\d+(, \d+)*,?\))", renamed, message)


def counted_chunk(call: Call, start: int, stop: int) -> Array:
    """``s_i`` of rows ``start:stop`` as float64, 0 for rows that are ignored."""
    if call.sample_weight is None:
        s = np.ones(stop - start)
    else:
        s = flat_chunk(call.sample_weight, start, stop).astype(np.float64)
    if call.ignore_index is None:
        return s
    if call.labels is not None:
        s[flat_chunk(call.labels, start, stop) == call.ignore_index] = 0.0
    elif call.y is not None and call.elementwise:
        s[flat_chunk(call.y, start, stop) == call.ignore_index] = 0.0
    elif call.y is not None:
        k = call.k
        ignored = flat_chunk(call.y, start * k, stop * k).reshape(-1, k) == call.ignore_index
        s[ignored.all(axis=1)] = 0.0
    return s


def counts_every_row(call: Call) -> bool:
    """Whether each row counts as 1, so that a mean's denominator is known without a look at the data."""
    weighted = call.labels is not None and call.class_weight is not None
    return call.sample_weight is None and call.ignore_index is None and not weighted


def denominator(call: Call) -> float:
    """What a mean divides by: ``Σ s_i·w_{y_i}`` for labels, ``Σ s_i`` else, over the rows that count."""
    return sum_of_parts(*denominator_parts(call))


def denominator_parts(call: Call) -> tuple[float, float]:
    """The denominator as the sum of the numbers' leading 24 bits and that of the rest.

    The first is exact unless the numbers differ by many orders of magnitude, and so is all that is left of the second
    when both are added: the denominator does not depend on how the rows are cut.
    """
    if counts_every_row(call):
        return float(call.n_rows), 0.0
    weighted = call.labels is not None and call.class_weight is not None
    high = low = 0.0
    for start, stop in chunks(call.n_rows):
        s = counted_chunk(call, start, stop)
        if weighted:
            assert call.labels is not None and call.class_weight is not None
            labels = flat_chunk(call.labels, start, stop)
            # An ignored label is no class: read class 0's weight for it and count it 0 times.
            s *= call.class_weight[np.where(s == 0, 0, labels).astype(np.int64)]
        leading = (s.view(np.int64) & LEADING_BITS).view(np.float64)
        with np.errstate(invalid="ignore"):  # a weight of inf
            high, low = high + float(leading.sum()), low + float((s - leading).sum())
    return high, low


def sum_of_parts(high: float, low: float) -> float:
    return high + low if math.isfinite(high) else high


class Map(NamedTuple):
    """An ``(n, k)`` output asked for: its argument's name, the array given for it, and its operand."""

    argument: str
    given: Any
    like: Array
    in_place_of: str = ""  # the operand that the output may be


def one_or_all(outputs: Sequence[Array]) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


@dataclass(slots=True)
class Job:
    """A checked call and where its results go: what the checks of a public function end in.

    `given` are the user's own output arrays: they are filled with NaN where a target turns out to be
    out of range after work has begun, so that no half-written result can pass for a whole one.
    `made` has the operands that are made of the argument of their name, converted or checked, for each call anew.
    """

    call: Call
    outputs: Sequence[Array]  # the reduced loss (0-d) first
    reduction: str = "none"
    on_empty: str = "nan"
    given: Sequence[Array] = ()
    in_place: bool = False
    deliver: Callable[[Sequence[Array]], Any] = one_or_all  # what the caller gets of the outputs
    made: Mapping[str, Callable[[Any], Array | None]] = field(default_factory=dict)  # what makes operands of arguments

    @property
    def reduced(self) -> bool:
        return self.reduction != "none"

    def run(self) -> Any:
        result = self.outputs[0] if self.reduced else None
        execute(self.call, self.reduction, self.on_empty, result, self.given, self.in_place)
        return self.deliver(self.outputs)


def compute(
    call: Call,
    dtype: np.dtype[Any],
    axis: int,
    reduction: str,
    on_empty: str,
    out: Any,
    maps: dict[str, Map],
    inputs: dict[str, Any],
    shape: tuple[int, ...] | None = None,
    made: Mapping[str, Callable[[Any], Array | None]] | None = None,
) -> Any:
    """The job of a loss, its outputs allocated or checked: the loss and the maps in order.

    `dtype` is the operands' and `shape` the batch shape where it is not that of `call`'s rows; `made` is the job's.
    """
    _options.choice("reduction", reduction, _options.REDUCTIONS)
    _options.choice("on_empty", on_empty, _options.ON_EMPTY)
    reduced = reduction != "none"
    row_shape = call.row_shape if shape is None else shape
    loss = _arrays.output("out", out, () if reduced else row_shape, (_arrays.row_dtype(dtype),), call.x)
    dtypes = _arrays.map_dtypes(dtype)
    arrays = {n: _arrays.output(m.argument, m.given, m.like.shape, dtypes, m.like, alike=True) for n, m in maps.items()}
    given = [array for array in (out, *(m.given for m in maps.values())) if array is not None]
    in_place = False
    if given:
        outputs = {"out": loss} | {maps[n].argument: array for n, array in arrays.items()}
        operands = {m.argument: m.in_place_of for m in maps.values()}
        in_place = bool(_arrays.refuse_overlap(outputs, inputs, operands))
    if reduced:
        call.total = True
    else:
        call.rows["loss"] = np.atleast_1d(loss) if call.elementwise else loss
    for name, array in arrays.items():
        call.maps[name] = _arrays.classes_last(np.atleast_1d(array), axis)
    return Job(call, (loss, *arrays.values()), reduction, on_empty, given, in_place, made=made or {})


def compute_maps(call: Call, x: Array, axis: int = -1, **given: Any) -> Any:
    """The job of a call whose one result is a map of `x`'s shape; the keyword names it and gives its `out`."""
    ((name, out),) = given.items()
    result = _arrays.output("out", out, x.shape, _arrays.map_dtypes(x.dtype), x, alike=True)
    if out is not None:
        _arrays.refuse_overlap({"out": result}, {"x": x}, {"out": "x"})
    call.maps[name] = _arrays.classes_last(np.atleast_1d(result), axis % max(x.ndim, 1))
    return Job(call, (result,), given=() if out is None else (result,))


def execute(
    call: Call,
    reduction: str = "none",
    on_empty: str = "nan",
    result: Array | None = None,
    given: Sequence[Array] = (),
    in_place: bool = False,
) -> None:
    """Run `call` on its backend; with a reduction, write the reduced loss into `result` (0-d).

    On a GPU nothing may wait for the device, and so all of it, the reduction too, is up to the backend there.
    """
    if type(call.x) is not np.ndarray:
        _dispatch.backend("cupy").execute(call, reduction, on_empty, result)
        return
    mean_gradient = reduction == "mean" and bool(call.maps)
    if in_place or (mean_gradient and (given or not counts_every_row(call))):
        check_targets(call)  # nothing has been written: raise with every array untouched
    scale = denominator(call) if mean_gradient else math.nan
    if mean_gradient:
        if scale == 0 and on_empty == "raise":
            raise_empty()
        call.map_scale = 1.0 / scale if scale else 0.0
    try:
        total = _dispatch.backend().run(call)
    except IndexError:
        for out in given:
            out[...] = np.nan
        check_targets(call)  # names the lowest row, whichever was found first
        raise
    if mean_gradient and scale == 0:
        for out in call.maps.values():
            out[...] = 0
    if result is None:
        return
    if reduction == "mean":
        total = mean(total, scale if mean_gradient else denominator(call), on_empty)
    if SMALLEST <= abs(total) <= LARGEST:
        result[...] = total
    else:
        with np.errstate(all="ignore"):  # a step that costs more than all others here
            result[...] = total


def mean(total: float, denominator: float, on_empty: str) -> float:
    if denominator != 0:
        return total / denominator
    if on_empty == "raise":
        raise_empty()
    return 0.0 if on_empty == "zero" else math.nan


def raise_empty() -> None:
    raise ValueError(
        "no row counts: the mean's denominator is 0 (all rows ignored or of weight 0, or no rows); "
        "pass on_empty='nan' or 'zero' to get a value"
    )
