"""What every call does around its kernels: shapes, options and labels looked at, a mean's denominator, the answer."""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from ..cpu.distributions import accumulate
from .memory import FLAGS, GLUE, glue, number_at


@glue
def rows_and_classes(x):
    """``(n, k)``, of one row ``(1, k)``."""
    k = x.shape[x.ndim - 1]
    return (1 if x.ndim == 1 else x.shape[0]), k


def count_of(values, n):
    """How many rows `values` are for; what is no array fits any number."""
    raise NotImplementedError("compiled code only")


@overload(count_of, jit_options=GLUE)
def _count_of(values, n):
    return (lambda values, n: len(values)) if isinstance(values, types.Array) and values.ndim else lambda values, n: n


def is_of_shape(out, shape):
    """Whether an output has a shape, if there is one."""
    raise NotImplementedError("compiled code only")


@overload(is_of_shape, jit_options=GLUE)
def _is_of_shape(out, shape):
    return (lambda out, shape: out.shape == shape) if isinstance(out, types.Array) else lambda out, shape: True


def shape_of(n, k, p, q):
    """The shape that two operands broadcast to."""
    raise NotImplementedError("compiled code only")


@overload(shape_of, jit_options=GLUE)
def _shape_of(n, k, p, q):
    return (lambda n, k, p, q: (k,)) if p.ndim == q.ndim == 1 else lambda n, k, p, q: (n, k)


def part_of(outputs, i):
    """One of two outputs; of an array or none, that."""
    raise NotImplementedError("compiled code only")


@overload(part_of, prefer_literal=True, jit_options=FLAGS)
def _part_of(outputs, i):
    if not isinstance(outputs, types.BaseTuple):
        return lambda outputs, i: outputs
    return (lambda outputs, i: outputs[0]) if i.literal_value == 0 else lambda outputs, i: outputs[1]


def unit_of(base):
    """``1 / ln base``, of none 1; 0 for a base without logarithms."""
    raise NotImplementedError("compiled code only")


@overload(unit_of, jit_options=GLUE)
def _unit_of(base):
    if isinstance(base, types.NoneType):
        return lambda base: 1.0
    return lambda base: 1.0 / math.log(base) if 0.0 < base < np.inf and base != 1.0 else 0.0


def cap_of(softcap):
    """The softcap, of none 0; NaN for one that is out of range."""
    raise NotImplementedError("compiled code only")


@overload(cap_of, jit_options=GLUE)
def _cap_of(softcap):
    if isinstance(softcap, types.NoneType):
        return lambda softcap: 0.0
    return lambda softcap: np.float64(softcap) if 0.0 < softcap < np.inf else np.nan


def mean_class_weight(class_weight, k):
    """The mean of the class weights, of none 1; NaN if they are not `k` finite numbers of 0 or more."""
    raise NotImplementedError("compiled code only")


@overload(mean_class_weight, jit_options=GLUE)
def _mean_class_weight(class_weight, k):
    if isinstance(class_weight, types.NoneType):
        return lambda class_weight, k: 1.0

    def mean(class_weight, k):
        total, valid = 0.0, class_weight.size == k
        for c in range(class_weight.size):
            total += class_weight[c]
            valid &= 0.0 <= class_weight[c] < np.inf
        return total / k if valid else np.nan

    return mean


@glue
def first_bad_label(target, n, k, ignore_index):
    """The first row whose label is neither a class nor ignored, or -1."""
    found = False
    for i in range(n):
        label = number_at(target, i)
        bad = (label < 0) | (label >= k)
        if ignore_index is not None:
            bad &= label != ignore_index
        found |= bad
    if found:
        for i in range(n):
            label = number_at(target, i)
            if (label < 0 or label >= k) and (ignore_index is None or label != ignore_index):
                return i
    return -1


@glue
def denominator(n, target, ignore_index, sample_weight, class_weight):
    """What a mean divides by: ``Σ s·w_y``, without labels ``Σ s``."""
    if sample_weight is None and ignore_index is None and class_weight is None:
        return np.float64(n)
    total, lost = 0.0, 0.0
    for i in range(n):
        s = np.float64(number_at(sample_weight, i))
        if ignore_index is not None and number_at(target, i) == ignore_index:
            s = 0.0
        if class_weight is not None and s != 0.0:
            s *= class_weight[number_at(target, i)]
        total, lost = accumulate(total, lost, s)
    return total + lost


def fill(out, value):
    """One number everywhere in an output, if there is one."""
    raise NotImplementedError("compiled code only")


@overload(fill, jit_options=GLUE)
def _fill(out, value):
    if not isinstance(out, types.Array):
        return lambda out, value: None

    def write(out, value):
        out[...] = value

    return write


def answer(value, losses, out, dtype):
    """A call's result: the rows' losses, or else their sum or mean `value`, in `out` if that is an array."""
    raise NotImplementedError("compiled code only")


@overload(answer, jit_options=FLAGS)
def _answer(value, losses, out, dtype):
    if isinstance(losses, types.Array):
        return lambda value, losses, out, dtype: losses
    if not isinstance(out, types.Array):
        return lambda value, losses, out, dtype: dtype(value)

    def write(value, losses, out, dtype):
        out[()] = value
        return out

    return write


def array_for(out, shape, dtype):
    """An output: the array given for it, or a new one."""
    raise NotImplementedError("compiled code only")


@overload(array_for, jit_options=FLAGS)
def _array_for(out, shape, dtype):
    if isinstance(out, types.Array):
        return lambda out, shape, dtype: out
    return lambda out, shape, dtype: np.empty(shape, dtype)
