"""What a kernel is told of an array: where it lies and how to step along it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import merged_axes
from .sources import arguments_of

AXES = 4  # batch axes that a kernel can step along, after merging

# As numbered in common.cuh.
DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16",
          "uint32", "uint64")  # fmt: skip
CODES = {name: code for code, name in enumerate(DTYPES)} | {"bool": DTYPES.index("uint8")}
FORM_CODES = {"logits": 0, "log_probs": 1, "probs": 2}  # as in distributions.cu, elements.cu


def arguments(family: str) -> Any:
    """The arguments of a kernel of this family, all 0: no array, no option."""
    return np.zeros(1, arguments_of(family))


def fill_operand(record: Any, view: Any) -> None:
    """Write into `record` where `view`, of shape ``batch + (k,)``, lies."""
    size = view.itemsize
    strides = [s // size for s in view.strides]
    shape, steps = merged_axes(view.shape[:-1], strides[:-1])
    record["data"] = view.data.ptr
    record["class_stride"] = strides[-1]
    record["dtype"] = CODES[view.dtype.name]
    record["axes"] = len(shape)
    record["shape"][: len(shape)] = shape
    record["stride"][: len(steps)] = steps


def fits(view: Any) -> bool:
    """Whether kernels can step along `view`: along few enough axes."""
    return len(merged_axes(view.shape[:-1], view.strides[:-1])[0]) <= AXES
