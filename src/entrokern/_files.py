"""Arrays in .npy and .npz files, read a range of rows at a time into buffers that are used again.

Nothing is mapped: the pages of a mapped file count as memory of the process, a buffer is bounded.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO, Any

import numpy as np

from ._arrays import Array

PIECE = 1 << 20  # per call of readinto: a zip member's reader makes a copy of what it is asked for
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class InputError(Exception):
    """What is wrong with the user's input, in one line."""


class StoredArray:
    """One array in a file: its header, and its rows on demand.

    A *row* is a vector along the class axis; rows are numbered in C order of the other axes. Stored in C
    order, the array is ``(before, k, after)`` around the class axis. `rows` returns views of two
    buffers in turn: a block is valid until the next but one is read.
    """

    def __init__(self, name: str, file: IO[bytes], size: int, *, bfloat16: bool = False, seekable: bool = True) -> None:
        self.name, self._file, self._seekable = name, file, seekable
        try:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_2_0 if version > (1, 0) else np.lib.format.read_array_header_1_0
            )
            self.shape, self._fortran, self.dtype = read_header(file)
        except ValueError as error:
            raise InputError(f"{name} is not an array that NumPy saved: {' '.join(str(error).split())}") from None
        self._start = file.tell()
        self._check_dtype(bfloat16)
        needs = math.prod(self.shape) * self.dtype.itemsize
        if min(self.shape, default=0) < 0 or size - self._start < needs:
            raise InputError(
                f"{name} is truncated: {_described(self.shape, self.dtype)} takes {needs:,} bytes, "
                f"but {max(size - self._start, 0):,} follow the header"
            )
        self._buffers = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def _check_dtype(self, bfloat16: bool) -> None:
        if self.dtype.hasobject:
            raise InputError(f"{self.name} holds Python objects; save it with a numeric dtype")
        if self.dtype.kind != "V":
            return
        # NumPy's format has no name for bfloat16: ml_dtypes arrays are saved as two bytes of nothing.
        if self.dtype.fields or self.dtype.itemsize != 2:
            raise InputError(f"{self.name} has dtype {self.dtype}; save a plain numeric array")
        if not bfloat16:
            raise InputError(
                f"{self.name} holds 2-byte items of no NumPy type; if it is bfloat16, pass --dtype bfloat16"
            )
        try:
            from ml_dtypes import bfloat16 as dtype
        except ImportError:
            raise InputError(
                "--dtype bfloat16 needs the package ml_dtypes: pip install 'entrokern[bfloat16]'"
            ) from None
        self.dtype = np.dtype(dtype)

    def __str__(self) -> str:
        return f"{self.name} {_described(self.shape, self.dtype)}"

    @property
    def like(self) -> Array:
        """An array of this shape and dtype that takes no memory, for checks of shapes."""
        return np.broadcast_to(np.zeros((), self.dtype.newbyteorder("=")), self.shape)

    def lay_out(self, axis: int | None) -> None:
        """Say along which axis the classes lie; ``None`` where every element is a row."""
        shape = self.shape
        if self._fortran:
            if len(shape) > 2 or axis is None:
                raise InputError(
                    f"{self.name} is stored in Fortran order with {len(shape)} dimensions; "
                    "save np.ascontiguousarray of it"
                )
            shape, axis = shape[::-1], len(shape) - 1 - axis  # the same bytes in C order
        self._flat = axis is None
        at = len(shape) if axis is None else axis
        self.k = 1 if axis is None else shape[at]
        self.after = math.prod(shape[at + 1 :])
        self.n_rows = math.prod(shape[:at]) * self.after
        if self.after > 1 and not self._seekable:
            raise InputError(
                f"{self.name}: rows whose classes lie apart cannot be read from inside a .npz; "
                "save the array as .npy, or with its classes on the last axis in C order"
            )

    @property
    def row_bytes(self) -> int:
        return self.k * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return self.n_rows * self.row_bytes

    def rows(self, start: int, stop: int) -> Array:
        """Rows ``start:stop``, classes last: whole planes or a part of one plane, as `ranges` gives them."""
        n = stop - start
        block = self._buffer(n * self.row_bytes).view(self.dtype)
        plane = start // max(self.after, 1)
        if start % max(self.after, 1) == 0 and n % max(self.after, 1) == 0:
            self._fill(block, start * self.k)
            block = block.reshape(-1, self.k, max(self.after, 1))
        else:
            block = block.reshape(1, self.k, n)
            for c in range(self.k):
                self._fill(block[0, c], (plane * self.k + c) * self.after + start - plane * self.after)
        if self._flat:
            return block.reshape(n)
        rows = np.moveaxis(block, 1, -1)
        return rows.reshape(n, self.k) if 1 in rows.shape[:2] else rows

    def _buffer(self, size: int) -> Array:
        self._buffers.reverse()
        if self._buffers[0].size < size:
            self._buffers[0] = np.empty(size, np.uint8)
        return self._buffers[0][:size]

    def _fill(self, block: Array, element: int) -> None:
        """Read stored elements from number `element` on into the contiguous `block`."""
        view = memoryview(block.view(np.uint8).data)
        try:
            self._file.seek(self._start + element * self.dtype.itemsize)
            while view:
                got = self._file.readinto(view[:PIECE])  # type: ignore[attr-defined]
                if not got:
                    raise InputError(f"{self.name} ended early: it has become shorter since it was opened")
                view = view[got:]
        except BROKEN_ZIP as error:
            raise InputError(f"{self.name} is damaged: {error}") from None
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()


