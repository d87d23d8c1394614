"""What this machine can do at most, measured with all threads: read, copy, exponentials, logarithms.

Each limit is a function that does a stated amount of work; run.py times it between our calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from entrokern.cpu.math import bits32, exp2, float32_of

Array = np.ndarray[Any, np.dtype[Any]]

SUMS = {"reassoc", "nsz", "contract"}
BLOCK = 4096  # elements: 16 KiB of float32, which stays in L1
PIECE = 1 << 20  # elements that a thread takes at a time


@numba.njit(nogil=True, fastmath=SUMS, error_model="numpy")
def _read(x):
    total = x[0] - x[0]
    for start in range(0, x.size, BLOCK):
        block = x[start : start + BLOCK]  # indexing x[start + i] would compile to gathers
        for i in range(block.size):
            total += block[i]
    return total


@numba.njit(nogil=True, error_model="numpy")
def _copy(source, target):
    for i in range(source.size):
        target[i] = source[i]


@numba.njit(nogil=True, fastmath=SUMS, error_model="numpy")
def _exponentials(block, times):
    """``Σ 2^(x-m)``, with the library's own `exp2`; `m` changes, so that no sweep can be left out."""
    total = m = block.dtype.type(0.0)
    step = block.dtype.type(2.0**-10)
    for _ in range(times):
        for i in range(block.size):
            total += exp2(block[i] - m)
        m += step
    return total


@numba.njit(nogil=True, fastmath=SUMS, error_model="numpy")
def _log_f32(x):
    """``log x`` of normal float32 numbers with no care for any other: little can be cheaper.

    ``log(1+f) = f - f²/2 + f³·P(f)`` for mantissas from sqrt(1/2) to sqrt(2), P a Chebyshev fit.
    """
    bits = bits32(x)
    exponent = (bits - np.uint32(0x3F3504F3)) & np.uint32(0xFF800000)
    e = np.float32(np.int32(exponent) >> 23)
    f = float32_of(bits - exponent) - np.float32(1.0)
    y = np.float32(0.06971611471451178)
    y = y * f + np.float32(-0.11479733846637635)
    y = y * f + np.float32(0.1168541992348674)
    y = y * f + np.float32(-0.12425687331451106)
    y = y * f + np.float32(0.1424905764569748)
    y = y * f + np.float32(-0.16667802319501254)
    y = y * f + np.float32(0.200007157488921)
    y = y * f + np.float32(-0.24999996950957882)
    y = y * f + np.float32(0.33333331180030046)
    f2 = f * f
    return f + (f * f2 * y - np.float32(0.5) * f2) + e * np.float32(0.693147180559945)


@numba.njit(nogil=True, fastmath=SUMS, error_model="numpy")
def _logarithms(block, times):
    """``Σ log(x·s)``; `s` changes, so that no sweep can be left out."""
    total = np.float32(0.0)
    s = np.float32(1.0)
    for _ in range(times):
        for i in range(block.size):
            total += _log_f32(block[i] * s)
        s += np.float32(2.0**-10)
    return total


class Limits:
    """The limits on `threads` threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(max(1, threads - 1))
        rng = np.random.default_rng(0)
        self._blocks = {kind: np.asarray(rng.uniform(-20, 0, BLOCK), kind) for kind in (np.float32, np.float64)}
        self._positive = np.asarray(rng.uniform(0.01, 1, BLOCK), np.float32)

    def _everywhere(self, count: int, work: Callable[[int], object]) -> None:
        """``work(0) … work(count - 1)``, taken in turn by all threads, this one included."""
        turn = itertools.count()

        def take_turns() -> None:
            while (i := next(turn)) < count:
                work(i)

        helpers = [self._pool.submit(take_turns) for _ in range(self.threads - 1)]
        take_turns()
        for helper in helpers:
            helper.result()

    def read(self, x: Array) -> int:
        """Sum all of `x`; returns the bytes moved."""
        flat = x.reshape(-1)
        self._everywhere(-(-flat.size // PIECE), lambda i: _read(flat[i * PIECE : min(flat.size, (i + 1) * PIECE)]))
        return x.nbytes

    def copy(self, x: Array, target: Array) -> int:
        """Copy `x` to `target`; returns the bytes moved."""
        a, b = x.reshape(-1), target.reshape(-1)
        self._everywhere(
            -(-a.size // PIECE),
            lambda i: _copy(a[i * PIECE : (i + 1) * PIECE], b[i * PIECE : (i + 1) * PIECE]),
        )
        return 2 * x.nbytes

    def exponentials(self, dtype: np.dtype[Any]) -> int:
        """Sum exponentials over data in L1; returns how many."""
        block = self._blocks[dtype.type]
        return self._repeated(_exponentials, block)

    def logarithms(self) -> int:
        """Sum logarithms (float32) over data in L1; returns how many."""
        return self._repeated(_logarithms, self._positive)

    def _repeated(self, kernel: Callable[[Array, int], Any], block: Array, times: int = 1024) -> int:
        pieces = 4 * self.threads
        self._everywhere(pieces, lambda _: kernel(block, times))
        return pieces * times * block.size
