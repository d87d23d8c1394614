"""What an array of columns is, whatever the table's format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .stored import InputError, StoredArray, needed, one_line


class Choice(NamedTuple):
    """The columns that make an array: one of numbers (1-d), one of lists of k numbers, or k of numbers."""

    name: str
    columns: tuple[str, ...]
    k: int | None  # None where the array is 1-d
    lists: bool
    dtype: np.dtype[Any]

    def shape(self, n_rows: int) -> tuple[int, ...]:
        return (n_rows,) if self.k is None else (n_rows, self.k)


class InTable(StoredArray):
    """An array of columns: its classes lie in the rows."""

    def lay_out(self, axis: int | None) -> None:
        last = len(self.shape) - 1
        if axis is None and last:
            raise InputError(f"{self} has several numbers in a row; one is needed here")
        if axis == 0 == last:
            raise InputError(f"{self.name} is one column; name those of all classes, as FILE:logit_*")
        if axis not in (None, last):
            raise InputError(f"{self.name}: the classes of a table lie in its rows; leave --axis out")
        super().lay_out(axis)


def is_list(kind: Any) -> bool:
    kinds = needed("pyarrow.types", "a table")
    return kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)


def is_number(kind: Any) -> bool:
    kinds = needed("pyarrow.types", "a table")
    return kinds.is_floating(kind) or kinds.is_integer(kind)


def is_bool(kind: Any) -> bool:
    return bool(needed("pyarrow.types", "a table").is_boolean(kind))


def dtype_of(kind: Any) -> np.dtype[Any]:
    """What a column of numbers, or of lists of them, has as elements."""
    return np.dtype((kind.value_type if is_list(kind) else kind).to_pandas_dtype())


@contextmanager
def reading(name: str) -> Iterator[None]:
    arrow = needed("pyarrow", "a table")
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name} is damaged: {one_line(error)}") from None
