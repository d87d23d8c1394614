"""A stand-in for the module `cupy` on host memory, whose kernels run through `shim`.

It is as strict as CuPy on a device: no array becomes a NumPy array by itself, the two do not mix, a reduction is a
0-d array, arrays of another device are refused. Beyond CuPy it counts: `synchronisations` is what would wait for the
device, `allocations` the bytes of each device allocation, `launched_on` the device of each kernel.
`install` puts it into ``sys.modules``, `wrap` and `unwrap` go to NumPy and back without a copy or a count.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from array_api_compat.common import _helpers

import shim

__version__ = "14.0.0"

device_count = 2  # 0: as without a device
synchronisations = 0
allocations: list[int] = []
launched_on: list[int] = []


def reset() -> None:
    """Start counting anew."""
    global synchronisations
    synchronisations = 0
    allocations.clear()
    launched_on.clear()
    shim.launches.clear()
    shim.clusters.clear()


def _synchronise() -> None:
    global synchronisations
    synchronisations += 1


# --- devices and streams -------------------------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


ATTRIBUTES = {  # of an H100
    "ComputeCapabilityMajor": 9,
    "ComputeCapabilityMinor": 0,
    "L2CacheSize": 52428800,
    "MaxBlocksPerMultiprocessor": 32,
    "MaxGridDimX": 2**31 - 1,
    "MaxGridDimY": 65535,
    "MaxGridDimZ": 65535,
    "MaxRegistersPerMultiprocessor": 65536,
    "MaxSharedMemoryPerBlock": 49152,
    "MaxSharedMemoryPerBlockOptin": 232448,
    "MaxSharedMemoryPerMultiprocessor": 233472,
    "MaxThreadsPerBlock": 1024,
    "MaxThreadsPerMultiProcessor": 2048,
    "MultiProcessorCount": 132,
    "ReservedSharedMemoryPerBlock": 1024,
    "WarpSize": 32,
}

_current = threading.local()  # `device`: index; `stream`


def _device() -> int:
    return getattr(_current, "device", 0)


class Device:
    """A device by its index; by default the current one."""

    def __init__(self, device: Any = None) -> None:
        self.id = _device() if device is None else int(device)
        self._outer: list[int] = []

    def use(self) -> Device:
        if not 0 <= self.id < device_count:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        _current.device = self.id
        return self

    def __enter__(self) -> Device:
        self._outer.append(_device())
        return self.use()

    def __exit__(self, *error: object) -> None:
        _current.device = self._outer.pop()

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    @property
    def attributes(self) -> dict[str, int]:
        return dict(ATTRIBUTES)

    @property
    def compute_capability(self) -> str:
        return f"{ATTRIBUTES['ComputeCapabilityMajor']}{ATTRIBUTES['ComputeCapabilityMinor']}"

    def synchronize(self) -> None:
        _synchronise()


class Stream:
    """A queue of work, here always empty."""

    null: Stream
    _created = 0

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        Stream._created += 1
        self.ptr = 0 if null else Stream._created * 4096
        self.device_id = -1 if null else _device()
        self._outer: list[Stream] = []

    def use(self) -> Stream:
        _current.stream = self
        return self

    def __enter__(self) -> Stream:
        self._outer.append(get_current_stream())
        return self.use()

    def __exit__(self, *error: object) -> None:
        _current.stream = self._outer.pop()

    def synchronize(self) -> None:
        _synchronise()


Stream.null = Stream(null=True)


def get_current_stream() -> Stream:
    return getattr(_current, "stream", Stream.null)


def _pointer_attributes(pointer: int) -> SimpleNamespace:
    memory = next((m for m in _memories if m.ptr <= pointer < m.ptr + max(m.size, 1)), None)
    return SimpleNamespace(device=_device() if memory is None else memory.device_id)


def _get_device_count() -> int:
    if device_count == 0:
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return device_count


# --- memory --------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None)
_libc.free.argtypes = [ctypes.c_void_p]
_memories: weakref.WeakSet[Memory] = weakref.WeakSet()


class Memory:
    """An allocation: where it is, how many bytes, on which device."""

    def __init__(self, ptr: int, size: int, device_id: int) -> None:
        self.ptr, self.size, self.device_id = ptr, size, device_id
        _memories.add(self)

    @property
    def device(self) -> Device:
        return Device(self.device_id)


class MemoryPointer:
    """An address within an allocation."""

    def __init__(self, mem: Memory, ptr: int) -> None:
        self.mem, self.ptr = mem, ptr
        self.device_id = mem.device_id

    @property
    def device(self) -> Device:
        return self.mem.device

    def __int__(self) -> int:
        return self.ptr


def _allocate(shape: Any, dtype: Any, order: str = "C") -> ndarray:
    """New device memory: aligned as CuPy's, of no byte more than asked for, and filled with 0xFF, which is NaN."""
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise ValueError(f"Unsupported dtype {dtype}")
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(int(n) for n in shape)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size == 0:
        return ndarray._of(np.empty(shape, dtype, order), Memory(0, 0, _device()))
    address = ctypes.c_void_p()
    if _libc.posix_memalign(ctypes.byref(address), ctypes.c_size_t(512), ctypes.c_size_t(size)):
        raise MemoryError(f"Out of memory allocating {size} bytes")
    buffer = (ctypes.c_ubyte * size).from_address(address.value or 0)
    ctypes.memset(buffer, 0xFF, size)
    memory = Memory(address.value or 0, size, _device())
    weakref.finalize(buffer, _libc.free, address.value).atexit = False
    allocations.append(size)
    return ndarray._of(np.ndarray(shape, dtype, buffer, order=order), memory)


