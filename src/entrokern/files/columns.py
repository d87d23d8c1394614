"""Which columns of a table make an array: those named, or by default those that can be meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .stored import NAMES, TABLE, InputError, natural, needed
from .table import Choice, dtype_of, is_bool, is_list, is_number


def chosen(path: str, schema: Any, member: str | None, role: str, list_size: Callable[[str], int]) -> Choice:
    """The columns that `member` names; `list_size` gives the size of the lists of a column whose type does not."""
    if member is None and role == TABLE:
        _refuse_two_kinds(path, schema)
    columns = _by_default(schema, role) if member is None else _by_name(path, schema, member)
    if not columns:
        raise _no_column(path, schema, "of numbers" if role == TABLE else repr(role))
    for column in columns:
        if schema.names.count(column) > 1:
            raise InputError(f"{path} has several columns {column!r}")
    types = [schema.field(column).type for column in columns]
    single = len(columns) == 1 and (member is None or member in schema.names)
    lists = single and is_list(types[0])
    for column, kind in zip(columns, [types[0].value_type] if lists else types, strict=True):
        if not (is_number(kind) or (role == TABLE and is_bool(kind))):
            what = f"{path}: column {column} has type {schema.field(column).type}"
            raise InputError(f"{what}; a column of numbers or of lists of numbers is needed")
    k = None if single else len(columns)
    if lists:
        k = types[0].list_size if hasattr(types[0], "list_size") else list_size(columns[0])
    stored = np.result_type(*map(dtype_of, types))
    dtype = np.dtype(float) if role == TABLE and stored.kind != "f" else stored  # there is a NaN for what is missing
    return Choice(path if member is None else f"{path}:{member}", columns, k, lists, dtype)


def _refuse_two_kinds(path: str, schema: Any) -> None:
    """A table is of columns of numbers, or it is a column of lists: which one is meant cannot be guessed."""
    lists = [field.name for field in schema if is_list(field.type)]
    numbers = [field.name for field in schema if is_number(field.type) or is_bool(field.type)]
    if lists and numbers:
        both = f"columns of lists ({', '.join(lists)}) and of numbers ({', '.join(numbers)})"
        raise InputError(f"{path} has {both}; pick with {path}:{lists[0]} or {path}:{','.join(numbers)}")


def _no_column(path: str, schema: Any, which: str) -> InputError:
    has = ", ".join(f"{field.name} ({field.type})" for field in schema)
    return InputError(f"{path} has no column {which}; it has: {has} (pick with {path}:NAME or {path}:logit_*)")


def _by_name(path: str, schema: Any, member: str) -> tuple[str, ...]:
    """The column called so; else those that fit the patterns, numbered ones in the order of their numbers."""
    if member in schema.names:
        return (member,)
    patterns = [part.strip() for part in member.split(",")]
    columns = []
    for i, part in enumerate(patterns):
        if part in patterns[:i]:
            raise InputError(f"{path}: column {part!r} is named twice")
        fitting = [name for name in schema.names if name == part or fnmatchcase(name, part)]
        if not fitting:
            raise _no_column(path, schema, repr(part))
        columns += fitting
    return _in_class_order(columns)


def _by_default(schema: Any, role: str) -> tuple[str, ...]:
    """The column that is usually called so; for the predictions also the one of lists, or all of floating type; of a
    table all of numbers."""
    if role == TABLE:
        numbers = tuple(field.name for field in schema if is_number(field.type) or is_bool(field.type))
        return numbers or tuple(field.name for field in schema if is_list(field.type))[:1]
    for name in NAMES.get(role, (role,)):
        if name in schema.names:
            return (name,)
    if role != "x":
        return (schema.names[0],) if len(schema.names) == 1 else ()
    lists = [field.name for field in schema if is_list(field.type)]
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
