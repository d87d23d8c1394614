"""A column of keys in a Parquet or Arrow file, read as numbers: strings have no fixed size, numbers have."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import Array
from .arrow import source_of
from .decoded import Decoded
from .keys import Seen
from .stored import InputError, needed, pick
from .table import Choice, reading


class Encoded(Decoded):
    """The keys by their numbers in `seen`, which all files of a folder share."""

    seen: Seen

    def _copy(self, piece: Any, low: int, high: int, rows: Array) -> None:
        (name,) = self._choice.columns
        with reading(self.name):
            column = piece.column(name).slice(low, high - low)
            encoded = column if hasattr(column, "dictionary") else column.dictionary_encode()
            missing = len(encoded.dictionary)
            which = np.asarray(encoded.indices.fill_null(missing) if encoded.null_count else encoded.indices)
            used = np.flatnonzero(np.bincount(which, minlength=1))
            keys = [None if i == missing else encoded.dictionary[i].as_py() for i in used.tolist()]
        numbers = np.zeros(missing + 1, np.int64)
        numbers[used] = self.seen.numbers(keys)
        rows[:, 0] = numbers[which]


def open_encoded(path: str, member: str | None, seen: Seen) -> Encoded:
    """Open the column of a file that `member` names, by default its only one or the one that is usually meant."""
    source = source_of(path)
    names = source.schema.names
    member = pick(path, names, member, "by")
    if names.count(member) > 1:
        raise InputError(f"{path} has several columns {member!r}")
    kind = source.schema.field(member).type
    if not _is_key(kind):
        what = "integers, bools, strings or dictionaries of these"
        raise InputError(f"{path}: column {member} has type {kind}; a group is named by {what}")
    choice = Choice(f"{path}:{member}", (member,), None, False, np.dtype(np.int64))
    array = Encoded(path, choice, source)
    array.seen = seen
    return array


def _is_key(kind: Any) -> bool:
    kinds = needed("pyarrow.types", "a table")
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    return any(fits(kind) for fits in (kinds.is_integer, kinds.is_boolean, kinds.is_string, kinds.is_large_string))
