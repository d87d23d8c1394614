"""Arrays in Zarr stores, decoded a band of chunks at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._arrays import Array
from .stored import BLOCK_BYTES, InputError, PieceArray, StoredArray, needed, one_line, pick

METADATA = ("zarr.json", ".zarray", ".zgroup")  # of version 3 and version 2


class ZarrArray(PieceArray):
    """An array of a store. A band of chunks is decoded as a whole: memory is bounded by its size."""

    def __init__(self, name: str, path: str, array: Any) -> None:
        dtype = np.dtype(array.dtype)
        if dtype.kind not in "biuf":
            raise InputError(f"{name} has dtype {dtype}; a numeric array is needed")
        super().__init__(name, tuple(array.shape), dtype, [path])
        self._array = array

    def lay_out(self, axis: int | None) -> None:
        super().lay_out(axis)
        self._axis = axis
        batch = [i for i in range(len(self.shape)) if i != axis]
        self._cut = batch[0] if batch else None  # the axis that pieces are consecutive along: the slowest of the rows'
        self._per_index = self.n_rows // max(self.shape[self._cut], 1) if self._cut is not None else 1

    def _pieces(self, start: int) -> Iterator[tuple[int, Any, int]]:
        if self._cut is None:
            yield 0, self._decoded(()), 1
            return
        inner = max(self._per_index, 1)
        chunk = max(int(self._array.chunks[self._cut]), 1)
        step = chunk * max(1, BLOCK_BYTES // max(chunk * inner * self.row_bytes, 1))
        first = start // inner // step * step
        for low in range(first, self.shape[self._cut], step):
            high = min(low + step, self.shape[self._cut])
            piece = self._decoded((*[slice(None)] * self._cut, slice(low, high)))
            yield low * inner, piece, (high - low) * inner

    def _decoded(self, selection: tuple[slice, ...]) -> Array:
        try:
            piece = np.asarray(self._array[selection or ...])
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror or one_line(error)}") from None
        except Exception as error:  # each codec has errors of its own
            raise InputError(f"{self.name} is damaged: {one_line(error)}") from None
        return (piece if self._axis is None else np.moveaxis(piece, self._axis, -1)).reshape(-1, self.k)

    def _copy(self, piece: Any, low: int, high: int, rows: Array) -> None:
        rows[...] = piece[low:high]


def members(path: str) -> list[str]:
    """The arrays in a store, by their paths in it; none where it is one array."""
    node = _opened(path)
    return [] if hasattr(node, "shape") else _names(node)


def open_array(path: str, member: str | None, role: str, bfloat16: bool) -> StoredArray:
    """Open the array that is a store, or one of those in it."""
    node = _opened(path)
    if hasattr(node, "shape"):
        if member is not None:
            raise InputError(f"{path} holds one array; leave :{member} out")
        return ZarrArray(path, path, node)
    member = pick(path, _names(node), member, role)
    return ZarrArray(f"{path}:{member}", path, node[member])


def _opened(path: str) -> Any:
    zarr = needed("zarr", "a .zarr store")
    os.stat(path)  # says what is missing as for any other file
    try:
        return zarr.open(path, mode="r")
    except Exception as error:
        raise InputError(f"{path} is not a Zarr store, or damaged: {one_line(error)}") from None


def _names(group: Any) -> list[str]:
    return sorted(name for name, node in group.members(max_depth=None) if hasattr(node, "shape"))
