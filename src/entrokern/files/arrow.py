"""Columns of Parquet and Arrow (Feather) files, through pyarrow and in bounded memory.

Of a Parquet file, a page of each column is in memory at a time. The elements of an Arrow file that is not
compressed are read where they lie; of a compressed one, a batch of records is decoded as a whole.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from io import FileIO
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Array
from .npy import RawArray
from .stored import BLOCK_BYTES, NAMES, TABLE, InputError, PieceArray, StoredArray, natural, needed, one_line

READ_AHEAD = 1 << 20  # bytes of all columns together


class Choice(NamedTuple):
    """The columns that make an array: one of numbers (1-d), one of lists of k numbers, or k of numbers."""

    name: str
    columns: tuple[str, ...]
    k: int | None  # None where the array is 1-d
    lists: bool
    dtype: np.dtype[Any]
    in_place: bool  # whether the elements lie in an Arrow file as they are wanted


class _InTable(StoredArray):
    def lay_out(self, axis: int | None) -> None:
        last = len(self.shape) - 1
        if axis is None and last:
            raise InputError(f"{self} has several numbers in a row; one is needed here")
        if axis == 0 == last:
            raise InputError(f"{self.name} is one column; name those of all classes, as FILE:logit_*")
        if axis not in (None, last):
            raise InputError(f"{self.name}: the classes of a table lie in its rows; leave --axis out")
        super().lay_out(axis)


class Decoded(_InTable, PieceArray):
    """Columns that pyarrow decodes, batch of records by batch of records."""

    def __init__(self, path: str, choice: Choice, source: _Parquet | _Ipc) -> None:
        shape = (source.n_rows,) if choice.k is None else (source.n_rows, choice.k)
        super().__init__(choice.name, shape, choice.dtype, [path])
        self._choice, self._from = choice, source

    def _pieces(self, start: int) -> Iterator[tuple[int, Any, int]]:
        step = max(1, BLOCK_BYTES // max(self.row_bytes, 1))
        with reading(self.name):
            for first, batch in self._from.batches(self._choice.columns, start, step):
                yield first, batch, batch.num_rows
                del batch

    def _copy(self, piece: Any, low: int, high: int, rows: Array) -> None:
        first = self._first + low
        with reading(self.name):
            for j, name in enumerate(self._choice.columns):
                column = piece.column(name).slice(low, high - low)
                if self._choice.lists:
                    self._copy_lists(name, column, first, rows)
                else:
                    rows[:, j] = self._numbers(name, column, first, 1)

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
        self._from.close()


class InPlace(_InTable, RawArray):
    """A column of an Arrow file that lies there as it is in memory: elements in as many runs as there are batches."""

    def __init__(self, path: str, choice: Choice, runs: list[tuple[int, int]]) -> None:
        n_rows = sum(rows for rows, _ in runs)
        shape = (n_rows,) if choice.k is None else (n_rows, choice.k)
        super().__init__(choice.name, shape, choice.dtype, path, FileIO(path), 0)
        self._places = [place for _, place in runs]
        self._firsts = np.cumsum([0, *(rows for rows, _ in runs)]).tolist()

    def _fill(self, block: Array, start: int) -> None:
        done = 0
        while done < len(block):
            run = bisect.bisect_right(self._firsts, start + done) - 1
            take = min(len(block) - done, self._firsts[run + 1] - start - done)
            self._read(
                block[done : done + take], self._places[run] + (start + done - self._firsts[run]) * self.row_bytes
            )
            done += take


class _Parquet:
    def __init__(self, path: str) -> None:
        self._path = path
        self._file = self._opened(1)
        self.schema, self.n_rows = self._file.schema_arrow, self._file.metadata.num_rows

    def _opened(self, n_columns: int) -> Any:
        # With a buffer, the pages of a column are read one after the other, without it all those of a row group.
        return needed("pyarrow.parquet", "a .parquet file").ParquetFile(
            self._path,
            buffer_size=max(1 << 14, READ_AHEAD // n_columns),
            pre_buffer=False,
            page_checksum_verification=True,
        )

    def batches(self, columns: Sequence[str], start: int, step: int) -> Iterator[tuple[int, Any]]:
        """The number of the first row and the records of each batch, from the row group on that row `start` is in."""
        metadata = self._file.metadata
        first = group = 0
        while group < metadata.num_row_groups and first + metadata.row_group(group).num_rows <= start:
            first += metadata.row_group(group).num_rows
            group += 1
        groups = range(group, metadata.num_row_groups)
        with self._opened(len(columns)) as file:
            for batch in file.iter_batches(batch_size=step, row_groups=list(groups), columns=list(columns)):
                yield first, batch
                first += batch.num_rows

    def close(self) -> None:
        self._file.close()


class _Ipc:
    def __init__(self, path: str) -> None:
        self._arrow, self._path = needed("pyarrow", "an Arrow file"), path
        with self._arrow.memory_map(path) as mapped:
            self.schema = self._arrow.ipc.open_file(mapped).schema
            mapped.seek(8)  # past the mark of such a file are the messages of a stream
            messages = self._arrow.ipc.MessageReader.open_stream(mapped)
            batches = [_in_header(message.metadata) for message in messages if message.type == "record batch"]
        self.n_rows = sum(rows for rows, _ in batches)
        self._compressed = any(compressed for _, compressed in batches)

    def batches(self, columns: Sequence[str], start: int, step: int) -> Iterator[tuple[int, Any]]:
        """The number of the first row and the records of each batch, from the one on that row `start` is in."""
        first = 0
        with self._arrow.OSFile(self._path) as file:
            for batch in self._read(file, columns):
                start_of_batch, first = first, first + batch.num_rows
                if start < first:
                    yield start_of_batch, batch
                del batch  # before the next is decoded

    def runs(self, choice: Choice) -> list[tuple[int, int]] | None:
        """How many rows each batch has and where in the file they lie; ``None`` where they have to be decoded."""
        if len(choice.columns) > 1 or self._compressed or not choice.in_place:
            return None
        runs = []
        with self._arrow.memory_map(self._path) as mapped:
            whole = mapped.read_buffer(mapped.size())
            for batch in self._read(mapped, None):  # all of a batch: pyarrow would copy a choice of columns
                column = batch.column(choice.columns[0])
                if not len(column):
                    continue
                if column.null_count or (choice.lists and _other_length(column, choice.k) is not None):
                    return None
                values = column.flatten() if choice.lists else column
                if values.null_count:
                    return None
                size = choice.dtype.itemsize
                place = values.buffers()[1].address + values.offset * size - whole.address
                if not 0 <= place <= whole.size - len(values) * size:  # pyarrow has made a copy
                    return None
                runs.append((batch.num_rows, place))
        return runs

    def _read(self, file: Any, columns: Sequence[str] | None) -> Iterator[Any]:
        wanted = columns and [self.schema.get_field_index(column) for column in columns]
        options = self._arrow.ipc.IpcReadOptions(included_fields=wanted)
        reader = self._arrow.ipc.open_file(file, options=options)
        return (reader.get_batch(i) for i in range(reader.num_record_batches))

    def close(self) -> None:
        pass


def _in_header(metadata: Any) -> tuple[int, bool]:
    """How many rows a batch of records has, and whether it is compressed: fields 0 and 3 of the table that is field 2
    of an Arrow message, which pyarrow tells only of a batch that it has decoded."""
    data = bytes(metadata)

    def number(at: int, size: int, signed: bool = False) -> int:
        return int.from_bytes(data[at : at + size], "little", signed=signed)

    def field(table: int, i: int) -> int:
        """Where a field of a flatbuffer's table lies; 0 where it is left out."""
        offsets = table - number(table, 4, signed=True)
        at = 4 + 2 * i
        offset = number(offsets + at, 2) if at < number(offsets, 2) else 0
        return table + offset if offset else 0

    header = field(number(0, 4), 2)
    batch = header + number(header, 4)
    rows = field(batch, 0)
    return number(rows, 8) if rows else 0, bool(field(batch, 3))


