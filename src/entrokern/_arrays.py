"""Arrays at the door: which are taken, with which dtype, axis and shape, and which outputs may be written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _device, _options

type_name = "float16, bfloat16, float32, float64 or integers (computed as float64)"

Array = npt.NDArray[Any]
ArrayLike: TypeAlias = Any

SMALL = 1 << 16  # elements: weights up to this size are converted at the door, larger ones block by block


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """By name, so that `ml_dtypes` is not imported to ask."""
    return dtype.name == "bfloat16"


def is_half(dtype: np.dtype[Any]) -> bool:
    return dtype.itemsize == 2


def row_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of one number per row: float32 for 16- and 32-bit floats, else float64."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def result_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a row result by its name."""
    return np.dtype(np.int64) if name in ("argmax", "rank") else row_dtype(dtype)


def common_dtype(**operands: Array) -> np.dtype[Any]:
    """The dtype of results of two operands: NumPy's ``result_type``."""
    try:
        return np.result_type(*(operand.dtype for operand in operands.values()))
    except TypeError:  # float16 and bfloat16: neither holds the other
        dtypes = " and ".join(f"{operand.dtype}" for operand in operands.values())
        names = " and ".join(operands)
        raise TypeError(f"{names} have dtypes {dtypes}, without a common dtype; convert one of them") from None


def map_dtypes(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], ...]:
    """The dtypes of an ``(n, k)`` output: the input's own; for 16-bit input float32 is taken too."""
    return (dtype, np.dtype(np.float32)) if is_half(dtype) else (dtype,)


def is_masked(value: Any) -> bool:
    """Whether `value` is a masked array; asked only of types that can be, since `np.ma` is a slow import."""
    return type(value) is not np.ndarray and isinstance(value, np.ndarray) and isinstance(value, np.ma.MaskedArray)


