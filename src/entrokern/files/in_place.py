"""Columns of an Arrow file whose elements lie there as they are in memory, or do so once decompressed."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from io import FileIO
from typing import Any

import numpy as np

from .._arrays import Array
from .layout import Run
from .npy import RawArray
from .stored import InputError, needed
from .table import Choice, InTable, reading

PIECE = 1 << 20  # bytes decompressed together where they are not wanted


class InPlace(InTable, RawArray):
    """Columns that are read where they lie: elements in as many runs as there are batches."""

    def __init__(self, path: str, choice: Choice, dtypes: Sequence[np.dtype[Any]], runs: Sequence[Run]) -> None:
        self._firsts = [0, *itertools.accumulate(run.rows for run in runs)]
        super().__init__(choice.name, choice.shape(self._firsts[-1]), choice.dtype, path, FileIO(path), 0)
        self._width = self.shape[-1] if choice.lists else 1
        self._dtypes = dtypes
        self._places = [np.array([segment.place for segment in run.columns]) for run in runs]

    def _fill(self, block: Array, start: int) -> None:
        done = 0
        while done < len(block):
            run = bisect.bisect_right(self._firsts, start + done) - 1
            take = min(len(block) - done, self._firsts[run + 1] - start - done)
            self._copy(block[done : done + take, :, 0], run, start + done - self._firsts[run])
            done += take

    def _copy(self, rows: Array, run: int, first: int) -> None:
        """Copy from row `first` of a run on."""
        for j, (place, dtype) in enumerate(zip(self._places[run].tolist(), self._dtypes, strict=True)):
            column = rows[:, j * self._width : (j + 1) * self._width]
            as_is = dtype == self.dtype and column.flags.c_contiguous
            part = column if as_is else np.empty(column.shape, dtype)
            self._read(part, place + first * self._width * dtype.itemsize)
            if not as_is:
                column[...] = part


class Streamed(InTable):
    """A column whose elements come out of a decompressor one after the other."""

    def __init__(self, path: str, choice: Choice, runs: Sequence[Run]) -> None:
        self._firsts = [0, *itertools.accumulate(run.rows for run in runs)]
        super().__init__(choice.name, choice.shape(self._firsts[-1]), choice.dtype, [path])
        self._segments = [segment for run in runs for segment in run.columns]
        self._file = needed("pyarrow", "an Arrow file").OSFile(path)
        self._next = -1  # the row that comes next out of the stream

    def _fill(self, block: Array, start: int) -> None:
        view = memoryview(block.reshape(-1).view(np.uint8).data)
        with reading(self.name):
            if start != self._next:
                self._seek(start)
            self._next = -1
            while view:
                if not self._left:
                    self._open(self._run + 1)
                got = self._take(view)
                view = view[got:]
        self._next = start + len(block)

    def _seek(self, start: int) -> None:
        run = bisect.bisect_right(self._firsts, start) - 1
        self._open(run)
        skip = memoryview(bytearray(PIECE))
        left = (start - self._firsts[run]) * self.row_bytes
        while left:
            left -= self._take(skip[:left])

    def _open(self, run: int) -> None:
        self._run, self._left = run, (self._firsts[run + 1] - self._firsts[run]) * self.row_bytes
        self._stream = self._segments[run].stream(self._file)

    def _take(self, view: memoryview) -> int:
        """Fill `view` as far as the run goes, or less; how many bytes that were."""
        got: int = self._stream.readinto(view[: self._left])
        if not got:
            raise InputError(f"{self.name} is damaged: a buffer holds less than it says")
        self._left -= got
        return got

    def close(self) -> None:
        self._file.close()
