"""Tensors as the arrays of NumPy and CuPy over the same memory, and those as tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._device import NO_CUPY

# Arguments that are written.
OUTPUTS = {"out", "grad_out", "hess_out"}
PLAIN = {type(None), str, bool, int, float}


def arrays_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with the tensors among them as arrays, checked to lie on one device."""
    arrays = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            if not value.is_cpu:
                _refuse_two_devices(given)
            arrays[name] = array_over(name, value)
        elif type(value) in PLAIN:
            arrays[name] = value
        elif name == "grad_out" and isinstance(value, (tuple, list)):
            arrays[name] = tuple(arrays_of({f"{name}[{i}]": v for i, v in enumerate(value)}).values())
        else:
            _refuse_other_libraries(name, value, given)
            arrays[name] = value
    return arrays


def array_over(name: str, tensor: Tensor) -> Any:
    """NumPy's or CuPy's array over the memory of `tensor`, without its history."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    half = tensor.dtype is torch.bfloat16  # which neither NumPy nor the interfaces have a name for
    plain = tensor.view(torch.int16) if half else tensor
    try:
        if tensor.is_cpu:
            array = plain.numpy()
        elif tensor.is_cuda:
            array = _cupy(name).from_dlpack(plain)
        else:
            raise TypeError("tensors of the CPU and of CUDA are taken")
    except (TypeError, RuntimeError, BufferError) as error:
        kind = f"a tensor of {tensor.dtype} on {tensor.device}, layout {tensor.layout}"
        raise TypeError(f"{name} is {kind}, which no kernel reads: {error}") from error
    return array.view(_bfloat16()) if half else array


def tensor_over(array: Any) -> Any:
    """A tensor over the memory of an array; what is none as it is."""
    if isinstance(array, np.ndarray):
        try:
            return torch.from_numpy(array)
        except TypeError:  # bfloat16, which it does not know
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    cupy = sys.modules.get("cupy")
    if cupy is None or not isinstance(array, cupy.ndarray):
        return array
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def on_stream_of(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """PyTorch's current stream as CuPy's, on the GPU of the first tensor that lies on one."""
    stack = ExitStack()
    for tensor in tensors:
        if tensor.is_cuda:
            cuda = _cupy("a tensor").cuda
            stack.enter_context(cuda.Device(tensor.device.index))
            stream = torch.cuda.current_stream(tensor.device).cuda_stream
            stack.enter_context(cuda.ExternalStream(stream, tensor.device.index))
            break
    return stack


def _cupy(name: str) -> Any:
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(NO_CUPY.format(name=name)) from error
    return cupy


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError as error:
        raise RuntimeError("bfloat16 tensors need ml_dtypes: pip install 'entrokern[torch]'") from error
    return ml_dtypes.bfloat16


def _refuse_two_devices(given: Mapping[str, Any]) -> None:
    lie = {name: value.device for name, value in given.items() if isinstance(value, Tensor)}
    first, device = next(iter(lie.items()))
    for name, other in lie.items():
        if other != device:
            to = f"{name}.to({str(device)!r})"
            raise ValueError(f"{name} lies on {other}, {first} on {device}; bring them to one, for example by {to}")


def _refuse_other_libraries(name: str, value: Any, given: Mapping[str, Any]) -> None:
    """``TypeError`` for an array of another library beside the tensors."""
    if isinstance(value, np.generic) or not (hasattr(value, "__array__") or hasattr(value, "__dlpack__")):
        return
    other = next(name for name, value in given.items() if isinstance(value, Tensor))
    raise TypeError(
        f"arrays of different libraries: {name} is a {type(value).__module__.partition('.')[0]} "
        f"{type(value).__name__} and {other} is a torch Tensor; convert one to the other's type"
    )
