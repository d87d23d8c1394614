"""Parquet and Arrow (Feather) files: their columns as arrays, in bounded memory."""

from __future__ import annotations

from .columns import chosen
from .decoded import Decoded, Source
from .in_place import InPlace, Streamed
from .ipc import Ipc
from .parquet import Parquet
from .stored import InputError, StoredArray, needed, one_line
from .table import Choice, dtype_of, is_bool, reading

LONG = 1 << 14  # rows of a batch, from which on its columns are read one by one


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
        choice = chosen(path, source.schema, member, role, lambda column: _list_size(source, column))
        array = _as_it_lies(path, choice, source) if isinstance(source, Ipc) else None
        if array is None:
            array = Decoded(path, choice, source)
    array.columns = None if choice.lists else choice.columns
    if member is None:
        array.left_out = tuple(name for name in source.schema.names if name not in choice.columns)
    return array


def source_of(path: str) -> Source:
    kind = Parquet if path.endswith(".parquet") else Ipc
    arrow = needed("pyarrow", "a .parquet, .arrow or .feather file")
    open(path, "rb").close()  # says what is wrong as for any other file
    try:
        return kind(path)
    except (arrow.ArrowException, OSError, ValueError) as error:
        what = "a Parquet" if kind is Parquet else "an Arrow"
        raise InputError(f"{path} is not {what} file, or damaged: {one_line(error)}") from None


def _as_it_lies(path: str, choice: Choice, source: Ipc) -> StoredArray | None:
    """The elements where they are in the file, or come out of a decompressor; ``None`` where there is more to do."""
    types = [source.schema.field(name).type for name in choice.columns]
    dtypes = [dtype_of(kind) for kind in types]
    streamed = source.layout.compressed
    scattered = len(types) > 1 and (streamed or sum(source.rows) < LONG * len(source.rows))
    if scattered or any(map(is_bool, types)) or (streamed and dtypes != [choice.dtype]):
        return None
    runs = source.layout.runs(choice)
    if runs is None:
        return None
    return Streamed(path, choice, runs) if streamed else InPlace(path, choice, dtypes, runs)


def _list_size(source: Source, column: str) -> int:
    """How many numbers the first list has that is there; 0 where none is."""
    size = source.list_size(column)
    if size is None:
        for batch in source.batches((column,), range(len(source.rows)), 1024):
            lists = batch.column(column)
            lists.validate(full=True)
            lengths = lists.value_lengths().drop_null()
            if len(lengths):
                return int(lengths[0].as_py())
    return size or 0
