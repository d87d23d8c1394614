"""Kernels compiled, kept and launched."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from .._cache import cache_folder
from .sources import BLOCK, KERNELS, source

OPTIONS = ("-std=c++17",)
NO_COMPILER = (
    "the compiler of CUDA kernels (NVRTC) is not there: pip install 'entrokern[cuda13]' (or [cuda12], as the driver "
    "has it) brings it"
)
MOST_BLOCKS = 2**31 - 1

CLUSTERS_FROM = 90  # compute capability, in tenths

_functions: dict[tuple[int, str, int], Any] = {}


def function(name: str, cluster: int = 1) -> Any:
    """The kernel of this name on the current device, in clusters of so many blocks, compiled at first use."""
    key = cupy.cuda.Device().id, name, cluster
    found = _functions.get(key)
    if found is None:
        try:
            found = cupy.RawModule(path=compiled(source([KERNELS[name]], cluster))).get_function(name)
        except (ImportError, RuntimeError) as error:
            if "nvrtc" in f"{type(error).__name__} {error}".lower() and "Compile" not in type(error).__name__:
                raise RuntimeError(NO_COMPILER) from error
            raise
        _functions[key] = found
    return found


def compiled(text: str) -> str:
    """The file with the machine code of `text` for the current device: kept from before, or made now.

    `RawModule` could compile the text itself, but with ``-ftz=true`` behind whatever options it is given: float32
    that is subnormal would be 0 wherever it comes, and have no logarithm as a probability.
    """
    about = text, OPTIONS, cupy.cuda.Device().compute_capability, cupy.cuda.nvrtc.getVersion()
    file = _folder() / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.cubin"
    if not file.exists():
        code, _ = cupy.cuda.compiler.compile_using_nvrtc(text, OPTIONS)
        begun = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")  # others may be at the same
        begun.write_bytes(code)
        begun.replace(file)
    return str(file)


@functools.cache
def _folder() -> Path:
    """Where machine code is kept; where nothing can be, a folder of this process."""
    if (kept := cache_folder()) is None:
        kept = Path(tempfile.mkdtemp(prefix="entrokern-"))
        atexit.register(_remove, kept, os.getpid())
    return kept


def _remove(folder: Path, made_by: int) -> None:
    if os.getpid() == made_by:  # and not of a child's, which ends first
        shutil.rmtree(folder, ignore_errors=True)


def has_clusters() -> bool:
    """Whether blocks can share a row on the current device."""
    return int(cupy.cuda.Device().compute_capability) >= CLUSTERS_FROM


def grid_of(blocks: int, cluster: int = 1) -> int:
    """As many clusters of blocks as there may be; kernels walk on to what lies beyond."""
    return min(max(blocks // cluster, 1), MOST_BLOCKS // cluster) * cluster


def launch(function: Any, blocks: int, shared: int, words: np.ndarray[Any, Any]) -> None:
    """Run a kernel on CuPy's current stream; `words` are its arguments, 8 bytes each.

    They are handed over as bytes without names: CuPy asks for their `__array_interface__`, and to describe the fields
    of a structure there takes NumPy 25 µs.
    """
    function((blocks,), (BLOCK,), (words.view(_nameless(words.nbytes)),), shared_mem=shared)


@functools.cache
def _nameless(size: int) -> np.dtype[Any]:
    return np.dtype((np.void, size))
