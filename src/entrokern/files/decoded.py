"""Columns of a Parquet or Arrow file that pyarrow decodes.

Where a table has so many columns that what each holds in memory is too much, some at a time are read of a part of the
file, and put down in a scratch file, where the rows are read.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from .._arrays import Array
from .scratch import Scratch
from .stored import InputError, PieceArray, needed
from .table import Choice, InTable, reading

DECODED_BYTES = 3 << 20  # about, of the rows that are decoded together
TOO_MUCH = 128 << 20  # bytes that all columns hold together
GROUP_BYTES = 32 << 20  # that those do which are read together instead
PART_BYTES = 2 << 20  # of rows that are put down together


class Source(Protocol):
    """A file whose columns are read part by part: `ipc.Ipc` or `parquet.Parquet`."""

    schema: Any
    rows: list[int]

    def held(self, part: int, columns: Sequence[str]) -> list[int]: ...
    def batches(self, columns: Sequence[str], parts: Sequence[int], step: int) -> Iterator[Any]: ...
    def list_size(self, column: str) -> int | None: ...
    def close(self) -> None: ...


class Decoded(InTable, PieceArray):
    """Columns read batch of records by batch of records."""

    def __init__(self, path: str, choice: Choice, source: Source) -> None:
        super().__init__(choice.name, choice.shape(sum(source.rows)), choice.dtype, [path])
        self._choice, self._from = choice, source
        self._scratch: Scratch | None = None

    def _pieces(self, start: int) -> Iterator[tuple[int, Any, int]]:
        firsts = [0, *itertools.accumulate(self._from.rows)]
        parts = range(bisect.bisect_right(firsts, start) - 1, len(self._from.rows))
        with reading(self.name):
            for wide, together in itertools.groupby(parts, key=lambda part: len(self._groups(part)) > 1):
                if wide:
                    for part in together:
                        skip = max(start - firsts[part], 0)
                        yield firsts[part] + skip, *self._put_down(part, skip, firsts[part])
                else:
                    yield from self._batches(list(together), firsts)

    def _batches(self, parts: Sequence[int], firsts: Sequence[int]) -> Iterator[tuple[int, Any, int]]:
        first, step = firsts[parts[0]], max(1, DECODED_BYTES // max(self.row_bytes, 1))
        for batch in self._from.batches(self._choice.columns, parts, step):
            yield first, batch, batch.num_rows
            first += batch.num_rows
            del batch

    def _groups(self, part: int) -> list[tuple[str, ...]]:
        """The columns of a part of the file that are read together: all, or where they hold too much, some."""
        columns = self._choice.columns
        sizes = self._from.held(part, columns) if len(columns) > 1 else [0]
        if sum(sizes) <= TOO_MUCH:
            return [columns]
        ends, held = [0], 0
        for j, size in enumerate(sizes):
            held += size
            if held > GROUP_BYTES and j > ends[-1]:
                ends.append(j)
                held = size
        return [columns[first:end] for first, end in itertools.pairwise([*ends, len(columns)])]

    def _put_down(self, part: int, skip: int, first: int) -> tuple[Scratch, int]:
        """Put a part of the file, whose first row is number `first`, down in the scratch file, but for rows at its
        beginning."""
        groups, n_rows = self._groups(part), self._from.rows[part] - skip
        if self._scratch is None:
            self._scratch = Scratch(self.name, self.dtype)
        self._scratch.lay_out(n_rows, [len(columns) for columns in groups])
        for group, columns in enumerate(groups):
            step = max(1, PART_BYTES // (len(columns) * self.dtype.itemsize))
            block = np.empty((step, len(columns)), self.dtype)
            done = -skip
            for batch in self._from.batches(columns, [part], step):
                for low in range(max(0, -done), batch.num_rows, step):
                    high = min(low + step, batch.num_rows)
                    rows = block[: high - low]
                    self._copy_columns(batch, columns, low, first + skip + done, rows)
                    self._scratch.put(group, done + low, rows)
                done += batch.num_rows
                del batch
            if done != n_rows:
                raise InputError(f"{self.name} is damaged: it has {skip + done} rows where it says {skip + n_rows}")
        return self._scratch, n_rows

    def _copy(self, piece: Any, low: int, high: int, rows: Array) -> None:
        if isinstance(piece, Scratch):
            piece.copy(low, high, rows)
            return
        with reading(self.name):
            if self._choice.lists:
                (name,) = self._choice.columns
                self._copy_lists(name, piece.column(name).slice(low, high - low), self._first + low, rows)
            else:
                self._copy_columns(piece, self._choice.columns, low, self._first, rows)

    def _copy_columns(self, batch: Any, columns: Sequence[str], low: int, first: int, rows: Array) -> None:
        """Copy from row `low` on of columns of a batch, whose first row is number `first`."""
        for j, name in enumerate(columns):
            rows[:, j] = self._numbers(name, batch.column(name).slice(low, len(rows)), first + low, 1)

    def _copy_lists(self, name: str, column: Any, first: int, rows: Array) -> None:
        present: Any = ...
        if column.null_count:
            self._refuse_null(name, column, first, 1)
            present = np.asarray(column.is_valid())
            rows[~present] = self.null
        wrong = _other_length(column, self.k)
        if wrong is not None:
            at, length = wrong
            raise InputError(f"{self.name}: row {first + at} has {length} numbers, but others {self.k}")
        rows[present] = self._numbers(name, column.flatten(), first, self.k).reshape(-1, self.k)

    def _numbers(self, name: str, column: Any, first: int, per_row: int) -> Array:
        if column.null_count:
            self._refuse_null(name, column, first, per_row)
            wide = needed("pyarrow", "a table").from_numpy_dtype(self.dtype)  # what stands for a null fits into
            column = column.cast(wide, safe=False).fill_null(self.null)
        return column.to_numpy(zero_copy_only=False)

    def _refuse_null(self, name: str, column: Any, first: int, per_row: int) -> None:
        if self.null is None:
            row = first + int(np.asarray(column.is_null()).argmax()) // per_row
            raise InputError(f"{self.name}: column {name} has no value in row {row} (null)")

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.close()
        self._from.close()


def _other_length(column: Any, k: int | None) -> tuple[int, int] | None:
    """The first of the lists that does not have `k` numbers, and how many it has."""
    column.validate(full=True)  # what is read of it later lies where its offsets say
    if hasattr(column.type, "list_size"):
        return None
    lengths = column.value_lengths()
    wrong = np.asarray(lengths.fill_null(k)) != k
    return (int(wrong.argmax()), lengths[int(wrong.argmax())].as_py()) if wrong.any() else None
