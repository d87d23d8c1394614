"""What this machine can do at most, measured with all threads: read, copy, exponentials, logarithms.

Each limit does a stated amount of work; measure.py times it between our calls. Nothing here is shared with
the library: a kernel that gets better does not move what it is measured against.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

Array = np.ndarray[Any, np.dtype[Any]]

SUMS = {"reassoc", "nsz", "contract"}
BLOCK = 4096  # elements: 16 KiB of float32, which stays in L1
PIECE = 1 << 19  # words of 8 bytes that a thread takes at a time
SWEEPS = 1024  # over a block, for one piece of arithmetic


# --- instructions that Numba does not offer -------------------------------------------------------


def _reinterpret(source, target):
    @intrinsic
    def view(typing, x):
        def build(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), build

    return view


_bits32, _float32 = _reinterpret(types.float32, types.uint32), _reinterpret(types.uint32, types.float32)
_bits64, _float64 = _reinterpret(types.float64, types.uint64), _reinterpret(types.uint64, types.float64)
EXACT = {"contract", "nsz"}  # the rounding below must not be folded away


# --- the work -------------------------------------------------------------------------------------


@numba.njit(nogil=True, error_model="numpy")
def _read(words):
    total = np.int64(0)
    for i in range(words.size):
        total += words[i]
    return total


@numba.njit(nogil=True, error_model="numpy")
def _copy(source, target):
    for i in range(source.size):
        target[i] = source[i]


@numba.njit(nogil=True, fastmath=EXACT, error_model="numpy")
def _exp2_f32(t, coefficients):
    """A short polynomial, and the whole part of `t` into the exponent's bits: little can be cheaper."""
    c0, c1, c2, c3, c4, c5 = coefficients
    n = t + np.float32(1.5 * 2**23)  # rounds t to whole numbers, in its lowest bits
    r = t - (n - np.float32(1.5 * 2**23))
    p = c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * c5))))
    return _float32(_bits32(p) + (_bits32(n) << np.uint32(23)))


@numba.njit(nogil=True, fastmath=EXACT, error_model="numpy")
def _exp2_f64(t, coefficients):
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 = coefficients
    n = t + 1.5 * 2.0**52
    r = t - (n - 1.5 * 2.0**52)
    high = c6 + r * (c7 + r * (c8 + r * (c9 + r * (c10 + r * c11))))
    p = c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * high)))))
    return _float64(_bits64(p) + (_bits64(n) << np.uint64(52)))


def _sum_of(exp2: Any) -> Any:
    @numba.njit(nogil=True, fastmath=SUMS, error_model="numpy")
    def exponentials(block, coefficients):
        """``Σ 2^(x-m)``; `m` changes, so that no sweep can be left out."""
        total = m = block.dtype.type(0.0)
        step = block.dtype.type(2.0**-10)
        for _ in range(SWEEPS):
            for i in range(block.size):
                total += exp2(block[i] - m, coefficients)
            m += step
        return total

    return exponentials


_exponentials_f32, _exponentials_f64 = _sum_of(_exp2_f32), _sum_of(_exp2_f64)


@numba.njit(nogil=True, fastmath=SUMS, error_model="numpy")
def _log_f32(x):
    """``log x`` of normal float32 numbers with no care for any other: little can be cheaper.

    ``log(1+f) = f - f²/2 + f³·P(f)`` for mantissas from sqrt(1/2) to sqrt(2), P a Chebyshev fit.
    """
    bits = _bits32(x)
    exponent = (bits - np.uint32(0x3F3504F3)) & np.uint32(0xFF800000)
    e = np.float32(np.int32(exponent) >> 23)
    f = _float32(bits - exponent) - np.float32(1.0)
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
def _logarithms(block):
    """``Σ log(x·s)``; `s` changes, so that no sweep can be left out."""
    total = np.float32(0.0)
    s = np.float32(1.0)
    for _ in range(SWEEPS):
        for i in range(block.size):
            total += _log_f32(block[i] * s)
        s += np.float32(2.0**-10)
    return total


def _taylor(terms: int, kind: type) -> tuple[Any, ...]:
    """Of ``2^r`` at 0."""
    found = [1.0]
    for i in range(1, terms):
        found.append(found[-1] * float(np.log(2)) / i)
    return tuple(kind(c) for c in found)


# --- with all threads -----------------------------------------------------------------------------


class Limits:
    """The limits on `threads` threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(max(1, threads - 1))
        rng = np.random.default_rng(0)
        self._exponents = rng.uniform(-20, 0, BLOCK)
        self._positive = rng.uniform(0.01, 1, BLOCK).astype(np.float32)

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

    def read(self, arrays: list[Array]) -> int:
        """Read all of the arrays; returns the bytes moved."""
        for array in arrays:
            words = _words(array)
            self._everywhere(-(-words.size // PIECE), lambda i, words=words: _read(_piece(words, i)))
        return sum(array.nbytes for array in arrays)

    def copy(self, source: Array, target: Array) -> int:
        """Copy `source` to `target`; returns the bytes moved."""
        a, b = _words(source), _words(target)
        self._everywhere(-(-a.size // PIECE), lambda i: _copy(_piece(a, i), _piece(b, i)))
        return 2 * source.nbytes

    def exponentials(self, double: bool) -> int:
        """Sum exponentials over data in L1; returns how many."""
        if double:
            return self._repeated(_exponentials_f64, self._exponents, _taylor(12, float))
        return self._repeated(_exponentials_f32, self._exponents.astype(np.float32), _taylor(6, np.float32))

    def logarithms(self) -> int:
        """Sum logarithms (float32) over data in L1; returns how many."""
        return self._repeated(_logarithms, self._positive)

    def _repeated(self, kernel: Callable[..., Any], block: Array, *more: Any) -> int:
        pieces = 4 * self.threads
        self._everywhere(pieces, lambda _: kernel(block, *more))
        return pieces * SWEEPS * block.size


def _words(array: Array) -> Array:
    """The memory of a contiguous array as words of 8 bytes (without a last part of one)."""
    raw = array.reshape(-1).view(np.uint8)
    return raw[: raw.size // 8 * 8].view(np.int64)


def _piece(words: Array, i: int) -> Array:
    return words[i * PIECE : min(words.size, (i + 1) * PIECE)]
