"""XLA's foreign-function interface, as far as one handler needs it: buffers in, buffers out, an error's text.

XLA calls the handler with the addresses of operands and results, and NumPy arrays are laid over them: nothing is
copied, no function of JAX runs inside a computation (`jax.pure_callback` copies both ways, and can wait for itself).
The structures are those of `xla/ffi/api/c_api.h`, whose fields stay where they are within a major version.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._arrays import Array
from . import gate

METADATA = 1  # an extension's type
INVALID_ARGUMENT, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 3, 11, 12, 13, 14  # codes of errors
MAJOR, MINOR = 0, 1  # the version whose fields are read here; a larger minor one has more of them, after these
READ_ONLY, WRITEABLE = 0x100, 0x200  # of Python's buffers

_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype, _memory.argtypes = ctypes.py_object, (c_void_p, ctypes.c_ssize_t, c_int)


class _Extension(Structure):
    _fields_ = (("struct_size", c_size_t), ("type", c_int), ("next", c_void_p))


class _Version(Structure):
    _fields_ = (("struct_size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int))


class _Metadata(Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32))


class _MetadataExtension(Structure):
    _fields_ = (("base", _Extension), ("metadata", POINTER(_Metadata)))


class _ErrorArguments(Structure):
    _fields_ = (("struct_size", c_size_t), ("extension", c_void_p), ("message", c_char_p), ("code", c_int))


class _Api(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("version", _Version),
        ("internal", c_void_p),
        ("create_error", ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorArguments))),
    )


class _Buffer(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    )


class _Buffers(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", POINTER(c_int)),
        ("items", POINTER(POINTER(_Buffer))),
    )


class _Text(Structure):
    _fields_ = (("address", c_void_p), ("length", c_size_t))


class _Attributes(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", POINTER(c_int)),
        ("names", POINTER(POINTER(_Text))),
        ("items", POINTER(POINTER(_Text))),
    )


class _Frame(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", POINTER(_MetadataExtension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("operands", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))

DTYPES = {
    code: np.dtype(dtype)
    for code, dtype in {
        1: bool, 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "uint8", 7: "uint16", 8: "uint32", 9: "uint64",
        10: "float16", 11: "float32", 12: "float64", 16: jnp.bfloat16,
    }.items()
}  # fmt: skip

Compute = Callable[[bytes, Sequence[Array], Sequence[Array]], None]


def register(target: str, platform: str, compute: Compute) -> None:
    """Have XLA call ``compute(text, operands, results)`` for custom calls of `target`, whose one attribute is a text.

    The arrays hold while `compute` runs. What it raises becomes the computation's error.
    """

    def handle(frame: Any) -> int | None:
        call = frame.contents
        if call.extension and call.extension.contents.base.type == METADATA:
            version = call.extension.contents.metadata.contents.version
            version.major, version.minor = MAJOR, call.api.contents.version.minor if call.api else MINOR
            return None
        try:
            text = call.attributes.items[0].contents
            name = ctypes.string_at(text.address, text.length)
            compute(name, _arrays_of(call.operands, READ_ONLY), _arrays_of(call.results, WRITEABLE))
        except BaseException as error:  # beyond here is no Python to raise it in
            return _error(call.api, error)
        return None

    ended = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, b"the Python process is ending", UNAVAILABLE)
    address = gate.way_in(
        _Handler(handle), api=_Frame.api.offset, create_error=_Api.create_error.offset, arguments=ended
    )
    jax.ffi.register_ffi_target(target, _capsule(address), platform=platform)


def _capsule(address: int) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (c_void_p, c_char_p, c_void_p)
    return new(address, None, None)


def _arrays_of(buffers: Any, access: int) -> list[Array]:
    return [_laid_over(buffers.items[i].contents, access) for i in range(buffers.size)]


def _laid_over(buffer: Any, access: int) -> Array:
    shape, dtype = tuple(buffer.dims[: buffer.rank]), DTYPES[buffer.dtype]
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, _memory(buffer.data, math.prod(shape) * dtype.itemsize, access))


def _error(api: Any, error: BaseException) -> int | None:
    if isinstance(error, IndexError):
        code = OUT_OF_RANGE
    elif isinstance(error, NotImplementedError):
        code = UNIMPLEMENTED
    else:
        code = INVALID_ARGUMENT if isinstance(error, (TypeError, ValueError)) else INTERNAL
    message = f"{type(error).__name__}: {error}".encode(errors="replace")
    arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, code)
    created: int | None = api.contents.create_error(ctypes.byref(arguments))
    return created
