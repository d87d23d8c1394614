"""Which backend runs a call: the type of the arrays decides, `use_backend` overrides.

A new backend is one row in `BACKENDS` and one module (or folder) with a function ``run(call)``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import array_api_compat as compat
import numpy as np

from . import _call


class Backend(Protocol):
    """What a backend module offers."""

    def run(self, call: _call.Call) -> float:
        """Write every output of `call`; return the sum of its losses (0 where not asked for)."""


class Entry(NamedTuple):
    """One backend: where it lives, the arrays it takes and what it is."""

    module: str
    library: str
    about: str


BACKENDS = {
    "cpu": Entry("entrokern.cpu", "numpy", "Numba kernels, vectorised and threaded"),
    "reference": Entry("entrokern.reference", "numpy", "plain float64 NumPy: the definition"),
}
DEFAULT = {"numpy": "cpu"}  # the backend of each array library

# Array types that are told apart, without importing their library to ask.
LIBRARIES: dict[str, Callable[[Any], bool]] = {
    "cupy": compat.is_cupy_array,
    "torch": compat.is_torch_array,
    "jax": compat.is_jax_array,
    "dask": compat.is_dask_array,
    "ndonnx": compat.is_ndonnx_array,
    "sparse": compat.is_pydata_sparse_array,
}

# Types that need no such test: what most calls come with.
PLAIN = {np.ndarray, type(None), list, tuple, int, float}

_override: str | None = None


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
            f"backends take: {', '.join(sorted(DEFAULT))}; convert it to a NumPy array"
        )
    return library


def _described(array: Any) -> str:
    return f"a {type(array).__module__.partition('.')[0]} {type(array).__name__}"


def chosen(library: str = "numpy") -> str:
    """The name of the backend that runs calls on arrays of `library`."""
    return _override or DEFAULT[library]


def backend(library: str = "numpy") -> Backend:
    return _module(chosen(library))


@functools.cache
def _module(name: str) -> Backend:
    module: Any = importlib.import_module(BACKENDS[name].module)
    return module


class use_backend:
    """Run calls on the named backend: at once, and until the end of the ``with`` block if used as one.

    Parameters
    ----------
    name : {"auto", "cpu", "reference"}
        ``"auto"`` lets the array's type decide. The choice holds for the whole process.

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
    ['cpu', 'reference']
    """
    return {name: entry.about for name, entry in BACKENDS.items()}
