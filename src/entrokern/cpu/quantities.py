"""Which kernel runs which quantity, and with what: the table that the backend looks calls up in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .._arrays import Array
from .._call import Call
from . import distributions, divergences, elements, lanes
from .blocks import BLOCK
from .distributions import FORM_CODES
from .fast import NOTHING as NO_OPERAND
from .fast import fast_soft_targets, fast_softmax_kl, fast_tables
from .finish import FIELDS, GROUP, ROW_RESULTS
from .lanes import softmax_lanes
from .launch import (
    Arrays,
    ElementWork,
    RecordWork,
    RowWork,
    Run,
    Source,
    Target,
    by_elements,
    by_records,
    by_rows,
    labels_and_ignored,
    row_weights,
    sum_of,
)
from .maps import MAPS
from .operands import Layout, Operand
from .rows import softmax_rows

LOG2E = 1.4426950408889634
LANES_UP_TO = 128  # classes: beyond, a row fills the vectors by itself
TILE_ELEMENTS = 1 << 17  # of a tile: what fits in L2
STREAMED = 1 << 25  # bytes
NOTHING = np.empty(0)


def from_labels(call: Call) -> bool:
    """Whether the rows are logits with labels or without a target: one record per row says it all."""
    return call.form == "logits" and call.y is None


def compute_dtype(call: Call) -> np.dtype[Any]:
    """float32 where its rounding stays within the contract, else float64.

    A softcap can leave a difference far smaller than the logits; with smoothing or a z-loss the gradient
    is a difference of numbers that can be nearly equal.
    """
    if call.x.itemsize == 8 or call.softcap is not None:
        return np.dtype(np.float64)
    mixed = call.label_smoothing != 0.0 or call.z_loss != 0.0
    return np.dtype(np.float64 if mixed and "grad" in call.maps else np.float32)


def in_place_last(call: Call) -> list[str]:
    """The maps' names, the gradient last: it may overwrite the rows that the others are read from."""
    return sorted(call.maps, key=lambda name: name == "grad")


def streams(call: Call) -> bool:
    """Whether maps are written past the caches: they would not stay there, and are not the rows themselves."""
    arrays = call.maps.values()
    return sum(a.nbytes for a in arrays) >= STREAMED and not any(np.may_share_memory(a, call.x) for a in arrays)


def suits_lanes(call: Call, x: Layout) -> bool:
    """Whether one row per lane is the faster family: few classes, or neighbouring rows next to each other.

    Options that need more than a row's record, and the rarer maps, are for the rows family alone.
    """
    plain = call.label_smoothing == 0.0 and call.z_loss == 0.0 and call.quantity != "entropy"
    if call.softcap is not None or not set(call.maps) <= {"softmax", "log_softmax"} | ({"grad"} if plain else set()):
        return False
    rows_adjacent = x.geometry[0] != 1 and x.geometry[-1] == 1
    return call.k <= LANES_UP_TO or (
        bool(rows_adjacent) and lanes.tile_size(call.k, compute_dtype(call)) <= TILE_ELEMENTS
    )


# Each function below makes ready what a call needs but its arrays: these, `Run` and `RowWork` take from the call
# that they are given, which is the first or one like it. So nothing outlives a call, and a small call is cheap.


def softmax(call: Call) -> Run:
    """Statistics of rows of logits, their CE with labels, and the maps of both."""
    wanted = next((name for name in ("loss", "lse") if name in call.rows), "loss")
    return by_records(call, ROW_RESULTS, wanted, softmax_work(call, wanted))


def softmax_work(call: Call, wanted: str) -> RecordWork:
    dtype = compute_dtype(call)
    x = Layout(call.x)
    in_place = x.geometry[0] == 1 and call.softcap is None
    scale = dtype.type(LOG2E / call.temperature)
    w = call.class_weight
    w_mean = 1.0 if w is None else float(w.mean())
    options = np.array(
        [
            1.0 / call.temperature,
            call.unit,
            call.label_smoothing,
            call.z_loss,
            call.softcap or 0.0,
            call.map_scale,
            w_mean,
        ]
    )
    more = call.quantity == "entropy" or not {"entropy", "rank", "argmax"}.isdisjoint(call.rows)
    kinds = MAPS | ({"grad": MAPS["entropy_grad"]} if call.quantity == "entropy" else {})
    maps = [(name, kinds[name], Layout(call.maps[name])) for name in in_place_last(call)]
    in_lanes = suits_lanes(call, x)
    kernel: Any = softmax_lanes if in_lanes else softmax_rows

    def work(call: Call, start: int, stop: int, result: Array, details: Array) -> tuple[int, float]:
        outputs: list[tuple[int, Any, Any]] = [(kind, *out.operand(call.maps[name])) for name, kind, out in maps]
        x_flat, class_weight = x.flat(call.x), NOTHING if call.class_weight is None else call.class_weight
        labels, ignore = labels_and_ignored(call, start, stop)
        weights = row_weights(call, start, stop)
        if in_lanes:
            stage: Any = np.empty(2 * lanes.tile_size(call.k, dtype), dtype)
        else:
            stage = None if in_place else np.empty(2 * BLOCK, dtype)
        records, streaming = np.zeros(FIELDS * GROUP, dtype), streams(call)
        scratch = np.empty(2 * lanes.tile_size(call.k, dtype) if in_lanes else BLOCK, dtype)
        bad, total = -1, 0.0
        for kind, out, geometry in outputs or [(0, None, None)]:
            bad, total = kernel(
                x_flat, x.geometry, start, stop - start, call.k, labels, ignore, weights, class_weight, options,
                scale, stage, records, ROW_RESULTS.index(wanted), result, details.reshape(-1),
                call.total, more, kind, out, geometry, streaming, scratch,
            )  # fmt: skip
            if bad >= 0:
                break
        return bad, total

    return work


