"""The mean of each group of rows: sums by key, merged block by block, and a table of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._arrays import Array
from ._report import percent, table
from ._tally import Group, Rows, Sum, exponential
from .files.keys import Key
from .files.work import Unresumable

MOST = 100_000
ROWS, COUNTED, NAN, BAD, HITS = range(5)
WIDEST = 40  # characters of a key in the table


class Groups:
    """What is known of the rows of each group so far; the groups are in the order of their first rows."""

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}
        self._counts = np.zeros((0, 5), np.int64)
        self._sums = np.zeros((0, 4))  # of the weights and of the values, each with what was rounded off
        self._labelled = False

    def add(self, keys: list[Key], which: Array, rows: Rows, counts: Array | None, bad: Array | None) -> None:
        """Take the rows of a block.

        Parameters
        ----------
        keys : list
            The groups of the block in the order of their first rows.
        which : ndarray of int
            The place of each row's group in `keys`.
        rows : Rows
            The values, what they add to the denominator, and where they are known labels and argmax.
        counts, bad : ndarray, optional
            Which rows count, and the marks of the bad ones; ``None``: all, none.
        """
        at = self._places(keys)
        m = len(keys)
        counted = np.ones(which.size, bool) if counts is None else counts
        marks = [np.ones_like(counted), counted, counted & np.isnan(rows.values)]
        marks.append(np.zeros_like(counted) if bad is None else bad != 0)
        self._labelled = rows.labels is not None and rows.argmax is not None
        marks.append(counted & (rows.argmax == rows.labels) & ~marks[NAN] if self._labelled else marks[BAD])
        for column, mark in enumerate(marks):
            self._counts[at, column] += np.bincount(which[mark], minlength=m)
        block = Group.by_class(rows._replace(labels=which).where(counted), m)
        weight, weight_low, total, total_low = self._sums[at].T
        merged = Group(0, Sum(weight, weight_low), Sum(total, total_low)) + block
        self._sums[at] = np.stack([merged.weight.high, merged.weight.low, merged.total.high, merged.total.low], axis=1)

    def _places(self, keys: list[Key]) -> Array:
        for key in keys:
            self._numbers.setdefault(key, len(self._numbers))
        if len(self._numbers) > MOST:
            raise Unresumable(f"--by has more than {MOST:,} different values; choose a column of fewer groups")
        missing = len(self._numbers) - len(self._counts)
        if missing > 0:
            room = max(missing, len(self._counts))  # doubled, so that they are not copied often
            self._counts = np.pad(self._counts, ((0, room), (0, 0)))
            self._sums = np.pad(self._sums, ((0, room), (0, 0)))
        return np.array([self._numbers[key] for key in keys], np.int64)

    def facts(self, base: float | None, perplexity: bool, bad_rows: bool) -> list[dict[str, Any]]:
        """A record of each group: first those with a row of NaN, then by mean, largest first, then the empty ones.

        The mean is the library's of the group's rows alone: a NaN or an infinite value is in it like any other.
        """
        n = len(self._numbers)
        means = Group(0, Sum(self._sums[:n, 0]), Sum(self._sums[:n, 2])).mean
        groups = []
        for key, counts, mean in zip(self._numbers, self._counts.tolist(), means.tolist(), strict=False):
            group: dict[str, Any] = {
                "group": key,
                "rows": counts[ROWS],
                "ignored": counts[ROWS] - counts[COUNTED] - counts[BAD],
            }
            group |= {"nan_rows": counts[NAN]} | ({"bad_rows": counts[BAD]} if bad_rows else {}) | {"mean": mean}
            if perplexity:
                group["perplexity"] = exponential(mean, base)
            if self._labelled:
                group["accuracy"] = counts[HITS] / counts[COUNTED] if counts[COUNTED] else math.nan
            groups.append(group)
        return sorted(groups, key=_in_table)


def _in_table(group: dict[str, Any]) -> tuple[bool, bool, float]:
    known = not math.isnan(group["mean"])
    return group["nan_rows"] == 0, not known, -group["mean"] if known else 0.0


def lines(facts: dict[str, Any], most: int) -> list[str]:
    """The first `most` groups as a table; columns of which all is zero are left out."""
    groups = facts["groups"]
    shown = groups[:most]
    if not shown:
        return ["", f"{len(groups):,} groups by {facts['by']}"]
    rare = [name for name in ("ignored", "nan_rows", "bad_rows") if any(group.get(name) for group in groups)]
    names = ["rows", *rare, *(name for name in ("mean", "perplexity", "accuracy") if name in shown[0])]
    body = [[_named(group["group"]), *(_cell(name, group[name]) for name in names)] for group in shown]
    some = f", {len(shown):,} of {len(groups):,}" if len(shown) < len(groups) else ""
    title = f"groups by {facts['by']}, largest mean {facts['value']} first{some}"
    return ["", title, *table([["", *(name.replace("_", " ") for name in names)], *body])]


def _named(key: Key) -> str:
    text = "(missing)" if key is None else str(key)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _cell(name: str, value: float) -> str:
    if name == "accuracy":
        return percent(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
