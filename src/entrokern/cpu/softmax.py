"""Calls on logits: which kernel runs which rows, and where its results go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arrays import Array, is_half
from .._call import Call
from . import threads
from .blocks import BLOCK
from .finish import LOSS, N_OPTIONS, ROW_RESULTS
from .maps import MAPS
from .operands import column, operand
from .rows import softmax_rows

CHUNK_ELEMENTS = 1 << 19  # a fixed cut, so that no result depends on the number of threads
CHUNK_ROWS = 1 << 15
LOG2E = 1.4426950408889634


def chunk_rows(k: int) -> int:
    return max(1, min(CHUNK_ROWS, CHUNK_ELEMENTS // k))


def options(call: Call) -> Array:
    """The scalar options in the order of `finish.py`."""
    w = call.class_weight
    values = [
        call.temperature,
        call.unit,
        call.label_smoothing,
        call.z_loss,
        call.softcap or 0.0,
        call.map_scale,
        1.0 if w is None else float(w.sum()) / call.k,
    ]
    assert len(values) == N_OPTIONS - 1 + 0 or True
    return np.array(values)


def compute_dtype(call: Call) -> np.dtype[Any]:
    """float32 where its rounding stays within the contract, else float64.

    A softcap can leave a difference far smaller than the logits; with smoothing or a z-loss the gradient
    is a difference of numbers that can be nearly equal.
    """
    if call.x.itemsize == 8 or call.softcap is not None:
        return np.dtype(np.float64)
    mixed = call.label_smoothing != 0.0 or call.z_loss != 0.0
    return np.dtype(np.float64 if mixed and "grad" in call.maps else np.float32)


def run(call: Call) -> float:
    """Losses and statistics of logits with labels or without."""
    k, n = call.k, call.n_rows
    dtype = compute_dtype(call)
    x = operand(call.x)
    in_place = x.flat.dtype == dtype and x.geometry[0] == 1 and call.softcap is None
    scale = dtype.type(LOG2E / call.temperature)
    names = [name for name in ROW_RESULTS if name in call.rows]
    more = bool({"entropy", "rank"} & set(names)) or "argmax" in names or "entropy_grad" in call.maps
    maps = [(MAPS[name], operand(array)) for name, array in call.maps.items()] or [(0, None)]
    opts, ignore = options(call), np.array([] if call.ignore_index is None else [call.ignore_index], np.int64)
    class_weight = np.empty(0) if call.class_weight is None else call.class_weight
    step = chunk_rows(k)
    sums = [0.0] * -(-n // step)
    flat_rows = {name: array.reshape(-1) for name, array in call.rows.items() if array.flags.c_contiguous}

    def work(c: int) -> None:
        start, stop = c * step, min(n, (c + 1) * step)
        labels = column(call.labels, start, stop, np.int64)
        weights = column(call.sample_weight, start, stop, np.float64)
        stage = None if in_place else np.empty(2 * BLOCK, dtype)
        results = np.empty((len(ROW_RESULTS), stop - start))
        for kind, target in maps:
            out = (None, None, None) if target is None else (target.flat, target.geometry, np.empty(BLOCK, dtype))
            bad = softmax_rows(
                x.flat, x.geometry, start, stop - start, k, labels, ignore, weights, class_weight, opts, scale,
                stage, more, results, kind, *out,
            )  # fmt: skip
            if bad >= 0:
                raise IndexError(start + bad)
        for name in names:
            values = results[ROW_RESULTS.index(name)]
            with np.errstate(all="ignore"):
                if name in flat_rows:
                    flat_rows[name][start:stop] = values
                else:
                    call.rows[name].flat[start:stop] = values
        if call.total:
            sums[c] = float(results[LOSS].sum())

    threads.run_chunks(len(sums), work)
    return math.fsum(sums)
