"""Dask arrays in, lazy Dask arrays out: the public functions, block by block.

A call is checked at once (`calls.py`). Its tasks then call the public function on the blocks, with one thread each
(`tasks.py`). Several results of a block come from one task, whoever asks for them. Blocks of reduced losses are
records in float64, added by a tree whose shape depends on the chunks alone. Where several blocks raise, the error is
that of the first to do so, not of the lowest row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .calls import LazyCall
from .classes import over_classes
from .layer import over_layer
from .rows import over_rows


def run(function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What the public `function` gives for these arguments, some of them Dask arrays: the same, lazily."""
    if function.__name__ == "linear_cross_entropy":
        return over_layer(function, args, options)
    call = LazyCall.of(function, args, options)
    if call.class_axis is not None and len(call.chunks[call.class_axis]) > 1:
        return over_classes(call)
    return over_rows(call)
