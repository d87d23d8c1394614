"""The arrays that are timed: logits and distributions of a given shape and dtype, and where results go."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
PERIOD = 1 << 22  # so many random numbers are drawn; longer arrays repeat them


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement's operands `x` and `y`, and the outputs that our call writes."""

    x: Array
    y: Array | None = None
    out: Array | None = None
    grad: Array | None = None  # may be `x` itself
    axis: int = -1

    @property
    def operands(self) -> list[Array]:
        return [self.x] if self.y is None else [self.x, self.y]

    @property
    def outputs(self) -> list[Array]:
        return [array for array in (self.out, self.grad) if array is not None]

    @property
    def bytes_moved(self) -> int:
        """Each operand read once, each output written once: the least that any implementation moves."""
        return sum(array.nbytes for array in (*self.operands, *self.outputs))

    @property
    def writes_map(self) -> bool:
        """Whether an output has the shape of `x`."""
        return any(array.shape == self.x.shape for array in self.outputs)

    def head(self, rows: int) -> Case:
        """The first rows widened to float64, with outputs of their own."""
        x, y = (None if a is None else a[:rows] for a in (self.x, self.y))
        assert x is not None
        return replace(
            self,
            x=x.astype(np.float64),
            y=y.astype(np.float64) if y is not None and is_float(y) else y,
            out=None if self.out is None else np.empty(self.out[:rows].shape),
            grad=None if self.grad is None else np.empty(x.shape),
        )


def is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def dtype_of(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def row_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of one number per row: float32 for 16-bit types."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def rows(n: int, dtype: np.dtype[Any]) -> Array:
    """An output of one number per row; its pages exist before anything is timed."""
    return np.zeros(n, row_dtype(dtype))


# --- values ---------------------------------------------------------------------------------------


@functools.cache
def _drawn(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(PERIOD, np.float32)


def normal(n: int, k: int, dtype: np.dtype[Any], seed: int = 0) -> Array:
    return np.resize(_drawn(seed), (n, k)).astype(dtype, copy=False)


def probabilities(n: int, k: int, dtype: np.dtype[Any], seed: int = 0) -> Array:
    p = normal(n, k, np.dtype(np.float32), seed)
    np.exp(p, out=p)
    p /= p.sum(axis=-1, keepdims=True)
    return p.astype(dtype, copy=False)


def labels(n: int, k: int) -> Array:
    return np.random.default_rng(2).integers(0, k, n)


# --- cases: of n rows and k classes ---------------------------------------------------------------


def labelled(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    return Case(normal(n, k, dtype), labels(n, k), rows(n, dtype))


def peaked(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    """The label's logit wins by far, as a trained model's does."""
    case = labelled(n, k, dtype)
    case.x[np.arange(n), case.y] += 15
    return case


def ascending(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    """Sorted rows: every logit is a new largest one."""
    case = labelled(n, k, dtype)
    case.x.sort(axis=-1)
    return case


def labelled_gradient(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    case = labelled(n, k, dtype)
    return replace(case, grad=np.zeros_like(case.x))


def labelled_in_place(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    case = labelled(n, k, dtype)
    return replace(case, grad=case.x)


def pictures(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    """Classes along axis 1 of up to 8 pictures of up to 512 × 512 pixels: (8, k, 512, 512) where n allows."""
    side = max(1, min(512, math.isqrt(n)))
    count = max(1, min(8, n // side**2))
    x = normal(count, k * side * side, dtype).reshape(count, k, side, side)
    y = labels(count * side * side, k).reshape(count, side, side)
    return Case(x, y, rows(y.size, dtype).reshape(y.shape), axis=1)


def logits(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    return Case(normal(n, k, dtype), None, rows(n, dtype))


def distributions(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    return Case(probabilities(n, k, dtype), None, rows(n, dtype))


def logits_and_distribution(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    return Case(normal(n, k, dtype), probabilities(n, k, dtype, 1), rows(n, dtype))


def two_logits(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    return Case(normal(n, k, dtype), normal(n, k, dtype, 1), rows(n, dtype))


def dense_gradient(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    case = logits_and_distribution(n, k, dtype)
    return replace(case, grad=np.zeros_like(case.x))


def student_and_teacher(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    """Two arrays of logits, and the gradient by the first."""
    case = two_logits(n, k, dtype)
    return replace(case, grad=np.zeros_like(case.x))


def two_distributions(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    return Case(probabilities(n, k, dtype), probabilities(n, k, dtype, 1), rows(n, dtype))


def elements(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    """Probabilities of single events, and a result for each."""
    p = _single(n * k, dtype)
    return Case(p, None, np.zeros_like(p))


def binary(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    """Logits and targets 0 or 1 of the same type, in a flat array: their shape means nothing."""
    return Case(normal(1, n * k, dtype)[0], (_drawn_long(n * k) > 1).astype(dtype))


def binary_bytes(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    return Case(normal(1, n * k, dtype)[0], (_drawn_long(n * k) > 1).astype(np.uint8))


def binary_gradient(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    case = binary(n, k, dtype)
    return replace(case, grad=np.zeros_like(case.x))


def binary_probabilities(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    return Case(_single(n * k, dtype), (_drawn_long(n * k) > 1).astype(np.uint8))


def multi_label(n: int, k: int, dtype: np.dtype[Any]) -> Case:
    """Rows of k binary targets, one number for each row."""
    case = binary(n, k, dtype)
    assert case.y is not None
    return Case(case.x.reshape(n, k), case.y.reshape(n, k), rows(n, dtype))


def _drawn_long(size: int) -> Array:
    return np.resize(_drawn(1), size)


def _single(size: int, dtype: np.dtype[Any]) -> Array:
    drawn = _drawn(0)
    return np.resize(1 / (1 + np.exp(-drawn)), size).astype(dtype, copy=False)
