"""The vector mathematics: its coefficients fitted again, its errors measured, its loops vectorised."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mpmath
import numba
import numpy as np
import pytest

from entrokern import _formulas
from entrokern.cpu import blocks, memory
from entrokern.cpu import math as vector
from entrokern.cpu.simd import machine_has

mp = mpmath.mp.clone()
mp.dps = 50


def atanh_tail(u: Any) -> Any:
    return mp.mpf(1) / 3 + u / 5 if u < mp.mpf(10) ** -20 else (mp.atanh(mp.sqrt(u)) - mp.sqrt(u)) / mp.sqrt(u) ** 3


def expm1_tail(d: Any) -> Any:
    return mp.mpf(1) / 2 - d / 6 + d * d / 24 if abs(d) < mp.mpf(10) ** -10 else (mp.expm1(-d) + d) / d**2


def exp2_tail(d: Any) -> Any:
    return mp.log(2) ** 2 * expm1_tail(d * mp.log(2))


def exp2_slope(r: Any) -> Any:
    ln2 = mp.log(2)
    return ln2 + r * ln2**2 / 2 if abs(r) < mp.mpf(10) ** -12 else mp.expm1(r * ln2) / r


def log1p_tail(e: Any) -> Any:
    return mp.mpf(-1) / 2 + e / 3 - e * e / 4 if e < mp.mpf(10) ** -15 else (mp.log1p(e) - e) / e**2


def half_tanh(u: Any) -> Any:
    return mp.mpf(1) / 2 - u / 24 if u < mp.mpf(10) ** -20 else mp.tanh(mp.sqrt(u) / 2) / mp.sqrt(u)


# coefficients, the function they stand for, its interval, the largest relative error they may have
POLYNOMIALS: list[tuple[tuple[float, ...], Callable[[Any], Any], float, float, float]] = [
    (_formulas.ATANH_TAIL, atanh_tail, 0.0, 1 / 9, 2e-16),
    (_formulas.EXPM1_TAIL, expm1_tail, -1.0, 1.0, 1e-16),
    (_formulas.EXPM1_TAIL_F32, expm1_tail, -1.0, 1.0, 1e-8),
    (vector.EXP2_F32, exp2_slope, -0.5, 0.5, 1.3e-8),
    (vector.EXP2_F64, exp2_slope, -0.5, 0.5, 2e-14),
    (_formulas.EXP2_TAIL_F32, exp2_tail, -1.0, 1.0, 7e-9),
    (_formulas.ATANH_FIFTH_F32, atanh_tail, 0.0, 0.04, 7.1e-7),
    (_formulas.LOG1P_F32, log1p_tail, 0.0, 1.0, 1.5e-6),
    (vector.LOG1P_F64, lambda v: log1p_tail(v + mp.mpf(1) / 2), -0.5, 0.5, 2e-14),
    (_formulas.HALF_TANH, half_tanh, 0.0, 1.0, 1.4e-8),
    (vector.EXP, lambda r: expm1_tail(-r), -0.3466, 0.3466, 3e-16),
]


@pytest.mark.parametrize("i", range(len(POLYNOMIALS)))
def test_coefficients_are_a_near_minimax_fit(i: int) -> None:
    coefficients, function, low, high, allowed = POLYNOMIALS[i]
    worst = 0.0
    for x in np.linspace(low, high, 301):
        exact = function(mp.mpf(float(x)))
        value = sum(mp.mpf(c) * mp.mpf(float(x)) ** power for power, c in enumerate(coefficients))
        worst = max(worst, float(abs(value / exact - 1)))
    assert worst <= allowed


@numba.njit
def _exp2(values: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = vector.exp2(vector.floored(values[i]))


@numba.njit
def _exp(values: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = vector.exp(values[i])


@numba.njit
def _log(values: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = vector.log(values[i])


@numba.njit
def _log1p(values: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = vector.log1p(values[i])


def relative_ulps(function: Any, exact: Callable[[Any], Any], x: np.ndarray) -> float:
    """The largest error in units of the output type's eps."""
    out = np.empty_like(x)
    function(x, out)
    eps = float(np.finfo(x.dtype).eps)
    wanted = [exact(mp.mpf(float(v))) for v in x]
    return max(float(abs((mp.mpf(float(o)) - w) / w)) / eps for o, w in zip(out, wanted, strict=True) if w != 0)


RNG = np.random.default_rng(7)
NEAR_ONE = 1 + RNG.uniform(-1e-3, 1e-3, 300)


@pytest.mark.parametrize(
    ("function", "exact", "x", "allowed"),
    [
        (_exp2, lambda v: mp.mpf(2) ** v, RNG.uniform(-125, 0, 600).astype(np.float32), 1.0),
        (_exp2, lambda v: mp.mpf(2) ** v, RNG.uniform(-1020, 0, 600), 1.0),
        (_exp, mp.exp, RNG.uniform(-700, 700, 600), 1.0),
        (_log, mp.log, np.exp(RNG.uniform(-700, 700, 600)), 1.0),
        (_log, mp.log, NEAR_ONE, 1.0),
        (_log, mp.log, np.array([5e-324, 1e-310, 2.3e-308, 1.7e308]), 1.0),
        (_log1p, mp.log1p, np.exp(RNG.uniform(-80, 40, 600)), 1.5),
        (_log1p, mp.log1p, RNG.uniform(-0.999, 0, 300), 1.5),
    ],
)
def test_error_in_eps(function: Any, exact: Any, x: np.ndarray, allowed: float) -> None:
    assert relative_ulps(function, exact, x) <= allowed


