"""Rows in a file on disk that has no name: put down some columns at a time, and read again row by row.

Columns lie in groups one after the other; in a group, the rows. So both ways take few and long pieces.
"""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._arrays import Array
from .stored import InputError


class Scratch:
    """Room for one table at a time; `name` is whose rows they are."""

    def __init__(self, name: str, dtype: np.dtype[Any]) -> None:
        self._name, self._dtype = name, dtype
        self._folder = _folder()
        self._size = 0
        with self._writing():
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (closed with the array)
        self._part = np.empty(0, dtype)

    def lay_out(self, n_rows: int, widths: Sequence[int]) -> None:
        """Make room for a table of groups of so many columns."""
        self.n_rows, self._firsts = n_rows, [0, *itertools.accumulate(widths)]
        self._size = self._place(len(widths), 0)
        with self._writing():
            if self._size > _room(self._file.fileno()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _place(self, group: int, row: int) -> int:
        """Where a row of a group begins."""
        first = self._firsts[group]
        width = self._firsts[group + 1] - first if row else 0
        return (first * self.n_rows + width * row) * self._dtype.itemsize

    def put(self, group: int, row: int, part: Array) -> None:
        """Put down rows of a group, from number `row` on."""
        view, at = memoryview(part.reshape(-1).view(np.uint8).data), self._place(group, row)
        with self._writing():
            while view:
                written = os.pwrite(self._file.fileno(), view, at)
                view, at = view[written:], at + written

    def copy(self, low: int, high: int, rows: Array) -> None:
        """Copy rows ``low:high`` of all groups into `rows`."""
        for group, (first, end) in enumerate(itertools.pairwise(self._firsts)):
            size = (high - low) * (end - first)
            if len(self._part) < size:
                self._part = np.empty(size, self._dtype)
            part = self._part[:size]
            self._read(part, self._place(group, low))
            rows[:, first:end] = part.reshape(high - low, end - first)

    def _read(self, part: Array, at: int) -> None:
        view = memoryview(part.view(np.uint8).data)
        try:
            while view:
                got = os.preadv(self._file.fileno(), [view], at)
                if not got:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                view, at = view[got:], at + got
        except OSError as error:
            raise InputError(f"cannot read the scratch file in {self._folder}: {error.strerror}") from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._name} is a wide table and needs a scratch file of {self._size:,} bytes, but "
                f"{self._folder}: {error.strerror}; set TMPDIR to a folder on a disk with more room"
            ) from None

    def close(self) -> None:
        self._file.close()


def _room(file: int) -> int:
    """How large a file can become."""
    disk = os.fstatvfs(file)
    return os.fstat(file).st_size + disk.f_bavail * disk.f_frsize


def _folder() -> str:
    """Where the user wants temporary files; by default not in /tmp, which often is memory."""
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return "/var/tmp" if not named and os.access("/var/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
