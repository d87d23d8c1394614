"""Quantiles of a stream of numbers in bounded memory: exact while they fit, else from a histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._arrays import Array

KEPT = 1 << 24  # numbers kept: up to 128 MB
DROPPED_BITS = 13  # of a float32's 23 bits of fraction; 10 stay, so a bin is 2**-10 of its value wide
SIGN = np.uint32(1 << 31)


class Quantiles:
    """Takes arrays of numbers (no NaN), answers with quantiles: the value of the lowest fitting rank.

    Attributes
    ----------
    exact : bool
        Whether every number is still there. Otherwise answers are within 0.1 %.
    """

    def __init__(self, expected: int, kept: int = KEPT) -> None:
        self.exact = expected <= kept
        self._values = np.empty(0)
        self._capacity = expected
        self._n = 0
        self._bins = np.zeros(0 if self.exact else 1 << (32 - DROPPED_BITS), np.int64)

    def add(self, values: Array) -> None:
        """Take a 1-d array of float32 or float64."""
        if not self.exact:
            self._bins += np.bincount(_ordered_bits(values) >> DROPPED_BITS, minlength=self._bins.size)
        else:
            if self._n == 0:
                self._values = np.empty(self._capacity, values.dtype)
            self._values[self._n : self._n + values.size] = values
        self._n += values.size

    def at(self, fractions: Sequence[float]) -> list[float]:
        """The quantiles at `fractions`; NaN where nothing came."""
        if self._n == 0:
            return [np.nan] * len(fractions)
        ranks = [max(0, int(np.ceil(f * self._n)) - 1) for f in fractions]
        if self.exact:
            found = np.partition(self._values[: self._n], sorted(set(ranks)))[ranks]
            return [float(v) for v in found]
        ends = np.cumsum(self._bins)
        return [_middle(int(np.searchsorted(ends, rank, side="right"))) for rank in ranks]


def _ordered_bits(values: Array) -> Array:
    """Numbers as float32, and those as unsigned integers in the same order."""
    with np.errstate(over="ignore", under="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _middle(number: int) -> float:
    """A number in the middle of a bin; the end of the scale where it is infinite."""
    low = np.uint32(number << DROPPED_BITS)
    bits = low | np.uint32(1 << (DROPPED_BITS - 1))
    ends = np.array([low, bits], np.uint32)
    first, middle = np.where(ends & SIGN, ends & ~SIGN, ~ends).view(np.float32)
    return float(first if np.isinf(first) or first == 0 else middle)
