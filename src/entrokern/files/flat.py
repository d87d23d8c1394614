"""Flatbuffers, as the metadata of an Arrow file are: tables that hold, field by field, how far away a value is.

Every offset is checked before it is followed; ``ValueError`` where it leads out of the data.
"""

from __future__ import annotations

import struct


class Table:
    """A table at byte `at` of `data`; fields are numbered as its schema does, and may be left out."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - number(data, at, "i")
        self._end = number(data, self._fields, "H")

    def _place(self, field: int) -> int:
        """Where the value of a field lies; 0 where it is left out."""
        at = 4 + 2 * field
        offset = number(self._data, self._fields + at, "H") if at < self._end else 0
        return offset and self._at + offset

    def _target(self, field: int) -> int:
        place = self._place(field)
        return place and place + number(self._data, place, "I")

    def number(self, field: int, kind: str) -> int:
        place = self._place(field)
        return number(self._data, place, kind) if place else 0

    def table(self, field: int) -> Table | None:
        at = self._target(field)
        return Table(self._data, at) if at else None

    def structs(self, field: int, kind: str) -> list[tuple[int, ...]]:
        """A vector of structs of the format `kind`; an empty one where it is left out."""
        at = self._target(field)
        if not at:
            return []
        size = struct.calcsize("<" + kind) * number(self._data, at, "I")
        if at + 4 + size > len(self._data):
            raise ValueError("a vector ends beyond the metadata")
        return list(struct.iter_unpack("<" + kind, self._data[at + 4 : at + 4 + size]))


def root(data: bytes) -> Table:
    return Table(data, number(data, 0, "I"))


def number(data: bytes, at: int, kind: str) -> int:
    """The number of the format `kind`, little-endian, at byte `at`."""
    if not 0 <= at <= len(data) - struct.calcsize("<" + kind):
        raise ValueError("an offset leads beyond the metadata")
    (value,) = struct.unpack_from("<" + kind, data, at)
    return int(value)
