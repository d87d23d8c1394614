"""Quantiles of a stream of numbers in bounded memory: exact while they fit, else from a histogram."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ._arrays import Array

KEPT = 1 << 16  # numbers kept: up to 512 KB
DROPPED_BITS = 13  # of a float32's 23 bits of fraction; 10 stay, so a bin is 2**-10 of its value wide
BINS = 1 << (32 - DROPPED_BITS)
SIGN = np.uint32(1 << 31)
LARGEST = float(np.finfo(np.float32).max)
LONG = 1 << 16  # numbers in a row that are not put together with others
FEW = BINS // 8  # numbers that are cheaper counted one by one than in a histogram of their own


class Quantiles:
    """Finite numbers, which are merged with others and answer with quantiles: the value of the lowest fitting rank.

    Up to `kept` numbers all are there and answers exact. Beyond, each is counted in a bin of the float32 numbers,
    and answers are within ``2**-10`` of the value (if its size lies in 1.2e-38 … 3.4e38), exact at both ends. The
    bins are the same whatever the order of merging, which is why this is no sketch drawn at random (KLL): two runs
    of that differ.

    Attributes
    ----------
    n : int
        How many numbers came.
    low, high : float
        The smallest and the largest; infinities that point inwards where nothing came.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self.n, self.low, self.high = 0, math.inf, -math.inf
        self._parts: list[Array] = []
        self._bins: Array | None = None

    @classmethod
    def of(cls, values: Array) -> Quantiles:
        """Those of a 1-d array of finite float32 or float64, all of them kept."""
        self = cls(values.size)
        if values.size:
            self.n, self.low, self.high = values.size, float(values.min()), float(values.max())
            self._parts = [values.copy()]
        return self

    @property
    def exact(self) -> bool:
        """Whether every number is still there."""
        return self._bins is None

    def merge(self, other: Quantiles) -> None:
        """Take the numbers of `other` too."""
        if self._bins is None and other._bins is None and self.n + other.n <= self.kept:
            for part in other._parts:
                self._append(part)
        else:
            theirs = other._bins if other._bins is not None else tuple(other._parts)
            bins = np.zeros(BINS, np.int64) if self._bins is None else self._bins
            _count(bins, self._parts)
            if isinstance(theirs, tuple):
                _count(bins, theirs)
            else:
                bins += theirs
            self._bins, self._parts = bins, []
        self.n += other.n
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def _append(self, part: Array) -> None:
        """As few parts as can be, each at least twice as long as the next or long enough: none is copied often."""
        parts = self._parts
        parts.append(part)
        while len(parts) > 1 and parts[-2].size < min(2 * parts[-1].size, LONG):
            parts[-2:] = [np.concatenate(parts[-2:])]

    def at(self, fractions: Sequence[float], below: int = 0, above: int = 0) -> list[float]:
        """The quantiles at `fractions`, as if ``-inf`` had come `below` times and ``inf`` `above` times; NaN where
        nothing came."""
        n = below + self.n + above
        if n == 0:
            return [math.nan] * len(fractions)
        ranks = np.array([min(max(0, math.ceil(f * n) - 1), n - 1) for f in fractions], np.int64) - below
        found = np.where(ranks < 0, -math.inf, math.inf)
        inside = (ranks >= 0) & (ranks < self.n)
        if inside.any():
            found[inside] = self._ranked(ranks[inside])
        return [float(v) + 0.0 for v in found]  # which of the two zeros came first is not known

    def _ranked(self, ranks: Array) -> Array:
        if self._bins is None:
            # Sorting is vectorised in NumPy, and so faster than a partition by several ranks.
            found: Array = np.sort(np.concatenate(self._parts))[ranks].astype(np.float64)
            return found
        found = _middle(np.searchsorted(np.cumsum(self._bins), ranks, side="right"))
        found = np.where(ranks == self.n - 1, self.high, found.clip(self.low, self.high))
        return np.where(ranks == 0, self.low, found)

    def __getstate__(self) -> dict[str, Any]:
        """Few of the bins are ever filled: what is stored is those."""
        state = self.__dict__.copy()
        if self._bins is not None:
            filled = np.flatnonzero(self._bins)
            state["_bins"] = (filled.astype(np.int32), self._bins[filled])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._bins is not None:
            filled, counts = self._bins
            self._bins = np.zeros(BINS, np.int64)
            self._bins[filled] = counts


def _count(bins: Array, parts: Iterable[Array]) -> None:
    """Count each number in its bin."""
    for part in parts:
        numbers = _ordered_bits(part) >> DROPPED_BITS
        if part.size < FEW:
            np.add.at(bins, numbers, 1)
        else:
            bins += np.bincount(numbers, minlength=BINS)


def _ordered_bits(values: Array) -> Array:
    """Numbers as the closest float32, and those as unsigned integers in the same order."""
    with np.errstate(under="ignore"):
        singles = np.clip(values, -LARGEST, LARGEST).astype(np.float32)
    bits = (singles + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _middle(numbers: Array) -> Array:
    """A number in the middle of each bin; 0 of the one that begins with it."""
    low = (numbers << DROPPED_BITS).astype(np.uint32)
    bits = np.stack([low, low | np.uint32(1 << (DROPPED_BITS - 1))])
    first, middle = np.where(bits & SIGN, bits & ~SIGN, ~bits).view(np.float32).astype(np.float64)
    return np.where(first == 0, 0.0, middle)
