"""Rows that give no number, or none to be trusted: found, named, counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ._arrays import Array
from ._call import bad_binary_targets, bad_labels
from ._validate import tolerance_of

Policy = Literal["raise", "skip", "nan"]
POLICIES: tuple[Policy, ...] = ("raise", "skip", "nan")
LISTED = 20

# A block's rows are marked with the place of a reason in this list; the first that is found stays.
REASONS = (
    "",
    "label out of range",
    "no label",
    "target out of range",
    "probability below 0 in Y",
    "Y does not sum to 1",
    "probability below 0",
    "does not sum to 1",
    "probability outside [0, 1]",
    "NaN",
    "infinite",
)
FINE, LABEL, NO_LABEL, TARGET, Y_NEGATIVE, Y_SUM, NEGATIVE, SUM, OUTSIDE, NAN, INFINITE = range(len(REASONS))
OF_Y = (LABEL, NO_LABEL, TARGET, Y_NEGATIVE, Y_SUM)


@dataclass
class BadRows:
    """How many rows are bad, by reason, and the first of them."""

    counts: dict[str, int] = field(default_factory=dict)
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, start: int, marks: Array) -> None:
        """Take the marks of the rows from number `start` on."""
        bad = np.flatnonzero(marks)
        for mark, count in zip(*np.unique(marks[bad], return_counts=True), strict=True):
            reason = REASONS[mark]
            self.counts[reason] = self.counts.get(reason, 0) + int(count)
        room = LISTED - len(self.first)
        self.first += [(start + int(row), REASONS[marks[row]]) for row in bad[:room]]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def mark(marks: Array, bad: Any, reason: int) -> None:
    """Give the bad rows that have no mark yet this one."""
    marks[bad & (marks == FINE)] = reason


def mark_labels(marks: Array, labels: Array, k: int, ignore_index: int | None, missing: int | None) -> Array:
    """Mark the labels out of range, of which `missing` stands for none; return labels with class 0 in their place."""
    bad = bad_labels(labels, k, ignore_index)
    if missing is not None:
        mark(marks, labels == missing, NO_LABEL)
    mark(marks, bad, LABEL)
    return np.where(bad, labels.dtype.type(0), labels) if bad.any() else labels


def mark_binary_targets(marks: Array, targets: Array, ignore_index: int | None) -> Array:
    """Mark the rows with an integer target other than 0 and 1; return targets with 0 in its place."""
    bad = bad_binary_targets(targets, ignore_index)
    if not bad.any():
        return targets
    mark(marks, bad.reshape(marks.size, -1).any(axis=1), TARGET)
    return np.where(bad, targets.dtype.type(0), targets)


def mark_distributions(marks: Array, rows: Array, form: str, negative: int, off: int) -> None:
    """Mark the rows that are no distributions: below 0 somewhere, or a sum that is off 1 by more than ``8·√eps``."""
    if form == "logits":
        return
    with np.errstate(all="ignore"):
        p = np.exp(rows.astype(np.float64)) if form == "log_probs" else rows
        sums = p.sum(axis=-1, dtype=np.float64).reshape(-1)
        mark(marks, (p < 0).any(axis=-1).reshape(-1), negative)
        mark(marks, np.abs(sums - 1.0) > tolerance_of(rows.dtype), off)  # a NaN is left to the result


def mark_probabilities(marks: Array, rows: Array, form: str) -> None:
    """Mark the rows with a value that is no probability of an event of its own."""
    if form == "logits":
        return
    low, high = (0.0, 1.0) if form == "probs" else (-np.inf, 0.0)
    mark(marks, ((rows < low) | (rows > high)).reshape(marks.size, -1).any(axis=1), OUTSIDE)


def mark_results(marks: Array, values: Array) -> None:
    """Mark the rows whose result is no finite number."""
    mark(marks, np.isnan(values), NAN)
    mark(marks, np.isinf(values), INFINITE)


def blanked(columns: dict[str, Array], bad: Array) -> dict[str, Array]:
    """The columns with NaN, or -1 where they are integers, in the bad rows."""
    return {n: np.where(bad, c.dtype.type(-1 if c.dtype.kind == "i" else np.nan), c) for n, c in columns.items()}


def missing_label(dtype: np.dtype[Any], bad: Any) -> int | None:
    """A value of an integer type that `bad` finds so, to stand for a label that is missing; ``None`` if none is."""
    limits = np.iinfo(dtype)
    ends = np.array([limits.min, limits.max, limits.min + 1, limits.max - 1], dtype)
    found = ends[bad(ends)]
    return int(found[0]) if found.size else None
