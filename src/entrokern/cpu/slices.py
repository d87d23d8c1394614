"""Maps of a slice of classes: the last sweep of rows of logits whose normaliser is known from all slices."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _threads as threads
from .._arrays import Array
from .._call import Call
from .blocks import BLOCK, CLASS_STRIDE, block_of, load, load_one, row_start
from .compile import inline, kernel
from .finish import SMOOTHING, Z_LOSS
from .launch import chunk_rows, streams
from .maps import GRAD, HESS, MAPS, write_map
from .math import cast
from .memory import fence, vector
from .operands import FLOAT64, INT64, Layout, column, with_whole_elements
from .quantities import LOG2E, in_place_last
from .statistics import block_max, block_size


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
    kind, out, out_geometry, streaming, work,
):  # fmt: skip
    """One map of rows ``first … first + n - 1`` of a slice of `k` out of `classes`; labels are the slice's, or -1."""
    stride, like = geometry[CLASS_STRIDE], vector(scale)
    of_largest = kind == HESS or (kind == GRAD and (options[SMOOTHING] > 0.0 or options[Z_LOSS] != 0.0))
    for i in range(n):
        start, label = row_start(geometry, first + i), labels[i]
        y_logit = np.float64(load_one(x, start + label * stride, 0.0, stage)) if label >= 0 else np.inf
        at = -1
        if of_largest:
            at = block_of_largest(x, start, stride, k, cast(m[i], scale), stage, like)
        write_map(
            kind, x, start, stride, k, classes, out, row_start(out_geometry, first + i), out_geometry[CLASS_STRIDE],
            m[i], S[i], mean[i] * (1.0 + S[i]), at, label, y_logit, weights[i], label_weights[i], class_weight, options,
            scale, stage, 0, work, streaming,
        )  # fmt: skip
    if streaming:
        fence()


def write_maps(call: Call, rows: dict[str, Array], classes: int, class_mass: float, of_entropy: bool) -> None:
    """Write the maps that `call` asks for; `rows` says what all slices have found of each row."""
    call = with_whole_elements(call)
    n, k, dtype = call.n_rows, call.k, np.dtype(np.float64 if call.x.itemsize == 8 else np.float32)
    if "grad" in call.maps and (call.label_smoothing != 0.0 or call.z_loss != 0.0):
        dtype = np.dtype(np.float64)  # a difference of numbers that can be nearly equal
    x, scale = Layout(call.x), dtype.type(LOG2E / call.temperature)
    maps = [(MAPS["entropy_grad" if of_entropy else name], Layout(out), out) for name, out in
            ((name, call.maps[name]) for name in in_place_last(call))]  # fmt: skip
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
        for kind, layout, out in maps:
            slice_maps(
                *x.operand(call.x), start, stop - start, k, classes, *of_rows, class_weight, options, scale, stage,
                kind, *layout.operand(out), streaming, work,
            )  # fmt: skip

    threads.run_chunks(-(-n // step), run)
