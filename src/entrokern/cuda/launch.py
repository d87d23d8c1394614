"""Kernels compiled, kept and launched."""

from __future__ import annotations

import functools
from typing import Any

import cupy
import numpy as np

from .sources import BLOCK, KERNELS, source

OPTIONS = ("-std=c++17",)
NO_COMPILER = (
    "the compiler of CUDA kernels (NVRTC) is not there: pip install 'entrokern[cuda13]' (or [cuda12], as the driver "
    "has it) brings it"
)
MOST_BLOCKS = 2**31 - 1

_functions: dict[tuple[int, str], Any] = {}


def function(name: str) -> Any:
    """The kernel of this name on the current device, compiled at first use."""
    key = cupy.cuda.Device().id, name
    found = _functions.get(key)
    if found is None:
        try:
            found = cupy.RawModule(code=source([KERNELS[name]]), options=OPTIONS).get_function(name)
        except (ImportError, RuntimeError) as error:
            if "nvrtc" in f"{type(error).__name__} {error}".lower() and "Compile" not in type(error).__name__:
                raise RuntimeError(NO_COMPILER) from error
            raise
        _functions[key] = found
    return found


def grid_of(blocks: int) -> int:
    """As many blocks as there may be; kernels walk on to what lies beyond."""
    return min(max(blocks, 1), MOST_BLOCKS)


def launch(function: Any, blocks: int, words: np.ndarray[Any, Any]) -> None:
    """Run a kernel on CuPy's current stream; `words` are its arguments, 8 bytes each.

    They are handed over as bytes without names: CuPy asks for their `__array_interface__`, and to describe the fields
    of a structure there takes NumPy 25 µs.
    """
    function((blocks,), (BLOCK,), (words.view(_nameless(words.nbytes)),))


@functools.cache
def _nameless(size: int) -> np.dtype[Any]:
    return np.dtype((np.void, size))
