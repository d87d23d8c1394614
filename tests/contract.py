"""How a result is judged: dtype, shape and type first, then its error in units of section 4's bound."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from cases import Case
from oracle import Result, Results

Array = NDArray[Any]

ROWS = ("loss", "lse", "logsumexp", "log_prob", "entropy", "max_prob")
INDICES = ("argmax", "rank")


def input_dtype(case_or_function: Case | str, args: list[Any]) -> np.dtype[Any]:
    """The dtype that decides: of `x`, or of both operands of a divergence."""
    name = case_or_function if isinstance(case_or_function, str) else case_or_function.function
    floats = [np.asarray(a).dtype for a in args]
    floats = [d if d.name == "bfloat16" or d.kind == "f" else np.dtype(np.float64) for d in floats]
    two = name in ("kl_divergence", "js_divergence", "kl_estimate")
    return np.result_type(*floats) if two else floats[0]


def output_dtype(output: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    if output in INDICES:
        return np.dtype(np.int64)
    if output in ROWS:
        return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
    return dtype


def bound(want: Result, dtype: np.dtype[Any], out_dtype: np.dtype[Any]) -> Array:
    """The error allowed, for input of `dtype` and an output of `out_dtype`."""
    info = np.finfo(np.float64 if dtype.itemsize == 8 else np.float32)
    allowed = 4 * float(info.eps) * want.scale + 2.0**-51 * want.exact + 2.0**-50 * want.given
    out = ml_dtypes.finfo(out_dtype)  # storing a result rounds it once more
    allowed = allowed + 0.5 * float(out.eps) * abs(want.value) + 0.5 * float(out.smallest_subnormal)
    return np.asarray(allowed + float(info.tiny))


def units(got: Array, want: Result, allowed: Array) -> Array:
    """``|got - want| / allowed``, 0 where both are the same infinity or NaN, else infinite."""

    largest = ml_dtypes.finfo(got.dtype).max

    def one(g: float, w: Any, a: Any) -> float:
        w = math.copysign(math.inf, w) if abs(w) > float(largest) else w
        if math.isfinite(g) and math.isfinite(float(w)):
            return float(abs(g - w) / a)
        return 0.0 if g == float(w) or (math.isnan(g) and math.isnan(float(w))) else math.inf

    if want.value.dtype == object:
        with np.errstate(all="ignore"):
            return np.asarray(np.frompyfunc(one, 3, 1)(got.astype(float), want.value, allowed), np.float64)
    with np.errstate(all="ignore"):
        value = np.where(abs(want.value) > float(largest), np.copysign(np.inf, want.value), want.value)
        error = np.abs(got.astype(np.longdouble) - value) / allowed
        same = (got == value) | (np.isnan(got) & np.isnan(value))
        finite = np.isfinite(got.astype(np.float64)) & np.isfinite(value)
    return np.where(same, 0.0, np.where(finite, error, np.inf)).astype(np.float64)


def check(
    got: dict[str, Array],
    want: Results,
    dtype: np.dtype[Any],
    like: dict[str, Array] | None = None,
    where: str = "",
) -> dict[str, float]:
    """Assert the contract for every output of `got`; return the worst errors in units of the bound.

    With `like` (another backend's results), its values are wanted and `want` only gives the bound.
    """
    worst = {}
    for name, array in got.items():
        expected = output_dtype(name, dtype)
        result, place = want[name], f"{name}, {where}"
        assert type(array) is np.ndarray, place
        assert array.dtype == expected, place
        assert array.shape == result.value.shape, place
        if name in INDICES:
            value = result.value if like is None else like[name]
            off = abs(array - value.astype(np.int64))
            assert (off <= result.scale).all(), f"{place}: {array}, wanted {value}, give or take {result.scale}"
            continue
        allowed = bound(result, dtype, expected)
        if like is not None:
            assert like[name].dtype == expected, place
            # The reference has its own rounding: in float64, and once more in a 16-bit output.
            allowed = allowed + bound(result, np.dtype(np.float64), expected)
            result = result._replace(value=like[name].astype(np.longdouble))
        error = units(array, result, allowed)
        worst[name] = float(error.max(initial=0.0))
        at = np.unravel_index(int(error.argmax()), error.shape) if error.size else ()
        assert worst[name] <= 1, (
            f"{where}: {name}{[int(i) for i in at]} = {array[at]!r}, wanted {result.value[at]!r}: "
            f"{worst[name]:.3g} times the bound {float(np.broadcast_to(allowed, error.shape)[at]):.3g}"
        )
    return worst
