"""The summary of a scoring run: gathered block by block, printed as a table."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._arrays import Array
from ._requests import Columns
from ._tally import Rows, Tally, exponential

TOGETHER = 1 << 14  # rows that are counted at once: what waits for others is part of what a run keeps
KEPT = 1 << 24  # values that quantiles are exact of: up to 128 MB
FRACTIONS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
FRACTION_NAMES = ("min", "5 %", "25 %", "median", "75 %", "95 %", "99 %", "max")


@dataclass(frozen=True, slots=True)
class Counted:
    """What is known of consecutive rows, the next after those that a `Summary` has."""

    tally: Tally
    first_nan_row: int
    above: list[int]
    hardest: list[dict[str, Any]]


Waiting = tuple[int, Columns]  # the first of a few rows, and all that is to be counted of them


@dataclass
class Summary:
    """What is known of all rows so far: their tally, and the hardest by name.

    Parameters
    ----------
    value : str
        The name of the number of each row that is averaged: ``"loss"`` or ``"entropy"``.
    batch : tuple of int
        The shape of the rows.
    n_hardest : int
        How many of the rows with the largest values to keep.
    levels : tuple of float
        Rows whose value is above each are counted; a NaN is above none.
    """

    value: str
    batch: tuple[int, ...]
    n_hardest: int
    levels: tuple[float, ...] = ()
    above: list[int] = field(default_factory=list)
    tally: Tally = field(default_factory=lambda: Tally(KEPT))
    first_nan_row: int = -1
    hardest: list[dict[str, Any]] = field(default_factory=list)
    _waiting: list[Waiting] = field(default_factory=list)
    _rows_waiting: int = 0

    @property
    def rows(self) -> int:
        return self.tally.rows + self._rows_waiting

    def add(
        self,
        start: int,
        columns: Columns,
        counts: Array | None = None,
        labels: Array | None = None,
        weight: Array | None = None,
    ) -> None:
        """Take the results of the rows from number `start` on, the next after those taken before.

        `counts` says which rows count (``None``: all), `weight` what each adds to the mean's denominator.
        """
        self.merge(self.found(start, columns, counts, labels, weight))

    def found(
        self, start: int, columns: Columns, counts: Array | None, labels: Array | None, weight: Array | None
    ) -> Counted | Waiting:
        """What `merge` takes of these rows, as `add` has them. Several threads may ask for theirs at once."""
        taken = {name: columns[name] for name in (self.value, "argmax", "rank") if name in columns}
        beside = {"counts": counts, "labels": labels, "weight": weight}
        taken |= {name: column for name, column in beside.items() if column is not None}
        # A few rows are not worth a count of their own.
        return self._counted(start, taken) if taken[self.value].size >= TOGETHER else (start, taken)

    def merge(self, found: Counted | Waiting) -> None:
        """Take what was `found` of the rows next after those taken before."""
        if isinstance(found, Counted):
            self.settle()
            self._merge(found)
            return
        _, taken = found
        if self._waiting and taken.keys() != self._waiting[0][1].keys():
            self.settle()
        self._waiting.append(found)
        self._rows_waiting += taken[self.value].size
        if self._rows_waiting >= TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Count what waits."""
        for start, columns in self._together():
            self._waiting, self._rows_waiting = [], 0
            self._merge(self._counted(start, columns))

    def _together(self) -> list[Waiting]:
        """What waits in one piece, if anything does."""
        if not self._waiting:
            return []
        start, first = self._waiting[0]
        return [(start, {name: np.concatenate([taken[name] for _, taken in self._waiting]) for name in first})]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_waiting": self._together()}

    def _counted(self, start: int, taken: Columns) -> Counted:
        values, counts, labels = taken[self.value], taken.get("counts"), taken.get("labels")
        tally = Tally.of(Rows(values, weight=taken.get("weight"), labels=labels, argmax=taken.get("argmax")), counts)
        first_nan_row = -1
        if tally.nan_rows:
            nan = np.isnan(values) if counts is None else np.isnan(values) & counts
            first_nan_row = start + int(nan.argmax())
        known = values if counts is None or not self.levels else values[counts]
        above = [int(np.count_nonzero(known > level)) for level in self.levels]
        shown = {"label": labels, "argmax": taken.get("argmax"), "rank": taken.get("rank")}
        return Counted(tally, first_nan_row, above, self._hardest_of(start, values, counts, shown))

    def _hardest_of(
        self, start: int, values: Array, counts: Array | None, shown: dict[str, Array | None]
    ) -> list[dict[str, Any]]:
        """The rows of the largest values that may be among the hardest; on ties the lower row comes first."""
        m, kept = self.n_hardest, self.hardest
        if not m:
            return []
        fit = values > kept[-1][self.value] if len(kept) == m else ~np.isnan(values)
        rows = np.flatnonzero(fit if counts is None else counts & fit)
        if rows.size > m:
            threshold = np.partition(values[rows], rows.size - m)[rows.size - m]
            rows = rows[values[rows] >= threshold]
        rows = rows[np.argsort(-values[rows], kind="stable")][:m]
        return [
            {"row": start + int(i)}
            | {name: int(column[i]) for name, column in shown.items() if column is not None}
            | {self.value: float(values[i])}
            for i in rows
        ]

    def _merge(self, found: Counted) -> None:
        if not self.tally.nan_rows:
            self.first_nan_row = found.first_nan_row
        self.above = [a + b for a, b in zip(self.above or [0] * len(found.above), found.above, strict=True)]
        self.tally.merge(found.tally)
        if found.hardest:
            self.hardest = sorted(self.hardest + found.hardest, key=lambda row: -row[self.value])[: self.n_hardest]

    def row_name(self, row: int) -> int | tuple[int, ...]:
        """A row as the user indexes it: a number, or a tuple where the batch has more dimensions."""
        if len(self.batch) < 2:
            return row
        return tuple(int(i) for i in np.unravel_index(row, self.batch))

    def facts(self, base: float | None, perplexity: bool) -> dict[str, Any]:
        """The summary as plain numbers, by name. A NaN or an infinite value is in the mean like any other."""
        self.settle()
        tally, mean = self.tally, self.tally.mean(keep=True)
        facts: dict[str, Any] = {
            "rows": tally.rows,
            "ignored": tally.rows - tally.counted,
            "nan_rows": tally.nan_rows,
        }
        if tally.nan_rows:
            facts["first_nan_row"] = self.row_name(self.first_nan_row)
        facts["value"], facts["unit"] = self.value, unit_name(base)
        facts["mean"] = mean
        if perplexity:
            facts["perplexity"] = exponential(mean, base)
        if tally.hits is not None:
            facts["accuracy"] = tally.hits.accuracy
        if self.levels:
            facts["above"] = self.above or [0] * len(self.levels)
        facts["quantiles"] = dict(zip(FRACTION_NAMES, tally.quantiles_at(FRACTIONS, keep=True), strict=True))
        facts["quantiles_exact"] = tally.quantiles.exact
        facts["hardest"] = [row | {"row": self.row_name(row["row"])} for row in self.hardest]
        return facts