def _other_length(column: Any, k: int | None) -> tuple[int, int] | None:
    """The first of the lists that does not have `k` numbers, and how many it has."""
    column.validate(full=True)  # what is read of it later lies where its offsets say
    if hasattr(column.type, "list_size"):
        return None
    lengths = column.value_lengths()
    wrong = np.asarray(lengths.fill_null(k)) != k
    return (int(wrong.argmax()), lengths[int(wrong.argmax())].as_py()) if wrong.any() else None


def members(path: str) -> list[str]:
    """The columns of a file."""
    source = source_of(path)
    source.close()
    with reading(path):
        return list(source.schema.names)


def open_array(path: str, member: str | None, role: str, bfloat16: bool) -> StoredArray:
    """Open the columns of a file that `member` names, by default those that can be meant."""
    source = source_of(path)
    with reading(path):
        choice = _chosen(path, source, member, role)
        runs = source.runs(choice) if isinstance(source, _Ipc) else None
        array = Decoded(path, choice, source) if runs is None else InPlace(path, choice, runs)
    array.columns = None if choice.lists else choice.columns
    if member is None:
        array.left_out = tuple(name for name in source.schema.names if name not in choice.columns)
    return array


def source_of(path: str) -> _Parquet | _Ipc:
    kind = _Parquet if path.endswith(".parquet") else _Ipc
    arrow = needed("pyarrow", "a .parquet, .arrow or .feather file")
    open(path, "rb").close()  # says what is wrong as for any other file
    try:
        return kind(path)
    except (arrow.ArrowException, OSError, ValueError) as error:
        what = "a Parquet" if kind is _Parquet else "an Arrow"
        raise InputError(f"{path} is not {what} file, or damaged: {one_line(error)}") from None


