"""From a call to kernels: operands, fixed chunks of rows, results into their arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _threads as threads
from .._arrays import Array
from .._call import Call
from .operands import Operand, column, converted, operand

# The cut into chunks depends on the shape alone, so that no result depends on the number of threads.
SMALLEST, LARGEST = 1 << 18, 1 << 21  # elements of a chunk: worth a thread's while; no more than a few MB
CHUNK_ROWS = 1 << 15


def chunk_elements(total: int) -> int:
    return max(SMALLEST, min(LARGEST, total // 16))


def chunk_rows(n: int, k: int) -> int:
    return max(1, min(CHUNK_ROWS, chunk_elements(n * k) // k))


class Source:
    """An input of a kernel: in place where a kernel is compiled for its dtype, else converted by chunks."""

    def __init__(self, view: Array, dtypes: tuple[Any, ...]) -> None:
        self.view = view.view(np.uint8) if view.dtype == np.bool_ and np.uint8 in dtypes else view
        self.whole = operand(self.view) if self.view.dtype in dtypes else None

    def rows(self, start: int, stop: int) -> Operand:
        return self.whole if self.whole is not None else converted(self.view, start, stop)


def target(array: Array | None) -> tuple[Any, Any]:
    """An output of a kernel, or the pair that leaves it out."""
    if array is None:
        return None, None
    return operand(array)


def labels_and_ignored(call: Call, start: int, stop: int) -> tuple[Array, Array]:
    """Labels of rows ``start:stop`` as int64, and the label to ignore (empty: none)."""
    labels, ignored = column(call.labels, start, stop, None), call.ignore_index
    if labels.dtype == np.uint64:
        # Beyond int64 all are out of range alike, but for an ignored one: -1, which no other can be.
        found = labels == ignored if ignored is not None else np.zeros(labels.shape, bool)
        labels = np.where(found, -1, np.minimum(labels, np.uint64(2**63 - 1)).astype(np.int64))
        ignored = None if ignored is None else -1
    elif ignored is not None and not -(2**63) <= ignored < 2**63:
        ignored = None  # which no label equals
    return labels.astype(np.int64, copy=False), np.array([] if ignored is None else [ignored], np.int64)


def row_weights(call: Call, start: int, stop: int) -> Array:
    return column(call.sample_weight, start, stop, np.float64)


def by_rows(call: Call, names: tuple[str, ...], work: Callable[[int, int, Array], int]) -> float:
    """Run ``work(start, stop, results)`` over chunks of rows and deliver the results by name.

    `work` fills ``results[i]`` with the row results called ``names[i]`` (the first is the loss) and
    returns the index of the first bad target of its chunk, or -1.
    """
    n = call.n_rows
    step = chunk_rows(n, call.k)
    sums = [0.0] * -(-n // step)
    outputs = [
        (i, call.rows[name], call.rows[name].flags.c_contiguous) for i, name in enumerate(names) if name in call.rows
    ]

    def run_chunk(c: int) -> None:
        start, stop = c * step, min(n, (c + 1) * step)
        results = np.empty((len(names), stop - start))
        bad = work(start, stop, results)
        if bad >= 0:
            raise IndexError(start + bad)
        with np.errstate(all="ignore"):
            for i, out, contiguous in outputs:
                (out.reshape(-1) if contiguous else out.flat)[start:stop] = results[i]
        if call.total:
            sums[c] = float(results[0].sum())

    threads.run_chunks(len(sums), run_chunk)
    return math.fsum(sums)


def by_elements(arrays: dict[str, Array | None], work: Callable[[dict[str, Array | None], int, int], float]) -> float:
    """Run ``work(arrays, first, n)`` over chunks of rows and columns (of the latter it gets views); the results' sum.

    The axes are taken in the order of the first array's memory, and arrays that lie there as one line each
    as one long row: elements have no axes of their own, and short rows cost more.
    """
    first = next(a for a in arrays.values() if a is not None)
    if not first.flags.c_contiguous:
        order = np.argsort([-abs(s) for s in first.strides], kind="stable")
        arrays = {name: None if a is None else a.transpose(order) for name, a in arrays.items()}
    present = [a for a in arrays.values() if a is not None]
    shape = present[0].shape
    if all(a.flags.c_contiguous or not any(a.strides) for a in present):
        line = (1, math.prod(shape))

        def flatten(a: Array | None) -> Array | None:
            if a is None or a.flags.c_contiguous:
                return a if a is None else a.reshape(line)
            return np.broadcast_to(a[(0,) * a.ndim], line)

        arrays = {name: flatten(a) for name, a in arrays.items()}
        shape = line
    k = shape[-1]
    n = math.prod(shape[:-1])
    rows, columns = chunk_rows(n, max(k, 1)), chunk_elements(n * k)
    jobs = [(first, low) for first in range(0, n, rows) for low in range(0, k, columns)]
    sums = [0.0] * len(jobs)

    def run_job(i: int) -> None:
        first, low = jobs[i]
        parts = {name: a if a is None else a[..., low : low + columns] for name, a in arrays.items()}
        sums[i] = work(parts, first, min(rows, n - first))

    threads.run_chunks(len(jobs), run_job)
    return math.fsum(sums)
