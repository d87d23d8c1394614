"""What is timed: one row of `OPERATIONS` for each operation, read by all else in this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import data
import entrokern as ek
from data import Array, Case

Results = tuple[Any, ...]  # what a call gives: numbers of rows, then a map of x's shape where there is one
CLASSES = (3, 10, 100, 1000, 32_000, 262_144)
SCORES = ("loss", "lse", "log_prob", "entropy", "argmax", "rank", "max_prob")
SCORE_TIMES_CE = 1.4  # the target of `score`: at most so many times the time of the loss alone


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    `formula` is what peers/ calls it; `exponentials` and `logarithms` are the fewest that an element needs.
    `target` is the share of the roof that is aimed at: for k >= 1000, 100, 10 and 3, or for the only k.
    """

    name: str
    formula: str
    case: Callable[[int, int, np.dtype[Any]], Case]
    ours: Callable[[Case], Results]
    exponentials: int
    logarithms: int
    target: tuple[float, ...] | None = None
    dtypes: tuple[str, ...] = ("float32",)
    classes: tuple[int, ...] = CLASSES
    beside_loss: bool = False  # its target is SCORE_TIMES_CE
    signed: bool = False  # results near 0 come with either sign: errors are relative to 1 at least

    def target_at(self, k: int) -> float | None:
        if self.target is None:
            return None
        least = (1000, 100, 10, 3) if self.classes == CLASSES else (0,)
        return next(share for share, at in zip(self.target, least, strict=False) if k >= at)


# --- ours: results are written into buffers that exist --------------------------------------------


def cross_entropy(case: Case) -> Results:
    return _tuple(ek.cross_entropy(case.x, case.y, axis=case.axis, reduction="none", out=case.out, grad_out=case.grad))


def entropy(case: Case, form: Any) -> Results:
    return (ek.entropy(case.x, form=form, out=case.out),)


def logsumexp(case: Case) -> Results:
    return (ek.logsumexp(case.x, out=case.out),)


def score(case: Case) -> Results:
    found = ek.score(case.x, case.y, outputs=SCORES)
    return tuple(getattr(found, name) for name in SCORES)


def divergence(case: Case, form: Any) -> Results:
    return (ek.kl_divergence(case.x, case.y, p_form=form, q_form=form, out=case.out),)


def distillation(case: Case) -> Results:
    """KL from the teacher `y` to the student `x`, and the gradient by the latter."""
    forms: Any = {"p_form": "logits", "q_form": "logits"}
    return _tuple(ek.kl_divergence(case.y, case.x, **forms, return_grad="q", out=case.out, grad_out=case.grad))


def js_divergence(case: Case) -> Results:
    return (ek.js_divergence(case.x, case.y, out=case.out),)


def binary(case: Case, form: Any = "logits") -> Results:
    return _tuple(ek.binary_cross_entropy(case.x, case.y, form=form, grad_out=case.grad))


def binary_rows(case: Case) -> Results:
    return (ek.binary_cross_entropy(case.x, case.y, axis=-1, reduction="none", out=case.out),)


def information(case: Case) -> Results:
    return (ek.information(case.x, out=case.out),)


def _tuple(found: Any) -> Results:
    return found if isinstance(found, tuple) else (found,)


# --- the table ------------------------------------------------------------------------------------

logits_entropy, probs_entropy = partial(entropy, form="logits"), partial(entropy, form="probs")
logits_kl, probs_kl = partial(divergence, form="logits"), partial(divergence, form="probs")
probs_binary = partial(binary, form="probs")
ELEMENTS = (1,)  # no classes: an operation on elements

