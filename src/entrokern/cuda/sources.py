"""The kernels by name, and the CUDA C++ that each is compiled from.

A kernel is an instance of a function template in ``kernels/<family>.cu``. Its source is that file behind what it
stands on, without a single ``#include``, and an entry point with a C name: all that a compiler needs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from .. import _formulas
from .structures import dtype_of

BLOCK = 256  # threads of a block, as in common.cuh
SEGMENT = 1 << 14  # classes of a segment, likewise
RECORD_BYTES = 80  # of a segment's record, as in segments.cuh
# Of a block's shared memory, for records of segments: 48 KB need not be asked for, of which kernels have some already,
# for records of their warps, of two kinds at most.
SHARED_BYTES = (48 << 10) - 2 * (BLOCK // 32) * RECORD_BYTES
CHUNK = 4096  # elements of an item of elements.cu
TOTALS_ROWS = 1 << 14  # rows of a block of totals.cu
# Of a row that is read twice. An H100 has 264 blocks at work, and 50 MB of cache: half of that is what they may need.
BYTES_OF_A_BLOCK = 96 << 10
MOST_OF_CLUSTER = 8  # blocks: more are not on every device

# The files that a family stands on, in order.
FAMILIES = {
    "softmax": ("common.cuh", "segments.cuh", "records.cuh", "softmax.cu"),
    "distributions": ("common.cuh", "records.cuh", "careful.cuh", "distributions.cu"),
    "soft_targets": (
        *("common.cuh", "segments.cuh", "records.cuh", "twofold.cuh", "two_operands.cuh"),
        "soft_targets.cu",
    ),
    "softmax_pairs": ("common.cuh", "segments.cuh", "twofold.cuh", "two_operands.cuh", "softmax_pairs.cu"),
    "tables": ("common.cuh", "segments.cuh", "twofold.cuh", "tables.cu"),
    "binary": ("common.cuh", "twofold.cuh", "binary.cu"),
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
    blocks: int = 0  # that a multiprocessor should hold at least: as many as cost no spilled register

    @property
    def bounds(self) -> str:
        return f"{self.threads}, {self.blocks}" if self.blocks else f"{self.threads}"


# How much a kernel of the softmax family gathers of a row, and what it writes beside the row's results.
LEVELS = {"PLAIN": "", "FULL": "_full", "OPTIONS": "_options", "ANY": "_any"}
MAPS = {"NO_MAPS": "", "GRADIENTS": "_maps", "DISTRIBUTIONS": "_distributions"}
MAPS_OF = {"OPTIONS": ("NO_MAPS", "GRADIENTS"), "ANY": ("NO_MAPS",)}  # the other levels have all


def softmax_name(dtype: str, level: str, maps: str) -> str:
    return f"softmax_{dtype}{LEVELS[level]}{MAPS[maps]}"


def binary_name(of: str, dtype: str, whole: bool, weights: bool, maps: bool) -> str:
    return f"binary_{of}{'_bytes' * whole}_{dtype}{'_weights' * weights}{'_maps' * maps}"


def _kernels() -> list[Kernel]:
    def spelled(flag: bool) -> str:
        return "true" if flag else "false"

    kernels = [
        Kernel(
            softmax_name(dtype, level, maps),
            "softmax",
            f"softmax_rows<{T}, {level}, {maps}>",
            BLOCK,
            1 if dtype == "float64" else 2,
        )
        for dtype, T in TYPES.items()
        for level in LEVELS
        for maps in MAPS
        if maps in MAPS_OF.get(level, MAPS)
    ]
    plain = {
        "distributions": ("cross_entropy_rows", "entropy_rows", "divergence_rows"),
        "elements": ("each_element", "summed_rows", "split_pos_weight"),
        "totals": ("sum_rows", "sum_blocks", "factors_of_rows", "weigh_rows"),
    }
    narrow = {dtype: T for dtype, T in TYPES.items() if dtype != "float64"}
    for dtype, T in narrow.items():
        for quantity in ("ENTROPY", "KL", "JS"):
            kernels.append(
                Kernel(f"table_{quantity.lower()}_{dtype}", "tables", f"table_rows<{T}, {quantity}>", BLOCK, 2)
            )
        kernels.append(Kernel(f"softmax_js_{dtype}", "softmax_pairs", f"softmax_pair_rows<{T}, JS, false>", BLOCK, 2))
        for maps in (False, True):
            end = f"{dtype}_maps" if maps else dtype
            kernels.append(
                Kernel(f"soft_target_{end}", "soft_targets", f"soft_target_rows{'_and_maps' * maps}<{T}>", BLOCK, 2)
            )
            kernels.append(
                Kernel(f"softmax_pair_{end}", "softmax_pairs", f"softmax_pair_rows<{T}, KL, {spelled(maps)}>", BLOCK, 2)
            )
            for of, whole, weights in itertools.product(("elements", "rows"), (False, True), (False, True)):
                Y = "unsigned char" if whole else T
                expression = f"binary_{of}<{T}, {Y}, {spelled(weights)}, {spelled(maps)}>"
                kernels.append(Kernel(binary_name(of, dtype, whole, weights, maps), "binary", expression, BLOCK, 2))
    return kernels + [
        Kernel(f"{family}_{name}", family, name, BLOCK, 2) for family, names in plain.items() for name in names
    ]


KERNELS = {kernel.name: kernel for kernel in _kernels()}


def segments_of(k: int) -> int:
    return -(-k // SEGMENT)


def cluster_size(k: int, size: int) -> int:
    """How many blocks share a row that is read twice, of `size` bytes a class in all operands: a power of two, for
    rows that must stay in cache until then."""
    segments, blocks = segments_of(k), 1
    while blocks < MOST_OF_CLUSTER and 2 * blocks <= segments and k * size > blocks * BYTES_OF_A_BLOCK:
        blocks *= 2
    return blocks


def source(kernels: Sequence[Kernel], cluster: int = 1) -> str:
    """The whole text of kernels of one family, to be launched in clusters of so many blocks."""
    (family,) = {kernel.family for kernel in kernels}
    same = [f"sizeof(Arguments) == {arguments_of(family).itemsize}", f"BLOCK == {BLOCK}", f"SEGMENT == {SEGMENT}"]
    if "segments.cuh" in FAMILIES[family]:
        same.append(f"RECORD_BYTES == {RECORD_BYTES}")
    entries = [f'static_assert({" && ".join(same)}, "Python has it otherwise");']
    together = f" __cluster_dims__({cluster})" if cluster > 1 else ""
    entries += [
        f'extern "C" __global__ void __launch_bounds__({k.bounds}){together} {k.name}(ARGUMENTS a) '
        f"{{ {k.expression}(a); }}"
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

    def defined(name: str, single: bool) -> str:
        values = (f"{v!r}f" if single else repr(v) for v in getattr(_formulas, name))
        return f"#define {name} {', '.join(values)}"

    wide, narrow = (
        ("ATANH_TAIL", "EXPM1_TAIL"),
        ("EXP2_TAIL_F32", "ATANH_FIFTH_F32", "LOG1P_F32", "HALF_TANH", "EVEN_JS"),
    )
    return "\n".join([defined(name, False) for name in wide] + [defined(name, True) for name in narrow])


@functools.cache
def arguments_of(family: str) -> np.dtype[Any]:
    """What the kernels of a family are told: their one argument, by value."""
    return dtype_of("Arguments", family_source(family))
