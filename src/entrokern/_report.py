"""The summary of a scoring run: gathered block by block, printed as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._arrays import Array
from ._tally import Rows, Tally, exponential

TOGETHER = 1 << 13  # rows that are counted at once: what waits for others is part of what a run keeps
KEPT = 1 << 24  # values that quantiles are exact of: up to 128 MB
FRACTIONS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
FRACTION_NAMES = ("min", "5 %", "25 %", "median", "75 %", "95 %", "99 %", "max")


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
    _waiting: list[tuple[int, dict[str, Array]]] = field(default_factory=list)
    _rows_waiting: int = 0

    @property
    def rows(self) -> int:
        return self.tally.rows + self._rows_waiting

    def add(
        self,
        start: int,
        columns: dict[str, Array],
        counts: Array | None,
        labels: Array | None,
        weight: Array | None,
    ) -> None:
        """Take the results of the rows from number `start` on, the next after those taken before.

        `counts` says which rows count (``None``: all), `weight` what each adds to the mean's denominator.
        """
        taken = {name: columns[name] for name in (self.value, "argmax", "rank") if name in columns}
        beside = {"counts": counts, "labels": labels, "weight": weight}
        taken |= {name: column for name, column in beside.items() if column is not None}
        if self._waiting and taken.keys() != self._waiting[0][1].keys():
            self.settle()
        # Labels are a view of what is read next; a few rows of small blocks are not worth a count of their own.
        self._waiting.append((start, {name: column.copy() for name, column in taken.items()}))
        self._rows_waiting += taken[self.value].size
        if self._rows_waiting >= TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Count what has been taken."""
        if not self._waiting:
            return
        start = self._waiting[0][0]
        columns = {name: np.concatenate([taken[name] for _, taken in self._waiting]) for name in self._waiting[0][1]}
        self._waiting, self._rows_waiting = [], 0
        beside = (columns.pop(name, None) for name in ("counts", "labels", "weight"))
        self._count(start, columns, *beside)

    def _count(
        self, start: int, columns: dict[str, Array], counts: Array | None, labels: Array | None, weight: Array | None
    ) -> None:
        values = columns[self.value]
        order = {name: columns[name] for name in ("argmax", "rank") if name in columns}
        rows = Rows(values, weight=weight, labels=labels, **order)
        nan = np.isnan(values)
        if counts is not None:
            nan &= counts
        if nan.any() and not self.tally.nan_rows:
            self.first_nan_row = start + int(nan.argmax())
        known = values if counts is None else values[counts]
        above = [int(np.count_nonzero(known > level)) for level in self.levels]
        self.above = [a + b for a, b in zip(self.above or [0] * len(above), above, strict=True)]
        self.tally.merge(Tally.of(rows, counts))
        shown = ({} if labels is None else {"label": labels}) | order
        self._keep_hardest(start, values, np.flatnonzero(~nan if counts is None else counts & ~nan), shown)

    def _keep_hardest(self, start: int, values: Array, rows: Array, shown: dict[str, Array]) -> None:
        """Merge the block's largest values with those kept; on ties the lower row comes first."""
        m = self.n_hardest
        if m and rows.size > m:
            threshold = np.partition(values[rows], rows.size - m)[rows.size - m]
            rows = rows[values[rows] >= threshold]
        rows = rows[np.argsort(-values[rows], kind="stable")][:m]
        found = [
            {"row": start + int(i)}
            | {name: int(column[i]) for name, column in shown.items()}
            | {self.value: float(values[i])}
            for i in rows
        ]
        self.hardest = sorted(self.hardest + found, key=lambda row: -row[self.value])[:m]

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


def unit_name(base: float | None) -> str:
    return {None: "nats", 2.0: "bits"}.get(base, f"base {base:g}" if base else "")


def speed(rows: int, row_bytes: float, seconds: float) -> str:
    seconds = max(seconds, 1e-9)
    return f"{rows / seconds:,.0f} rows/s  {rows * row_bytes / seconds / 1e9:.2f} GB/s"


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
        lines.append(("accuracy", f"{100 * facts['accuracy']:.2f} %"))
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
