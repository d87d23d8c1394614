"""Whether the files that are read stay as they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from .stored import InputError, StoredArray
from .work import Unresumable

Stamps = dict[str, tuple[int, ...]]


def stamps_of(arrays: Iterable[StoredArray]) -> Stamps:
    """What tells of each file, or folder, of these arrays whether it is still the same."""
    return {path: _stamp(path) for array in arrays for path in map(os.path.realpath, array.paths)}


def _stamp(path: str) -> tuple[int, ...]:
    """Size and time of change, of a folder those of all that is in it."""
    if not os.path.isdir(path):
        facts = os.stat(path)
        return facts.st_size, facts.st_mtime_ns
    inside = [os.stat(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names]
    return len(inside), sum(f.st_size for f in inside), max((f.st_mtime_ns for f in inside), default=0)


@contextmanager
def unchanged(stamps: Stamps) -> Iterator[None]:
    """Refuse what was read where a file is not as it was before."""
    wrong = ""
    try:
        yield
    except InputError as error:
        wrong = str(error)
        if not _changed(stamps):
            raise
    if changed := _changed(stamps):
        raise Unresumable(f"{wrong + '; ' if wrong else ''}{changed} changed while it was read") from None


def _changed(stamps: Stamps) -> str | None:
    for path, before in stamps.items():
        try:
            if _stamp(path) != before:
                return path
        except OSError:
            return path
    return None
