"""Arrays on their way into a kernel: flat memory and geometry, without a copy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._arrays import Array, flat_chunk

# 16-bit floats are passed as integers of two types, which the kernels tell apart.
STORAGE = {"float16": np.dtype(np.int16), "bfloat16": np.dtype(np.uint16)}


class Operand(NamedTuple):
    """What a kernel takes for an array of shape ``batch + (k,)``."""

    flat: Array
    geometry: Array


class _Memory:
    """Memory by address. NumPy makes a writeable view of it, also where the array was read-only: Numba
    types read-only arrays apart, and every kernel would be compiled twice. No kernel writes an input."""

    def __init__(self, address: int, count: int, dtype: np.dtype[Any], owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "typestr": dtype.str,
            "strides": None,
            "version": 3,
        }


def operand(view: Array) -> Operand:
    """`view` (classes last) as flat memory with a geometry; copied only if its strides are not whole elements."""
    storage = STORAGE.get(view.dtype.name, view.dtype)
    size = view.itemsize
    if any(s % size for s in view.strides) or not view.flags.aligned:
        view = np.ascontiguousarray(view)
    k = view.shape[-1]
    if view.flags.c_contiguous and view.flags.writeable:
        flat = view.reshape(-1).view(storage) if storage is not view.dtype else view.reshape(-1)
        return Operand(flat, np.array([1, 0, 1, view.size // k, k]))
    strides = [s // size for s in view.strides]
    # The lowest address used, and how many elements lie between it and the highest.
    reach = [(d - 1) * s for d, s in zip(view.shape, strides, strict=True)]
    lowest = sum(r for r in reach if r < 0)
    span = sum(abs(r) for r in reach) + 1
    address = view.__array_interface__["data"][0] + lowest * size
    flat = np.asarray(_Memory(address, span, storage, view)) if view.size else np.empty(1, storage)
    shape, steps = _merged(view.shape[:-1], strides[:-1])
    return Operand(flat, np.array([strides[-1], -lowest, len(shape), *shape, *steps]))


def _merged(shape: tuple[int, ...], strides: list[int]) -> tuple[list[int], list[int]]:
    """Batch axes that lie in memory like one axis, as one: rows are found with fewer divisions."""
    sizes, steps = [1], [0]
    for d, s in zip(shape, strides, strict=True):
        if d == 1:
            continue
        if sizes[-1] == 1:
            sizes[-1], steps[-1] = d, s
        elif steps[-1] == d * s:
            sizes[-1], steps[-1] = sizes[-1] * d, s
        else:
            sizes.append(d)
            steps.append(s)
    return sizes, steps


def converted(view: Array, start: int, stop: int, dtype: Any = np.float64) -> Operand:
    """Rows ``start:stop`` of `view` as `dtype`: for dtypes that no kernel is compiled for."""
    k = view.shape[-1]
    rows = flat_chunk(view, start * k, stop * k).astype(dtype)
    return Operand(rows, np.array([1, -start * k, 1, stop, k]))


def column(values: Array | None, start: int, stop: int, dtype: Any) -> Array:
    """Elements ``start:stop`` of a batch-shaped array, contiguous and of `dtype`; empty for None."""
    if values is None:
        return np.empty(0, dtype)
    return np.ascontiguousarray(flat_chunk(values, start, stop), dtype)
