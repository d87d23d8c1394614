"""Later sweeps over a slice of classes, of rows whose normaliser is known from all slices."""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np

from .. import _threads as threads
from .._arrays import Array
from .._call import Call
from .blocks import BLOCK, CLASS_STRIDE, block_of, load, load_one, row_start
from .compile import inline, kernel
from .distributions import FORM_CODES, SLOTS, write_target_map
from .divergences import sum_pair, write_pair
from .finish import SMOOTHING, Z_LOSS
from .launch import Source, chunk_rows, streams
from .maps import GRAD, MAPS, write_map
from .math import cast
from .memory import fence, vector
from .operands import FLOAT64, INT64, Layout, Operand, column, optional, with_whole_elements
from .quantities import LOG2E, in_place_last
from .row_groups import fill, place_of
from .statistics import block_max, block_size

TARGET_MAPS = {"grad": 0, "hess": 1}
NO_TARGET = Operand(np.empty(0), np.array([1, 0, 1, 1, 0]))


def in_whole_elements(work: Any) -> Any:
    """`work` on a call of `with_whole_elements`; what it writes to copies goes to the call's own maps."""

    @wraps(work)
    def run(call: Call, *others: Any) -> Any:
        whole = with_whole_elements(call)
        result = work(whole, *others)
        for name, out in call.maps.items():
            if whole.maps[name] is not out:
                out[...] = whole.maps[name]
        return result

    return run


@inline
def block_of_largest(x, start, stride, k, m, stage, like):
    """Where the block begins that holds a logit of `m`; -1 if the slice has none."""
    size = block_size(k)
    for b in range(0, k, size):
        n = min(size, k - b)
        load(x, start + b * stride, stride, n, 0.0, stage, 0)
        if block_max(block_of(x, start + b * stride, n, stage, 0), like) == m:
            return b
    return -1


@kernel
def slice_maps(
    x, geometry, first, n, k, classes, labels, weights, label_weights, m, S, mean, class_weight, options, scale, stage,
    kind, out, out_geometry, hess, hess_geometry, streaming, work,
):  # fmt: skip
    """One map and the Hessian (None for none) of rows ``first … first + n - 1`` of a slice of `k` out of `classes`;
    labels are the slice's, or -1."""
    stride, like = geometry[CLASS_STRIDE], vector(scale)
    of_largest = kind == GRAD and (options[SMOOTHING] > 0.0 or options[Z_LOSS] != 0.0)
    for i in range(n):
        start, label = row_start(geometry, first + i), labels[i]
        y_logit = np.float64(load_one(x, start + label * stride, 0.0, stage)) if label >= 0 else np.inf
        at = -1
        if of_largest:
            at = block_of_largest(x, start, stride, k, cast(m[i], scale), stage, like)
        out_start, out_stride = place_of(out_geometry, first + i)
        hess_start, hess_stride = place_of(hess_geometry, first + i)
        write_map(
            kind, x, start, stride, k, classes, out, out_start, out_stride, hess, hess_start, hess_stride, m[i], S[i],
            mean[i] * (1.0 + S[i]), at, label, y_logit, weights[i], label_weights[i], class_weight, options, scale,
            stage, 0, work, streaming,
        )  # fmt: skip
    if streaming:
        fence()