def asarray(name: str, value: Any) -> Array:
    """A plain, native-endian array over the memory of `value` (a copy only of what is not an array): NumPy's, or
    CuPy's for what lies in a GPU's memory."""
    if _device.is_device_array(value):
        device_array: Any = _device.asarray(name, value)
        size = device_array.itemsize
        if device_array.data.ptr % size or any(s % size for s in device_array.strides):
            raise ValueError(
                f"{name} has elements of {size} bytes that do not lie at multiples of {size}, where a GPU cannot read "
                "them; pass an array whose elements lie by themselves"
            )
        return device_array
    if is_masked(value):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost; pass {name}.filled(...) "
            "and give masked rows sample_weight 0 or ignore_index"
        )
    array = np.asarray(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_floating(name: str, value: Any) -> Array:
    """`value` as an array of a floating dtype that the kernels know; integers become float64."""
    array = asarray(name, value)
    dtype = array.dtype
    if (dtype.kind == "f" and dtype.itemsize <= 8) or is_bfloat16(dtype):
        return array
    if dtype.kind in "iu":
        return array.astype(np.float64)
    raise TypeError(f"{name} has dtype {dtype}; allowed: {type_name}; convert it with .astype(...)")


def as_real(name: str, value: Any, *, bools: bool = False) -> Array:
    """Targets and weights: any real dtype, left as it is."""
    array = asarray(name, value)
    kinds = "biuf" if bools else "iuf"
    if array.dtype.kind in kinds or is_bfloat16(array.dtype):
        return array
    raise TypeError(f"{name} has dtype {array.dtype}; pass a real array (integer or floating)")


def class_axis(x: Array, axis: Any, name: str = "x") -> int:
    """`axis` as a non-negative index of `x`, whose class axis must not be empty."""
    axis = _options.index("axis", axis)
    if x.ndim == 0:
        raise ValueError(f"{name} is 0-dimensional; it needs a class axis: pass at least one row, shape (k,)")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis={axis} does not exist in {name} of shape {x.shape}; pass {-x.ndim} to {x.ndim - 1}")
    axis %= x.ndim
    if x.shape[axis] == 0:
        raise ValueError(f"{name} of shape {x.shape} has no class along axis {axis} (k = 0); pass at least one class")
    return axis


def classes_last(array: Array, axis: int) -> Array:
    """A view of `array` with the class axis moved to the end."""
    return array if axis == array.ndim - 1 else array.transpose(last(axis, array.ndim))


def last(axis: int, ndim: int) -> tuple[int, ...]:
    """The axes of an array in their order, but for `axis`, which comes last."""
    return (*range(axis), *range(axis + 1, ndim), axis)


def split_target(x: Array, axis: int, target: Any) -> tuple[Array | None, Array | None]:
    """Tell labels from distributions by shape: ``(labels, None)`` or ``(None, distribution)``.

    A target of `x`'s shape is a distribution (one row of it per row of `x`); integers of the batch
    shape are labels.
    """
    t = as_real("target", target, bools=True)
    batch = x.shape[:axis] + x.shape[axis + 1 :]
    if t.shape == x.shape:
        return None, classes_last(t, axis)
    if t.shape == batch and (t.dtype.kind in "iu" or t.size == 0):
        return t.astype(np.int64) if t.dtype.kind not in "iu" else t, None
    expected = f"integer labels of shape {batch} or a distribution of shape {x.shape}"
    if t.shape == batch:
        raise ValueError(f"target has dtype {t.dtype}; expected {expected}: for labels pass target.astype(int)")
    hint = ""
    for other in range(x.ndim):
        if t.shape == x.shape[:other] + x.shape[other + 1 :]:
            hint = f"; if the classes lie along axis {other} of x, pass `axis={other}`"
            break
    raise ValueError(
        f"target of shape {t.shape} does not fit x of shape {x.shape} with axis={axis}: expected {expected}{hint}"
    )


def class_weights(value: Any, k: int, *, validate: bool = False) -> Array | None:
    """Weights per class as float64 of shape ``(k,)``, finite and not negative.

    On a device they are as given, and looked at only with `validate`, since that waits for it.
    """
    if value is None:
        return None
    w = as_real("class_weight", value)
    if w.shape != (k,):
        raise ValueError(f"class_weight has shape {w.shape}; expected one weight per class: ({k},)")
    if _device.is_device_array(w) and not validate:
        return w
    w = w.astype(np.float64)
    bad = ~(np.isfinite(w) & (w >= 0))
    if bad.any():
        c = int(bad.argmax())
        raise ValueError(f"class_weight[{c}] = {w[c]}; class weights must be finite and 0 or greater")
    return w


def sample_weights(value: Any, batch: tuple[int, ...]) -> Array | None:
    """Weights per row, of the batch shape."""
    if value is None:
        return None
    w = as_real("sample_weight", value)
    if w.shape != batch:
        raise ValueError(f"sample_weight has shape {w.shape}; expected one weight per row: {batch}")
    return w


def in_float64(array: Array | None) -> Array | None:
    return None if array is None else array.astype(np.float64, copy=False)


def broadcast_against(name: str, value: Any, shape: tuple[int, ...]) -> Array | None:
    """`value` broadcast (at stride 0) to `shape`, which it must not enlarge; on a device of the type it has."""
    if value is None:
        return None
    array = as_real(name, value)
    if array.size <= SMALL and not _device.is_device_array(array):  # a device reads weights of any dtype
        array = array.astype(np.float64)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape} does not broadcast against x of shape {shape}") from None


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], of: Array) -> Array:
    """A new array of the library, and on the device, of `of`."""
    if type(of) is np.ndarray:
        return np.empty(shape, dtype)
    result: Array = _device.empty(shape, dtype, of)
    return result


def output(
    name: str, given: Any, shape: tuple[int, ...], dtypes: Iterable[np.dtype[Any]], of: Array, *, alike: bool = False
) -> Array:
    """The array to write: `given`, checked, or a new one of the first dtype, of the library and on the device of the
    operand `of` (`alike`: laid out as that is)."""
    dtypes = tuple(dtypes)
    on_device = _device.is_device_array(of)
    if given is None:
        result: Array
        if on_device:
            result = _device.empty_like(of, dtypes[0]) if alike else _device.empty(shape, dtypes[0], of)
            return result
        return np.empty_like(of, dtype=dtypes[0], subok=False) if alike else np.empty(shape, dtypes[0])
    allowed = " or ".join(str(d) for d in dict.fromkeys(dtypes))
    if on_device != _device.is_device_array(given) or (not on_device and not isinstance(given, np.ndarray)):
        library = "CuPy" if on_device else "NumPy"
        raise TypeError(f"{name} is a {type(given).__name__}; pass a {library} array of shape {shape}, dtype {allowed}")
    if is_masked(given):
        raise TypeError(f"{name} is a {type(given).__name__}; pass a NumPy array of shape {shape}, dtype {allowed}")
    read_only = _device.is_read_only(given) if on_device else not given.flags.writeable
    given = asarray(name, given) if on_device else given
    if given.shape != shape:
        raise ValueError(f"{name} has shape {given.shape}; the result has shape {shape}")
    if given.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {given.dtype}; allowed: {allowed}")
    if read_only:
        raise ValueError(f"{name} is read-only; pass a writeable array")
    if (
        0 in given.strides
        and given.size > 1
        and any(s == 0 < d - 1 for s, d in zip(given.strides, given.shape, strict=True))
    ):
        raise ValueError(f"{name} is a broadcast view, whose elements share memory; pass an array of its own")
    return given if on_device else np.asarray(given)


