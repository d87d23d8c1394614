"""What is timed: one table of operations, each with its data, our call and its peers.

Everything else reads `OPERATIONS`: run.py, test_speed.py and first_call.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import special

import entrokern as ek
import frameworks

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """The arrays of one measurement: operands `x` and `y`, and the outputs that our call writes."""

    x: Array
    y: Array | None
    out: Array
    grad: Array | None = None

    @property
    def bytes_moved(self) -> int:
        """Each array once: the least that any implementation reads and writes (see README.md)."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def arrays(self) -> dict[str, Array]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in found.items() if array is not None}

    def head(self, rows: int) -> Case:
        """The first rows, with outputs of their own."""
        operands = {name: array[:rows] for name, array in self.arrays.items()}
        for name in ("out", "grad"):
            if name in operands:
                operands[name] = np.zeros_like(operands[name])
        return Case(**{"y": None, **operands})


Results = tuple[Array, ...]  # one number per row, then the gradient where there is one


class Operation(NamedTuple):
    """One row of the table."""

    name: str
    formula: str  # what frameworks.py calls it
    setup: Callable[[int, int, np.dtype[Any], np.random.Generator], Case]
    ours: Callable[[Case], Results]
    peers: dict[str, Callable[[Case], Results]]
    exponentials: int = 0  # per element, the fewest that the formula needs
    logarithms: int = 0


# --- data -----------------------------------------------------------------------------------------


