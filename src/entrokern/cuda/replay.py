"""Calls like one that came before: its launches once more, with the pointers of other arrays.

What a launch is told depends on shapes, dtypes and options, but for where the arrays lie. So the arguments are kept
as they were, and for each pointer in them the array that it came from: an operand, an output, class weights that are
converted in each call, or a workspace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import cupy
import numpy as np

from .._call import Call
from .launch import function, launch
from .sources import KERNELS, arguments_of

ALIGNED = 256  # bytes: where each workspace begins within the one that replaces all of them


class Launch(NamedTuple):
    """A kernel launched: its name, its blocks, and its arguments in words of 8 bytes."""

    name: str
    blocks: int
    words: np.ndarray[Any, Any]
    cluster: int  # blocks that run together
    shared: int  # bytes of dynamic shared memory for each block


class _Step(NamedTuple):
    function: Any
    blocks: int
    shared: int
    words: np.ndarray[Any, Any]
    pointers: list[tuple[int, int, int]]  # which word, the array that it points into, and how far


class Replay:
    """The launches of a call, for others like it. It keeps no array."""

    def __init__(
        self,
        call: Call,
        result: Any,
        converted: dict[np.dtype[Any], Any],  # class weights, by their new dtype
        workspaces: list[Any],
        launches: list[Launch],
    ) -> None:
        self._dtypes = list(converted)
        arrays = [*_arrays_of(call, result), *converted.values()]
        starts = [(array.data.ptr, i, 0) for i, array in enumerate(arrays)]
        self._bytes = 0
        for array in workspaces:
            starts.append((array.data.ptr, len(arrays), self._bytes))
            self._bytes += -(-array.nbytes // ALIGNED) * ALIGNED
        self._steps = [
            _Step(function(one.name, one.cluster), one.blocks, one.shared, one.words, list(_pointers(one, starts)))
            for one in launches
        ]

    @staticmethod
    def can_tell_apart(call: Call, result: Any) -> bool:
        """Whether a pointer says which of the call's arrays it is of: not where two begin at one place."""
        starts = [array.data.ptr for array in _arrays_of(call, result)]
        return len(set(starts)) == len(starts)

    def __call__(self, call: Call, result: Any) -> None:
        converted = [in_line(call.class_weight, dtype) for dtype in self._dtypes]
        starts = [array.data.ptr for array in (*_arrays_of(call, result), *converted)]
        if self._bytes:
            workspace = cupy.empty(self._bytes, np.uint8)
            starts.append(workspace.data.ptr)
        for step in self._steps:
            words = step.words.copy()
            for word, source, offset in step.pointers:
                words[word] = starts[source] + offset
            launch(step.function, step.blocks, step.shared, words)


def _arrays_of(call: Call, result: Any) -> list[Any]:
    operands = (call.x, call.y, call.labels, call.sample_weight, call.class_weight, call.pos_weight, result)
    return [a for a in (*operands, *call.rows.values(), *call.maps.values()) if isinstance(a, cupy.ndarray)]


def in_line(weights: Any, dtype: np.dtype[Any]) -> Any:
    """A contiguous copy of `weights` in another type."""
    return cupy.ascontiguousarray(weights.astype(dtype))


def _pointers(one: Launch, starts: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Each pointer of a launch: which word it is, and of which array and how far into it, as `starts` tell."""
    for word in _pointer_words(arguments_of(KERNELS[one.name].family)):
        if pointer := int(one.words[word]):
            # A pointer into an array is at its first element, or a few bytes on into a workspace of ours.
            start, source, offset = max(s for s in starts if s[0] <= pointer)
            yield word, source, offset + pointer - start


def _pointer_words(dtype: np.dtype[Any], at: int = 0) -> Iterator[int]:
    """Where a structure holds pointers, in words of 8 bytes: its unsigned numbers, and its operands' first fields."""
    for kind, offset, *_ in (dtype.fields or {}).values():
        if kind.fields:
            yield from _pointer_words(kind, at + offset)
        elif kind == np.uint64:
            yield (at + offset) // 8
