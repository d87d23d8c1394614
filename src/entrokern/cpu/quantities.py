"""Which kernel runs which quantity, and with what: the table that the backend looks calls up in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .._arrays import Array
from .._call import Call
from . import binary, distributions, divergences, elements, groups, lanes, picked
from .blocks import BLOCK
from .distributions import FORM_CODES
from .fast import NOTHING as NO_OPERAND
from .fast import fast_soft_targets, fast_softmax_pairs, fast_tables
from .finish import MAP_SCALE, RECORDS, ROW_RESULTS, W_MEAN
from .groups import softmax_groups
from .lanes import softmax_lanes
from .launch import (
    Arrays,
    RecordWork,
    RowWork,
    Run,
    Source,
    Target,
    by_elements,
    by_records,
    by_rows,
    deliver,
    labels_and_ignored,
    row_weights,
    streams,
    sum_of,
)
from .maps import MAPS
from .operands import Layout, Operand, converted, operand, optional
from .rows import softmax_rows
from .runs import RUN
from .simd import BYTES

LOG2E = 1.4426950408889634
LANES_UP_TO, GROUPS_UP_TO = 4, 128  # vectors in a row: where a row fills them, and where its end no longer matters
STRIDED_LANES_UP_TO = 128  # classes
TILE_ELEMENTS = 1 << 17  # of a tile: what fits in L2
NOTHING = np.empty(0)


def from_labels(call: Call) -> bool:
    """Whether the rows are logits with labels or without a target: one record per row says it all."""
    return call.form == "logits" and call.y is None


def compute_dtype(call: Call) -> np.dtype[Any]:
    """float32 where its rounding stays within the contract, else float64.

    A softcap can leave a difference far smaller than the logits; with smoothing or a z-loss the gradient
    is a difference of numbers that can be nearly equal. Results asked for in float64 are for such a difference.
    """
    if call.x.itemsize == 8 or call.softcap is not None or results_in_float64(call):
        return np.dtype(np.float64)
    mixed = call.label_smoothing != 0.0 or call.z_loss != 0.0
    return np.dtype(np.float64 if mixed and "grad" in call.maps else np.float32)


def results_in_float64(call: Call) -> bool:
    return any(row.dtype == np.float64 for row in call.rows.values())


def in_place_last(call: Call) -> list[str]:
    """The maps' names, the gradient last: it may overwrite the rows that the others are read from."""
    return sorted(call.maps, key=lambda name: name == "grad")


def family(call: Call, x: Layout) -> str:
    """The fastest of three: ``"lanes"`` for few classes or neighbouring rows next to each other, ``"groups"``
    for rows of moderate length in one piece, ``"rows"`` for all others.

    Options that need more than a row's record, and the entropy's gradient, are for the rows family alone.
    """
    plain = call.label_smoothing == 0.0 and call.z_loss == 0.0 and call.quantity != "entropy"
    fast_maps = {"softmax", "log_softmax"} | ({"grad", "hess"} if plain else set())
    widened = call.x.itemsize < 8 and results_in_float64(call)
    if widened or call.softcap is not None or not set(call.maps) <= fast_maps:
        return "rows"
    dtype = compute_dtype(call)
    if x.geometry[0] == 1:
        vectors = call.k * dtype.itemsize / BYTES
        return "lanes" if vectors <= LANES_UP_TO else "groups" if vectors <= GROUPS_UP_TO else "rows"
    rows_adjacent = x.geometry[-1] == 1 and lanes.tile_size(call.k, dtype) <= TILE_ELEMENTS
    return "lanes" if rows_adjacent or call.k <= STRIDED_LANES_UP_TO else "rows"


# Each function below makes ready what a call needs but its arrays and the denominator that gradients are divided by:
# these, `Run` and `RowWork` take from the call that they are given, which is the first or one like it. So nothing
# outlives a call, and a small call is cheap.


def softmax(call: Call) -> Run:
    """Statistics of rows of logits, their CE with labels, and the maps of both."""
    return by_records(call, ROW_RESULTS, softmax_work(call))


