"""Histograms of many columns at once, over bins that are made from a reference.

A first reading of the reference is a `Survey`: the range of each column, its values while they are few, and an even
sample of rows. `Bins` cut each column into intervals, which are counted in a `Histogram`, whatever the blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from ._threads import num_threads, run_chunks

SAMPLE_BYTES = 64 << 20  # of the rows that quantiles are of,
SAMPLE_ROWS = 1 << 20  # at most
LEAST_ROWS = 1 << 10
FEW_ROWS = 1 << 12  # looked at together for values not yet seen
CELLS = 1 << 16  # numbers, and edges, that stay in cache together


class Survey:
    """What the bins are made of: of each column the range and up to `n_bins` distinct values, and a sample of rows.

    The sample is every `stride`-th row, all rows where they are few: the same whatever the blocks. It decides where
    bins begin; what falls into them is counted over all rows.
    """

    def __init__(self, k: int, n_rows: int, n_bins: int, dtype: np.dtype[Any]) -> None:
        self.n_bins, self.dtype = n_bins, dtype
        fitting = min(SAMPLE_ROWS, max(LEAST_ROWS, SAMPLE_BYTES // (k * dtype.itemsize)))
        self.stride = -(-n_rows // fitting)
        self._sample: list[Array] = []
        self._values: list[Array | None] = [np.empty(0, dtype)] * k  # sorted; None: too many
        self._low, self._high = np.full(k, np.inf, dtype), np.full(k, -np.inf, dtype)

    def add(self, start: int, rows: Array) -> None:
        """Take the rows from number `start` on, ``(n, k)``."""
        rows = rows.astype(self.dtype, copy=False)
        finite = np.isfinite(rows)
        self._low = np.minimum(self._low, np.min(rows, axis=0, initial=np.inf, where=finite))
        self._high = np.maximum(self._high, np.max(rows, axis=0, initial=-np.inf, where=finite))
        self._sample.append(rows[-start % self.stride :: self.stride].copy())
        for j, values in enumerate(self._values):
            if values is not None:
                self._values[j] = _joined(values, rows[:, j], finite[:, j], self.n_bins)

    def edges(self) -> list[tuple[Array, bool]]:
        """Of each column the edges of its intervals, and whether every other one holds a single value."""
        sample = np.concatenate(self._sample)
        return [
            (self._quantiles(j, sample[:, j]), False) if values is None else (_around(values), True)
            for j, values in enumerate(self._values)
        ]

    def _quantiles(self, j: int, sample: Array) -> Array:
        """Bins of equal mass from the lowest number to the highest; a value of more mass than that has one alone."""
        sample = np.sort(sample[np.isfinite(sample)])
        low, high = self._low[j], self._high[j]
        ranks = np.arange(1, self.n_bins) * sample.size // self.n_bins
        inner, times = np.unique(sample[ranks] if sample.size else sample, return_counts=True)
        inner = np.union1d(inner, _next(inner[times > 1]))
        return np.concatenate([[low], inner[(inner > low) & (inner <= high)], [_next(high)]])


def _joined(values: Array, column: Array, finite: Array, most: int) -> Array | None:
    """The distinct values and those of a column, sorted; ``None`` where they are more than `most`."""
    for first in range(0, column.size, FEW_ROWS):
        few = slice(first, first + FEW_ROWS)
        came = column[few][finite[few]]
        if values.size:
            came = came[values[np.searchsorted(values, came).clip(max=values.size - 1)] != came]
        if came.size:
            values = np.union1d(values, came)
            if values.size > most:
                return None
    return values


def _around(values: Array) -> Array:
    """Edges such that every other interval holds one of the values and nothing else."""
    return np.stack([values, _next(values)], axis=1).reshape(-1)


def _next(values: Array) -> Array:
    """The next larger numbers."""
    after: Array = np.nextafter(values, np.asarray(np.inf, values.dtype))
    return after


class Histogram(NamedTuple):
    """Counts of k columns: in bins, ``(k, n_bins + 4)``, of which the last are other values, NaN, -inf and inf."""

    counts: Array
    outside: Array  # (k,): numbers outside the reference's range, or that are none of its few values

    @property
    def nan(self) -> Array:
        return self.counts[:, -3]

    @property
    def infinite(self) -> Array:
        found: Array = self.counts[:, -2] + self.counts[:, -1]
        return found


class Bins:
    """The bins of k columns: edges of intervals, and which bin each interval belongs to.

    Where a column has few values each has a bin, and all other values another. Else numbers below and above the
    range belong to the outer bins.
    """

    def __init__(self, survey: Survey) -> None:
        columns = survey.edges()
        self.dtype, self.n_bins = survey.dtype, survey.n_bins
        longest = max(edges.size for edges, _ in columns)
        size = (1 << longest.bit_length()) - 1  # for a search in as many steps everywhere
        self._edges = np.full((len(columns), size), np.inf, self.dtype)
        self._bin = np.full((len(columns), size + 1), self.n_bins)  # of each interval; by default that of other values
        self._outside = np.zeros((len(columns), size + 1), bool)
        self.used = np.zeros(len(columns), np.int64)  # bins, without those of other values and of no numbers
        for j, (edges, single) in enumerate(columns):
            self._edges[j, : edges.size] = edges
            n = edges.size // 2 if single else edges.size - 1
            if single:
                self._bin[j, 1 : edges.size : 2] = np.arange(n)
                self._outside[j, : edges.size + 1 : 2] = True
            else:
                self._bin[j, : edges.size + 1] = np.arange(-1, n + 1).clip(0, n - 1)
                self._outside[j, [0, edges.size]] = True
            self.used[j] = n
        self._steps = [1 << i for i in reversed(range(longest.bit_length()))]

    def counter(self) -> Counter:
        return Counter(self)

    def find(self, rows: Array, first: int) -> Array:
        """The interval of each number of ``(n, k')`` rows, whose columns are those from `first` on: how many edges
        are not above it. NaN is in interval 0."""
        edges = self._edges[first : first + rows.shape[1]]
        size = edges.shape[1]
        flat, base = edges.reshape(-1), np.arange(len(edges)) * size
        at = np.zeros(rows.shape, np.intp)
        for step in self._steps:
            at += step * (rows >= flat.take(at + (base + (step - 1))))
        return at

    def binned(self, intervals: Array, special: Array) -> Histogram:
        """The counts of intervals ``(k, n)`` and of NaN, -inf and inf ``(k, 3)`` as those of bins."""
        k, width = len(intervals), self.n_bins + 1
        places = self._bin + np.arange(k)[:, None] * width
        counts = np.bincount(places.reshape(-1), intervals.reshape(-1), k * width).astype(np.int64)
        outside = np.where(self._outside, intervals, 0).sum(axis=1)
        return Histogram(np.concatenate([counts.reshape(k, width), special], axis=1), outside)


class Counter:
    """How many numbers of each column are in each interval so far."""

    def __init__(self, bins: Bins) -> None:
        self._bins = bins
        k, size = bins._edges.shape
        self._intervals = np.zeros((k, size + 1), np.int64)
        self._special = np.zeros((k, 3), np.int64)

    def add(self, rows: Array) -> None:
        """Take rows ``(n, k)``: column by column in cache, on all threads."""
        k, size = self._intervals.shape
        width = max(1, min(-(-k // num_threads()), CELLS // size))
        step = max(1, CELLS // width)

        def count(chunk: int) -> None:
            columns = slice(chunk * width, min(k, (chunk + 1) * width))
            for start in range(0, len(rows), step):
                self._count(rows[start : start + step, columns], columns)

        run_chunks(-(-k // width), count)

    def _count(self, rows: Array, columns: slice) -> None:
        rows = rows.astype(self._bins.dtype, order="C", copy=False)
        k, size = rows.shape[1], self._intervals.shape[1]
        places = self._bins.find(rows, columns.start) + np.arange(k) * size
        intervals = np.bincount(places.reshape(-1), minlength=k * size).reshape(k, size)
        if not np.isfinite(rows).all():
            found = [np.count_nonzero(mark, axis=0) for mark in (np.isnan(rows), rows == -np.inf, rows == np.inf)]
            intervals[:, 0] -= found[0] + found[1]
            intervals[:, -1] -= found[2]
            self._special[columns] += np.stack(found, axis=1)
        self._intervals[columns] += intervals

    def histogram(self) -> Histogram:
        return self._bins.binned(self._intervals, self._special)
