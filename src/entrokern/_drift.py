"""How far data have drifted from a reference: the divergence of each column's histogram, or of each row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from . import _report, divergences
from ._arrays import Array, is_bfloat16
from ._intervals import Bins, Counter, Histogram, Survey
from ._options import Form, unit_of_base
from ._requests import Request
from ._scoring import in_file_of, score_files
from .files import TABLE, InputError, StoredArray, blocks, open_array, refuse_input, spans, split_name
from .files.stamps import stamps_of, unchanged
from .files.work import working

Progress = Callable[[int, int, str, int], None]

BINS = 32
MOST_BINS = 4096
ABOUT = {"js": "JS(P, Q)", "kl": "KL(P‖Q)"}


@dataclass(frozen=True)
class Drift:
    """What the user asked for: `p` are the data, `q` the reference."""

    p: str
    q: str
    of: Literal["columns", "rows"] = "columns"
    measure: Literal["js", "kl"] = "js"
    form: Form | None = None
    bins: int | None = None
    threshold: float | None = None
    warn: float | None = None
    top: int = 10
    out: str | None = None
    base: float | None = None
    block_rows: int | None = None


def drift_files(asked: Drift, progress: Progress) -> dict[str, Any]:
    """Compare the files and write what is asked for; return the facts, `above` among them.

    `progress` is called with the rows done, all rows, how fast it goes, and 0.
    """
    _check(asked)
    facts = (_drift_of_rows if asked.of == "rows" else _drift_of_columns)(asked, progress)
    return facts | {"warn": asked.warn, "threshold": asked.threshold}


def _check(asked: Drift) -> None:
    try:
        if unit_of_base(asked.base) < 0:
            raise InputError(f"--base {asked.base:g} makes divergences negative; pass one greater than 1")
    except ValueError as error:
        raise InputError(str(error)) from None
    if asked.of == "columns" and asked.form is not None:
        raise InputError("--form says how rows are given; it needs --of rows")
    if asked.of == "rows" and asked.bins is not None:
        raise InputError("--bins are those of columns; leave it out or pass --of columns")
    if asked.bins is not None and not 2 <= asked.bins <= MOST_BINS:
        raise InputError(f"--bins {asked.bins} is out of range; pass 2 to {MOST_BINS}")
    if asked.warn is not None and asked.threshold is not None and asked.warn > asked.threshold:
        raise InputError(f"--warn {asked.warn:g} is above --threshold {asked.threshold:g}; it warns below it")


def _drift_of_rows(asked: Drift, progress: Progress) -> dict[str, Any]:
    """What `score` says of the rows' divergence, and how many are above the levels."""
    levels = tuple(level for level in (asked.warn, asked.threshold) if level is not None)
    options = {} if asked.base is None else {"base": asked.base}
    request = Request(
        asked.p, in_file_of(asked.p, asked.q), loss=asked.measure, form=asked.form or "logits", out=asked.out,
        n_hardest=max(1, asked.top), block_rows=asked.block_rows, levels=levels, options=options, resumable=False,
    )  # fmt: skip
    found = score_files(request, progress)
    above = dict(zip(levels, found.pop("above", ()), strict=True))
    facts = {"p": found.pop("x"), "q": found.pop("y"), "of": "rows", "measure": asked.measure} | found
    facts["about"] = ABOUT[asked.measure]
    if asked.threshold is not None:
        facts["above"] = above[asked.threshold] + found["nan_rows"]  # what is not known may be
    if asked.warn is not None:
        facts["warned"] = above[asked.warn] - (0 if asked.threshold is None else above[asked.threshold])
    return facts


