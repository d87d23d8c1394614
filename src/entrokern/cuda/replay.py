"""Calls like one that came before: its launches once more, with the pointers of other arrays.

What a launch is told depends on shapes, dtypes and options, but for where the arrays lie. So the arguments are kept
as they were, and for each pointer in them the array that it came from: an operand, an output, or a workspace.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy
import numpy as np

from .._call import Call
from .launch import function
from .sources import BLOCK


class Launch(NamedTuple):
    """A kernel launched: its function, its blocks and its arguments."""

    name: str
    blocks: int
    arguments: np.ndarray[Any, Any]


class _Step(NamedTuple):
    function: Any
    grid: tuple[int]
    arguments: np.ndarray[Any, Any]
    places: np.ndarray[Any, Any]  # of the pointers, in words of 8 bytes
    sources: np.ndarray[Any, Any]  # the arrays that they came from
    offsets: np.ndarray[Any, Any]  # and how far into them


class Replay:
    """The launches of a call, for others like it. It keeps no array."""

    def __init__(self, call: Call, result: Any, workspaces: list[Any], launches: list[Launch]) -> None:
        self._workspaces = [(array.size, array.dtype) for array in workspaces]
        starts = [array.data.ptr for array in (*_arrays_of(call, result), *workspaces)]
        self._steps = [self._step(launch, starts) for launch in launches]

    @staticmethod
    def can_tell_apart(call: Call, result: Any) -> bool:
        """Whether a pointer says which of the call's arrays it is of: not where two begin at one place."""
        starts = [array.data.ptr for array in _arrays_of(call, result)]
        return len(set(starts)) == len(starts)

    @staticmethod
    def _step(launch: Launch, starts: list[int]) -> _Step:
        words = launch.arguments.view(np.uint64)
        found = []
        for place in _pointers(launch.arguments.dtype):
            pointer = int(words[place])
            if pointer:
                # A pointer into an array is at its first element, or a few bytes on into a workspace of ours.
                source = min((i for i, s in enumerate(starts) if s <= pointer), key=lambda i: pointer - starts[i])
                found.append((place, source, pointer - starts[source]))
        places, sources, offsets = (np.array(column) for column in zip(*found, strict=True))
        return _Step(
            function(launch.name), (launch.blocks,), launch.arguments, places, sources, offsets.astype(np.uint64)
        )

    def __call__(self, call: Call, result: Any) -> None:
        workspaces = [cupy.empty(size, dtype) for size, dtype in self._workspaces]
        starts = np.array([array.data.ptr for array in (*_arrays_of(call, result), *workspaces)], np.uint64)
        for step in self._steps:
            arguments = step.arguments.copy()
            arguments.view(np.uint64)[step.places] = starts[step.sources] + step.offsets
            step.function(step.grid, (BLOCK,), (arguments,))


def _arrays_of(call: Call, result: Any) -> list[Any]:
    operands = (call.x, call.y, call.labels, call.sample_weight, call.pos_weight, result)
    return [a for a in (*operands, *call.rows.values(), *call.maps.values()) if a is not None]


def _pointers(dtype: np.dtype[Any], at: int = 0) -> list[int]:
    """Where a structure holds pointers, in words of 8 bytes: its unsigned numbers, and its operands' first fields."""
    places: list[int] = []
    for kind, offset, *_ in (dtype.fields or {}).values():
        if kind.fields:
            places += _pointers(kind, at + offset)
        elif kind == np.uint64:
            places.append((at + offset) // 8)
    return places