def applied(function: Any) -> Any:
    """An emitted function over an array, by vectors."""

    @numba.njit
    def over(x: Any, out: Any) -> None:
        like = memory.vector(x[0])
        for i in range(0, x.size, 8):
            memory.store_first(out, i, x.size - i, function(memory.load_first(x, i, x.size - i, like)))

    return over


@pytest.mark.parametrize(
    ("function", "exact", "x", "allowed"),
    [
        (vector.log1p_unit, mp.log1p, np.exp(RNG.uniform(-80, 0, 600)).astype(np.float32), 1.2),
        (vector.log1p_unit, mp.log1p, RNG.uniform(0, 1, 600).astype(np.float32), 1.2),
        (vector.log1p_unit, mp.log1p, np.exp(RNG.uniform(-300, 0, 600)), 1.2),
        (vector.log1p_unit, mp.log1p, RNG.uniform(0, 1, 600), 1.2),
        (vector.signed_exp, mp.exp, RNG.uniform(-708, 709.7, 600), 1.0),
        (vector.exp2_below, lambda v: mp.mpf(2) ** v, RNG.uniform(-125, 0, 600).astype(np.float32), 1.0),
        (vector.exp2_below, lambda v: mp.mpf(2) ** v, RNG.uniform(-1020, 0, 600), 1.0),
    ],
)
def test_error_of_vectors_in_eps(function: Any, exact: Callable[[Any], Any], x: np.ndarray, allowed: float) -> None:
    assert relative_ulps(applied(function), exact, x) <= allowed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_powers_of_vectors(dtype: Any) -> None:
    x = np.array([-np.inf, 0.0, np.nan, -1.0, -3000.0, -100.0, -np.finfo(dtype).max, -0.0], dtype)
    out = np.empty_like(x)
    applied(vector.exp2_below)(x, out)
    np.testing.assert_array_equal(out, [0.0, 1.0, np.nan, 0.5, 0.0, dtype(2.0**-100), 0.0, 1.0])


@pytest.mark.skipif(not machine_has("avx512f"), reason="there is one way only")
def test_vectors_on_an_older_machine() -> None:
    """The tests above on vectors, without the instructions that only newer machines have."""
    older = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi2"}
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "of_vectors"]
    result = subprocess.run(command, env=os.environ | older, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout


def test_special_values() -> None:
    out = np.empty(5)
    _exp(np.array([-np.inf, np.inf, np.nan, 0.0, 800.0]), out)
    np.testing.assert_array_equal(out, [0.0, np.inf, np.nan, 1.0, np.inf])
    applied(vector.signed_exp)(np.array([-np.inf, np.inf, np.nan, 0.0, 800.0]), out)
    np.testing.assert_array_equal(out, [0.0, np.inf, np.nan, 1.0, np.inf])
    _log(np.array([0.0, np.inf, np.nan, -1.0, 1.0]), out)
    np.testing.assert_array_equal(out, [-np.inf, np.inf, np.nan, np.nan, 0.0])
    _log1p(np.array([-1.0, np.inf, np.nan, -2.0, 0.0]), out)
    np.testing.assert_array_equal(out, [-np.inf, np.inf, np.nan, np.nan, 0.0])
    _exp2(np.array([-np.inf, 0.0, np.nan, -1074.0, 1.0]), out)
    np.testing.assert_array_equal(out, [0.0, 1.0, np.nan, 5e-324, 2.0])


@pytest.mark.parametrize("name", ["_exp2", "_exp", "_log", "_log1p"])
def test_loops_are_vector_code(name: str) -> None:
    """Arithmetic on whole registers: a scalar fallback would be several times slower."""
    function = globals()[name]
    function(np.ones(4), np.ones(4))
    assembly = function.inspect_asm()[(numba.float64[::1], numba.float64[::1])]
    packed = ("mulpd", "fmadd213pd", "fmadd231pd", "fmadd132pd", "fmla\tv")
    assert sum(assembly.count(instruction) for instruction in packed) > 5


@numba.njit
def _widen(bits: Any, out: Any) -> None:
    for i in range(bits.size):
        out[i] = blocks.widen(bits[i])


@numba.njit
def _narrow(values: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = blocks.narrow(values[i], out)


ALL_BITS = np.arange(1 << 16, dtype=np.uint16)


def test_float16_converts_as_numpy_does() -> None:
    halves = ALL_BITS.view(np.float16)
    wide = np.empty(halves.size, np.float32)
    _widen(ALL_BITS.view(np.int16), wide)
    np.testing.assert_array_equal(wide, halves.astype(np.float32))
    back = np.empty(halves.size, np.int16)
    _narrow(wide, back)
    np.testing.assert_array_equal(back.view(np.float16), halves)


def test_rounding_to_16_bits_is_to_nearest_even() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    random = RNG.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    small = (RNG.standard_normal(50_000) * 2.0 ** RNG.integers(-30, 18, 50_000)).astype(np.float32)
    edges = np.array([v * s for v, s in itertools.product((65504, 65519.99, 65520, 6e-8, 2.9e-8, 3e-8), (1, -1))])
    values = np.concatenate([random, small, edges.astype(np.float32)])
    with np.errstate(all="ignore"):
        half, brain = values.astype(np.float16), values.astype(ml_dtypes.bfloat16)
    out = np.empty(values.size, np.int16)
    _narrow(values, out)
    np.testing.assert_array_equal(out.view(np.float16), half)
    unsigned = np.empty(values.size, np.uint16)
    _narrow(values, unsigned)
    np.testing.assert_array_equal(unsigned.view(ml_dtypes.bfloat16).astype(np.float32), brain.astype(np.float32))
    wide = np.empty(1 << 16, np.float32)
    _widen(ALL_BITS, wide)
    np.testing.assert_array_equal(wide, ALL_BITS.view(ml_dtypes.bfloat16).astype(np.float32))