def cross_entropy(call: Call) -> Run:
    """CE: from labels by the row's record, else from the target distribution or the given probabilities."""
    return softmax(call) if from_labels(call) else by_rows(call, ("loss",), cross_entropy_work(call))


def cross_entropy_work(call: Call) -> RowWork:
    x = Layout(call.x)
    y = None if call.y is None else Source(call.y, (call.x.dtype, np.uint8, np.int64, np.float64))
    fast = None if y is None else fast_soft_targets(call, x, y)
    kinds = {"grad": 0, "hess": 1}
    maps = [(name, kinds[name], Layout(call.maps[name])) for name in in_place_last(call)]
    geometry_of_none = np.array([1, 0, 1, 1, 0])

    def work(call: Call, start: int, stop: int, results: Array) -> int:
        outputs: list[tuple[int, Any, Any]] = [(kind, *out.operand(call.maps[name])) for name, kind, out in maps]
        a = x.operand(call.x)
        b = Operand(NOTHING, geometry_of_none) if y is None else y.rows(call.y, start, stop)
        class_weight = NOTHING if call.class_weight is None else call.class_weight
        labels, ignore = labels_and_ignored(call, start, stop)
        weights, stage = row_weights(call, start, stop), np.empty(distributions.SLOTS * BLOCK)
        bad, rows = -1, np.arange(stop - start)
        if fast is not None:
            rows = fast(a, b, start, weights, results)
            if not rows.size:
                return -1
        for kind, out, geometry in outputs or [(0, None, None)]:
            bad = distributions.cross_entropy_rows(
                *a, *b, start, rows, call.k, FORM_CODES[call.form], labels, ignore, weights,
                class_weight, call.label_smoothing, call.temperature, call.softcap or 0.0, call.z_loss, call.unit,
                call.map_scale, stage, results, kind, out, geometry,
            )  # fmt: skip
            if bad >= 0:
                break
        return int(bad)

    return work


def score(call: Call) -> Run:
    """`softmax`, and for a target distribution its CE from the same chunk of rows, still in cache."""
    if call.y is None:
        return softmax(call)
    of_target = cross_entropy_work(call)
    if set(call.rows) <= {"loss"}:
        return by_rows(call, ("loss",), of_target)
    of_rows = softmax_work(replace(call, y=None, maps={}), "loss")

    def work(call: Call, start: int, stop: int, result: Array, details: Array) -> tuple[int, float]:
        of_rows(call, start, stop, np.empty(0, result.dtype), details)  # first: a gradient may overwrite the rows
        bad = of_target(call, start, stop, details[:1])
        result[...] = details[0]
        return bad, 0.0

    return by_records(call, ROW_RESULTS, "loss", work)


def entropy(call: Call) -> Run:
    if call.form == "logits":
        return softmax(call)  # a statistic of the row: without labels the kernel takes it for the loss
    x, grad = Layout(call.x), Target(call.maps.get("grad"))
    fast = fast_tables(call, x) if call.form == "probs" and not call.maps else None

    def work(call: Call, start: int, stop: int, results: Array) -> int:
        p, weights = x.operand(call.x), row_weights(call, start, stop)
        left = np.arange(stop - start) if fast is None else fast(p, NO_OPERAND, start, weights, results)
        if left.size:
            distributions.entropy_rows(
                *p, start, left, call.k, FORM_CODES[call.form], call.unit, call.map_scale, weights,
                np.empty(distributions.SLOTS * BLOCK), results, *grad.of(call.maps.get("grad")),
            )  # fmt: skip
        return -1

    return by_rows(call, ("loss",), work)


def divergence(call: Call) -> Run:
    x = Layout(call.x)
    y = Source(call.y, (call.x.dtype, np.float64))
    grad_p, grad_q = Target(call.maps.get("grad_p")), Target(call.maps.get("grad_q"))
    fast = None
    if not call.maps and call.form == call.y_form == "probs":
        fast = fast_tables(call, x, y)
    elif not call.maps and call.form == call.y_form == "logits" and call.quantity == "kl_divergence":
        fast = fast_softmax_kl(call, x, y)

    def work(call: Call, start: int, stop: int, results: Array) -> int:
        p, q, weights = x.operand(call.x), y.rows(call.y, start, stop), row_weights(call, start, stop)
        left = np.arange(stop - start) if fast is None else fast(p, q, start, weights, results)
        if left.size:
            divergences.divergence_rows(
                *p, *q, start, left, call.k, call.quantity == "js_divergence", call.js_weight,
                FORM_CODES[call.form], FORM_CODES[call.y_form], call.temperature, call.unit, call.map_scale, weights,
                np.empty(distributions.SLOTS * BLOCK), results,
                *grad_p.of(call.maps.get("grad_p")), *grad_q.of(call.maps.get("grad_q")),
            )  # fmt: skip
        return -1

    return by_rows(call, ("loss",), work)


