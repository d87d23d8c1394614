"""Arrays on their way into a kernel: flat memory and geometry, without a copy.

What depends on an array's kind is found once (`Layout`), what depends on its place for each array.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Array, flat_chunk, merged_axes
from .._call import Call

# 16-bit floats are passed as integers of two types, which the kernels tell apart.
STORAGE = {"float16": np.dtype(np.int16), "bfloat16": np.dtype(np.uint16)}

INT64, FLOAT64 = np.dtype(np.int64), np.dtype(np.float64)
EMPTY = {dtype: np.empty(0, dtype) for dtype in (INT64, FLOAT64)}


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


class Layout:
    """How an array of shape ``batch + (k,)`` lies in memory: the same for all of its dtype, shape and strides.

    It keeps no array, so that what was prepared for one call serves others like it.
    """

    __slots__ = ("_lowest", "_span", "_storage", "geometry")

    def __init__(self, view: Array) -> None:
        self._storage = STORAGE.get(view.dtype.name, view.dtype)
        k, size = view.shape[-1], view.itemsize
        if view.flags.c_contiguous and view.flags.writeable:
            self._lowest, self._span = 0, -1  # simply flat
            self.geometry = np.array([1, 0, 1, view.size // k, k])
            return
        strides = [s // size for s in view.strides]
        # The lowest address used, and how many elements lie between it and the highest.
        reach = [(d - 1) * s for d, s in zip(view.shape, strides, strict=True)]
        self._lowest = sum(r for r in reach if r < 0)
        self._span = sum(abs(r) for r in reach) + 1
        shape, steps = merged_axes(view.shape[:-1], strides[:-1])
        self.geometry = np.array([strides[-1], -self._lowest, len(shape), *shape, *steps])

    def flat(self, view: Array) -> Array:
        """The memory of `view`, from its lowest element to its highest."""
        if self._span < 0:
            flat = view.reshape(-1)
            return flat if self._storage is view.dtype else flat.view(self._storage)
        if not view.size:
            return np.empty(1, self._storage)
        address = view.__array_interface__["data"][0] + self._lowest * view.itemsize
        return np.asarray(_Memory(address, self._span, self._storage, view))

    def operand(self, view: Array) -> Operand:
        return Operand(self.flat(view), self.geometry)


def operand(view: Array) -> Operand:
    return Layout(view).operand(view)


def optional(view: Array | None) -> Operand:
    return Operand(None, None) if view is None else operand(view)  # type: ignore[arg-type]


def with_whole_elements(call: Call) -> Call:
    """`call`, or one like it with copies of arrays whose strides are no whole elements, as in packed records."""
    copied: dict[str, Any] = {}
    for name in ("x", "y", "sample_weight", "pos_weight"):
        array = getattr(call, name)
        if array is not None and not _in_whole_elements(array):
            copied[name] = array.copy()
    for name in ("rows", "maps"):
        outputs = getattr(call, name)
        if not all(map(_in_whole_elements, outputs.values())):
            copied[name] = {n: a if _in_whole_elements(a) else a.copy() for n, a in outputs.items()}
    return replace(call, **copied) if copied else call


def _in_whole_elements(array: Array) -> bool:
    return all(s % array.itemsize == 0 for s in array.strides)


def converted(view: Array, start: int, stop: int, dtype: Any = np.float64) -> Operand:
    """Rows ``start:stop`` of `view` as `dtype`: for dtypes that no kernel is compiled for."""
    k = view.shape[-1]
    rows = flat_chunk(view, start * k, stop * k).astype(dtype)
    return Operand(rows, np.array([1, -start * k, 1, stop, k]))


def column(values: Array | None, start: int, stop: int, dtype: np.dtype[Any]) -> Array:
    """Elements ``start:stop`` of a batch-shaped array, contiguous, writeable and of `dtype`; empty for None."""
    if values is None:
        return EMPTY[dtype]
    chunk = flat_chunk(values, start, stop)
    return chunk if chunk.dtype == dtype and chunk.flags.writeable else chunk.astype(dtype)
