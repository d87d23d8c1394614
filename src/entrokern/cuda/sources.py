"""The kernels by name, and the CUDA C++ that each is compiled from.

A kernel is an instance of a function template in ``kernels/<family>.cu``. Its source is that file behind what it
stands on, without a single ``#include``, and an entry point with a C name: all that a compiler needs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from .. import _formulas
from .structures import dtype_of

BLOCK = 256  # threads of a block, as in common.cuh
SEGMENT = 1 << 14  # classes of a segment, likewise
CHUNK = 4096  # elements of an item of elements.cu
TOTALS_ROWS = 1 << 14  # rows of a block of totals.cu

# The files that a family stands on, in order.
FAMILIES = {
    "softmax": ("common.cuh", "records.cuh", "softmax.cu"),
    "distributions": ("common.cuh", "records.cuh", "careful.cuh", "distributions.cu"),
    "elements": ("common.cuh", "careful.cuh", "elements.cu"),
    "totals": ("common.cuh", "careful.cuh", "totals.cu"),
}
TYPES = {"float32": "float", "float64": "double", "float16": "float16", "bfloat16": "bfloat16"}


class Kernel(NamedTuple):
    """`name` is the entry point's; `expression` the device function that it calls with its arguments."""

    name: str
    family: str
    expression: str
    threads: int = BLOCK


def softmax_name(dtype: str, full: bool, maps: bool) -> str:
    return f"softmax_{dtype}" + ("_full" if full else "") + ("_maps" if maps else "")


def _kernels() -> list[Kernel]:
    def spelled(flag: bool) -> str:
        return "true" if flag else "false"

    softmax = [
        Kernel(softmax_name(dtype, full, maps), "softmax", f"softmax_rows<{T}, {spelled(full)}, {spelled(maps)}>")
        for dtype, T in TYPES.items()
        for full in (False, True)
        for maps in (False, True)
    ]
    plain = {
        "distributions": ("cross_entropy_rows", "entropy_rows", "divergence_rows"),
        "elements": ("each_element", "summed_rows"),
        "totals": ("sum_rows", "sum_blocks", "factors_of_rows", "weigh_rows"),
    }
    return softmax + [Kernel(f"{family}_{name}", family, name) for family, names in plain.items() for name in names]


KERNELS = {kernel.name: kernel for kernel in _kernels()}


def source(kernels: Sequence[Kernel]) -> str:
    """The whole text of kernels of one family."""
    (family,) = {kernel.family for kernel in kernels}
    entries = [
        f'static_assert(sizeof(Arguments) == {arguments_of(family).itemsize}, "the fields lie elsewhere");',
    ]
    entries += [
        f'extern "C" __global__ void __launch_bounds__({k.threads}) {k.name}(ARGUMENTS a) {{ {k.expression}(a); }}'
        for k in kernels
    ]
    return "\n".join([family_source(family), *entries, ""])


@functools.cache
def family_source(family: str) -> str:
    """What all kernels of a family stand on and are instances of."""
    folder = resources.files(__package__) / "kernels"
    texts = [(folder / name).read_text() for name in FAMILIES[family]]
    return "\n".join([_coefficients(), *texts])


def _coefficients() -> str:
    """The polynomials of `_formulas.py`, for the kernels' twins of its functions."""
    tables = {"ATANH_TAIL": _formulas.ATANH_TAIL, "EXPM1_TAIL": _formulas.EXPM1_TAIL}
    return "\n".join(f"#define {name} {', '.join(map(repr, values))}" for name, values in tables.items())


@functools.cache
def arguments_of(family: str) -> np.dtype[Any]:
    """What the kernels of a family are told: their one argument, by value."""
    return dtype_of("Arguments", family_source(family))