def _described(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{dtype} {shape}"


def split_name(name: str) -> tuple[str, str | None]:
    """``data.npz:logits`` as path and member."""
    path, found, member = name.rpartition(".npz:")
    return (f"{path}.npz", member) if found else (name, None)


def members(name: str) -> list[str]:
    """The arrays in a .npz file; none for a .npy file or where a member is named."""
    path, member = split_name(name)
    if member is not None or not path.endswith(".npz"):
        return []
    with _zip(path) as archive:
        return [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]


def open_array(name: str, member: str, *, bfloat16: bool = False) -> StoredArray:
    """Open ``FILE.npy``, ``FILE.npz:NAME``, or `member` (or the one array) of ``FILE.npz``."""
    path, named = split_name(name)
    with ExitStack() as stack:
        if path.endswith(".npy"):
            file: IO[bytes] = stack.enter_context(open(path, "rb", buffering=0))
            array = StoredArray(path, file, os.stat(path).st_size, bfloat16=bfloat16)
        elif path.endswith(".npz"):
            found = members(path)
            if named is None:
                named = found[0] if len(found) == 1 else member
            if named not in found:
                has = ", ".join(found) or "none"
                raise InputError(f"{path} has no array {named!r}; it has: {has} (pick one with {path}:NAME)")
            label = f"{path}:{named}"
            try:
                with _zip(path) as archive:  # the open member keeps the file open
                    entry = archive.getinfo(f"{named}.npy")
                    file = stack.enter_context(archive.open(entry))
                array = StoredArray(label, file, entry.file_size, bfloat16=bfloat16, seekable=False)
            except BROKEN_ZIP as error:
                raise InputError(f"{label} is damaged: {error}") from None
        else:
            raise InputError(f"{name} is neither a .npy nor a .npz file (FILE.npz:NAME picks an array)")
        stack.pop_all()  # all is well: the array keeps its file
        return array


def _zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except BROKEN_ZIP as error:
        raise InputError(f"{path} is not a .npz file, or damaged: {error}") from None


def ranges(n_rows: int, step: int, plane: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of at most `step` rows: whole planes of `plane` rows, or parts of one plane.

    At least one, if only an empty one, so that the dtypes of the results are known.
    """
    if step >= plane:
        step -= step % max(plane, 1)
        plane = max(n_rows, 1)
    for first in range(0, max(n_rows, 1), plane):
        last = min(n_rows, first + plane)
        for start in range(first, max(last, 1), step):
            yield start, min(last, start + step)


Block = tuple[int, tuple[Array, ...]]


def blocks(arrays: list[StoredArray], spans: Iterator[tuple[int, int]]) -> Generator[Block]:
    """The number of the first row and the rows of every array, span by span, read one span ahead."""

    def read(span: tuple[int, int]) -> Block:
        return span[0], tuple(array.rows(*span) for array in arrays)

    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read, next(spans))
        for span in spans:
            block = pending.result()
            pending = reader.submit(read, span)
            yield block
        yield pending.result()