def as_json(facts: dict[str, Any]) -> str:
    """JSON that any parser takes: it has no NaN, which is null here, and no infinities: "Infinity", "-Infinity"."""
    return json.dumps(_for_json(facts), allow_nan=False)


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _for_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(part) for part in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def unit_name(base: float | None) -> str:
    return {None: "nats", 2.0: "bits"}.get(base, f"base {base:g}" if base else "")


def speed(rows: int, row_bytes: float, seconds: float) -> str:
    seconds = max(seconds, 1e-9)
    return f"{rows / seconds:,.0f} rows/s  {rows * row_bytes / seconds / 1e9:.2f} GB/s"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def amount(facts: dict[str, Any]) -> str:
    return f"{facts['bytes'] / 1e6:,.4g} MB in {facts['seconds']:.2f} s"


def text(facts: dict[str, Any]) -> str:
    """`Summary.facts` as a table to read."""
    notes = [f"{facts['ignored']:,} ignored"] if facts["ignored"] else []
    if facts["nan_rows"]:
        notes.append(f"{facts['nan_rows']:,} with NaN, the first is row {facts['first_nan_row']}")
    unit, value = facts["unit"], facts["value"]
    lines = [
        *((name, facts[name]) for name in ("x", "y", "p", "q") if name in facts),
        ("loss", f"{facts['loss']}, {facts['about']}"),
        ("read", amount(facts)),
        ("rows", f"{facts['rows']:,}" + (f"  ({'; '.join(notes)})" if notes else "")),
        (f"mean {value}", f"{facts['mean']:.6g} {unit}"),
    ]
    if "perplexity" in facts:
        lines.append(("perplexity", f"{facts['perplexity']:.6g}"))
    if "accuracy" in facts:
        lines.append(("accuracy", percent(facts["accuracy"])))
    how = "exact" if facts["quantiles_exact"] else "within 0.1 %, from a histogram"
    quantiles = [[*facts["quantiles"]], [f"{v:.4g}" for v in facts["quantiles"].values()]]
    shown = [f"{name:<14}{content}" for name, content in lines]
    shown += ["", f"quantiles of the {value} ({how})", *table(quantiles)]
    if facts["hardest"]:
        head = [*facts["hardest"][0]]
        body = [[f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()] for row in facts["hardest"]]
        shown += ["", f"rows of the largest {value}", *table([head, *body])]
    return "\n".join(shown)


def table(rows: list[list[str]]) -> list[str]:
    """Right-aligned columns, two spaces in; the first is left-aligned where it has no heading: names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        if not rows[0][0]:
            cells[0] = row[0].ljust(widths[0])
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