# fmt: off
OPERATIONS = (
    # name, its name in peers/, data, ours, exponentials, logarithms, target
    Operation("CE", "ce", data.labelled, cross_entropy, 1, 0, (.90, .75, .55, .35)),
    Operation("CE, peaked", "ce", data.peaked, cross_entropy, 1, 0, (.90, .75, .55, .35)),
    Operation("CE, sorted rows", "ce", data.ascending, cross_entropy, 1, 0),
    Operation("CE", "ce", data.labelled, cross_entropy, 1, 0, (.80, .60, .40, .30), ("float64",)),
    Operation("CE", "ce", data.labelled, cross_entropy, 1, 0, (.70, .50, .35, .25), ("float16", "bfloat16")),
    Operation("CE, axis=1", "ce_axis1", data.pictures, cross_entropy, 1, 0, (.65,), classes=(21,)),
    Operation("CE + gradient", "ce+gradient", data.labelled_gradient, cross_entropy, 1, 0, (.85, .65, .50, .35)),
    Operation("CE + gradient into x", "ce+gradient", data.labelled_in_place, cross_entropy, 1, 0, (.85, .65, .50, .35)),
    Operation("CE, dense target", "ce_dense", data.logits_and_distribution, cross_entropy, 1, 0, (.85, .65, .45, .35)),
    Operation("CE, dense target + gradient", "ce_dense+gradient", data.dense_gradient, cross_entropy, 1, 0),
    Operation("entropy, logits", "entropy_logits", data.logits, logits_entropy, 1, 0, (.90, .75, .55, .40)),
    Operation("logsumexp", "logsumexp", data.logits, logsumexp, 1, 0, (.90, .75, .55, .40), signed=True),
    Operation("score, all rows", "score", data.labelled, score, 1, 0, beside_loss=True, signed=True),
    Operation("KL, logits", "kl_logits", data.two_logits, logits_kl, 2, 0, (.70, .65, .45, .35)),
    Operation("KL, logits + gradient", "distillation+gradient", data.student_and_teacher, distillation, 2, 0),
    Operation("KL, probs", "kl", data.two_distributions, probs_kl, 0, 1, (.85, .70, .50, .40)),
    Operation("JS, probs", "js", data.two_distributions, js_divergence, 0, 2, (.70, .70, .50, .40)),
    Operation("entropy, probs", "entropy", data.distributions, probs_entropy, 0, 1),
    Operation("BCE mean", "bce", data.binary, binary, 1, 1, (.85,), classes=ELEMENTS),
    Operation("BCE mean, uint8 targets", "bce", data.binary_bytes, binary, 1, 1, (.85,), classes=ELEMENTS),
    Operation("BCE mean + gradient", "bce+gradient", data.binary_gradient, binary, 1, 1, (.75,), classes=ELEMENTS),
    Operation("BCE mean, probs", "bce_probs", data.binary_probabilities, probs_binary, 0, 1, classes=ELEMENTS),
    Operation("BCE, multi-label rows", "bce_rows", data.multi_label, binary_rows, 1, 1),
    Operation("information", "information", data.elements, information, 0, 1, classes=ELEMENTS),
)
# fmt: on


def cells(only: str = "", classes: tuple[int, ...] = CLASSES) -> list[tuple[Operation, str, int]]:
    """Every operation with its dtypes and numbers of classes, as far as they are asked for."""
    return [
        (operation, dtype, k)
        for operation in OPERATIONS
        for dtype in operation.dtypes
        for k in operation.classes
        if only in operation.name and (k in classes or operation.classes != CLASSES)
    ]


def prepare(operation: Operation, dtype: str, k: int, megabytes: float) -> Case:
    """The case whose operands take about `megabytes` together."""
    kind = data.dtype_of(dtype)
    probe = operation.case(16, 8, kind)  # what its operands of x's shape take for an element
    size = sum(array.itemsize for array in probe.operands if array.size == probe.x.size)
    return operation.case(max(1, int(megabytes * 1e6) // (size * k)), k, kind)


def expected(operation: Operation, case: Case) -> Results:
    """What the float64 reference gives for the first rows, or for all where the rows are summed up."""
    few = max(1, min(len(case.x), max(64, 65_536 // case.x[0].size) if case.outputs else len(case.x)))
    if operation.case is data.binary_gradient:
        few = len(case.x)  # the gradient of a mean
    with ek.use_backend("reference"), np.errstate(all="ignore"):
        return operation.ours(case.head(few))


def error(operation: Operation, found: Results, true: Results) -> float:
    """The largest relative error of any result; of a gradient, relative to the largest entry of its row."""
    worst = 0.0
    for one, exact in zip(found, true, strict=False):
        exact = np.asarray(exact, np.float64)
        part = np.asarray(one)[: len(exact)] if exact.ndim else np.asarray(one)
        worst = max(worst, _relative(part.astype(np.float64), exact, 1.0 if operation.signed else 0.0))
    return worst


def _relative(found: Array, true: Array, least: float) -> float:
    difference, size = np.abs(found - true), np.maximum(np.abs(true), least)
    if true.ndim == 2:
        difference, size = difference.max(axis=1), size.max(axis=1)
    counts = size > 0
    return float(np.max(difference[counts] / size[counts], initial=0.0))
