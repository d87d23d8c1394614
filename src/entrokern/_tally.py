"""What is known of the rows of a stream: counts, sums, spread and quantiles, and how two of them become one.

A `Tally` of a block merges into that of the rows before it. Counts and quantiles come out the same in whatever order
that is done, sums and spread the same but for rounding. Rows whose value is NaN or infinite are kept apart at every
step, so that what to make of them can be decided at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from ._merge import two_sum
from ._quantiles import KEPT, Quantiles

TOP = 5  # ranks that count as found: fewer classes than this have a larger logit than the label
FEW = 256  # numbers that are added one by one
PIECE = 1 << 13  # numbers that are computed with at once


class Rows(NamedTuple):
    """The columns of a block of rows, each 1-d."""

    values: Array  # what is averaged, not multiplied by the row's weight: float32 or float64
    scale: Array | None = None  # the row's weight, greater than 0; None: 1
    weight: Array | None = None  # what the row adds to the mean's denominator; None: its `scale`
    labels: Array | None = None
    argmax: Array | None = None
    rank: Array | None = None

    def where(self, mask: Array) -> Rows:
        if mask.all():
            return self
        some = mask if mask.any() else slice(0)
        columns: Any = (column if column is None else column[some] for column in self)
        return Rows(*columns)


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum as two floats (or arrays of them): the second is what was rounded off the first.

    What an addition rounds off is itself a float (D. E. Knuth, *The Art of Computer Programming* 2, 4.2.2, theorem
    B), so the error of a long sum is that of its last rounding.
    """

    high: Any
    low: Any = 0.0

    def __add__(self, other: Sum) -> Sum:
        with np.errstate(all="ignore"):
            total, lost = two_sum(self.high, other.high)
            lost = lost + (self.low + other.low)
            high = total + lost
            finite = np.isfinite(high)  # else there is nothing to compensate, and `lost` is NaN
            return Sum(np.where(finite, high, total), np.where(finite, lost - (high - total), 0.0))


def sum_of(values: Array) -> Sum:
    """The sum of a 1-d array: pieces of it are added, then halves, and what is lost beside, until few are left."""
    with np.errstate(all="ignore"):
        sums, *pieces = _pieces(values) or [values]
        sums = sums.astype(np.float64)
        lost = []
        for piece in pieces:
            sums[: piece.size], rounded_off = two_sum(sums[: piece.size], piece.astype(np.float64, copy=False))
            lost.append(float(rounded_off.sum()))
        while sums.size > FEW:
            half = sums.size // 2
            rest = sums[2 * half :]
            sums, rounded_off = two_sum(sums[:half], sums[half : 2 * half])
            lost.append(float(rounded_off.sum()))
            sums = np.concatenate([sums, rest])
        terms = sums.tolist() + lost
        if not math.isfinite(sum(terms)):
            return Sum(float(values.sum(dtype=np.float64)))
    high = math.fsum(terms)
    return Sum(high, math.fsum([*terms, -high]))


