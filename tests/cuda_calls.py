"""What the tests of arrays on a device (`test_cuda_*.py`) share: operands there, and calls that know of none before.

The shared tests run every case on the device as well (`device.py`). In these its arrays are given as they are. What is
counted, and a second device, are those of the stand-in for CuPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cupy  # the stand-in, if `device` has put it there
import numpy as np
import pytest

import device
import entrokern as ek
from cases import Case, operands
from device import to_device, to_host

Host = np.ndarray[Any, Any]
Results = dict[str, Any]  # of a call, by name
Call = Callable[..., Any]

HOST: Any = np.full((3, 4), 0.25, np.float32)
THERE: Any = to_device(HOST.copy())
stand_in = pytest.mark.skipif(device.REAL, reason="of the stand-in for CuPy")
two_devices = pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="there is one device")


def given(value: Any) -> Any:
    """A host array as one on the device; all else as it is."""
    return to_device(value) if isinstance(value, np.ndarray) else value


def prepared(case: Case, n: int, k: int, dtype: str, kind: str = "normal") -> tuple[list[Any], dict[str, Any]]:
    """Operands and options of a case, on the device."""
    args, options = operands(case, n, k, dtype, kind)
    return [given(a) for a in args], {name: given(value) for name, value in options.items()}


def logits(n: int, k: int, dtype: Any = np.float32, seed: int = 0) -> Host:
    return np.random.default_rng(seed).normal(size=(n, k), scale=3).astype(dtype)


def distributions(n: int, k: int, dtype: Any = np.float32, seed: int = 0) -> Host:
    e = np.exp(logits(n, k, np.float64, seed))
    return (e / e.sum(axis=1, keepdims=True)).astype(dtype)


def labels(n: int, k: int) -> Host:
    return np.random.default_rng(k).integers(0, k, size=n)


@contextmanager
def afresh() -> Iterator[None]:
    """Calls that know of no earlier ones like them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in device.FUNCTIONS:
            function = getattr(ek, name).__wrapped__
            patch.setattr(ek, name, lambda *args, function=function, **options: function(*args, **options).run())
        yield


def several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def bits(array: Any) -> bytes:
    return to_host(array).tobytes()


def assert_same(got: Results, want: Results, where: str, rows: Any = ...) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert bits(got[name]) == to_host(want[name])[rows].tobytes(), f"{name}, {where}"


class Foreign:
    """An array of a library that says where it lies."""

    def __init__(self, array: Any, read_only: bool = False) -> None:
        self.array = array
        where = {"data": (array.data.ptr, read_only), "stream": None}
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | where


def on_second(value: Any) -> Any:
    with cupy.cuda.Device(1):
        return cupy.asarray(value) if isinstance(value, np.ndarray) else value
