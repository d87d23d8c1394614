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
from .launch import Source, by_elements, by_records, by_rows, labels_and_ignored, row_weights, target
from .maps import MAPS
from .operands import Operand, operand
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


def suits_lanes(call: Call, x: Operand) -> bool:
    """Whether one row per lane is the faster family: few classes, or neighbouring rows next to each other.

    Options that need more than a row's record, and the rarer maps, are for the rows family alone.
    """
    plain = call.label_smoothing == 0.0 and call.z_loss == 0.0
    if call.softcap is not None or not set(call.maps) <= {"softmax", "log_softmax"} | ({"grad"} if plain else set()):
        return False
    rows_adjacent = x.geometry[0] != 1 and x.geometry[-1] == 1
    return call.k <= LANES_UP_TO or (
        bool(rows_adjacent) and lanes.tile_size(call.k, compute_dtype(call)) <= TILE_ELEMENTS
    )


# (first row, last, the wanted result of the rows, details of the rows) → first bad target or -1, sum of losses
Work = Callable[[int, int, Array, Array], tuple[int, float]]


def softmax(call: Call) -> float:
    """Statistics of rows of logits, their CE with labels, and the maps of both."""
    wanted = next((name for name in ("loss", "lse") if name in call.rows), "loss")
    return by_records(call, ROW_RESULTS, wanted, softmax_work(call, wanted))


def softmax_work(call: Call, wanted: str) -> Work:
    dtype = compute_dtype(call)
    x = operand(call.x)
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
            streams(call),
        ]
    )
    more = call.quantity == "entropy" or not {"entropy", "rank", "argmax"}.isdisjoint(call.rows)
    outputs: list[tuple[int, Any, Any]] = [(MAPS[n], *operand(call.maps[n])) for n in in_place_last(call)]
    class_weight = NOTHING if w is None else w
    in_lanes = suits_lanes(call, x)
    kernel: Any = softmax_lanes if in_lanes else softmax_rows

    def work(start: int, stop: int, result: Array, details: Array) -> tuple[int, float]:
        labels, ignore = labels_and_ignored(call, start, stop)
        weights = row_weights(call, start, stop)
        if in_lanes:
            stage: Any = np.empty(2 * lanes.tile_size(call.k, dtype), dtype)
        else:
            stage = None if in_place else np.empty(2 * BLOCK, dtype)
        records = np.zeros(FIELDS * GROUP, dtype)
        scratch = np.empty(max(BLOCK, lanes.tile_size(call.k, dtype)) if in_lanes else BLOCK, dtype)
        bad, total = -1, 0.0
        for kind, out, geometry in outputs or [(0, None, None)]:
            bad, total = kernel(
                x.flat, x.geometry, start, stop - start, call.k, labels, ignore, weights, class_weight, options,
                scale, stage, records, ROW_RESULTS.index(wanted), result, details.reshape(-1),
                call.total, more, kind, out, geometry, scratch,
            )  # fmt: skip
            if bad >= 0:
                break
        return bad, total

    return work


def cross_entropy(call: Call) -> float:
    """CE: from labels by the row's record, else from the target distribution or the given probabilities."""
    return softmax(call) if from_labels(call) else by_rows(call, ("loss",), cross_entropy_work(call))


def cross_entropy_work(call: Call) -> Callable[[int, int, Array], int]:
    x = operand(call.x)
    y = None if call.y is None else Source(call.y, (call.x.dtype, np.uint8, np.int64, np.float64))
    fast = None if y is None else fast_soft_targets(call, x, y)
    kinds = {"grad": 0, "hess": 1}
    outputs: list[tuple[int, Any, Any]] = [(kinds[n], *operand(call.maps[n])) for n in in_place_last(call)]
    class_weight = NOTHING if call.class_weight is None else call.class_weight
    geometry_of_none = np.array([1, 0, 1, 1, 0])

    def work(start: int, stop: int, results: Array) -> int:
        b = Operand(NOTHING, geometry_of_none) if y is None else y.rows(start, stop)
        labels, ignore = labels_and_ignored(call, start, stop)
        weights, stage = row_weights(call, start, stop), np.empty(distributions.SLOTS * BLOCK)
        bad, rows = -1, np.arange(stop - start)
        if fast is not None:
            rows = fast(start, b, weights, results)
            if not rows.size:
                return -1
        for kind, out, geometry in outputs or [(0, None, None)]:
            bad = distributions.cross_entropy_rows(
                *x, *b, start, rows, call.k, FORM_CODES[call.form], labels, ignore, weights,
                class_weight, call.label_smoothing, call.temperature, call.softcap or 0.0, call.z_loss, call.unit,
                call.map_scale, stage, results, kind, out, geometry,
            )  # fmt: skip
            if bad >= 0:
                break
        return int(bad)

    return work


def score(call: Call) -> float:
    """`softmax`, and for a target distribution its CE from the same chunk of rows, still in cache."""
    if call.y is None:
        return softmax(call)
    of_target = cross_entropy_work(call)
    if set(call.rows) <= {"loss"}:
        return by_rows(call, ("loss",), of_target)
    of_rows = softmax_work(replace(call, y=None, maps={}), "loss")

    def work(start: int, stop: int, result: Array, details: Array) -> tuple[int, float]:
        of_rows(start, stop, np.empty(0, result.dtype), details)  # first: a gradient may overwrite the rows
        bad = of_target(start, stop, details[:1])
        result[...] = details[0]
        return bad, 0.0

    return by_records(call, ROW_RESULTS, "loss", work)