def _on_device(values: Any) -> ndarray:
    """A result of NumPy's, in device memory of its own."""
    values = np.asanyarray(values)
    order = "F" if values.flags.f_contiguous and not values.flags.c_contiguous else "C"
    result = _allocate(values.shape, values.dtype, order)
    result._array[...] = values
    return result


def _like_layout(values: Any) -> ndarray:
    """The same, with the axes in the order that they have in the memory of `values`."""
    values = np.asanyarray(values)
    axes = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
    result = _on_device(values.transpose(axes))
    result._array = result._array.transpose(np.argsort(axes))
    return result


def wrap(array: np.ndarray[Any, Any], device: int = 0) -> ndarray:
    """A device array over the memory of `array`, as it is."""
    low, high = np.lib.array_utils.byte_bounds(array)
    return ndarray._of(array, Memory(low, high - low, device))


def unwrap(array: ndarray) -> np.ndarray[Any, Any]:
    """The memory of a device array."""
    return array._array


# --- the array -----------------------------------------------------------------------------------------

_SCALARS = (bool, int, float, complex, np.generic)


def _operand(value: Any) -> Any:
    """An operand of a kernel of CuPy's: an array of this device, or a scalar."""
    if isinstance(value, ndarray):
        if value.data.device_id != _device():
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {value.data.device_id} while current = {_device()}"
            )
        return value._array
    if isinstance(value, _SCALARS):
        return value
    if hasattr(value, "__cuda_array_interface__"):
        return _operand(asarray(value))
    raise TypeError(f"Unsupported type {type(value)}")


def _array_only(a: Any) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError(f"Argument has incorrect type (expected cupy.ndarray, got {type(a)})")
    return a


class Flags:
    def __init__(self, c_contiguous: bool, f_contiguous: bool, owndata: bool) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


def _apply(ufunc: np.ufunc, inputs: Any, out: tuple[ndarray, ...] | None, options: dict[str, Any]) -> Any:
    operands = [_operand(value) for value in inputs]
    if out is not None:
        ufunc(*operands, out=tuple(_operand(_array_only(array)) for array in out), **options)
        return out[0] if len(out) == 1 else out
    result = ufunc(*operands, **options)
    return tuple(map(_like_layout, result)) if isinstance(result, tuple) else _like_layout(result)


def _operator(name: str, reflected: bool = False) -> Callable[..., Any]:
    ufunc = getattr(np, name)

    def method(self: ndarray, other: Any) -> Any:
        if getattr(other, "__array_ufunc__", ()) is None:
            return NotImplemented
        return ufunc(other, self) if reflected else ufunc(self, other)

    return method