def softmax_work(call: Call) -> RecordWork:
    dtype = compute_dtype(call)
    x = Layout(call.x)
    in_place = x.geometry[0] == 1 and call.softcap is None
    scale = dtype.type(LOG2E / call.temperature)
    of_each_call = np.nan  # the scale of maps, and the mean of class weights
    constants = np.array(
        [
            1.0 / call.temperature,
            call.unit,
            call.label_smoothing,
            call.z_loss,
            call.softcap or 0.0,
            of_each_call,
            of_each_call,
        ]
    )
    more = call.quantity == "entropy" or not {"entropy", "rank"}.isdisjoint(call.rows)
    name = next((name for name in call.maps if name != "hess"), "grad")  # one at most beside the Hessian
    kind = MAPS["entropy_grad" if call.quantity == "entropy" else name]
    out, hess = Target(call.maps.get(name)), Target(call.maps.get("hess"))
    chosen = family(call, x)
    staged = 0 if x.geometry[0] == 1 else call.k * lanes.stage_rows(call.k, dtype)
    tile = lanes.tile_size(call.k, dtype)
    k, with_hess, none = call.k, "hess" in call.maps, np.empty(0, dtype)
    kernel: Any = {"lanes": softmax_lanes, "groups": softmax_groups, "rows": softmax_rows}[chosen]

    def work(call: Call, start: int, stop: int, results: tuple[Array, ...]) -> tuple[int, float]:
        x_flat, class_weight = x.flat(call.x), NOTHING if call.class_weight is None else call.class_weight
        options = constants.copy()
        options[MAP_SCALE] = call.map_scale
        smoothed = call.class_weight is not None and call.label_smoothing > 0.0
        options[W_MEAN] = class_weight.mean() if smoothed else 1.0
        labels, ignore = labels_and_ignored(call, start, stop)
        weights = row_weights(call, start, stop)
        stage: Any
        if chosen == "lanes":
            stages = (np.empty(staged, dtype), np.empty(staged, dtype)) if staged else (none, none)
            stage = (np.empty(tile, dtype), *stages)
            scratch = np.empty((5 if with_hess else 2) * tile, dtype)
        elif chosen == "groups":
            stage = np.empty(groups.tiles_size(dtype), dtype)
            scratch = np.empty(groups.room(k, dtype, 1 + with_hess), dtype)
        else:
            stage, scratch = None if in_place else np.empty(2 * BLOCK, dtype), np.empty(BLOCK, dtype)
        bad, total = kernel(
            x_flat, x.geometry, start, stop - start, k, labels, ignore, weights, class_weight, options, scale,
            stage, np.zeros(RECORDS, dtype), results, call.total, more, kind, *out.of(call.maps.get(name)),
            *hess.of(call.maps.get("hess")), streams(call), scratch,
        )  # fmt: skip
        return int(bad), float(total)

    return work


def cross_entropy(call: Call) -> Run:
    """CE: with labels by a row's record or, of given probabilities, by its one number, else by all its terms."""
    if from_labels(call):
        return softmax(call)
    of_one = call.y is None and call.label_smoothing == 0.0
    return by_rows(call, ("loss",), (picked_work if of_one else cross_entropy_work)(call))


def picked_work(call: Call) -> RowWork:
    x, grad = Layout(call.x), Target(call.maps.get("grad"))
    zero: Any = np.float64(0) if call.x.itemsize == 8 else np.float32(0)
    logs, unit, streaming = call.form == "log_probs", call.unit, streams(call)

    def work(call: Call, start: int, stop: int, results: Array) -> int:
        class_weight = NOTHING if call.class_weight is None else call.class_weight
        return int(
            picked.picked_rows(
                *x.operand(call.x), start, stop - start, call.k, logs, *labels_and_ignored(call, start, stop),
                row_weights(call, start, stop), class_weight, unit, call.map_scale, zero,
                np.zeros(picked.SLOTS * picked.ROWS), results[0], *grad.of(call.maps.get("grad")), streaming,
                np.zeros(BLOCK, zero.dtype),
            )
        )  # fmt: skip

    return work


def cross_entropy_work(call: Call) -> RowWork:
    x = Layout(call.x)
    y = None if call.y is None else Source(call.y, (call.x.dtype, np.uint8, np.int64, np.float64))
    fast = None if y is None else fast_soft_targets(call, x, y, Target(call.maps.get("grad")))
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
            rows = fast(call, a, b, start, weights, results)
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
    of_rows = softmax_work(replace(call, y=None, maps={}))

    def work(call: Call, start: int, stop: int, results: tuple[Array, ...]) -> tuple[int, float]:
        loss, *others = results
        of_rows(call, start, stop, (loss[:0], *others))  # first: a gradient may overwrite the rows
        exact = np.empty((1, stop - start))
        bad = of_target(call, start, stop, exact)
        if loss.size:
            deliver([(loss, exact[0])], 0, stop - start)
        return bad, 0.0

    return by_records(call, ROW_RESULTS, work)