def _drift_of_columns(asked: Drift, progress: Progress) -> dict[str, Any]:
    """The divergence of each column's histogram from that of the reference, most first."""
    begun = time.perf_counter()
    q_name = in_file_of(asked.p, asked.q) or asked.q
    with ExitStack() as stack:
        p = stack.enter_context(closing(_table(asked.p)))
        q = stack.enter_context(closing(_table(q_name)))
        order = _in_order_of(p, q, (asked.p, q_name))
        work = None
        if asked.out is not None:
            for name, array in ((asked.p, p), (q_name, q)):
                refuse_input(asked.out, name, array)
            work = stack.enter_context(working(asked.out, (asked.measure,), (p.k,), {}, None, resumable=False))
        stack.enter_context(unchanged(stamps_of((p, q))))
        bins, data, reference = _histograms(asked, p, q, order, progress)
        divergence = _divergence(asked, data.counts, reference.counts)
        if work is not None:
            work.add(p.k, {asked.measure: divergence}, lambda: None)
    names: list[str | int] = list(p.columns or (q.columns and [q.columns[j] for j in order]) or range(p.k))
    columns = _facts_of_columns(names, divergence, bins, data, reference)
    facts: dict[str, Any] = {"p": str(p), "q": str(q), "of": "columns", "measure": asked.measure}
    facts |= {"about": f"{ABOUT[asked.measure]} of histograms", "unit": _report.unit_name(asked.base)}
    facts |= {"bins": bins.n_bins, "rows_p": p.n_rows, "rows_q": q.n_rows}
    facts |= {"left_out_p": list(p.left_out), "left_out_q": list(q.left_out)}
    facts |= _levels(asked, divergence)
    facts |= {"bytes": p.bytes + q.bytes, "seconds": time.perf_counter() - begun}
    return facts | {"columns": columns}


def _table(name: str) -> StoredArray:
    """A file's table of numbers, its rows laid out."""
    array = open_array(name, TABLE)
    try:
        if array.dtype.kind not in "biuf" and not is_bfloat16(array.dtype):
            raise InputError(f"{array}: columns of numbers are needed")
        if len(array.shape) not in (1, 2):
            raise InputError(f"{array}: a table of rows and columns, or one column, is needed")
        array.lay_out(1 if len(array.shape) == 2 else None)
        if not array.n_rows or not array.k:
            raise InputError(f"{array} has no {'columns' if array.n_rows else 'rows'} to compare")
    except InputError:
        array.close()
        raise
    if array.dtype.kind == "f":
        array.null = np.nan
    return array


def _in_order_of(p: StoredArray, q: StoredArray, given: tuple[str, str]) -> list[int]:
    """Which column of `q` is compared with each of `p`: that of its name, or of its place where one has no names."""
    chosen = p.k == q.k == 1 and any(split_name(name)[1] for name in given)
    if p.columns is None or q.columns is None or chosen:
        if p.k != q.k:
            raise InputError(f"{p} has {p.k} columns and {q} has {q.k}; as many are needed")
        return list(range(p.k))
    for one, other in ((p, q), (q, p)):
        lacking = [name for name in one.columns or () if name not in (other.columns or ())]
        if lacking:
            some = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
            raise InputError(
                f"{other.name} has no column of numbers {some}, which {one.name} has; "
                "name those to compare in both, as FILE:a,b or 'FILE:f_*'"
            )
    return [q.columns.index(name) for name in p.columns]


def _histograms(
    asked: Drift, p: StoredArray, q: StoredArray, order: list[int], progress: Progress
) -> tuple[Bins, Histogram, Histogram]:
    """Read the reference for its bins, then both for their counts."""
    total, begun = p.n_rows + 2 * q.n_rows, time.perf_counter()
    done = done_bytes = 0

    def read(array: StoredArray) -> Iterator[tuple[int, Array]]:
        nonlocal done, done_bytes
        with closing(blocks([array], spans([array], asked.block_rows))) as parts:
            for start, stop, (rows,) in parts:
                rows = rows.reshape(-1, array.k)
                yield start, rows[:, order] if array is q and order != sorted(order) else rows
                done, done_bytes = done + stop - start, done_bytes + (stop - start) * array.row_bytes
                progress(done, total, _report.speed(done, done_bytes / done, time.perf_counter() - begun), 0)

    def counted(array: StoredArray) -> Histogram:
        counter = Counter(bins)
        for _, rows in read(array):
            counter.add(rows)
        return counter.histogram()

    survey = Survey(q.k, q.n_rows, asked.bins or BINS, _compared(p.dtype, q.dtype))
    for start, rows in read(q):
        survey.add(start, rows)
    bins = Bins(survey)
    return bins, counted(p), counted(q)


def _compared(p: np.dtype[Any], q: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which values are compared: that of both, so that 0.1 of one is the other's 0.1 too."""
    floats = [dtype.itemsize for dtype in (p, q) if dtype.kind == "f" or is_bfloat16(dtype)]
    return np.dtype(np.float32 if floats and min(floats) < 8 else np.float64)


def _divergence(asked: Drift, p: Array, q: Array) -> Array:
    """Of each row of the tables of counts; for KL with half a count more in each bin that one of them fills."""
    if asked.measure == "kl":
        filled = 0.5 * ((p > 0) | (q > 0))
        p, q = p + filled, q + filled
    measure = divergences.js_divergence if asked.measure == "js" else divergences.kl_divergence
    found: Array = measure(p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True), base=asked.base)
    return found