def _in_place(name: str) -> Callable[..., Any]:
    ufunc = getattr(np, name)

    def method(self: ndarray, other: Any) -> ndarray:
        ufunc(_operand(self), _operand(other), out=self._array)
        return self

    return method


class ndarray:
    """An array on a device."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("an ndarray over given memory")
        new = _allocate(shape, dtype, order)
        self._array, self._memory, self.base = new._array, new._memory, None

    @classmethod
    def _of(cls, array: np.ndarray[Any, Any], memory: Memory, base: ndarray | None = None) -> ndarray:
        self = cls.__new__(cls)
        self._array, self._memory, self.base = array, memory, base
        return self

    def _view(self, array: np.ndarray[Any, Any]) -> ndarray:
        return self._of(array, self._memory, self if self.base is None else self.base)

    def _view_or_copy(self, array: np.ndarray[Any, Any]) -> ndarray:
        return self._view(array) if np.may_share_memory(array, self._array) else _on_device(array)

    # --- what it is

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self._array.strides

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def size(self) -> int:
        return self._array.size

    @property
    def itemsize(self) -> int:
        return self._array.itemsize

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    @property
    def flags(self) -> Flags:
        flags = self._array.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self.base is None)

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(self._memory, self._array.ctypes.data if self._memory.ptr else 0)

    @property
    def device(self) -> Device:
        return self._memory.device

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": get_current_stream().ptr or 1,
            "version": 3,
            "strides": None if self.flags.c_contiguous else self.strides,
            "data": (self.data.ptr if self.size else 0, False),
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.id

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("this stand-in exports no DLPack capsule")

    # --- to the host

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def get(self, stream: Any = None, order: str = "C", out: Any = None) -> np.ndarray[Any, Any]:
        _synchronise()
        if out is None:
            return np.array(self._array, order=order)
        if not isinstance(out, np.ndarray) or out.dtype != self.dtype:
            raise TypeError(f"{getattr(out, 'dtype', type(out))} array cannot be obtained from {self.dtype} array")
        if out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        out[...] = self._array
        return out

    def set(self, array: np.ndarray[Any, Any], stream: Any = None) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if array.dtype != self.dtype or array.shape != self.shape:
            raise ValueError(f"{array.dtype}{array.shape} cannot be set to {self.dtype}{self.shape}")
        self._array[...] = array

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(f"The truth value of an array of {self.size} elements is ambiguous")
        return bool(self.get().item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __repr__(self) -> str:
        return repr(self.get())

    # --- indexing

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape[0]))

    def _index(self, index: Any) -> tuple[Any, bool]:
        """The index as NumPy's, and whether it makes a view. A mask makes the host count it, to write by it too."""
        items = index if isinstance(index, tuple) else (index,)
        for item in items:
            if isinstance(item, ndarray):
                _operand(item)
                if item.dtype.kind == "b":
                    _synchronise()
            elif isinstance(item, bool | np.bool_) or not isinstance(
                item, int | np.integer | slice | types.EllipsisType | None
            ):
                raise IndexError(f"an index of type {type(item)}; this stand-in takes none")
        arrays = any(isinstance(item, ndarray) for item in items)
        return tuple(item._array if isinstance(item, ndarray) else item for item in items), not arrays

    def __getitem__(self, index: Any) -> ndarray:
        items, is_view = self._index(index)
        if not is_view:
            return _on_device(_operand(self)[items])
        return self._view(self._array[items if Ellipsis in items else (*items, ...)])

    def __setitem__(self, index: Any, value: Any) -> None:
        items, _ = self._index(index)
        _operand(self)[items] = _element(value) if not isinstance(value, ndarray) else _operand(value)

    def fill(self, value: Any) -> None:
        self[...] = value

    # --- shape and dtype

    @property
    def T(self) -> ndarray:
        return self if self.ndim < 2 else self._view(self._array.T)

    def astype(self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True) -> Any:
        if casting is not None or subok is not None:
            raise TypeError("casting and subok are not supported yet")
        result = _operand(self).astype(dtype, order=order, copy=copy)
        return self if result is self._array else _like_layout(result)

    def copy(self, order: str = "C") -> ndarray:
        return _like_layout(np.array(self._array, order=order))

    def view(self, dtype: Any = None) -> ndarray:
        return self._view(self._array.view() if dtype is None else self._array.view(dtype))

    def reshape(self, *shape: Any, order: str = "C", copy: bool | None = None) -> ndarray:
        return self._view_or_copy(self._array.reshape(*shape, order=order, copy=copy))

    def ravel(self, order: str = "C") -> ndarray:
        return self._view_or_copy(self._array.ravel(order))

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self._array.transpose(*axes))

    def squeeze(self, axis: Any = None) -> ndarray:
        return self._view(self._array.squeeze(axis))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        return self._view(self._array.swapaxes(axis1, axis2))

    # --- reductions

    def _reduced(self, name: str, axis: Any, out: ndarray | None, keepdims: bool, **options: Any) -> ndarray:
        result = getattr(np, name)(_operand(self), axis=axis, keepdims=keepdims, **options)
        if out is None:
            return _on_device(result)
        _operand(_array_only(out))[...] = result
        return out

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return self._reduced("all", axis, out, keepdims)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return self._reduced("any", axis, out, keepdims)

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return self._reduced("sum", axis, out, keepdims, dtype=dtype)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return self._reduced("max", axis, out, keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return self._reduced("min", axis, out, keepdims)

    def argmax(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return self._reduced("argmax", axis, out, keepdims)

    def argmin(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return self._reduced("argmin", axis, out, keepdims)

    # --- NumPy's protocols, and operators by way of them

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        return _apply(ufunc, inputs, out, options) if method == "__call__" else NotImplemented

    def __array_function__(self, function: Any, kinds: Any, arguments: Any, options: Any) -> Any:
        ours = _FUNCTIONS.get(function.__name__)
        if ours is None or not all(issubclass(kind, ndarray | np.ndarray) for kind in kinds):
            return NotImplemented
        return ours(*arguments, **options)

    def __pos__(self) -> ndarray:
        return self

    def __neg__(self) -> Any:
        return np.negative(self)

    def __abs__(self) -> Any:
        return np.absolute(self)

    def __invert__(self) -> Any:
        return np.invert(self)

    __lt__, __le__ = _operator("less"), _operator("less_equal")
    __gt__, __ge__ = _operator("greater"), _operator("greater_equal")
    __eq__, __ne__ = _operator("equal"), _operator("not_equal")  # type: ignore[assignment]


for _symbol, _name in {
    **{"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide"},
    **{"mod": "remainder", "pow": "power", "lshift": "left_shift", "rshift": "right_shift"},
    **{"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"},
}.items():
    setattr(ndarray, f"__{_symbol}__", _operator(_name))
    setattr(ndarray, f"__r{_symbol}__", _operator(_name, reflected=True))
    setattr(ndarray, f"__i{_symbol}__", _in_place(_name))


def _element(value: Any) -> Any:
    """What may be written everywhere: a scalar, or a 0-d NumPy array."""
    if isinstance(value, np.ndarray):
        if value.shape != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        return value.item()
    if not isinstance(value, _SCALARS):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


# --- functions -----------------------------------------------------------------------------------------

_FUNCTIONS: dict[str, Callable[..., Any]] = {}  # of the module, by name


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    _FUNCTIONS[function.__name__.rstrip("_")] = function
    return function


@_public
def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: bool | None = None, blocking: bool = False) -> Any:
    if isinstance(a, ndarray):
        dtype = a.dtype if dtype is None else np.dtype(dtype)
        if a.data.device_id != _device():
            return a.copy().astype(dtype, copy=False)
        return a.astype(dtype, order=order or "K", copy=bool(copy))
    if hasattr(a, "__cuda_array_interface__"):
        return asarray(_foreign(a), dtype, order, copy=copy)
    values = np.asarray(a, dtype, order=order)
    return _on_device(values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("=")))


def _foreign(a: Any) -> ndarray:
    """A view of the memory that another library's array describes."""
    interface = a.__cuda_array_interface__
    if interface.get("stream") is not None:
        _synchronise()
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides") or np.empty(shape, np.void(dtype.itemsize).dtype).strides
    address, size = interface["data"][0], int(np.prod(shape, dtype=object))
    reach = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    low = sum(min(r, 0) for r in reach)
    span = sum(abs(r) for r in reach) + dtype.itemsize
    memory = next((m for m in _memories if m.ptr <= address < m.ptr + m.size), None)
    if memory is None:
        memory = Memory(address, span, _device())
    memory.owner = a  # type: ignore[attr-defined]
    if size == 0:
        return ndarray._of(np.empty(shape, dtype), memory)
    buffer = (ctypes.c_ubyte * span).from_address(address + low)
    return ndarray._of(np.ndarray(shape, dtype, buffer, -low, strides), memory)


@_public
def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False, ndmin: int = 0) -> Any:
    result = asarray(obj, dtype, order, copy=copy)
    return result[(None,) * (ndmin - result.ndim)] if ndmin > result.ndim else result


