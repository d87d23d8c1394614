"""The public functions on arrays in a GPU's memory, called with NumPy's: how all tests reach the CUDA backend.

On a machine without a GPU, CuPy is a stand-in on host memory (`fake_cupy`) whose kernels are the CUDA source itself,
compiled for the CPU (`shim`); with ``ENTROKERN_GPU=1`` it is CuPy.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

import entrokern as ek
from entrokern import _dispatch

REAL = os.environ.get("ENTROKERN_GPU") == "1"
if not REAL:
    import fake_cupy

    fake_cupy.install()


def absent() -> str:
    """Why the CUDA backend cannot run here; empty if it can."""
    if not REAL:
        return "" if shutil.which("g++") else "no g++, which compiles the CUDA source for the CPU: apt-get install g++"
    try:
        import cupy

        return "" if cupy.cuda.runtime.getDeviceCount() else "no GPU"
    except Exception as error:  # whatever is missing: CuPy, the driver, the device
        return f"no GPU: {type(error).__name__}: {error}"


FUNCTIONS = (
    "information", "entropy", "cross_entropy", "binary_cross_entropy", "kl_divergence", "js_divergence",
    "kl_estimate", "perplexity", "score", "logsumexp", "log_softmax", "softmax",
)  # fmt: skip


def to_device(array: np.ndarray) -> Any:
    """`array` on the device, with the same strides."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not REAL:
        return fake_cupy.wrap(array)
    import cupy

    reach = [(d - 1) * s for d, s in zip(array.shape, array.strides, strict=True)]
    low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0) + array.itemsize
    # As far from a boundary of 16 bytes as on the host, in whole elements, without which a GPU cannot read.
    beyond = array.ctypes.data % 16 // array.itemsize * array.itemsize
    memory = cupy.empty(high - low + 32, cupy.uint8).data
    first = -low + (beyond + low) % 16
    view = cupy.ndarray(array.shape, array.dtype, memory + first, strides=array.strides)
    view[...] = cupy.asarray(np.ascontiguousarray(array))
    return view


def to_host(array: Any) -> np.ndarray:
    if not REAL:
        return fake_cupy.unwrap(array)
    return np.asarray(array.get())


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` whose arrays take the way over the device while the backend is ``"cuda"``."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if _dispatch.override() != "cuda":
            return function(*args, **options)
        given: dict[int, tuple[Any, np.ndarray]] = {}  # by the host array: one array twice is one on the device

        def moved(value: Any) -> Any:
            if isinstance(value, (tuple, list)) and any(isinstance(v, np.ndarray) for v in value):
                return type(value)(moved(v) for v in value)
            if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
                return value
            if id(value) not in given:
                given[id(value)] = to_device(value), value
            return given[id(value)][0]

        def back(result: Any) -> Any:
            if isinstance(result, tuple):
                return tuple(back(r) for r in result)
            if isinstance(result, ek.Score):
                return replace(result, **{f.name: back(getattr(result, f.name)) for f in fields(result)})
            if result is None:
                return None
            for array, host in given.values():
                if result is array:
                    return host
            return to_host(result)

        args = tuple(np.asarray(a) if isinstance(a, (list, tuple, int, float, np.generic)) else a for a in args)
        result = function(*map(moved, args), **{name: moved(value) for name, value in options.items()})
        if REAL:
            for array, host in given.values():
                if host.flags.writeable:
                    host[...] = array.get()
        return back(result)

    call.__wrapped__ = function.__wrapped__  # type: ignore[attr-defined]  # one decorator, to those who look behind it
    return call


for _name in FUNCTIONS:
    setattr(ek, _name, on_device(getattr(ek, _name)))


def checked(backend: str) -> dict[str, bool]:
    """What makes `backend` raise for integer targets out of range: on a device they are NaN unless one asks."""
    return {"validate": True} if backend == "cuda" else {}


if __name__ == "__main__":
    x, y = np.random.default_rng(0).normal(size=(256, 1000)).astype(np.float32), np.arange(256)
    with ek.use_backend("cuda"):
        ek.cross_entropy(x, y)
        begun = time.perf_counter()
        loss = ek.cross_entropy(x, y)
        seconds = time.perf_counter() - begun
    print(f"256 rows of 1000 classes: loss {float(loss):.6f} in {1e3 * seconds:.1f} ms")