def _facts_of_columns(
    names: list[str | int], divergence: Array, bins: Bins, p: Histogram, q: Histogram
) -> list[dict[str, Any]]:
    """A record of each column, largest divergence first."""
    n_p, n_q = p.counts.sum(axis=1), q.counts.sum(axis=1)
    facts = {
        "divergence": divergence,
        "bins": bins.used,
        "n_p": n_p - p.nan,
        "n_q": n_q - q.nan,
        "outside": p.outside / np.maximum(n_p - p.nan, 1),
        "nan_p": p.nan / n_p,
        "nan_q": q.nan / n_q,
        "inf_p": p.infinite / n_p,
        "inf_q": q.infinite / n_q,
    }
    values = zip(*(column.tolist() for column in facts.values()), strict=True)
    found = [{"column": name, **dict(zip(facts, row, strict=True))} for name, row in zip(names, values, strict=True)]
    return [found[j] for j in np.argsort(-divergence, kind="stable")]


def _levels(asked: Drift, divergence: Array) -> dict[str, int]:
    """How many are above the threshold, and how many only above the level to warn of."""
    facts: dict[str, int] = {}
    above = int(np.count_nonzero(divergence > asked.threshold)) if asked.threshold is not None else 0
    if asked.threshold is not None:
        facts["above"] = above
    if asked.warn is not None:
        facts["warned"] = int(np.count_nonzero(divergence > asked.warn)) - above
    return facts


def text(facts: dict[str, Any], top: int) -> str:
    """The facts to read: what was compared, the `top` of most divergence, and in the last line the verdict."""
    if facts["of"] == "rows":
        shown = facts | {"hardest": facts["hardest"][:top]}
        return "\n".join([_report.text(shown), "", _verdict(facts)])
    left_out = facts["left_out_p"] + [name for name in facts["left_out_q"] if name not in facts["left_out_p"]]
    lines = [("p", facts["p"]), ("q", facts["q"]), ("compared", f"{facts['about']}, in {facts['unit']}")]
    lines.append(("read", _report.amount(facts)))
    if left_out:
        lines.append(("left out", f"{', '.join(left_out)}: no columns of numbers"))
    shown_columns = facts["columns"][:top]
    head = ["", facts["measure"], "n of P", "n of Q", "outside Q", "NaN in P", "NaN in Q", ""]
    body = [
        [
            str(column["column"]),
            f"{column['divergence']:.4g}",
            f"{column['n_p']:,}",
            f"{column['n_q']:,}",
            *(f"{100 * column[share]:.3g} %" for share in ("outside", "nan_p", "nan_q")),
            _mark(facts, column["divergence"]),
        ]
        for column in shown_columns
    ]
    n = len(facts["columns"])
    title = f"columns of most divergence, {len(body):,} of {n:,}" if len(body) < n else "columns, most divergence first"
    table = ["", title, *_report.table([head, *body])] if body else []
    return "\n".join([*(f"{name:<14}{content}" for name, content in lines), *table, "", _verdict(facts)])


def _mark(facts: dict[str, Any], divergence: float) -> str:
    for level, mark in (("threshold", "above"), ("warn", "warn")):
        if facts[level] is not None and divergence > facts[level]:
            return mark
    return ""


def _verdict(facts: dict[str, Any]) -> str:
    """One line: how many are above the threshold, and the worst."""
    rows = facts["of"] == "rows"
    name = "row" if rows else "column"
    worst = facts["hardest"][:1] if rows else facts["columns"][:1]
    value = "loss" if rows else "divergence"
    largest = f"the largest is {name} {worst[0][name]}, {worst[0][value]:.4g} {facts['unit']}" if worst else ""
    n = facts["rows"] if rows else len(facts["columns"])
    parts = []
    if "above" in facts:
        parts.append(f"{facts['above']:,} of {n:,} {name}s above {facts['threshold']:g}")
    if "warned" in facts:
        parts.append(f"{facts['warned']:,}{' more' if parts else f' of {n:,} {name}s'} above {facts['warn']:g}")
    if rows and facts["nan_rows"] and "above" in facts:
        parts.append(f"{facts['nan_rows']:,} of them NaN, which is not known to be below")
    return "; ".join([*parts, *([largest] if largest else [])])
