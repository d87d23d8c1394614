"""What a stored array is: a shape, a dtype, and rows read a range at a time into buffers that are used again.

Nothing is mapped: the pages of a mapped file count as memory of the process, and a file that shrinks under a
mapping ends it.
"""

from __future__ import annotations

import copy
import importlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from .._arrays import Array

BLOCK_BYTES = 12 << 20  # read at a time, about: large enough for threads to pay, small enough for the last cache

# Where a file holds several arrays: what the predictions and what the labels are called, the first that is there.
NAMES = {"x": ("x", "logits"), "y": ("y", "label", "labels", "target", "targets"), "by": ("by", "group", "groups")}
TABLE = "table"  # the role of an array whose columns are looked at one by one: all that are numbers
NAMES[TABLE] = NAMES["x"]


class InputError(Exception):
    """What is wrong with the user's input, in one line."""


class StoredArray:
    """One array in a file: its shape and dtype, and its rows on demand.

    A *row* is a vector along the class axis; rows are numbered in C order of the other axes. Stored in C
    order, the array is ``(before, k, after)`` around the class axis. `rows` returns views of two
    buffers in turn: a block is valid until the next but one is read.

    A format says what the array is and overrides `_fill`.

    Attributes
    ----------
    paths : sequence of str
        The files, or folders, that are read.
    null : number or None
        What stands for a missing value, in formats that know them; where ``None``, such a value is refused.
    fortran : bool
        Whether the elements lie in Fortran order.
    positional : bool
        Whether any rows can be read as soon as any others, and so from several threads: each has a `reader`.
    columns : tuple of str or None
        What the columns of a table are called; ``None`` in formats that have no names for them.
    left_out : tuple of str
        The columns of the file that are not meant where none was named: in the role `TABLE` those that are no numbers.
    """

    null: Any = None
    fortran = False
    positional = False
    columns: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], paths: Sequence[str]) -> None:
        self.name, self.shape, self.dtype, self.paths = name, shape, dtype, paths
        self._buffers = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def __str__(self) -> str:
        return f"{self.name} {described(self.shape, self.dtype)}"

    @property
    def like(self) -> Array:
        """An array of this shape and dtype that takes no memory, for checks of shapes."""
        return np.broadcast_to(np.zeros((), self.dtype.newbyteorder("=")), self.shape)

    def lay_out(self, axis: int | None) -> None:
        """Say along which axis the classes lie; ``None`` where every element is a row."""
        self._lay_out(self.shape, axis)

    def _lay_out(self, shape: tuple[int, ...], axis: int | None) -> None:
        at = len(shape) if axis is None else axis
        self.flat = axis is None
        self.k = 1 if axis is None else shape[at]
        self.after = math.prod(shape[at + 1 :])
        self.n_rows = math.prod(shape[:at]) * self.after

    @property
    def row_bytes(self) -> int:
        return self.k * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return self.n_rows * self.row_bytes

    def rows(self, start: int, stop: int) -> Array:
        """Rows ``start:stop``, classes last: whole planes or a part of one plane, as `ranges` gives them."""
        n, plane = stop - start, max(self.after, 1)
        block = self._buffer(n * self.row_bytes).view(self.dtype)
        whole = start % plane == 0 and n % plane == 0
        block = block.reshape(-1, self.k, plane) if whole else block.reshape(1, self.k, n)
        if n:
            self._fill(block, start)
        if self.flat:
            return block.reshape(n)
        rows = np.moveaxis(block, 1, -1)
        return rows.reshape(n, self.k) if 1 in rows.shape[:2] else rows

    def _buffer(self, size: int) -> Array:
        self._buffers.reverse()
        if self._buffers[0].size < size:
            self._buffers[0] = np.empty(size, np.uint8)
        return self._buffers[0][:size]

    def reader(self) -> Self:
        """The array, laid out as it is, for one more thread; to be closed. A block of it is valid until the next."""
        reader = copy.copy(self)
        reader._buffers = [np.empty(0, np.uint8)]
        return reader

    def _fill(self, block: Array, start: int) -> None:
        """Read the rows from number `start` on into `block`: whole planes ``(planes, k, after)`` or a part of one."""
        raise NotImplementedError

    def close(self) -> None:
        pass


class PieceArray(StoredArray):
    """An array that its format gives in pieces of consecutive rows: a record batch, a band of chunks.

    A format overrides `_pieces` and `_copy`.
    """

    _next = -1  # the row that comes next in what was read last

    def lay_out(self, axis: int | None) -> None:
        super().lay_out(axis)
        self.after = 1  # a piece is put in the order of rows when it is decoded

    def _fill(self, block: Array, start: int) -> None:
        rows = block.reshape(-1, self.k)
        if start != self._next:
            self._source, self._end = self._pieces(start), start
        done = 0
        while done < len(rows):
            if start + done >= self._end:
                self._piece = None  # before the next is decoded
                self._first, self._piece, size = self._next_piece()
                self._end = self._first + size
            low = start + done - self._first
            high = min(self._end - self._first, low + len(rows) - done)
            self._copy(self._piece, low, high, rows[done : done + high - low])
            done += high - low
        self._next = start + done

    def _next_piece(self) -> tuple[int, Any, int]:
        try:
            return next(self._source)
        except StopIteration:
            raise InputError(f"{self.name} ended early: it holds fewer rows than it says") from None

    def _pieces(self, start: int) -> Iterator[tuple[int, Any, int]]:
        """The number of its first row, the piece and how many rows it has, from the one that row `start` is in."""
        raise NotImplementedError

    def _copy(self, piece: Any, low: int, high: int, rows: Array) -> None:
        """Copy rows ``low:high`` of `piece` into `rows` of shape ``(high - low, k)``."""
        raise NotImplementedError


def described(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{dtype} {shape}"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def natural(name: str) -> list[Any]:
    """A key that sorts part-2 before part-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def needed(module: str, what: str, extra: str = "files") -> Any:
    """An optional package's module."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise InputError(f"{what} needs the package {package}: pip install 'entrokern[{extra}]'") from None


def bfloat16_dtype(what: str) -> np.dtype[Any]:
    return np.dtype(needed("ml_dtypes", what, "bfloat16").bfloat16)


def pick(path: str, found: Sequence[str], member: str | None, role: str) -> str:
    """Which of the arrays that a file holds is meant: the one named, the only one, or the one of its role's name."""
    if member is None:
        usual = NAMES.get(role, (role,))
        member = found[0] if len(found) == 1 else next((name for name in usual if name in found), role)
    if member not in found:
        has = ", ".join(found) or "none"
        raise InputError(f"{path} has no array {member!r}; it has: {has} (pick one with {path}:NAME)")
    return member