def entropy(call: Call) -> Run:
    if call.form == "logits":
        return softmax(call)  # a statistic of the row: without labels the kernel takes it for the loss
    x, grad = Layout(call.x), Target(call.maps.get("grad"))
    fast = fast_tables(call, x, grad_p=grad)

    def work(call: Call, start: int, stop: int, results: Array) -> int:
        p, weights = x.operand(call.x), row_weights(call, start, stop)
        left = np.arange(stop - start) if fast is None else fast(call, p, NO_OPERAND, start, weights, results)
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
    of_softmaxes = call.form == call.y_form == "logits"
    fast = (fast_softmax_pairs if of_softmaxes else fast_tables)(call, x, y, grad_p, grad_q)

    def work(call: Call, start: int, stop: int, results: Array) -> int:
        p, q, weights = x.operand(call.x), y.rows(call.y, start, stop), row_weights(call, start, stop)
        left = np.arange(stop - start) if fast is None else fast(call, p, q, start, weights, results)
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
        return binary_elements

    def work(call: Call, start: int, stop: int, results: Array) -> int:
        arrays = binary_arrays(call)
        if call.sample_weight is not None:
            arrays["weight"] = np.broadcast_to(call.sample_weight[..., None], call.x.shape)
        return binary_run(call)(arrays, start, stop - start, results)

    return by_rows(call, ("loss",), work)


def binary_arrays(call: Call) -> Arrays:
    return {
        "x": call.x,
        "t": call.y,
        "pos": call.pos_weight,
        "weight": call.sample_weight,
        "loss": call.rows.get("loss") if call.elementwise else None,
        "grad": call.maps.get("grad"),
        "hess": call.maps.get("hess"),
    }


def binary_elements(call: Call) -> float:
    run = binary_run(call)

    def work(arrays: dict[str, Any], first: int, n: int) -> float:
        results = np.zeros((1, n))
        if run(arrays, first, n, results) >= 0:
            raise IndexError(first)
        return sum_of(results[0])

    return by_elements(binary_arrays(call), work)


Binary = Callable[[dict[str, Any], int, int, Array], int]  # (arrays, first row, rows, results) → first bad target or -1


def binary_run(call: Call) -> Binary:
    """With a weight that all elements share, which is data: made for each call, or chunk of its rows, alone."""
    return binary_of_log_probs(call) if call.form == "log_probs" else binary_in_vectors(call)


def binary_in_vectors(call: Call) -> Binary:
    assert call.y is not None
    whole = call.y.dtype.kind in "biu"
    smoothed = call.label_smoothing != 0.0
    ignored = ignored_as_stored(call.ignore_index, call.y.dtype)
    # float32 holds what the contract asks for, but not all targets; the slope for whole targets takes it that
    # one of the two weights is 0.
    wide = call.x.itemsize == 8 or (not whole and call.y.itemsize >= 8) or abs(ignored) >= 1 << 24
    dtype = np.dtype(np.float64 if wide or (whole and smoothed and "grad" in call.maps) else np.float32)
    keep, rest = call.unit * (1.0 - call.label_smoothing), call.unit * 0.5 * call.label_smoothing
    one_for_all, pos_weight = False, 1.0
    if call.pos_weight is not None and not any(call.pos_weight.strides):
        one_for_all, pos_weight = True, float(call.pos_weight.flat[0])
    options = np.array([keep, rest, pos_weight, call.map_scale, ignored])
    form = binary.LOGITS if call.form == "logits" else binary.PROBABILITIES
    elementwise = call.elementwise  # what runs later keeps no array of the call

    def run(arrays: dict[str, Any], first: int, n: int, results: Array) -> int:
        x, grad, hess = arrays["x"], arrays["grad"], arrays["hess"]
        pos = None if one_for_all else arrays["pos"]
        k = x.shape[-1]
        inputs = (
            with_spare(operand(x)), with_spare(targets_as_stored(arrays["t"], first, first + n)),
            with_spare(weights_as_stored(pos, first, first + n)),
            with_spare(weights_as_stored(arrays["weight"], first, first + n)),
        )  # fmt: skip
        outputs = with_spare(optional(grad)), with_spare(optional(hess))
        zero = dtype.type(0)
        if not elementwise and k <= binary.SHORT:
            values, tile = np.empty(2 * RUN, dtype), np.empty(RUN, dtype)
            return int(
                binary.binary_short_rows(form, *inputs, *outputs, first, n, k, options, zero, values, tile, results)
            )
        group = max(1, RUN // k) if elementwise else 1
        loss = with_spare(optional(arrays["loss"]))
        return int(
            binary.binary_in_line(
                form, *inputs, loss, *outputs, first, n, k, group, not elementwise, options, zero, results
            )
        )

    return run


def binary_of_log_probs(call: Call) -> Binary:
    assert call.y is not None
    ignore = np.array([] if call.ignore_index is None else [call.ignore_index], np.float64)
    whole_numbers, summed = call.y.dtype.kind in "iu", not call.elementwise
    smoothing, unit, map_scale = call.label_smoothing, call.unit, call.map_scale

    def run(arrays: dict[str, Any], first: int, n: int, results: Array) -> int:
        def source(name: str, dtypes: tuple[Any, ...]) -> tuple[Any, Any]:
            view = arrays[name]
            return Source(view, dtypes).rows(view, first, first + n)

        x_dtype = arrays["x"].dtype
        return int(
            elements.binary_rows(
                *source("x", (x_dtype,)), *source("t", (x_dtype, np.uint8, np.float64)),
                *source("pos", (np.float64,)), *source("weight", (np.float64,)), first, n, arrays["x"].shape[-1],
                whole_numbers, summed, smoothing, ignore, unit, map_scale, np.empty(elements.SLOTS * BLOCK),
                results,
                *optional(arrays["loss"]), *optional(arrays["grad"]),
            )
        )  # fmt: skip

    return run


# Integers as the kernels of logits read them, by their size: only 0, 1 and what is ignored matter, not their signs.
WHOLE: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int32),
    4: np.dtype(np.int32),
    8: np.dtype(np.int64),
}


