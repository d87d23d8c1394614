"""Which backend runs a call: the type of the arrays decides, `use_backend` overrides.

A new backend is one row in `BACKENDS` and one module (or folder) with a function ``run(call)``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import array_api_compat as compat
import numpy as np

from . import _call, _device


class Backend(Protocol):
    """What a backend module offers: on the host `run`, on a device `execute`."""

    def run(self, call: _call.Call) -> float:
        """Write every output of `call`; return the sum of its losses (0 where not asked for)."""

    def execute(self, call: _call.Call, reduction: str, on_empty: str, result: Any) -> None:
        """Write every output of `call`, and into `result` the reduced loss, without waiting for the device."""


class Entry(NamedTuple):
    """One backend: where it lives, the arrays it takes and what it is."""

    module: str
    library: str
    about: str


BACKENDS = {
    "cpu": Entry("entrokern.cpu", "numpy", "Numba kernels, vectorised and threaded"),
    "cuda": Entry("entrokern.cuda", "cupy", "CUDA kernels, launched by CuPy"),
    "reference": Entry("entrokern.reference", "numpy", "plain float64 NumPy: the definition"),
}
DEFAULT = {"numpy": "cpu", "cupy": "cuda"}  # the backend of each array library

# Array types that are told apart, without importing their library to ask.
LIBRARIES: dict[str, Callable[[Any], bool]] = {
    "cupy": _device.is_device_array,
    "torch": compat.is_torch_array,
    "jax": compat.is_jax_array,
    "dask": compat.is_dask_array,
    "ndonnx": compat.is_ndonnx_array,
    "sparse": compat.is_pydata_sparse_array,
}

# Operands that results are made after: beside an array on a device, a list will not do.
MAIN = {"x", "p", "q", "log_p", "log_q", "hidden", "weight"}

# Types that need no such test: what most calls come with.
PLAIN = {np.ndarray, type(None), list, tuple, int, float}

_override: str | None = None
_pinned: ContextVar[str | None] = ContextVar("pinned", default=None)  # in this thread alone


def library_of(**arrays: Any) -> str:
    """The one array library of `arrays` (named as the caller knows them); ``"numpy"`` for array-likes.

    Raises ``TypeError`` for arrays of two libraries, and for a library without a backend.
    """
    if PLAIN.issuperset(map(type, arrays.values())):
        return "numpy"
    found: dict[str, str] = {}
    for name, array in arrays.items():
        library = next((lib for lib, is_array in LIBRARIES.items() if is_array(array)), None)
        if library is None and compat.is_numpy_array(array):
            library = "numpy"
        if library is not None:
            found.setdefault(library, name)
    if len(found) > 1:
        both = " and ".join(f"{name} is {_described(arrays[name])}" for name in list(found.values())[:2])
        raise TypeError(f"arrays of different libraries: {both}; convert one to the other's type")
    if not found:
        return "numpy"
    library, name = next(iter(found.items()))
    if library not in DEFAULT:
        raise TypeError(
            f"{name} is {_described(arrays[name])}, for which no backend is installed; "
            f"backends take: {', '.join(sorted(DEFAULT))}; convert it to one of them"
        )
    if library != "numpy":
        for other in MAIN.intersection(arrays):
            if not LIBRARIES[library](arrays[other]):
                came = f"{name} is {_described(arrays[name])}, but {other} a {type(arrays[other]).__name__}"
                raise TypeError(f"{came}; make both arrays of one library")
        _refuse_two_devices(arrays)
    return library


def _refuse_two_devices(arrays: dict[str, Any]) -> None:
    lie = {name: _device.device_of(array, name).id for name, array in arrays.items() if _device.is_device_array(array)}
    first = next(iter(lie))
    for name, device in lie.items():
        if device != lie[first]:
            raise ValueError(
                f"{name} lies on GPU {device}, {first} on GPU {lie[first]}; bring them to one, for example within "
                "`with cupy.cuda.Device(...)`"
            )


def _described(array: Any) -> str:
    return f"a {type(array).__module__.partition('.')[0]} {type(array).__name__}"


def chosen(library: str = "numpy") -> str:
    """The name of the backend that runs calls on arrays of `library`."""
    if (name := _pinned.get()) is not None:
        return name
    if _override is None:
        return DEFAULT[library]
    if BACKENDS[_override].library != library:
        taken = BACKENDS[_override].library
        raise TypeError(
            f"use_backend({_override!r}) is in force, which takes {taken} arrays, and {library} arrays came; "
            "convert them, or let the arrays decide: use_backend('auto')"
        )
    return _override


@contextmanager
def pinned(name: str) -> Iterator[None]:
    """Run this thread's calls on the named backend, whatever is in force elsewhere."""
    token = _pinned.set(name)
    try:
        yield
    finally:
        _pinned.reset(token)


def override() -> str | None:
    """The backend that `use_backend` has put in force."""
    return _override


def backend(library: str = "numpy") -> Backend:
    return named(chosen(library))


@functools.cache
def named(name: str) -> Backend:
    module: Any = importlib.import_module(BACKENDS[name].module)
    return module


class use_backend:
    """Run calls on the named backend: at once, and until the end of the ``with`` block if used as one.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "reference"}
        ``"auto"`` lets the array's type decide. The choice holds for the whole process, and for arrays that the
        backend takes: others are refused.

    Raises
    ------
    ValueError
        If `name` is not a backend.

    Examples
    --------
    >>> import entrokern as ek
    >>> with ek.use_backend("reference"):
    ...     print(ek.logsumexp([0.0, 0.0]))
    0.6931471805599453
    """

    def __init__(self, name: str) -> None:
        global _override
        if name != "auto" and name not in BACKENDS:
            allowed = ", ".join(map(repr, ("auto", *BACKENDS)))
            raise ValueError(f"backend {name!r} is not known; choose one of {allowed}")
        self._previous = _override
        _override = None if name == "auto" else name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _override
        _override = self._previous


def backends() -> dict[str, str]:
    """The backends by name, each with what it is; the first is the default for NumPy arrays.

    Returns
    -------
    dict of str to str

    Examples
    --------
    >>> import entrokern as ek
    >>> list(ek.backends())
    ['cpu', 'cuda', 'reference']
    """
    return {name: entry.about for name, entry in BACKENDS.items()}