def normal(n: int, k: int, dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    return rng.standard_normal((n, k), dtype=dtype.type)


def probabilities(n: int, k: int, dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    p = normal(n, k, dtype, rng)
    np.exp(p, out=p)
    p /= p.sum(axis=-1, keepdims=True)
    return p


def labelled(
    n: int, k: int, dtype: np.dtype[Any], rng: np.random.Generator, peak: float = 0.0, gradient: bool = False
) -> Case:
    """Normal logits with a label each; with a `peak`, the label's logit wins, as in a trained model."""
    x, y = normal(n, k, dtype, rng), rng.integers(0, k, size=n)
    if peak:
        x[np.arange(n), y] += peak
    return Case(x, y, np.empty(n, dtype), np.empty_like(x) if gradient else None)


def pair(make: Callable[..., Array], n: int, k: int, dtype: np.dtype[Any], rng: np.random.Generator) -> Case:
    return Case(make(n, k, dtype, rng), make(n, k, dtype, rng), np.empty(n, dtype))


def multi_label(n: int, k: int, dtype: np.dtype[Any], rng: np.random.Generator) -> Case:
    x = normal(n, k, dtype, rng)
    return Case(x, (rng.random((n, k), dtype=np.float32) < 0.1).astype(dtype), np.empty(n, dtype))


def one(n: int, k: int, dtype: np.dtype[Any], rng: np.random.Generator) -> Case:
    return Case(probabilities(n, k, dtype, rng), None, np.empty(n, dtype))


# --- ours: one number per row, written into buffers that exist ------------------------------------


def our_cross_entropy(case: Case) -> Results:
    ek.cross_entropy(case.x, case.y, reduction="none", out=case.out)
    return (case.out,)


def our_cross_entropy_gradient(case: Case) -> Results:
    ek.cross_entropy(case.x, case.y, reduction="none", out=case.out, grad_out=case.grad)
    assert case.grad is not None
    return case.out, case.grad


def our_divergence(case: Case, form: Any = "probs") -> Results:
    ek.kl_divergence(case.x, case.y, p_form=form, q_form=form, out=case.out)
    return (case.out,)


def our_binary_cross_entropy(case: Case) -> Results:
    ek.binary_cross_entropy(case.x, case.y, axis=-1, reduction="none", out=case.out)
    return (case.out,)


def our_entropy(case: Case) -> Results:
    ek.entropy(case.x, out=case.out)
    return (case.out,)


# --- peers: the same quantity as people write it, stable formulas only -----------------------------


def labels_of(case: Case) -> tuple[Array, Array]:
    assert case.y is not None
    return np.arange(len(case.y)), case.y


def numpy_cross_entropy(case: Case) -> Results:
    m = case.x.max(axis=-1, keepdims=True)
    total = np.exp(case.x - m).sum(axis=-1)
    return (np.log(total) + (m[:, 0] - case.x[labels_of(case)]),)


def scipy_cross_entropy(case: Case) -> Results:
    return (-special.log_softmax(case.x, axis=-1)[labels_of(case)],)


def numpy_cross_entropy_gradient(case: Case) -> Results:
    m = case.x.max(axis=-1, keepdims=True)
    p = np.exp(case.x - m)
    total = p.sum(axis=-1, keepdims=True)
    loss = np.log(total[:, 0]) + (m[:, 0] - case.x[labels_of(case)])
    p /= total
    p[labels_of(case)] -= 1
    return loss, p


def scipy_cross_entropy_gradient(case: Case) -> Results:
    log_p = special.log_softmax(case.x, axis=-1)
    loss = -log_p[labels_of(case)]
    gradient = np.exp(log_p, out=log_p)
    gradient[labels_of(case)] -= 1
    return loss, gradient


def numpy_divergence(case: Case) -> Results:
    return ((case.x * np.log(case.x / case.y)).sum(axis=-1),)


def scipy_divergence(case: Case) -> Results:
    return (special.rel_entr(case.x, case.y).sum(axis=-1),)


def numpy_log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence_of_logits(case: Case, log_softmax: Callable[..., Array]) -> Results:
    log_p, log_q = log_softmax(case.x), log_softmax(case.y)
    return ((np.exp(log_p) * (log_p - log_q)).sum(axis=-1),)


def numpy_binary_cross_entropy(case: Case) -> Results:
    x = case.x
    loss = np.maximum(x, 0) - x * case.y + np.log1p(np.exp(-np.abs(x)))
    return (loss.sum(axis=-1),)


def scipy_binary_cross_entropy(case: Case) -> Results:
    t: Any = case.y
    loss = -t * special.log_expit(case.x) - (1 - t) * special.log_expit(-case.x)
    return (loss.sum(axis=-1),)


def numpy_entropy(case: Case) -> Results:
    return (-(case.x * np.log(case.x)).sum(axis=-1),)


def scipy_entropy(case: Case) -> Results:
    return (special.entr(case.x).sum(axis=-1),)


OPERATIONS = (
    Operation(
        "CE",
        "ce",
        labelled,
        our_cross_entropy,
        {"numpy": numpy_cross_entropy, "scipy": scipy_cross_entropy},
        exponentials=1,
    ),
    Operation(
        "CE, peaked",
        "ce",
        partial(labelled, peak=15.0),
        our_cross_entropy,
        {"numpy": numpy_cross_entropy, "scipy": scipy_cross_entropy},
        exponentials=1,
    ),
    Operation(
        "CE + gradient",
        "ce+gradient",
        partial(labelled, gradient=True),
        our_cross_entropy_gradient,
        {"numpy": numpy_cross_entropy_gradient, "scipy": scipy_cross_entropy_gradient},
        exponentials=1,
    ),
    Operation(
        "KL, probs",
        "kl",
        partial(pair, probabilities),
        our_divergence,
        {"numpy": numpy_divergence, "scipy": scipy_divergence},
        logarithms=1,
    ),
    Operation(
        "KL, logits",
        "kl_logits",
        partial(pair, normal),
        partial(our_divergence, form="logits"),
        {
            "numpy": partial(divergence_of_logits, log_softmax=numpy_log_softmax),
            "scipy": partial(divergence_of_logits, log_softmax=partial(special.log_softmax, axis=-1)),
        },
        exponentials=2,
    ),
    Operation(
        "BCE, multi-label",
        "bce",
        multi_label,
        our_binary_cross_entropy,
        {"numpy": numpy_binary_cross_entropy, "scipy": scipy_binary_cross_entropy},
        exponentials=1,
        logarithms=1,
    ),
    Operation(
        "entropy, probs",
        "entropy",
        one,
        our_entropy,
        {"numpy": numpy_entropy, "scipy": scipy_entropy},
        logarithms=1,
    ),
)
CLASSES = (10, 100, 1000, 32_000)


def prepare(operation: Operation, k: int, megabytes: float, dtype: str = "float32") -> Case:
    """The case whose operands of x's shape take about `megabytes` together (two of half the size)."""
    kind = np.dtype(dtype)
    operands = sum(a.ndim == 2 for name, a in _probe(operation, kind).arrays.items() if name != "grad")
    n = max(1, int(megabytes * 1e6) // (operands * k * kind.itemsize))
    case = operation.setup(n, k, kind, np.random.default_rng(k))
    for name in ("out", "grad"):
        if name in case.arrays:
            case.arrays[name].fill(0)  # its pages exist before anything is timed
    return case


def _probe(operation: Operation, kind: np.dtype[Any]) -> Case:
    return operation.setup(1, 2, kind, np.random.default_rng(0))


def participants(
    operation: Operation, torch_compile: bool = False
) -> dict[str, Callable[[Case], Callable[[], Results]]]:
    """Who is timed: each makes a call of no arguments out of a case."""
    here = {"entrokern": operation.ours, **operation.peers}
    bound = {name: partial(partial, call) for name, call in here.items()}
    return {**bound, **frameworks.thunks(operation.formula, torch_compile)}


def errors(
    operation: Operation, case: Case, who: dict[str, Callable[[Case], Callable[[], Results]]]
) -> dict[str, float]:
    """The largest relative error of each participant over a few rows, against the float64 reference.

    Of a gradient: the largest error of a row's entries over the largest entry of that row.
    """
    rows = min(len(case.x), max(64, 65_536 // case.x.shape[1]))
    few = case.head(rows)
    wide = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in few.arrays.items()}
    with ek.use_backend("reference"):
        expected = operation.ours(Case(**{"y": None, **wide}))
    return {
        name: max(relative_error(found, true) for found, true in zip(bind(few)(), expected, strict=True))
        for name, bind in who.items()
    }


def relative_error(found: Array, true: Array) -> float:
    difference = np.abs(found.astype(np.float64) - true)
    size = np.abs(true)
    if true.ndim == 2:
        difference, size = difference.max(axis=1), size.max(axis=1)
    return float((difference[size > 0] / size[size > 0]).max(initial=0.0))
