"""Columns of keys: one integer, bool or string for each row, which says what group the row is in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from .._arrays import Array
from .stored import InputError, StoredArray

Key: TypeAlias = int | bool | str | None  # None: it is missing


class Seen:
    """The keys that were read so far, and their numbers in the order in which they came."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self._numbers: dict[Key, int] = {}

    def numbers(self, keys: Iterable[Key]) -> list[int]:
        """The number of each key; one that is new gets the next."""
        numbers = []
        for key in keys:
            if key not in self._numbers:
                self._numbers[key] = len(self.keys)
                self.keys.append(key)
            numbers.append(self._numbers[key])
        return numbers


class Keys:
    """The keys of all rows: those stored in `array`, or where `seen` is given, those whose numbers it reads as."""

    def __init__(self, array: StoredArray, seen: Seen | None) -> None:
        if array.dtype.kind not in "biuSU":
            array.close()
            raise InputError(f"{array}: a group is named by an integer, a bool or a string in each row")
        self.array, self._seen = array, seen

    def of(self, block: Array) -> tuple[list[Key], Array]:
        """The keys in a block of rows in the order in which they come, and which of them each row has."""
        found, first, which = np.unique(block, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        keys = found[order].tolist()
        if self._seen is not None:
            keys = [self._seen.keys[number] for number in keys]
        return [_text(key) if isinstance(key, bytes) else key for key in keys], place[which.reshape(-1)]

    def close(self) -> None:
        self.array.close()


def _text(key: bytes) -> Any:
    return key.decode(errors="backslashreplace")
