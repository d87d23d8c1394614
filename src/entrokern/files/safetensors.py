"""Tensors in .safetensors files: a JSON header that says where each lies, then their bytes.

The package of that name maps the file and knows no bfloat16 for NumPy; the format is simple enough to read.
"""

from __future__ import annotations

import json
import math
import os
from io import FileIO
from typing import Any

import numpy as np

from .npy import RawArray
from .stored import InputError, StoredArray, bfloat16_dtype, one_line, pick

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # as the format has it


def members(path: str) -> list[str]:
    """The tensors in a file."""
    return sorted(_header(path)[0])


def open_array(path: str, member: str | None, role: str, bfloat16: bool) -> StoredArray:
    """Open a tensor of ``FILE.safetensors``."""
    tensors, start = _header(path)
    member = pick(path, sorted(tensors), member, role)
    name = f"{path}:{member}"
    try:
        known, shape = tensors[member]["dtype"], tuple(map(int, tensors[member]["shape"]))
        low, high = map(int, tensors[member]["data_offsets"])
    except (TypeError, KeyError, ValueError):
        raise InputError(f"{path} is damaged: its header does not say what {member} is") from None
    if known != "BF16" and known not in DTYPES:
        raise InputError(f"{name} has dtype {known}; allowed: BF16, {', '.join(DTYPES)}")
    dtype = bfloat16_dtype("a bfloat16 tensor") if known == "BF16" else np.dtype(DTYPES[known])
    size = os.stat(path).st_size - start
    if min(shape, default=0) < 0 or low < 0 or high - low != math.prod(shape) * dtype.itemsize:
        raise InputError(f"{name} is damaged: {known} {shape} does not take bytes {low:,} to {high:,}")
    if size < high:
        raise InputError(f"{name} is truncated: it ends at byte {high:,} of the data, but {size:,} are there")
    return RawArray(name, shape, dtype, path, FileIO(path), start + low)


def _header(path: str) -> tuple[dict[str, Any], int]:
    """What is said of each tensor by name, and where the data begin."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > LONGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes")
            header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is no object")
        except ValueError as error:  # of JSON or of UTF-8
            raise InputError(f"{path} is not a safetensors file, or damaged: {one_line(error)}") from None
    header.pop("__metadata__", None)
    return header, 8 + length