def targets_as_stored(t: Array, start: int, stop: int) -> Operand:
    if t.dtype.kind in "biu":
        stored = WHOLE[t.itemsize]
        return operand(t.view(stored)) if stored.itemsize == t.itemsize else converted(t, start, stop, stored)
    return operand(t) if t.itemsize <= 8 else converted(t, start, stop)


def ignored_as_stored(ignored: int | None, dtype: np.dtype[Any]) -> float:
    """What an ignored target looks like to the kernels; NaN, which no target equals, for none."""
    if ignored is None:
        return np.nan
    if dtype.kind not in "iu" or dtype.itemsize == 2:
        return float(ignored)
    limits = np.iinfo(dtype)
    fits = limits.min <= ignored <= limits.max
    return float(np.array(ignored, dtype).view(WHOLE[dtype.itemsize])) if fits else np.nan


def weights_as_stored(weights: Array | None, start: int, stop: int) -> Operand | tuple[None, None]:
    if weights is None:
        return None, None
    return Source(weights, (np.float32, np.float64)).rows(weights, start, stop)


def with_spare(part: tuple[Any, Any]) -> Any:
    """An operand with a block of memory for runs that do not lie in line, as the elementwise kernels take it."""
    flat, geometry = part
    return None if flat is None else (flat, geometry, np.empty(RUN, flat.dtype))


def information_elements(call: Call) -> float:
    zero = np.float64(0) if call.x.itemsize == 8 else np.float32(0)

    def work(arrays: dict[str, Any], first: int, n: int) -> float:
        x, out = arrays["x"], arrays["out"]
        k = x.shape[-1]
        elements.information_rows(
            with_spare(operand(x)), with_spare(operand(out)), first, n, k, max(1, RUN // k), call.unit, zero
        )
        return 0.0

    return by_elements({"x": call.x, "out": call.maps["information"]}, work)


def kl_estimate_elements(call: Call) -> float:
    estimator = int(call.estimator[1])

    def work(arrays: dict[str, Any], first: int, n: int) -> float:
        x, y = arrays["x"], arrays["y"]
        k = x.shape[-1]
        results = np.zeros((1, n))
        y_part = Source(y, (x.dtype, np.float64)).rows(y, first, first + n)
        elements.kl_estimate_rows(
            with_spare(operand(x)), with_spare(y_part), with_spare(optional(arrays["out"])), first, n, k,
            max(1, RUN // k), estimator, results,
        )  # fmt: skip
        return sum_of(results[0])

    return by_elements({"x": call.x, "y": call.y, "out": call.rows.get("loss")}, work)


QUANTITIES: dict[str, Callable[[Call], Run]] = {
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "entropy": entropy,
    "information": lambda call: information_elements,
    "js_divergence": divergence,
    "kl_divergence": divergence,
    "kl_estimate": lambda call: kl_estimate_elements,
    "score": score,
    "softmax": softmax,
}
