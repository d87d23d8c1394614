"""Arrays in a GPU's memory, as the host half sees them: CuPy's, and whatever says where it lies.

CuPy is imported when the first such array comes, never to ask for one. Its arrays answer to NumPy's functions
(``np.moveaxis``, ``np.broadcast_to``), so that most of the host half knows nothing of them.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

HOST = {np.ndarray, type(None), list, tuple, int, float, bool, str}  # what most calls come with
NO_CUPY = "{name} lies in a GPU's memory, for which CuPy is needed: pip install 'entrokern[cuda13]' (or [cuda12])"


def is_device_array(value: Any) -> bool:
    """Whether `value` lies in a GPU's memory: an array of CuPy, or one with ``__cuda_array_interface__``."""
    if type(value) in HOST:
        return False
    return is_cupy_array(value) or hasattr(value, "__cuda_array_interface__")


def is_cupy_array(value: Any) -> bool:
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def asarray(name: str, value: Any) -> Any:
    """`value` as a CuPy array over the same memory."""
    if is_cupy_array(value):
        return value
    with device_of(value, name):
        import cupy

        return cupy.asarray(value)


def device_of(value: Any, name: str = "an array") -> Any:
    """CuPy's device that `value` lies on: as a context, what is current."""
    if is_cupy_array(value):
        return value.device
    try:
        import cupy
    except ImportError as error:
        described = f"{name} (a {type(value).__module__} {type(value).__name__})"
        raise RuntimeError(NO_CUPY.format(name=described)) from error
    pointer = value.__cuda_array_interface__["data"][0]
    # Of no elements, and nowhere.
    return cupy.cuda.Device(cupy.cuda.runtime.pointerGetAttributes(pointer).device) if pointer else cupy.cuda.Device()


def is_read_only(value: Any) -> bool:
    """Whether an array says of itself that it must not be written; CuPy's never do."""
    return not is_cupy_array(value) and bool(
        getattr(value, "__cuda_array_interface__", {"data": (0, False)})["data"][1]
    )


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], of: Any) -> Any:
    """A new array on the device of `of`."""
    import cupy

    with of.device:
        return cupy.empty(shape, dtype)


def empty_like(array: Any, dtype: np.dtype[Any]) -> Any:
    import cupy

    with array.device:
        return cupy.empty_like(array, dtype=dtype)


def arange(n: int, of: Any) -> Any:
    """``0 … n - 1`` where `of` is."""
    if not is_device_array(of):
        return np.arange(n)
    import cupy

    with of.device:
        return cupy.arange(n)


class _Memory:
    def __init__(self, array: Any) -> None:
        self.__array_interface__ = {
            "data": (array.data.ptr, False),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": f"|V{array.itemsize}",
            "version": 3,
        }


def addresses(array: Any) -> Any:
    """Where the elements of `array` lie, as a NumPy array that must never be read: NumPy can tell which overlap."""
    return np.asarray(_Memory(array))