@in_whole_elements
def write_maps(call: Call, rows: dict[str, Array], classes: int, class_mass: float, of_entropy: bool) -> None:
    """Write the maps that `call` asks for; `rows` says what all slices have found of each row."""
    n, k, dtype = call.n_rows, call.k, np.dtype(np.float64 if call.x.itemsize == 8 else np.float32)
    if "grad" in call.maps and (call.label_smoothing != 0.0 or call.z_loss != 0.0):
        dtype = np.dtype(np.float64)  # a difference of numbers that can be nearly equal
    x, scale = Layout(call.x), dtype.type(LOG2E / call.temperature)
    name = next((name for name in call.maps if name != "hess"), "grad")  # one at most beside the Hessian
    kind = MAPS["entropy_grad" if of_entropy else name]
    outputs: Any = [*optional(call.maps.get(name)), *optional(call.maps.get("hess"))]
    options = np.array(
        [1.0 / call.temperature, call.unit, call.label_smoothing, call.z_loss, 0.0, 1.0, class_mass / classes]
    )
    class_weight = np.empty(0) if call.class_weight is None else call.class_weight
    step, streaming = chunk_rows(n, k), streams(call)

    def run(c: int) -> None:
        start, stop = c * step, min(n, (c + 1) * step)
        of_rows: Any = [
            column(rows[name], start, stop, INT64 if name == "label" else FLOAT64)
            for name in ("label", "weight", "label_weight", "max", "S", "mean")
        ]
        stage, work = None if x.geometry[0] == 1 else np.empty(2 * BLOCK, dtype), np.empty(BLOCK, dtype)
        slice_maps(
            *x.operand(call.x), start, stop - start, k, classes, *of_rows, class_weight, options, scale, stage, kind,
            *outputs, streaming, work,
        )  # fmt: skip

    threads.run_chunks(-(-n // step), run)


# --- target distributions, and other forms than logits --------------------------------------------------


@kernel
def slice_target_maps(
    x, geometry, y, y_geometry, first, n, k, classes, form, labels, weights, m, S, A, lse, class_weight, smoothing,
    temperature, z_loss, unit, stage, kind, out, out_geometry,
):  # fmt: skip
    """The gradient (kind 0) or Hessian (1) of cross-entropy by a slice of `k` out of `classes`, for rows ``first …
    first + n - 1``; `labels` are the slice's, or -1, and empty for targets `y`."""
    dense, stride = labels.size == 0, geometry[CLASS_STRIDE]
    for i in range(n):
        row = first + i
        out_start, out_stride = place_of(out_geometry, row)
        if weights[i] == 0.0:
            fill(0.0, k, out, out_start, out_stride)
            continue
        write_target_map(
            x, row_start(geometry, row), stride, y, row_start(y_geometry, row), y_geometry[CLASS_STRIDE], k, classes,
            form, dense, -1 if dense else labels[i], smoothing, class_weight, m[i], S[i], A[i], lse[i],
            1.0 / temperature, 0.0, z_loss, unit, weights[i], kind, stage, out, out_start, out_stride,
        )  # fmt: skip


@in_whole_elements
def write_target_maps(call: Call, rows: dict[str, Array], classes: int) -> None:
    """Write gradient and Hessian of a cross-entropy; `rows` says what all slices have found of each row."""
    n, k = call.n_rows, call.k
    x = Layout(call.x)
    y = None if call.y is None else Source(call.y, (call.x.dtype, np.uint8, INT64, FLOAT64))
    maps = [(TARGET_MAPS[name], Layout(call.maps[name]), call.maps[name]) for name in in_place_last(call)]
    class_weight = np.empty(0) if call.class_weight is None else call.class_weight
    step = chunk_rows(n, k)

    def run(c: int) -> None:
        start, stop = c * step, min(n, (c + 1) * step)
        labels = column(rows.get("label"), start, stop, INT64)
        of_rows: Any = [column(rows[name], start, stop, FLOAT64) for name in ("weight", "max", "S", "A", "lse")]
        target = NO_TARGET if y is None else y.rows(call.y, start, stop)
        for kind, layout, out in maps:
            slice_target_maps(
                *x.operand(call.x), *target, start, stop - start, k, classes, FORM_CODES[call.form], labels, *of_rows,
                class_weight, call.label_smoothing, call.temperature, call.z_loss, call.unit, np.empty(SLOTS * BLOCK),
                kind, *layout.operand(out),
            )  # fmt: skip

    threads.run_chunks(-(-n // step), run)


# --- two distributions --------------------------------------------------------------------------------

SUMS_OF_PAIRS = "mass", "slope_p", "slope_q"  # what comes after the divergence in the sums of a row


@inline
def pair_normalisers(normalisers, row):
    of_p = normalisers[0, row], normalisers[1, row], normalisers[2, row]
    return of_p, (normalisers[3, row], normalisers[4, row], normalisers[5, row])


@kernel
def slice_pair_sums(
    x, x_geometry, y, y_geometry, first, n, k, js, w, p_form, q_form, temperature, normalisers, stage, sums
):  # fmt: skip
    """What a slice adds to the sums of rows ``first … first + n - 1``."""
    for row in range(first, first + n):
        of_p, of_q = pair_normalisers(normalisers, row)
        sums[0, row], sums[1, row], sums[2, row], sums[3, row] = sum_pair(
            x, row_start(x_geometry, row), x_geometry[CLASS_STRIDE],
            y, row_start(y_geometry, row), y_geometry[CLASS_STRIDE],
            k, js, w, p_form, q_form, 1.0 / temperature, of_p, of_q, js, stage,
        )  # fmt: skip


@kernel
def slice_pair_gradients(
    x, x_geometry, y, y_geometry, first, n, k, js, w, p_form, q_form, temperature, normalisers, stage, sums, factors,
    grad_p, p_geometry, grad_q, q_geometry,
):  # fmt: skip
    """The gradients by a slice, from the sums of whole rows; a row of factor 0 does not count."""
    for row in range(first, first + n):
        (p_start, p_stride), (q_start, q_stride) = place_of(p_geometry, row), place_of(q_geometry, row)
        if factors[row] == 0.0:
            fill(0.0, k, grad_p, p_start, p_stride)
            fill(0.0, k, grad_q, q_start, q_stride)
            continue
        of_p, of_q = pair_normalisers(normalisers, row)
        write_pair(
            x, row_start(x_geometry, row), x_geometry[CLASS_STRIDE],
            y, row_start(y_geometry, row), y_geometry[CLASS_STRIDE],
            k, js, w, p_form, q_form, 1.0 / temperature, of_p, of_q, stage,
            (sums[0, row], sums[1, row], sums[2, row], sums[3, row]), factors[row],
            grad_p, p_start, p_stride, grad_q, q_start, q_stride,
        )  # fmt: skip


@in_whole_elements
def pair_sums(call: Call, normalisers: Array) -> Array:
    """The sums of each row, one in each column, over the slices of P and Q."""
    sums = np.empty((1 + len(SUMS_OF_PAIRS), call.n_rows))
    _run_pairs(call, lambda *arguments: slice_pair_sums(*arguments, sums), normalisers)
    return sums


@in_whole_elements
def write_pair_gradients(call: Call, normalisers: Array, sums: Array, factors: Array) -> None:
    """Write the gradients that `call` asks for; `sums` are those of whole rows."""
    outputs: Any = [array for name in ("grad_p", "grad_q") for array in optional(call.maps.get(name))]
    _run_pairs(call, lambda *arguments: slice_pair_gradients(*arguments, sums, factors, *outputs), normalisers)


def _run_pairs(call: Call, kernel: Any, normalisers: Array) -> None:
    """Run `kernel` on chunks of the rows of P and Q."""
    n, k = call.n_rows, call.k
    x, y = Layout(call.x), Source(call.y, (call.x.dtype, FLOAT64))
    step = chunk_rows(n, k)

    def run(c: int) -> None:
        start, stop = c * step, min(n, (c + 1) * step)
        kernel(
            *x.operand(call.x), *y.rows(call.y, start, stop), start, stop - start, k,
            call.quantity == "js_divergence", call.js_weight, FORM_CODES[call.form], FORM_CODES[call.y_form],
            call.temperature, normalisers, np.empty(SLOTS * BLOCK),
        )  # fmt: skip

    threads.run_chunks(-(-n // step), run)