def binary_cross_entropy(call: Call) -> Run:
    if call.elementwise:
        return by_elements(call, binary_arrays, binary_elements)
    binary = binary_work(binary_arrays(call))

    def work(call: Call, start: int, stop: int, results: Array) -> int:
        return binary(call, binary_arrays(call), start, stop - start, 0, call.k, results)

    return by_rows(call, ("loss",), work)


def binary_arrays(call: Call) -> Arrays:
    return {
        "x": call.x,
        "t": call.y,
        "pos": call.pos_weight,
        "weight": call.sample_weight if call.elementwise else None,
        "loss": call.rows.get("loss") if call.elementwise else None,
        "grad": call.maps.get("grad"),
        "hess": call.maps.get("hess"),
    }


def binary_elements(arrays: Arrays) -> ElementWork:
    binary = binary_work(arrays)

    def work(call: Call, arrays: Arrays, first: int, n: int, low: int, high: int) -> float:
        results = np.zeros((1, n))
        if binary(call, arrays, first, n, low, high, results) >= 0:
            raise IndexError(first)
        return sum_of(results[0])

    return work


def binary_work(arrays: Arrays) -> Callable[[Call, Arrays, int, int, int, int, Array], int]:
    x_dtype = arrays["x"].dtype  # type: ignore[union-attr]
    whole_numbers = arrays["t"].dtype.kind in "iu"  # type: ignore[union-attr]
    dtypes = {"x": (x_dtype,), "t": (x_dtype, np.uint8, np.float64), "pos": (np.float64,), "weight": (np.float64,)}
    sources = [(name, Source(arrays[name], allowed)) for name, allowed in dtypes.items()]
    targets = [(name, Target(arrays[name])) for name in ("loss", "grad", "hess")]

    def work(call: Call, arrays: Arrays, first: int, n: int, low: int, high: int, results: Array) -> int:
        inputs = [part for name, source in sources for part in source.rows(arrays[name], first, first + n)]
        outputs = [part for name, target in targets for part in target.of(arrays[name])]
        ignore = NOTHING if call.ignore_index is None else np.array([call.ignore_index], np.float64)
        weights = NOTHING if call.elementwise else row_weights(call, first, first + n)
        return int(
            elements.binary_rows(
                *inputs, first, n, low, high, whole_numbers, not call.elementwise, FORM_CODES[call.form],
                call.label_smoothing, ignore, call.unit, call.map_scale, weights,
                np.empty(elements.SLOTS * BLOCK), results, *outputs,
            )
        )  # fmt: skip

    return work


def information(call: Call) -> Run:
    x_dtype = call.x.dtype

    def prepare(arrays: Arrays) -> ElementWork:
        x, out = Source(arrays["x"], (x_dtype,)), Target(arrays["out"])

        def work(call: Call, arrays: Arrays, first: int, n: int, low: int, high: int) -> float:
            elements.information_rows(
                *x.rows(arrays["x"], first, first + n), first, n, low, high, call.unit,
                np.empty(elements.SLOTS * BLOCK), *out.of(arrays["out"]),
            )  # fmt: skip
            return 0.0

        return work

    return by_elements(call, lambda call: {"x": call.x, "out": call.maps["information"]}, prepare)


def kl_estimate(call: Call) -> Run:
    x_dtype = call.x.dtype

    def prepare(arrays: Arrays) -> ElementWork:
        x, y = Source(arrays["x"], (x_dtype,)), Source(arrays["y"], (x_dtype, np.float64))
        out = Target(arrays["out"])

        def work(call: Call, arrays: Arrays, first: int, n: int, low: int, high: int) -> float:
            results = np.zeros((1, n))
            elements.kl_estimate_rows(
                *x.rows(arrays["x"], first, first + n), *y.rows(arrays["y"], first, first + n),
                first, n, low, high, int(call.estimator[1]), np.empty(elements.SLOTS * BLOCK), results,
                *out.of(arrays["out"]),
            )  # fmt: skip
            return sum_of(results[0])

        return work

    return by_elements(call, lambda call: {"x": call.x, "y": call.y, "out": call.rows.get("loss")}, prepare)


QUANTITIES: dict[str, Callable[[Call], Run]] = {
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "entropy": entropy,
    "information": information,
    "js_divergence": divergence,
    "kl_divergence": divergence,
    "kl_estimate": kl_estimate,
    "score": score,
    "softmax": softmax,
}