def _chosen(path: str, source: _Parquet | _Ipc, member: str | None, role: str) -> Choice:
    schema = source.schema
    if member is None and role == TABLE:
        _refuse_two_kinds(path, schema)
    columns = _by_default(schema, role) if member is None else _by_name(schema.names, member)
    if not columns:
        has = ", ".join(f"{field.name} ({field.type})" for field in schema)
        wanted = repr(role) if member is None else repr(member)
        raise InputError(f"{path} has no column {wanted}; it has: {has} (pick with {path}:NAME or {path}:logit_*)")
    for column in columns:
        if schema.names.count(column) > 1:
            raise InputError(f"{path} has several columns {column!r}")
    types = [schema.field(column).type for column in columns]
    single = len(columns) == 1 and (member is None or member in schema.names)
    lists = single and _is_list(types[0])
    for column, kind in zip(columns, [types[0].value_type] if lists else types, strict=True):
        if not (_is_number(kind) or (role == TABLE and _is_bool(kind))):
            what = f"{path}: column {column} has type {schema.field(column).type}"
            raise InputError(f"{what}; a column of numbers or of lists of numbers is needed")
    k = _list_size(source, columns[0], types[0]) if lists else None if single else len(columns)
    stored = np.result_type(*(np.dtype(_element(kind).to_pandas_dtype()) for kind in types))
    dtype = np.dtype(float) if role == TABLE and stored.kind != "f" else stored  # there is a NaN for what is missing
    return Choice(path if member is None else f"{path}:{member}", columns, k, lists, dtype, dtype == stored)


def _refuse_two_kinds(path: str, schema: Any) -> None:
    """A table is of columns of numbers, or it is a column of lists: which one is meant cannot be guessed."""
    lists = [field.name for field in schema if _is_list(field.type)]
    numbers = [field.name for field in schema if _is_number(field.type) or _is_bool(field.type)]
    if lists and numbers:
        both = f"columns of lists ({', '.join(lists)}) and of numbers ({', '.join(numbers)})"
        raise InputError(f"{path} has {both}; pick with {path}:{lists[0]} or {path}:{','.join(numbers)}")


def _by_name(names: Sequence[str], member: str) -> tuple[str, ...]:
    """The column called so; else those that fit the patterns, numbered ones in the order of their numbers."""
    if member in names:
        return (member,)
    patterns = [part.strip() for part in member.split(",")]
    return _in_class_order([name for part in patterns for name in names if name == part or fnmatchcase(name, part)])


def _by_default(schema: Any, role: str) -> tuple[str, ...]:
    """The column that is usually called so; for the predictions also the one of lists, or all of floating type; of a
    table all of numbers."""
    if role == TABLE:
        numbers = tuple(field.name for field in schema if _is_number(field.type) or _is_bool(field.type))
        return numbers or tuple(field.name for field in schema if _is_list(field.type))[:1]
    for name in NAMES.get(role, (role,)):
        if name in schema.names:
            return (name,)
    if role != "x":
        return (schema.names[0],) if len(schema.names) == 1 else ()
    lists = [field.name for field in schema if _is_list(field.type)]
    if lists:
        return tuple(lists) if len(lists) == 1 else ()
    kinds = needed("pyarrow.types", "a table")
    floats = [field.name for field in schema if kinds.is_floating(field.type) and field.name not in NAMES["y"]]
    return _in_class_order(floats)


def _in_class_order(names: Sequence[str]) -> tuple[str, ...]:
    """As they come, but names that differ in a number alone by that: a writer may have sorted them as text."""
    names = list(dict.fromkeys(names))
    keys = [natural(name) for name in names]
    stems = {tuple(part for part in key if isinstance(part, str)) for key in keys}
    return tuple(sorted(names, key=natural) if len(stems) == 1 else names)


def _list_size(source: _Parquet | _Ipc, column: str, kind: Any) -> int:
    """How many numbers each row has; what the first says that is there, where the type does not."""
    if hasattr(kind, "list_size"):
        return int(kind.list_size)
    for _, batch in source.batches((column,), 0, 1024):
        lengths = batch.column(column).value_lengths().drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    return 0


def _is_list(kind: Any) -> bool:
    kinds = needed("pyarrow.types", "a table")
    return kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)


def _is_number(kind: Any) -> bool:
    kinds = needed("pyarrow.types", "a table")
    return kinds.is_floating(kind) or kinds.is_integer(kind)


def _is_bool(kind: Any) -> bool:
    return bool(needed("pyarrow.types", "a table").is_boolean(kind))


def _element(kind: Any) -> Any:
    return kind.value_type if _is_list(kind) else kind


@contextmanager
def reading(name: str) -> Iterator[None]:
    arrow = needed("pyarrow", "a table")
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name} is damaged: {one_line(error)}") from None
