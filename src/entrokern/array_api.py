"""Arrays that follow the array API standard, of any library: read where they lie on the CPU, and results in kind.

DLPack brings them to NumPy and the results back, neither copied. What lies elsewhere, or has no values yet, is refused.

>>> import array_api_strict as xp, entrokern as ek
>>> ek.softmax(xp.asarray([0.0, 0.0]))
Array([0.5, 0.5], dtype=array_api_strict.float64)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ._arrays import Array
from .score import Score

CPU = 1  # of DLPack's devices
OUTPUTS = ("out", "grad_out", "hess_out")


def run(function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What the public `function` gives for these arguments, in arrays of their library and on their device."""
    values = (*args, *options.values())
    first = next(value for value in values if _is_guest(value))
    xp = first.__array_namespace__()
    for value in values:
        if isinstance(value, np.ndarray) or (_is_guest(value) and value.__array_namespace__() is not xp):
            raise TypeError(
                f"arrays of different libraries: {_described(first)} and {_described(value)}; convert one to the "
                "other's type"
            )
    for name in OUTPUTS:
        if options.get(name) is not None:
            raise TypeError(f"{name} is given beside {_described(first)}, whose results are new arrays; leave it out")
    found = function(*map(unwrapped, args), **{name: unwrapped(value) for name, value in options.items()})

    def returned(array: Any) -> Any:
        return xp.asarray(xp.from_dlpack(array), device=first.device)

    if isinstance(found, Score):
        arrays = {field.name: getattr(found, field.name) for field in fields(found)}
        return Score(**{name: None if array is None else returned(array) for name, array in arrays.items()})
    return tuple(map(returned, found)) if isinstance(found, tuple) else returned(found)


def unwrapped(value: Any) -> Any:
    """NumPy's array over the memory of `value`, if it is an array of the standard."""
    if not _is_guest(value):
        return value
    try:
        kind, _ = value.__dlpack_device__()
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise TypeError(f"{_described(value)} came, which has no DLPack to read it by; convert it to NumPy") from error
    if kind != CPU:
        raise TypeError(
            f"{_described(value)} came, which does not lie on the CPU (device {value.device}); bring it there"
        )
    try:
        array: Array = np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{_described(value)} came, which NumPy cannot read: {error}; convert it") from error
    return array


def _is_guest(value: Any) -> bool:
    return hasattr(value, "__array_namespace__") and not isinstance(value, (np.ndarray, np.generic))


def _described(value: Any) -> str:
    return f"a {type(value).__module__.partition('.')[0]} {type(value).__name__}"
