"""Any library's arrays that follow the array API standard, here those of array-api-strict."""

from __future__ import annotations

import doctest
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import entrokern as ek
from cases import NAMED, Case, call, operands

xp = pytest.importorskip("array_api_strict", reason="arrays of the array API standard")

X, Y = np.random.default_rng(4).normal(size=(6, 4)), np.arange(6) % 4


def strict(value: Any, device: Any = None) -> Any:
    return xp.asarray(value, device=device) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_bits_of_numpy(case: Case, dtype: str, device: str) -> None:
    """Type, dtype, device and bits, for every case of the table."""
    args, options = operands(case, 6, 4, dtype)
    want = call(case.function, args, options)
    where = xp.Device(device)
    given = {name: strict(v, where) for name, v in options.items()}
    found = call(case.function, [strict(a, where) for a in args], given)
    assert found.keys() == want.keys()
    for name, value in found.items():
        assert type(value) is type(xp.asarray(0.0))
        assert value.device == where
        array = np.from_dlpack(value)
        assert (array.dtype, array.shape) == (want[name].dtype, want[name].shape)
        np.testing.assert_array_equal(array, want[name])


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from entrokern import array_api

    x = xp.asarray(X, copy=True)
    assert np.shares_memory(array_api.unwrapped(x), np.from_dlpack(x))
    results: list[Any] = []
    softmax = ek.softmax.__wrapped__  # type: ignore[attr-defined]

    def watched(x: Any) -> Any:
        results.append(softmax(x).run())
        return results[0]

    found = array_api.run(watched, (x,), {})
    assert np.shares_memory(np.from_dlpack(found), results[0])


def test_lists_beside_arrays() -> None:
    assert float(ek.cross_entropy(strict(X), Y.tolist())) == ek.cross_entropy(X, Y)


class Elsewhere:
    """An array on a GPU, as far as anybody asks."""

    device = "gpu:0"

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return xp

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


class Lazy:
    """An array without memory."""

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return xp


class Other:
    """An array of another library."""

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return np


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: ek.cross_entropy(x, Y), TypeError, "a array_api_strict Array and a numpy ndarray; convert one"),
        (lambda x: ek.kl_divergence(x, Other()), TypeError, "different libraries"),
        (lambda x: ek.softmax(Elsewhere()), TypeError, r"does not lie on the CPU \(device gpu:0\)"),
        (lambda x: ek.softmax(Lazy()), TypeError, "has no DLPack to read it by; convert it to NumPy"),
        (lambda x: ek.softmax(x, out=x), TypeError, "out is given beside"),
        (lambda x: ek.softmax(xp.astype(x, xp.complex128)), TypeError, "dtype complex128"),
        (lambda x: ek.cross_entropy(x, xp.asarray(Y + 3)), IndexError, "label 4 of row 1"),
        (lambda x: ek.cross_entropy(x, xp.asarray(Y), temperature=xp.asarray([1.0, 2.0])), TypeError, "temperature"),
    ],
)
def test_bad_calls(function: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(strict(X))


def test_a_stream_takes_them() -> None:
    stream = ek.Accumulator("cross_entropy").update(strict(X), strict(Y))
    assert stream.compute().mean == ek.Accumulator("cross_entropy").update(X, Y).compute().mean


def test_the_example() -> None:
    assert doctest.testmod(sys.modules["entrokern.array_api"]).failed == 0