def _pieces(values: Array) -> list[Array]:
    """Of so few numbers that what is computed of them stays in cache, in memory that is at hand."""
    return [values[i : i + PIECE] for i in range(0, values.size, PIECE)]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows: how many, the sum of their weights and of their weighted values. Numbers, or arrays with one per class."""

    count: Any
    weight: Sum
    total: Sum

    @classmethod
    def of(cls, rows: Rows) -> Group:
        n, weight = rows.values.size, rows.scale if rows.weight is None else rows.weight
        return cls(n, Sum(float(n)) if weight is None else sum_of(weight), sum_of(_scaled(rows)))

    @classmethod
    def by_class(cls, rows: Rows, k: int) -> Group:
        """Within a block these are plain float64 sums."""
        assert rows.labels is not None
        labels, weight = rows.labels.astype(np.int64), rows.scale if rows.weight is None else rows.weight
        count = np.bincount(labels, minlength=k)
        weights = count.astype(np.float64) if weight is None else np.bincount(labels, weight, k)
        with np.errstate(all="ignore"):
            return cls(count, Sum(weights), Sum(np.bincount(labels, _scaled(rows), k)))

    def __add__(self, other: Group) -> Group:
        return Group(self.count + other.count, self.weight + other.weight, self.total + other.total)

    @property
    def mean(self) -> Array:
        """NaN where nothing has weight."""
        weight = np.asarray(self.weight.high)
        with np.errstate(all="ignore"):
            return np.where(weight == 0, np.nan, self.total.high / weight)


def _scaled(rows: Rows) -> Array:
    if rows.scale is None:
        return rows.values
    with np.errstate(all="ignore"):
        return rows.values.astype(np.float64, copy=False) * rows.scale


@dataclass(frozen=True, slots=True)
class Parts:
    """A group in two: the rows of a finite value, and apart those whose value is NaN or infinite."""

    finite: Group
    apart: Group

    def __add__(self, other: Parts) -> Parts:
        return Parts(self.finite + other.finite, self.apart + other.apart)

    def taken(self, keep: bool) -> Group:
        """The finite rows, or with `keep` all: then NaN and infinities spread as they do in sums."""
        return self.finite + self.apart if keep else self.finite


NONE = Group(0, Sum(0.0), Sum(0.0))


@dataclass(frozen=True, slots=True)
class Spread:
    """``Σ s``, ``Σ s·v`` and ``Σ s·(v - mean)²`` of rows; they merge without the squares of large means.

    T. F. Chan, G. H. Golub and R. J. LeVeque, *Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances* (1979).
    """

    mass: Sum = Sum(0.0)
    total: Sum = Sum(0.0)
    squares: float = 0.0

    @classmethod
    def of(cls, rows: Rows, total: Sum) -> Spread:
        if rows.values.size == 0:
            return cls()
        mass = Sum(float(rows.values.size)) if rows.scale is None else sum_of(rows.scale)
        off = squares = 0.0  # the first is 0 but for the rounding of the mean
        with np.errstate(all="ignore"):
            for piece, scale in zip_longest(_pieces(rows.values), [] if rows.scale is None else _pieces(rows.scale)):
                away = piece.astype(np.float64, copy=False) - total.high / mass.high
                scaled = away if scale is None else away * scale
                off += float(scaled.sum())
                squares += float((scaled * away).sum())
            squares -= off * (off / mass.high)
            return cls(mass, total, 0.0 if squares < 0.0 else squares)  # NaN stays

    def __add__(self, other: Spread) -> Spread:
        a, b = float(self.mass.high), float(other.mass.high)
        if not a or not b:
            return self if a else other
        apart = float(other.total.high) / b - float(self.total.high) / a
        squares = self.squares + other.squares + apart * apart * (a / (a + b)) * b
        return Spread(self.mass + other.mass, self.total + other.total, squares)

    @property
    def variance(self) -> float:
        mass = float(self.mass.high)
        return self.squares / mass if mass else math.nan


@dataclass(frozen=True, slots=True)
class Hits:
    """Labelled rows: how many, in how many the label is the argmax, and in how many of a rank below `TOP`."""

    rows: int
    first: int
    top: int

    @classmethod
    def of(cls, rows: Rows) -> Hits:
        """A row whose value is NaN is no hit."""
        known = ~np.isnan(rows.values)
        first = (rows.argmax == rows.labels) & known
        top = np.zeros(0, bool) if rows.rank is None else (rows.rank >= 0) & (rows.rank < TOP) & known
        return cls(known.size, int(np.count_nonzero(first)), int(np.count_nonzero(top)))

    def __add__(self, other: Hits) -> Hits:
        return Hits(self.rows + other.rows, self.first + other.first, self.top + other.top)

    @property
    def accuracy(self) -> float:
        return self.first / self.rows if self.rows else math.nan

    @property
    def top_accuracy(self) -> float:
        return self.top / self.rows if self.rows else math.nan


class Tally:
    """All that is known of the rows of a stream so far; `kept` as in `Quantiles`."""

    def __init__(self, kept: int = KEPT) -> None:
        self.rows = 0
        self.counted = 0  # the others are ignored, or of weight 0
        self.nan_rows = self.below = self.above = 0  # whose value is NaN, -inf, inf
        self.sums = Parts(NONE, NONE)
        self.classes: Parts | None = None  # the same class by class
        self.spread = Spread()
        self.hits: Hits | None = None
        self.quantiles = Quantiles(kept)

    @classmethod
    def of(cls, rows: Rows, counts: Array | None = None, n_classes: int = 0) -> Tally:
        """That of a block, whose rows in `counts` count (``None``: all); with `n_classes`, class by class too."""
        self = cls()
        self.rows = rows.values.size
        counted = rows if counts is None else rows.where(counts)
        values = counted.values
        is_finite = np.isfinite(values)
        finite, apart = counted.where(is_finite), counted.where(~is_finite)
        self.counted = values.size
        self.nan_rows = int(np.count_nonzero(np.isnan(apart.values)))
        self.below = int(np.count_nonzero(apart.values == -np.inf))
        self.above = int(np.count_nonzero(apart.values == np.inf))
        self.sums = Parts(Group.of(finite), Group.of(apart))
        if n_classes and rows.labels is not None:
            self.classes = Parts(Group.by_class(finite, n_classes), Group.by_class(apart, n_classes))
        self.spread = Spread.of(finite, self.sums.finite.total)
        if rows.labels is not None and rows.argmax is not None:
            self.hits = Hits.of(counted)
        self.quantiles = Quantiles.of(finite.values)
        return self

    def merge(self, other: Tally) -> None:
        """Take the rows of `other` too; where this raises, nothing has changed."""
        if self.classes is not None and other.classes is not None:
            k, came = (parts.finite.count.size for parts in (self.classes, other.classes))
            if k != came:
                raise ValueError(f"rows of k = {came} classes came where the stream has k = {k}; per_class needs one k")
        classes, hits = _both(self.classes, other.classes), _both(self.hits, other.hits)
        sums, spread = self.sums + other.sums, self.spread + other.spread
        self.quantiles.merge(other.quantiles)
        self.classes, self.hits, self.sums, self.spread = classes, hits, sums, spread
        for name in ("rows", "counted", "nan_rows", "below", "above"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def mean(self, keep: bool) -> float:
        return float(self.sums.taken(keep).mean)

    def variance(self, keep: bool) -> float:
        return math.nan if keep and self.sums.apart.count else self.spread.variance

    def quantiles_at(self, fractions: Sequence[float], keep: bool) -> list[float]:
        """With `keep`, infinite values take part; NaN never does."""
        return self.quantiles.at(fractions, *((self.below, self.above) if keep else (0, 0)))


def _both(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


def exponential(mean: float, base: float | None) -> float:
    """What a mean in logarithms of `base` (``None``: nats) is the logarithm of."""
    try:
        return math.exp(mean) if base is None else float(base**mean)
    except OverflowError:
        return math.inf