def entropy(call: Call) -> float:
    if call.form == "logits":
        # A statistic of the row: without labels the kernel takes it for the loss.
        if "grad" in call.maps:
            call.maps = {"entropy_grad": call.maps["grad"]}
        return softmax(call)
    x = operand(call.x)
    grad, grad_geometry = target(call.maps.get("grad"))
    fast = fast_tables(call, x) if call.form == "probs" and not call.maps else None

    def work(start: int, stop: int, results: Array) -> int:
        weights = row_weights(call, start, stop)
        left = np.arange(stop - start) if fast is None else fast(start, NO_OPERAND, weights, results)
        if left.size:
            distributions.entropy_rows(
                *x, start, left, call.k, FORM_CODES[call.form], call.unit, call.map_scale, weights,
                np.empty(distributions.SLOTS * BLOCK), results, grad, grad_geometry,
            )  # fmt: skip
        return -1

    return by_rows(call, ("loss",), work)


def divergence(call: Call) -> float:
    assert call.y is not None
    x = operand(call.x)
    y = Source(call.y, (call.x.dtype, np.float64))
    grad_p, grad_q = target(call.maps.get("grad_p")), target(call.maps.get("grad_q"))
    fast = None
    if not call.maps and call.form == call.y_form == "probs":
        fast = fast_tables(call, x, y)
    elif not call.maps and call.form == call.y_form == "logits" and call.quantity == "kl_divergence":
        fast = fast_softmax_kl(call, x, y)

    def work(start: int, stop: int, results: Array) -> int:
        q, weights = y.rows(start, stop), row_weights(call, start, stop)
        left = np.arange(stop - start) if fast is None else fast(start, q, weights, results)
        if left.size:
            divergences.divergence_rows(
                *x, *q, start, left, call.k, call.quantity == "js_divergence", call.js_weight,
                FORM_CODES[call.form], FORM_CODES[call.y_form], call.temperature, call.unit, call.map_scale, weights,
                np.empty(distributions.SLOTS * BLOCK), results, *grad_p, *grad_q,
            )  # fmt: skip
        return -1

    return by_rows(call, ("loss",), work)


def binary_cross_entropy(call: Call) -> float:
    assert call.y is not None
    ignore = np.array([] if call.ignore_index is None else [call.ignore_index], np.float64)
    whole_numbers = call.y.dtype.kind in "iu"

    def binary(arrays: dict[str, Array | None], first: int, n: int, low: int, high: int, results: Array) -> int:
        def source(name: str, dtypes: tuple[Any, ...]) -> tuple[Any, Any]:
            view = arrays[name]
            return (None, None) if view is None else Source(view, dtypes).rows(first, first + n)

        x_dtype = arrays["x"].dtype  # type: ignore[union-attr]
        weights = NOTHING if call.elementwise else row_weights(call, first, first + n)
        return int(
            elements.binary_rows(
                *source("x", (x_dtype,)), *source("t", (x_dtype, np.uint8, np.float64)),
                *source("pos", (np.float64,)), *source("weight", (np.float64,)), first, n, low, high,
                whole_numbers, not call.elementwise, FORM_CODES[call.form], call.label_smoothing, ignore, call.unit,
                call.map_scale, weights, np.empty(elements.SLOTS * BLOCK), results,
                *target(arrays["loss"]), *target(arrays["grad"]), *target(arrays["hess"]),
            )
        )  # fmt: skip

    arrays = {
        "x": call.x,
        "t": call.y,
        "pos": call.pos_weight,
        "weight": call.sample_weight if call.elementwise else None,
        "loss": call.rows.get("loss") if call.elementwise else None,
        "grad": call.maps.get("grad"),
        "hess": call.maps.get("hess"),
    }
    if not call.elementwise:
        return by_rows(
            call,
            ("loss",),
            lambda start, stop, results: binary(arrays, start, stop - start, 0, call.k, results),
        )

    def work(arrays: dict[str, Array | None], first: int, n: int, low: int, high: int) -> float:
        results = np.zeros((1, n))
        if binary(arrays, first, n, low, high, results) >= 0:
            raise IndexError(first)
        return float(results.sum())

    return by_elements(arrays, work)


def information(call: Call) -> float:
    def work(arrays: dict[str, Array | None], first: int, n: int, low: int, high: int) -> float:
        x, out = arrays["x"], arrays["out"]
        assert x is not None
        elements.information_rows(
            *operand(x), first, n, low, high, call.unit,
            np.empty(elements.SLOTS * BLOCK), *target(out),
        )  # fmt: skip
        return 0.0

    return by_elements({"x": call.x, "out": call.maps["information"]}, work)


def kl_estimate(call: Call) -> float:
    def work(arrays: dict[str, Array | None], first: int, n: int, low: int, high: int) -> float:
        x, y = arrays["x"], arrays["y"]
        assert x is not None
        assert y is not None
        results = np.zeros((1, n))
        elements.kl_estimate_rows(
            *operand(x), *Source(y, (x.dtype, np.float64)).rows(first, first + n),
            first, n, low, high, int(call.estimator[1]), np.empty(elements.SLOTS * BLOCK), results,
            *target(arrays["out"]),
        )  # fmt: skip
        return float(results.sum())

    return by_elements({"x": call.x, "y": call.y, "out": call.rows.get("loss")}, work)


QUANTITIES: dict[str, Callable[[Call], float]] = {
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