@_public
def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _allocate(shape, dtype, order)


@_public
def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.asarray(_element(fill_value)).dtype
    result = _allocate(shape, dtype, order)
    result.fill(fill_value)
    return result


@_public
def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


@_public
def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


@_public
def empty_like(prototype: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> Any:
    if subok is not None:
        raise TypeError("subok is not supported yet")
    if not isinstance(prototype, ndarray):
        raise TypeError(f"Unsupported type {type(prototype)}")
    return _like_layout(np.empty_like(prototype._array, dtype, order, shape=shape))


@_public
def full_like(a: ndarray, fill_value: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None):
    result = empty_like(a, dtype, order, subok, shape)
    result.fill(fill_value)
    return result


@_public
def zeros_like(a: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> ndarray:
    return full_like(a, 0, dtype, order, subok, shape)


@_public
def ones_like(a: ndarray, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> ndarray:
    return full_like(a, 1, dtype, order, subok, shape)


@_public
def arange(*bounds: Any, dtype: Any = None) -> ndarray:
    return _on_device(np.arange(*bounds, dtype=dtype))


@_public
def moveaxis(a: ndarray, source: Any, destination: Any) -> ndarray:
    return _array_only(a)._view(np.moveaxis(a._array, source, destination))


@_public
def transpose(a: ndarray, axes: Any = None) -> ndarray:
    return _array_only(a).transpose(axes)


@_public
def reshape(a: ndarray, shape: Any, order: str = "C", *, copy: bool | None = None) -> ndarray:
    return _array_only(a).reshape(shape, order=order, copy=copy)


@_public
def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    # CuPy's may be written to, unlike NumPy's.
    values = _array_only(array)._array
    return array._view(np.lib.stride_tricks.as_strided(values, shape, np.broadcast_to(values, shape).strides))


@_public
def broadcast_arrays(*args: ndarray) -> list[ndarray]:
    shape = np.broadcast_shapes(*(_array_only(a).shape for a in args))
    return [broadcast_to(a, shape) for a in args]


@_public
def atleast_1d(a: ndarray) -> ndarray:
    return _array_only(a) if a.ndim else a[None]


@_public
def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return atleast_1d(asarray(a, dtype, "C"))


@_public
def concatenate(tup: Any, axis: int | None = 0) -> ndarray:
    return _on_device(np.concatenate([_operand(_array_only(a)) for a in tup], axis))


@_public
def where(condition: Any, x: Any, y: Any) -> ndarray:
    return _on_device(np.where(_operand(_array_only(condition)), _operand(x), _operand(y)))


@_public
def take_along_axis(a: ndarray, indices: ndarray, axis: int | None) -> ndarray:
    return _on_device(np.take_along_axis(_operand(_array_only(a)), _operand(_array_only(indices)), axis))


@_public
def argmax(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _array_only(a).argmax(axis, out, dtype, keepdims)


@_public
def any_(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _array_only(a).any(axis, out, keepdims)


@_public
def all_(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _array_only(a).all(axis, out, keepdims)


@_public
def sum_(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _array_only(a).sum(axis, dtype, out, keepdims)


@_public
def count_nonzero(a: ndarray, axis: Any = None) -> ndarray:
    return _on_device(np.count_nonzero(_operand(_array_only(a)), axis))


@_public
def may_share_memory(a: ndarray, b: ndarray, max_work: None = None) -> bool:
    return np.may_share_memory(_array_only(a)._array, _array_only(b)._array)


@_public
def shares_memory(a: ndarray, b: ndarray, max_work: None = None) -> bool:
    if _array_only(a) is not _array_only(b):
        _synchronise()
    return np.shares_memory(a._array, b._array)


@_public
def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if isinstance(src, np.ndarray):
        if src.size != 1:
            raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
        src = src.item()
    np.copyto(
        _operand(_array_only(dst)), _operand(src), casting=casting, where=True if where is None else _operand(where)
    )


@_public
def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> Any:
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a, order=order)


@_public
def result_type(*arrays_and_dtypes: Any) -> np.dtype[Any]:
    return np.result_type(*(a.dtype if isinstance(a, ndarray) else a for a in arrays_and_dtypes))


@_public
def can_cast(from_: Any, to: Any, casting: str = "safe") -> bool:
    return np.can_cast(from_.dtype if isinstance(from_, ndarray) else from_, to, casting)


def _elementwise(ufunc: np.ufunc) -> Callable[..., Any]:
    def function(*operands: Any, out: Any = None, **options: Any) -> Any:
        return _apply(ufunc, operands, None if out is None else (out,), options)

    return function


_FUNCTIONS.update(
    (name, _elementwise(getattr(np, name)))
    for name in ("abs", "add", "exp", "isfinite", "isinf", "isnan", "log", "maximum", "minimum", "multiply", "subtract")
)

# --- kernels -------------------------------------------------------------------------------------------


class RawKernel:
    """A kernel of `entrokern.cuda.sources`; its attributes are per device, as on devices."""

    def __init__(self, name: str, cluster: int = 1) -> None:
        from entrokern.cuda import sources

        self.name, self.cluster = name, cluster
        self.max_threads_per_block = sources.KERNELS[name].threads
        self._dynamic_shared: dict[int, int] = {}

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._dynamic_shared.get(_device(), ATTRIBUTES["MaxSharedMemoryPerBlock"])

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if not 0 <= size <= ATTRIBUTES["MaxSharedMemoryPerBlockOptin"]:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._dynamic_shared[_device()] = size

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, shared_mem: int = 0) -> None:
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError(f"grid and block must be tuples, not {type(grid)} and {type(block)}")
        blocks, threads = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        most = (ATTRIBUTES["MaxGridDimX"], ATTRIBUTES["MaxGridDimY"], ATTRIBUTES["MaxGridDimZ"])
        if not np.all([1 <= n <= limit for n, limit in zip(blocks, most, strict=True)]):
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: grid {grid}")
        if not 1 <= threads[0] <= self.max_threads_per_block or threads[1:] != (1, 1):
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: block {block}, at most ({self.max_threads_per_block},)")
        if self.cluster > 1 and ATTRIBUTES["ComputeCapabilityMajor"] < 9:
            raise CUDADriverError("CUDA_ERROR_INVALID_CLUSTER_SIZE: a device without clusters")
        if blocks[0] % self.cluster:
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: grid {grid} in clusters of {self.cluster} blocks")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            limit = self.max_dynamic_shared_size_bytes
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {shared_mem} bytes of shared memory, at most {limit}")
        (arguments,) = args
        if not isinstance(arguments, np.ndarray) or arguments.size != 1:
            raise TypeError(f"Unsupported type {type(arguments)}: the argument is one array of size 1")
        if arguments.dtype.names is not None:  # which CuPy takes
            raise TypeError("to describe the fields of a structure takes CuPy 25 µs in each launch: pass bytes")
        launched_on.append(_device())
        shim.launch(self.name, blocks, threads[0], shared_mem, arguments, cluster=self.cluster)


class CompileException(Exception):
    pass


def compile_using_nvrtc(
    source: str, options: tuple[str, ...] = (), arch: Any = None, filename: str = "kern.cu", **more: Any
) -> tuple[bytes, None]:
    """The text itself is the machine code; the shim compiles its kernels as part of their family."""
    if not isinstance(source, str) or not isinstance(options, tuple):
        raise TypeError(f"source must be a str and options a tuple, not {type(source)} and {type(options)}")
    return source.encode(), None


class RawModule:
    """The kernels of a file of machine code."""

    def __init__(self, *, code: str | None = None, path: str | None = None, options: tuple[str, ...] = ()):
        if code is not None:  # which CuPy takes
            raise TypeError("CuPy compiles code with -ftz=true, last of all options: subnormal numbers would be 0")
        if not isinstance(path, str):
            raise TypeError(f"path must be a str, not {type(path)}")
        self.file_path = path

    def get_function(self, name: str) -> RawKernel:
        with open(self.file_path) as file:
            entry = re.search(rf'extern "C" __global__ [^;{{]*\b{name}\(', file.read())
        if entry is None:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
        together = re.search(r"__cluster_dims__\((\d+)\)", entry[0])
        return RawKernel(name, int(together[1]) if together else 1)


# --- in the place of cupy ------------------------------------------------------------------------------


@functools.cache
def _modules() -> dict[str, types.ModuleType]:
    cupy, cuda = types.ModuleType("cupy"), types.ModuleType("cupy.cuda")
    runtime, driver = types.ModuleType("cupy.cuda.runtime"), types.ModuleType("cupy.cuda.driver")
    nvrtc, compiler = types.ModuleType("cupy.cuda.nvrtc"), types.ModuleType("cupy.cuda.compiler")
    vars(runtime).update(
        CUDARuntimeError=CUDARuntimeError,
        getDevice=_device,
        setDevice=lambda device: Device(device).use(),
        getDeviceCount=_get_device_count,
        pointerGetAttributes=_pointer_attributes,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        deviceSynchronize=_synchronise,
        streamSynchronize=lambda stream: _synchronise(),
    )
    vars(driver).update(CUDADriverError=CUDADriverError)
    vars(nvrtc).update(getVersion=lambda: (0, 0))  # no NVRTC's: what is kept by it, no device will be given
    vars(compiler).update(CompileException=CompileException, compile_using_nvrtc=compile_using_nvrtc)
    vars(cuda).update(
        Device=Device,
        Memory=Memory,
        MemoryPointer=MemoryPointer,
        Stream=Stream,
        compiler=compiler,
        driver=driver,
        get_current_stream=get_current_stream,
        is_available=lambda: device_count > 0,
        nvrtc=nvrtc,
        runtime=runtime,
    )
    scalars = ("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    scalars += ("float16", "float32", "float64", "dtype", "generic", "finfo", "iinfo", "newaxis", "inf", "nan", "pi")
    vars(cupy).update(
        {name: getattr(np, name) for name in scalars},
        **_FUNCTIONS,
        RawKernel=RawKernel,
        RawModule=RawModule,
        __version__=__version__,
        cuda=cuda,
        ndarray=ndarray,
    )
    return {module.__name__: module for module in (cupy, cuda, runtime, driver, nvrtc, compiler)}


_replaced: dict[str, types.ModuleType] = {}


def install() -> types.ModuleType:
    """Be `cupy` until `uninstall`."""
    if not is_installed():
        _replaced.clear()
        _replaced.update({name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "cupy"})
        sys.modules.update(_modules())
        _forget_types()
    return sys.modules["cupy"]


def uninstall() -> None:
    """Give the name back to what it was."""
    if is_installed():
        for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
            del sys.modules[name]
        sys.modules.update(_replaced)
        _forget_types()


def is_installed() -> bool:
    return sys.modules.get("cupy") is _modules()["cupy"]


def _forget_types() -> None:
    """What array-api-compat remembers, from 1.12 on: which types are CuPy's."""
    if hasattr(_helpers, "_issubclass_fast"):
        _helpers._issubclass_fast.cache_clear()
