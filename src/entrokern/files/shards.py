"""A folder or a pattern of files as one array: shard after shard along the first axis."""

from __future__ import annotations

import bisect
import glob
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from fnmatch import fnmatch
from typing import Self

from .._arrays import Array
from .stored import InputError, StoredArray, described, natural

Opener = Callable[[str], StoredArray]


class Shards(StoredArray):
    """Arrays that differ only in the number of rows. One is open at a time, however many there are."""

    def __init__(self, name: str, shards: Sequence[str], opener: Opener) -> None:
        self._shards, self._opener = shards, opener
        self._open: StoredArray | None = None
        self._number = -1
        lengths: list[int] = []
        paths: list[str] = []
        positional = True
        for i, shard in enumerate(shards):
            with closing(opener(shard)) as array:
                if not array.shape:
                    raise InputError(f"{array.name} is 0-dimensional; a shard holds rows")
                if i == 0:
                    first = array
                if (array.shape[1:], array.dtype) != (first.shape[1:], first.dtype):
                    raise InputError(
                        f"{array.name} has {described(array.shape, array.dtype)}, but {first.name} has "
                        f"{described(first.shape, first.dtype)}; shards differ only in their number of rows"
                    )
                if len(array.shape) > 1 and array.columns != first.columns:
                    raise InputError(f"{array.name} has other columns than {first.name}, or in another order")
                lengths.append(array.shape[0])
                positional = positional and array.positional
                paths += array.paths
        super().__init__(name, (sum(lengths), *first.shape[1:]), first.dtype, paths)
        self._lengths, self.positional = lengths, positional
        self.columns, self.left_out = first.columns, first.left_out

    def __str__(self) -> str:
        return f"{self.name} ({len(self._shards)} files) {described(self.shape, self.dtype)}"

    def lay_out(self, axis: int | None) -> None:
        if axis == 0:
            raise InputError(f"{self.name}: shards hold rows one after the other; their classes cannot lie on axis 0")
        super().lay_out(axis)
        self._axis = axis
        rows_each = self.n_rows // max(self.shape[0], 1)
        self._starts = [0, *itertools.accumulate(n * rows_each for n in self._lengths)]
        self.after = self._shard(0).after  # a format that decodes puts the classes last

    def _shard(self, number: int) -> StoredArray:
        if self._open is None or self._number != number:
            self.close()
            self._open, self._number = self._opener(self._shards[number]), number
            self._open.lay_out(self._axis)
            length = self._starts[number + 1] - self._starts[number]
            if (self._open.n_rows, self._open.k) != (length, self.k):
                raise InputError(f"{self._open.name} changed while it was read")
            if self._open.fortran:
                raise InputError(f"{self._open.name} is stored in Fortran order; save np.ascontiguousarray of it")
        self._open.null = self.null
        return self._open

    def _fill(self, block: Array, start: int) -> None:
        plane = block.shape[2]
        n, done = block.shape[0] * plane, 0
        while done < n:
            number = bisect.bisect_right(self._starts, start + done) - 1
            take = min(n - done, self._starts[number + 1] - start - done)
            part = block[done // plane : (done + take) // plane]  # planes are whole but for one that is alone
            self._shard(number)._fill(part, start + done - self._starts[number])
            done += take

    def reader(self) -> Self:
        reader = super().reader()
        reader._open = None
        return reader

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def shards_of(path: str, suffix: Callable[[str], str | None]) -> list[str] | None:
    """The files that a folder or a pattern stands for, part-2 before part-10; ``None`` where it is neither.

    `suffix` gives the kind of file, ``None`` for what cannot be read.
    """
    if suffix(path) is not None and os.path.exists(path):
        return None
    if os.path.isdir(path):
        inside = [os.path.join(path, name) for name in os.listdir(path) if not name.startswith((".", "_"))]
        found = [name for name in inside if suffix(name) is not None]
        if not found:
            raise InputError(f"{path} is a folder without a file that can be read")
    elif any(sign in path for sign in "*?["):
        found = [name for name in glob.glob(path) if suffix(name) is not None]
        if not found:
            raise InputError(f"no file that can be read is called {path}")
    else:
        return None
    kinds = {suffix(name) for name in found}
    if len(kinds) > 1:
        names = ", ".join(sorted(map(str, kinds)))
        raise InputError(f"{path} has files of several kinds ({names}); name one of them, as DIR/*.npy")
    return sorted(found, key=natural)


def would_be_shard(out: str, path: str) -> bool:
    """Whether a file written as `out` would be one of the shards of `path` the next time."""
    pattern = os.path.join(path, "*") if os.path.isdir(path) else path
    return fnmatch(os.path.realpath(out), os.path.realpath(pattern))
