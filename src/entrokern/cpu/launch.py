"""From a call to kernels: operands, fixed chunks of rows, results into their arrays.

Everything here has two steps: what depends on the call's shapes, dtypes and options is made ready once, and
what comes of it runs with the arrays of that call and of all calls like it. It keeps no array.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _threads as threads
from .._arrays import Array, flat_chunk, result_dtype
from .._call import Call
from .operands import EMPTY, FLOAT64, INT64, Layout, Operand, column, converted

Arrays = dict[str, Array | None]
Run = Callable[[Call], float]  # writes the outputs of a call like the one that it was made for
RowWork = Callable[[Call, int, int, Array], int]
RecordWork = Callable[[Call, int, int, tuple[Array, ...]], tuple[int, float]]
ElementWork = Callable[[dict[str, Any], int, int], float]

# The cut into chunks depends on the shape alone, so that no result depends on the number of threads.
SMALLEST, LARGEST = 1 << 18, 1 << 21  # elements of a chunk: worth a thread's while; no more than a few MB
CHUNK_ROWS, CHUNK_RECORDS = 1 << 18, 1 << 15  # rows whose results are written in place, and through float64

STREAMED = 1 << 25  # bytes

UINT64 = np.dtype(np.uint64)


def chunk_elements(total: int) -> int:
    return max(SMALLEST, min(LARGEST, total // 16))


def chunk_rows(n: int, k: int, most: int = CHUNK_RECORDS) -> int:
    return max(1, min(most, chunk_elements(n * k) // k))


def _step(n: int, step: int, call: Call) -> int:
    """Rows of a chunk: all, where one thread takes them and no sum could tell."""
    return max(1, n) if threads.alone() and not call.total else step


def _is_half_float(dtype: np.dtype[Any]) -> bool:
    """Whether a kernel can widen it on the way, which all can."""
    return dtype.itemsize == 2 and dtype.kind not in "biu"


class Source:
    """An input of a kernel: in place where one is compiled for its dtype (of 16 bits, always), else converted."""

    def __init__(self, view: Array | None, dtypes: tuple[Any, ...]) -> None:
        self._bools = view is not None and view.dtype == np.bool_ and np.uint8 in dtypes
        in_place = view is not None and (self._bools or view.dtype in dtypes or _is_half_float(view.dtype))
        self._layout = Layout(self._plain(view)) if in_place else None
        self._shape = () if view is None else view.shape

    @property
    def geometry(self) -> Array | None:
        """How it lies in memory; None if it is converted."""
        return None if self._layout is None else self._layout.geometry

    def _plain(self, view: Any) -> Array:
        return view.view(np.uint8) if self._bools else view

    def rows(self, view: Array | None, start: int, stop: int) -> Operand:
        if view is None:
            return Operand(None, None)  # type: ignore[arg-type]
        if self._layout is None:
            return converted(view.reshape(self._shape), start, stop)
        return self._layout.operand(self._plain(view))


class Target:
    """An output of a kernel, or the pair that leaves it out."""

    def __init__(self, view: Array | None) -> None:
        self._layout = None if view is None else Layout(view)

    def of(self, view: Array | None) -> tuple[Any, Any]:
        return (None, None) if self._layout is None or view is None else self._layout.operand(view)


def streams(call: Call) -> bool:
    """Whether maps are written past the caches: they would not stay there, and are not the rows themselves."""
    arrays = call.maps.values()
    if not arrays or sum([a.nbytes for a in arrays]) < STREAMED:
        return False
    inputs = [a for a in (call.x, call.y) if a is not None]
    return not any(np.may_share_memory(a, b) for a in arrays for b in inputs)


def labels_and_ignored(call: Call, start: int, stop: int) -> tuple[Array, Array]:
    """Labels of rows ``start:stop`` as int64, and the label to ignore (empty: none)."""
    ignored = call.ignore_index
    if call.labels is None or call.labels.dtype != UINT64:
        labels = column(call.labels, start, stop, INT64)
        if ignored is not None and not -(2**63) <= ignored < 2**63:
            ignored = None  # which no label equals
    else:
        labels = flat_chunk(call.labels, start, stop)
        # Beyond int64 all are out of range alike, but for an ignored one: -1, which no other can be.
        found = labels == ignored if ignored is not None else np.zeros(labels.shape, bool)
        labels = np.where(found, -1, np.minimum(labels, np.uint64(2**63 - 1)).astype(np.int64))
        ignored = None if ignored is None else -1
    return labels, EMPTY[INT64] if ignored is None else np.array([ignored], INT64)


def row_weights(call: Call, start: int, stop: int) -> Array:
    return column(call.sample_weight, start, stop, FLOAT64)


@np.errstate(all="ignore")
def deliver(results: list[tuple[Array, Array]], start: int, stop: int) -> None:
    """Write the results of rows ``start:stop`` into the arrays of all rows, rounded to their dtypes."""
    for out, values in results:
        (out.reshape(-1) if out.flags.c_contiguous else out.flat)[start:stop] = values


def sum_of(losses: Array) -> float:
    return losses.item() if losses.size == 1 else float(np.add.reduce(losses))


def by_rows(call: Call, names: tuple[str, ...], work: RowWork) -> Run:
    """What runs ``work(call, start, stop, results)`` over chunks of rows and delivers the results by name.

    `work` fills ``results[i]`` with the row results called ``names[i]`` (the first is the loss) and
    returns the index of the first bad target of its chunk, or -1.
    """
    n = call.n_rows
    chunk = chunk_rows(n, call.k)
    wanted = [(i, name) for i, name in enumerate(names) if name in call.rows]

    def run(call: Call) -> float:
        step = _step(n, chunk, call)

        def run_chunk(c: int) -> float:
            start, stop = c * step, min(n, (c + 1) * step)
            results = np.empty((len(names), stop - start))
            bad = work(call, start, stop, results)
            if bad >= 0:
                raise IndexError(start + bad)
            if wanted:
                deliver([(call.rows[name], results[i]) for i, name in wanted], start, stop)
            return sum_of(results[0]) if call.total else 0.0

        return threads.sum_chunks(-(-n // step), run_chunk)

    return run


def by_records(call: Call, names: tuple[str, ...], work: RecordWork) -> Run:
    """What runs ``work(call, start, stop, results)`` over chunks of rows.

    `work` writes the row results of these names into the arrays `results`, which are empty where one is not
    wanted, and returns the index of the first bad target of its chunk or -1, and the sum of the chunk's losses.
    """
    n = call.n_rows
    chunk = chunk_rows(n, call.k, CHUNK_ROWS)
    absent = [np.empty(0, result_dtype(name, call.x.dtype)) for name in names]

    def run(call: Call) -> float:
        step = _step(n, chunk, call)
        outs = [(i, call.rows[name]) for i, name in enumerate(names) if name in call.rows]
        lines = [(i, out.reshape(-1)) for i, out in outs if out.flags.c_contiguous]
        others = [(i, out) for i, out in outs if not out.flags.c_contiguous]

        def run_chunk(c: int) -> float:
            start, stop = c * step, min(n, (c + 1) * step)
            results = absent.copy()
            for i, line in lines:
                results[i] = line[start:stop]
            for i, out in others:
                results[i] = np.empty(stop - start, out.dtype)
            bad, total = work(call, start, stop, tuple(results))
            if bad >= 0:
                raise IndexError(start + bad)
            if others:
                deliver([(out, results[i]) for i, out in others], start, stop)
            return float(total)

        return threads.sum_chunks(-(-n // step), run_chunk)

    return run


def by_elements(arrays: Arrays, work: ElementWork) -> float:
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
        shape = (1, math.prod(shape))
        arrays = {name: None if a is None else _line(a, shape) for name, a in arrays.items()}
    k = shape[-1]
    n = math.prod(shape[:-1])
    rows, columns = chunk_rows(n, max(k, 1)), chunk_elements(n * k)
    jobs = [(first, low) for first in range(0, n, rows) for low in range(0, k, columns)]

    def run_job(i: int) -> float:
        first, low = jobs[i]
        parts = {name: a if a is None else a[..., low : low + columns] for name, a in arrays.items()}
        return work(parts, first, min(rows, n - first))

    return threads.sum_chunks(len(jobs), run_job)


def _line(array: Array, shape: tuple[int, ...]) -> Array:
    """An array in one line of memory, or of one element everywhere, as one row."""
    return array.reshape(shape) if array.flags.c_contiguous else np.broadcast_to(array[(0,) * array.ndim], shape)
