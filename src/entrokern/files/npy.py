"""Arrays in .npy and .npz files, and any other whose elements lie in a file one after the other."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from contextlib import ExitStack
from io import FileIO
from typing import IO, Any, Self

import numpy as np

from .._arrays import Array
from .stored import InputError, StoredArray, bfloat16_dtype, described, one_line, pick

PIECE = 1 << 20  # asked of a zip member's reader at a time: it makes a copy of that
NO_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError)  # it is read as a Python expression
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class RawArray(StoredArray):
    """Elements in a file from byte `start` on, in C order or (`fortran`) in Fortran order."""

    positional = True

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], path: str, file: IO[bytes], start: int):
        super().__init__(name, shape, dtype, [path])
        self._file, self._start = file, start

    def lay_out(self, axis: int | None) -> None:
        shape = self.shape
        if self.fortran:
            if len(shape) > 2 or axis is None:
                raise InputError(
                    f"{self.name} is stored in Fortran order with {len(shape)} dimensions; "
                    "save np.ascontiguousarray of it"
                )
            shape, axis = shape[::-1], len(shape) - 1 - axis  # the same bytes in C order
        self._lay_out(shape, axis)
        if self.after > 1 and not self.positional:
            raise InputError(
                f"{self.name}: rows whose classes lie apart cannot be read from inside a .npz; "
                "save the array as .npy, or with its classes on the last axis in C order"
            )

    def _fill(self, block: Array, start: int) -> None:
        size = self.dtype.itemsize
        if block.shape[-1] == max(self.after, 1):
            self._read(block, self._start + start * self.k * size)
            return
        plane, at = divmod(start, self.after)
        for c in range(self.k):
            self._read(block[0, c], self._start + ((plane * self.k + c) * self.after + at) * size)

    def _read(self, block: Array, at: int) -> None:
        """Read the file from byte `at` on into the contiguous `block`."""
        view = memoryview(block.reshape(-1).view(np.uint8).data)
        try:
            while view:
                got = self._read_some(view, at)
                if not got:
                    raise InputError(f"{self.name} ended early: it has become shorter since it was opened")
                view, at = view[got:], at + got
        except BROKEN_ZIP as error:
            raise InputError(f"{self.name} is damaged: {one_line(error)}") from None
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror}") from None

    def _read_some(self, view: memoryview, at: int) -> int:
        """How many bytes were read from byte `at` on; several threads may do so where the file takes a position."""
        if self.positional:
            return os.preadv(self._file.fileno(), [view], at)
        self._file.seek(at)
        got: int = self._file.readinto(view[:PIECE])  # type: ignore[attr-defined]
        return got

    def reader(self) -> Self:
        reader = super().reader()
        reader._file = FileIO(os.dup(self._file.fileno()))
        return reader

    def close(self) -> None:
        self._file.close()


class NpyArray(RawArray):
    """An array as NumPy saves it, in `size` bytes with its header."""

    def __init__(self, name: str, path: str, file: IO[bytes], size: int, *, bfloat16: bool, seekable: bool) -> None:
        try:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_2_0 if version > (1, 0) else np.lib.format.read_array_header_1_0
            )
            shape, self.fortran, dtype = read_header(file)
        except NO_HEADER as error:
            what = one_line(error).partition(": <")[0]  # what a parser tells of its own objects says nothing
            raise InputError(f"{name} is not an array that NumPy saved: {what}") from None
        start = file.tell()
        super().__init__(name, shape, _numeric(name, dtype, bfloat16), path, file, start)
        self.positional = seekable
        needs = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size - start < needs:
            raise InputError(
                f"{name} is truncated: {described(shape, self.dtype)} takes {needs:,} bytes, "
                f"but {max(size - start, 0):,} follow the header"
            )


def _numeric(name: str, dtype: np.dtype[Any], bfloat16: bool) -> np.dtype[Any]:
    if dtype.hasobject:
        raise InputError(f"{name} holds Python objects; save it with a numeric dtype")
    if dtype.kind != "V":
        return dtype
    # NumPy's format has no name for bfloat16: ml_dtypes arrays are saved as two bytes of nothing.
    if dtype.fields or dtype.itemsize != 2:
        raise InputError(f"{name} has dtype {dtype}; save a plain numeric array")
    if not bfloat16:
        raise InputError(f"{name} holds 2-byte items of no NumPy type; if it is bfloat16, pass --dtype bfloat16")
    return bfloat16_dtype("--dtype bfloat16")


def members(path: str) -> list[str]:
    """The arrays in a .npz file; none for a .npy file."""
    if not path.endswith(".npz"):
        return []
    with _zip(path) as archive:
        return [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]


def open_array(path: str, member: str | None, role: str, bfloat16: bool) -> StoredArray:
    """Open ``FILE.npy``, or an array of ``FILE.npz``."""
    with ExitStack() as stack:
        array: StoredArray
        if path.endswith(".npy"):
            if member is not None:
                raise InputError(f"{path} holds one array; leave :{member} out")
            file: IO[bytes] = stack.enter_context(open(path, "rb", buffering=0))
            array = NpyArray(path, path, file, os.stat(path).st_size, bfloat16=bfloat16, seekable=True)
        else:
            member = pick(path, members(path), member, role)
            name = f"{path}:{member}"
            try:
                with _zip(path) as archive:  # the open member keeps the file open
                    entry = archive.getinfo(f"{member}.npy")
                    file = stack.enter_context(archive.open(entry))
                array = NpyArray(name, path, file, entry.file_size, bfloat16=bfloat16, seekable=False)
            except BROKEN_ZIP as error:
                raise InputError(f"{name} is damaged: {one_line(error)}") from None
        stack.pop_all()  # all is well: the array keeps its file
        return array


def _zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except BROKEN_ZIP as error:
        raise InputError(f"{path} is not a .npz file, or damaged: {one_line(error)}") from None