def same_memory(a: Array, b: Array) -> bool:
    """Whether `a` and `b` are exactly the same elements at the same places."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and a.strides == b.strides
        and addresses(a).__array_interface__["data"][0] == addresses(b).__array_interface__["data"][0]
    )


def addresses(array: Any) -> Array:
    """`array`, or what NumPy can compare of one in a GPU's memory: where it lies."""
    where: Array = _device.addresses(_device.asarray("", array)) if _device.is_device_array(array) else array
    return where


def may_overlap(a: Array, b: Array) -> bool:
    """Whether the memory that `a` and `b` lie in has a part in common."""
    if type(a) is np.ndarray or not (a.flags.c_contiguous and b.flags.c_contiguous):
        return bool(np.may_share_memory(addresses(a), addresses(b)))
    first: Any = a
    second: Any = b
    start, other = first.data.ptr, second.data.ptr
    return bool(start < other + b.nbytes and other < start + a.nbytes)


def overlap(a: Array, b: Array) -> bool:
    """Whether `a` and `b` share an element; where that is hard to decide, the answer is yes."""
    a, b = addresses(a), addresses(b)
    if not np.may_share_memory(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=10_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def refuse_overlap(outputs: dict[str, Array], inputs: dict[str, Array | None], in_place: dict[str, str]) -> set[str]:
    """Refuse outputs that overlap anything, but for `in_place` pairs (output name → its operand).

    Returns the names of the outputs that are their operand: they are written in place.
    """
    written_in_place = set()
    names = list(outputs)
    for i, name in enumerate(names):
        out = outputs[name]
        for other in names[i + 1 :]:
            if overlap(out, outputs[other]):
                raise ValueError(f"{name} and {other} overlap in memory; pass arrays of their own")
        for operand, array in inputs.items():
            if array is None or not overlap(out, array):
                continue
            if in_place.get(name) == operand and same_memory(out, array):
                written_in_place.add(name)
                continue
            way_out = (
                f"{name} may be exactly {operand}, but not a part or another view of it"
                if in_place.get(name) == operand
                else f"pass a {name} of its own"
            )
            raise ValueError(f"{name} overlaps {operand} in memory; {way_out}")
    return written_in_place


def in_line(array: Array) -> Array:
    """`array` as `flat_chunk` takes it: on a device, where there is no way along others, in one line of memory."""
    if not _device.is_device_array(array) or array.flags.c_contiguous:
        return array
    line: Array = array.copy(order="C")
    return line


def on_host(value: Any) -> Any:
    """An element of an array as NumPy's scalar; of one on a device, this waits for it."""
    return value.get()[()] if _device.is_device_array(value) else value


def flat_chunk(array: Array, start: int, stop: int) -> Array:
    """Elements ``start:stop`` of `array` in C order; never a copy of the whole."""
    if array.flags.c_contiguous:
        return array.reshape(-1)[start:stop]
    return array.flat[start:stop]


def merged_axes(shape: tuple[int, ...], strides: Iterable[int]) -> tuple[list[int], list[int]]:
    """Batch axes that lie in memory like one axis, as one: rows are found with fewer divisions."""
    sizes, steps = [1], [0]
    for d, s in zip(shape, strides, strict=True):
        if d == 1:
            continue
        if sizes[-1] == 1:
            sizes[-1], steps[-1] = d, s
        elif steps[-1] == d * s:
            sizes[-1], steps[-1] = sizes[-1] * d, s
        else:
            sizes.append(d)
            steps.append(s)
    return sizes, steps
