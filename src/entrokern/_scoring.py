"""Scoring of files: every loss of the command line, run block by block over stored arrays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import __version__, _arrays, _bad_rows
from ._arrays import Array
from ._bad_rows import BadRows
from ._call import bad_binary_targets, bad_labels, with_rows_renamed
from ._groups import Groups
from ._report import Counted, Summary, Waiting, speed
from ._requests import LOSSES, Columns, Request, fitting
from ._tally import Rows
from .files import (
    InputError,
    Keys,
    StoredArray,
    computed,
    labels_beside,
    open_array,
    open_keys,
    refuse_input,
    spans,
    split_name,
)
from .files.keys import Key
from .files.stamps import Stamps, stamps_of, unchanged
from .files.work import Unresumable, Work, working


def score_files(request: Request, progress: Callable[[int, int, str, int], None]) -> dict[str, Any]:
    """Score the rows of a file and write what is asked for; return the summary's facts.

    `progress` is called with the rows done, all rows, how fast it goes, and the rows that an earlier run has done.
    """
    begun = time.perf_counter()
    with ExitStack() as stack:

        def opened(name: str, role: str) -> StoredArray:
            return stack.enter_context(closing(open_array(name, role, bfloat16=request.bfloat16)))

        y_name = in_file_of(request.x, request.y)
        if y_name is None and request.loss != "entropy":
            y_name = labels_beside(request.x)
        x = opened(request.x, "x")
        request = fitting(replace(request, by=in_file_of(request.x, request.by)), y_name)
        role = "x" if request.loss in ("kl", "js") else "y"  # distributions like X's
        y = opened(y_name, role) if y_name is not None else None
        keys = stack.enter_context(closing(open_keys(request.by))) if request.by is not None else None
        named = ((request.x, x), (request.y, y), (request.by, keys.array if keys else None))
        read = {name: array for name, array in named if name is not None and array is not None}
        stamps = stamps_of(read.values())
        job = _Job(request, x, y, keys)
        work = None
        if request.out is not None:
            for name, array in read.items():
                refuse_input(request.out, name, array)
            work = stack.enter_context(_working(request, request.out, job, stamps))
            job.summary, job.bad, job.groups = work.state
        stack.enter_context(unchanged(stamps))
        first = work.rows if work else 0
        left = (span for span in job.spans() if not (work and work.begun and span[1] <= first))
        running = time.perf_counter()
        for _, stop, scored in stack.enter_context(closing(computed(job.streamed, left, job.run))):
            count = partial(job.count, scored)
            if work is None:
                count()
            else:
                work.add(stop, job.written(scored), count)
            progress(stop, x.n_rows, speed(stop - first, job.row_bytes, time.perf_counter() - running), first)
    facts: dict[str, Any] = {"x": f"{x} {request.form}"} | ({} if y is None else {"y": str(y)})
    facts |= {"loss": request.loss, "about": job.loss.about} | job.facts()
    n_bytes = x.bytes + (y.bytes if y else 0) + (keys.array.bytes if keys else 0)
    return facts | {"bytes": n_bytes, "seconds": time.perf_counter() - begun}


def in_file_of(x: str, name: str | None) -> str | None:
    """`name`, where it is ``:MEMBER`` in the file of `x`."""
    return split_name(x)[0] + name if name is not None and name.startswith(":") else name


def _working(request: Request, out: str, job: _Job, stamps: Stamps) -> AbstractContextManager[Work]:
    """The work on the output file, which depends on all that is asked for and on the inputs as they are now."""
    names, shape = job.outputs, job.summary.batch
    if request.bad_rows == "skip":
        shape = (job.x.n_rows,)
        if not out.endswith(".npy"):
            names = ("row", *names)
    options = {
        f"--{name.replace('_', '-')}": value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in request.options.items()
    }
    asked = {
        "entrokern's version": __version__,
        "X": _resolved(request.x),
        "Y": request.y and _resolved(request.y),
        "--loss": request.loss,
        "--form": request.form,
        "--y-form": request.y_form,
        "--axis": request.axis,
        "--dtype": request.bfloat16,
        "--outputs": names,
        "--hardest": request.n_hardest,
        "--block-rows": request.block_rows,
        "--bad-rows": request.bad_rows,
        "--by": request.by and _resolved(request.by),
    }
    state = (job.summary, job.bad, job.groups)
    asked |= options | stamps
    return working(out, names, shape, asked, state, resume=request.resume, resumable=request.resumable)


def _resolved(name: str) -> tuple[str, str | None]:
    path, member = split_name(name)
    return os.path.realpath(path), member


class _Scored(NamedTuple):
    """What was found of a block, in arrays of its own: results by name, each 1-d; marks of bad rows; what to count."""

    start: int  # its first row
    columns: Columns
    bad: Array | None
    found: Counted | Waiting
    grouped: tuple[list[Key], Array, Rows, Array | None, Array | None] | None


class _Job:
    """The arrays laid out in rows, what is asked of each block, and what is known of those so far."""

    def __init__(self, request: Request, x: StoredArray, y: StoredArray | None, keys: Keys | None = None) -> None:
        self.request, self.loss, self.x, self.y, self.keys = request, LOSSES[request.loss or ""], x, y, keys
        self.axis: int | None = None
        self.labelled = False
        self.reference: Array | None = None  # one row that every row is compared with
        try:
            self._lay_out()
        except (ValueError, TypeError) as error:
            names = x.name if y is None else f"{x.name}, {y.name}"
            raise InputError(f"{names}: {error}") from None
        self.value = self.loss.outputs[0]
        self.outputs = request.outputs or (self.value,)
        known = ("argmax", "rank") if self.labelled else ("argmax",) if "argmax" in self.loss.outputs else ()
        self.names = tuple(dict.fromkeys((self.value, *known, *self.outputs)))
        batch = tuple(n for i, n in enumerate(x.shape) if i != self.axis)
        self.summary, self.bad = Summary(self.value, batch, request.n_hardest, request.levels), BadRows()
        self.groups = Groups() if keys else None
        if keys:
            self._lay_out_keys(keys.array, batch)

    def _lay_out(self) -> None:
        """Check the shapes and the dtypes of the whole arrays, and find their rows."""
        x, y = self.x, self.y
        _arrays.as_floating("x", x.like[..., :0] if x.shape else x.like)
        if self.request.loss != "bce" or len(x.shape) != 1:
            self.axis = _arrays.class_axis(x.like, self.request.axis)
        x.lay_out(self.axis)
        self.streamed = [x]
        if y is None:
            self._allow_missing()
            return
        if self.request.loss == "ce":
            assert self.axis is not None
            self.labelled = _arrays.split_target(x.like, self.axis, y.like)[0] is not None
            y.lay_out(None if self.labelled else self.axis)
        elif y.shape == x.shape:
            y.lay_out(self.axis)
        elif self.request.loss == "bce":
            raise InputError(f"{y} does not fit {x}; pass one target per element")
        else:
            y.lay_out(len(y.shape) - 1 if len(y.shape) == 1 else self.axis)
            if y.shape != (x.k,) and (len(y.shape) != len(x.shape) or y.n_rows != 1 or y.k != x.k):
                raise InputError(f"{y} does not fit {x}; pass as many rows, or one of {x.k} classes")
            self.reference = y.rows(0, 1).copy()
            if self.request.bad_rows is not None:
                self._refuse_bad_reference(y)
            return
        self.streamed.append(y)
        self._allow_missing()

    def _lay_out_keys(self, keys: StoredArray, batch: tuple[int, ...]) -> None:
        if keys.shape != batch:
            raise InputError(f"{keys} does not fit {self.x}; pass one key for each of its rows {batch}")
        keys.lay_out(None)
        self.streamed.append(keys)

    def _allow_missing(self) -> None:
        """Where bad rows are let pass, a missing value makes one."""
        if self.request.bad_rows not in ("skip", "nan"):
            return
        for array in self.streamed:
            if array.dtype.kind == "f":
                array.null = np.nan
        y = self.y
        if y is not None and y.dtype.kind in "iu" and (self.labelled or self.request.loss == "bce"):
            ignore = self.request.options.get("ignore_index")
            bad = partial(bad_labels, k=self.x.k) if self.labelled else bad_binary_targets
            y.null = _bad_rows.missing_label(y.dtype, partial(bad, ignore_index=ignore))

    def _refuse_bad_reference(self, y: StoredArray) -> None:
        marks = np.zeros(1, np.int8)
        assert self.reference is not None
        y_form = self.request.y_form or self.request.form
        _bad_rows.mark_distributions(marks, self.reference, y_form, _bad_rows.NEGATIVE, _bad_rows.SUM)
        if marks[0]:
            raise InputError(f"{y.name}: its row {_bad_rows.REASONS[marks[0]]}; no row can be compared with it")

    @property
    def row_bytes(self) -> int:
        return sum(array.row_bytes for array in self.streamed)

    def spans(self) -> Iterator[tuple[int, int]]:
        return spans(self.streamed, self.request.block_rows)

    def run(self, start: int, arrays: tuple[Array, ...]) -> _Scored:
        """What is found of the rows from number `start` on."""
        x, *rest = arrays
        keys = rest.pop() if self.keys else None
        batch = x.shape if self.axis is None else x.shape[:-1]
        y: Any = rest[0].reshape(batch if self.labelled else x.shape) if rest else self.reference
        counts = self._counted(y, len(batch))
        marks = None
        if self.request.bad_rows is not None:
            marks, y = self._marked(x, y, counts)
        try:
            columns = self.loss.run(self.request, self.names, x, y)
        except (ValueError, TypeError, IndexError) as error:
            # An index out of range is one that was found among the targets.
            culprit = self.y if self.y is not None and isinstance(error, IndexError) else self.x
            raise Unresumable(f"{culprit.name}: {self._globally(str(error), batch, start)}") from None
        columns = {name: column.reshape(-1) for name, column in columns.items()}
        if marks is not None:
            _bad_rows.mark_results(marks, columns[self.value])
            if marks.any():
                if self.request.bad_rows == "raise":
                    self._refuse(start, marks, rest)
                counts = (marks == 0) & (True if counts is None else counts)
                columns = _bad_rows.blanked(columns, marks != 0)
        labels = y.reshape(-1).copy() if self.labelled else None
        weight = self._weight(labels, counts)
        grouped = None
        if self.keys is not None and keys is not None:
            rows = Rows(columns[self.value], weight=weight, labels=labels, argmax=columns.get("argmax"))
            grouped = (*self.keys.of(keys), rows, counts, marks)
        return _Scored(start, columns, marks, self.summary.found(start, columns, counts, labels, weight), grouped)

    def _counted(self, y: Any, ndim: int) -> Array | None:
        """Which rows count: those that are not ignored."""
        ignore = self.request.options.get("ignore_index")
        if ignore is None:
            return None
        kept = y != ignore
        counts: Array = (kept if kept.ndim == ndim else kept.any(axis=-1)).reshape(-1)
        return counts

    def _weight(self, labels: Array | None, counts: Array | None) -> Array | None:
        """What each row adds to the mean's denominator."""
        weights = self.request.options.get("class_weight")
        if labels is None or weights is None:
            return None
        classes = labels.astype(np.int64)
        found: Array = weights[classes if counts is None else np.where(counts, classes, 0)]
        return found

    def _marked(self, x: Array, y: Any, counts: Array | None) -> tuple[Array, Any]:
        """Which rows are bad as they come, and `y` such that the loss does not raise for them."""
        form, ignore = self.request.form, self.request.options.get("ignore_index")
        marks = np.zeros(x.size // x.shape[-1] if self.axis is not None else x.size, np.int8)
        if not marks.size:
            return marks, y
        if self.labelled:
            labels = _bad_rows.mark_labels(marks, y.reshape(-1), x.shape[-1], ignore, self.y.null if self.y else None)
            y = labels.reshape(y.shape)
        elif self.request.loss == "bce":
            if y.dtype.kind in "iu":
                y = _bad_rows.mark_binary_targets(marks, y, ignore)
            _bad_rows.mark_probabilities(marks, x, form)
        elif y is not None and self.reference is None:
            y_form = "probs" if self.request.loss == "ce" else self.request.y_form or form
            _bad_rows.mark_distributions(marks, y, y_form, _bad_rows.Y_NEGATIVE, _bad_rows.Y_SUM)
        if self.request.loss != "bce":
            _bad_rows.mark_distributions(marks, x, form, _bad_rows.NEGATIVE, _bad_rows.SUM)
        if counts is not None:
            marks[~counts] = _bad_rows.FINE
        return marks, y

    def _refuse(self, start: int, marks: Array, targets: list[Array]) -> None:
        at = int((marks != 0).argmax())
        reason = _bad_rows.REASONS[marks[at]]
        culprit = self.y if self.y is not None and marks[at] in _bad_rows.OF_Y else self.x
        if marks[at] == _bad_rows.LABEL:
            reason = f"label {targets[0].reshape(-1)[at]} is out of range for k = {self.x.k} classes"
        row = self.summary.row_name(start + at)
        raise Unresumable(
            f"{culprit.name}: bad row {row}: {reason}; pass --bad-rows nan or skip to go on without such rows"
        )

    def count(self, scored: _Scored) -> None:
        """Take what was found of a block into the summary."""
        if scored.bad is not None:
            self.bad.add(scored.start, scored.bad)
        self.summary.merge(scored.found)
        if self.groups and scored.grouped is not None:
            self.groups.add(*scored.grouped)

    def written(self, scored: _Scored) -> Columns:
        """The columns of the output, without the bad rows where those are skipped."""
        columns = {name: scored.columns[name] for name in self.outputs}
        if self.request.bad_rows != "skip" or scored.bad is None:
            return columns
        columns["row"] = np.arange(scored.start, scored.start + scored.bad.size)
        kept = scored.bad == 0
        return columns if kept.all() else {name: column[kept] for name, column in columns.items()}

    def facts(self) -> dict[str, Any]:
        """The summary as plain numbers, by name."""
        asked = (self.request.options.get("base"), self.request.loss == "ce")
        facts = self.summary.facts(*asked)
        if self.groups:
            facts["by"], facts["groups"] = self.request.by, self.groups.facts(*asked, self.request.bad_rows is not None)
        if self.request.bad_rows is None:
            return facts
        facts["ignored"] -= self.bad.total  # to the summary, they do not count either
        named = [{"row": self.summary.row_name(row), "reason": reason} for row, reason in self.bad.first]
        return facts | {"bad_rows": self.bad.counts, "first_bad_rows": named}

    def _globally(self, message: str, batch: tuple[int, ...], start: int) -> str:
        """`message` about a row of this block, with the row's place in the whole file."""

        def rename(place: tuple[int, ...]) -> tuple[int, ...]:
            row = self.summary.row_name(start + int(np.ravel_multi_index(place[: len(batch)], batch)))
            inside = place[len(batch) :]  # of an element of the row
            return (*np.atleast_1d(row).tolist(), *inside)

        return with_rows_renamed(message, rename)
