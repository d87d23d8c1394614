"""Scoring of files: every loss of the command line, run block by block over stored arrays."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, losses
from ._arrays import Array
from ._files import InputError, StoredArray, blocks, members, open_array, ranges, split_name
from ._report import Summary
from ._sinks import saving
from .score import score

# Read at a time: large enough for threads to pay, small enough to stay in the last cache until it is scored.
# Classes that lie apart are read one by one: longer pieces of them.
BLOCK_BYTES, SCATTERED_BYTES = 8 << 20, 16 << 20

Columns = dict[str, Array]


@dataclass(frozen=True)
class Request:
    """What the user asked for: `options` are those of the loss, by the library's names."""

    x: str
    y: str | None = None
    loss: str | None = None
    form: losses.Form = "logits"
    y_form: losses.Form | None = None
    axis: int = -1
    outputs: tuple[str, ...] = ()
    out: str | None = None
    n_hardest: int = 5
    block_rows: int | None = None
    bfloat16: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class Loss(NamedTuple):
    """A loss of the command line: `run` gives the named results of a block of rows."""

    run: Callable[[Request, tuple[str, ...], Array, Any], Columns]
    about: str
    options: tuple[str, ...]
    outputs: tuple[str, ...]  # the first is the loss itself
    logits_outputs: tuple[str, ...] = ()  # known only where logits came
    needs: str = ""  # what the second array is


def _cross_entropy(request: Request, names: tuple[str, ...], x: Array, y: Array) -> Columns:
    if request.form == "logits":
        return _scored(names, score(x, y, outputs=names, **request.options))
    loss = losses.cross_entropy(x, y, form=request.form, reduction="none", **request.options)
    # Only the order of the classes matters to these, and that is the same in every form.
    ignore = request.options.get("ignore_index")
    order = tuple(name for name in names if name in ("argmax", "rank"))
    columns = {"loss": loss} | (_scored(order, score(x, y, outputs=order, ignore_index=ignore)) if order else {})
    if "entropy" in names:
        columns["entropy"] = losses.entropy(x, form=request.form, base=request.options.get("base"))
    return columns


def _entropy(request: Request, names: tuple[str, ...], x: Array, _: None) -> Columns:
    if request.form == "logits":
        return _scored(names, score(x, outputs=names, **request.options))
    columns = {"entropy": losses.entropy(x, form=request.form, **request.options)}
    if "argmax" in names:
        columns |= _scored(("argmax",), score(x, outputs="argmax"))
    return columns


def _binary(request: Request, _: tuple[str, ...], x: Array, y: Array) -> Columns:
    axis = None if x.ndim == 1 else -1
    loss = losses.binary_cross_entropy(x, y, form=request.form, axis=axis, reduction="none", **request.options)
    return {"loss": loss}


def _divergence(request: Request, _: tuple[str, ...], x: Array, y: Array) -> Columns:
    measure = losses.js_divergence if request.loss == "js" else losses.kl_divergence
    q_form = request.y_form or request.form
    return {"loss": measure(x, y, p_form=request.form, q_form=q_form, **request.options)}


def _scored(names: tuple[str, ...], record: Any) -> Columns:
    return {name: getattr(record, name) for name in names}


_LOGITS_ONLY = ("temperature", "softcap")
_OTHER = "the second distributions, or one row of them"
LOSSES = {
    "ce": Loss(
        _cross_entropy,
        "cross-entropy with labels or target distributions Y",
        ("class_weight", "label_smoothing", "ignore_index", *_LOGITS_ONLY),
        ("loss", "argmax", "rank", "entropy"),
        ("lse", "log_prob", "max_prob"),
        needs="labels or target distributions",
    ),
    "bce": Loss(
        _binary,
        "binary cross-entropy with targets Y, summed over the classes",
        ("pos_weight", "label_smoothing", "ignore_index"),
        ("loss",),
        needs="targets of X's shape",
    ),
    "kl": Loss(_divergence, "KL(X‖Y)", ("temperature",), ("loss",), needs=_OTHER),
    "js": Loss(_divergence, "JS(X, Y)", ("temperature",), ("loss",), needs=_OTHER),
    "entropy": Loss(_entropy, "entropy of X", _LOGITS_ONLY, ("entropy", "argmax"), ("lse", "max_prob")),
}


def score_files(request: Request, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Score the rows of a file and write what is asked for; return the summary's facts.

    `progress` is called with the rows done and all rows.
    """
    begun = time.perf_counter()
    with ExitStack() as stack:

        def opened(name: str, member: str) -> StoredArray:
            return stack.enter_context(closing(open_array(name, member, bfloat16=request.bfloat16)))

        x = opened(request.x, "x")
        y_name = request.y
        if y_name is None and request.loss != "entropy" and "y" in members(request.x):
            y_name = f"{request.x}:y"
        request = _fitting(request, y_name)
        y = opened(y_name, "y") if y_name is not None else None
        job = _Job(request, x, y)
        write = None
        if request.out is not None:
            _refuse_input(request.out, [request.x, y_name or request.x])
            write = stack.enter_context(saving(request.out, job.outputs, job.summary.batch))
        for start, arrays in stack.enter_context(closing(blocks(job.streamed, job.spans()))):
            columns = job.run(start, arrays)
            if write is not None:
                write({name: columns[name] for name in job.outputs})
            progress(job.summary.rows, x.n_rows)
    facts: dict[str, Any] = {"x": f"{x} {request.form}"} | ({} if y is None else {"y": str(y)})
    facts |= {"loss": request.loss, "about": job.loss.about} | job.summary.facts(
        request.options.get("base"), request.loss == "ce"
    )
    return facts | {"bytes": x.bytes + (0 if y is None else y.bytes), "seconds": time.perf_counter() - begun}


def _fitting(request: Request, y: str | None) -> Request:
    """`request` with its loss chosen, its options and outputs found to fit the loss."""
    name = request.loss or ("ce" if y is not None else "entropy")
    loss = LOSSES[name]
    if loss.needs and y is None:
        raise InputError(f"--loss {name} needs a second array: {loss.needs}")
    if not loss.needs and y is not None:
        raise InputError(f"--loss {name} takes one array; leave {y} out")
    for option in request.options:
        if option not in (*loss.options, "base", "validate"):
            raise InputError(f"--{option.replace('_', '-')} does not apply to --loss {name}")
    if request.y_form is not None and name not in ("kl", "js"):
        raise InputError(f"--y-form does not apply to --loss {name}")
    allowed = loss.outputs + (loss.logits_outputs if request.form == "logits" else ())
    for output in request.outputs:
        if output not in allowed:
            raise InputError(
                f"--loss {name} of {request.form} has no output {output!r}; choose from {', '.join(allowed)}"
            )
    return replace(request, loss=name)


def _refuse_input(out: str, names: list[str]) -> None:
    if os.path.exists(out) and any(os.path.samefile(out, split_name(name)[0]) for name in names):
        raise InputError(f"--out {out} is a file that is read; choose another name")


class _Job:
    """The arrays laid out in rows, what is asked of each block, and the summary so far."""

    def __init__(self, request: Request, x: StoredArray, y: StoredArray | None) -> None:
        self.request, self.loss, self.x, self.y = request, LOSSES[request.loss or ""], x, y
        self.axis: int | None = None
        self.labelled = False
        self.reference: Array | None = None  # one row that every row is compared with
        try:
            self._lay_out()
        except (ValueError, TypeError) as error:
            names = x.name if y is None else f"{x.name}, {y.name}"
            raise InputError(f"{names}: {error}") from None
        value = self.loss.outputs[0]
        self.outputs = request.outputs or (value,)
        known = ("argmax", "rank") if self.labelled else ("argmax",) if "argmax" in self.loss.outputs else ()
        self.names = tuple(dict.fromkeys((value, *known, *self.outputs)))
        batch = tuple(n for i, n in enumerate(x.shape) if i != self.axis)
        self.summary = Summary(value, batch, request.n_hardest)

    def _lay_out(self) -> None:
        """Check the shapes and the dtypes of the whole arrays, and find their rows."""
        x, y = self.x, self.y
        _arrays.as_floating("x", x.like[..., :0] if x.shape else x.like)
        if self.request.loss != "bce" or len(x.shape) != 1:
            self.axis = _arrays.class_axis(x.like, self.request.axis)
        x.lay_out(self.axis)
        self.streamed = [x]
        if y is None:
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
            return
        self.streamed.append(y)

    def spans(self) -> Any:
        scattered = any(array.after > 1 for array in self.streamed)
        row_bytes = sum(array.row_bytes for array in self.streamed)
        step = self.request.block_rows or (SCATTERED_BYTES if scattered else BLOCK_BYTES) // max(row_bytes, 1)
        return ranges(self.x.n_rows, max(1, step), self.x.after)

    def run(self, start: int, arrays: tuple[Array, ...]) -> Columns:
        """The results of the rows from number `start` on, each 1-d, counted in the summary."""
        x, *rest = arrays
        y: Any = rest[0] if rest else self.reference
        batch = x.shape if self.axis is None else x.shape[:-1]
        labels = y if self.labelled else None
        if labels is not None:
            y = labels.reshape(batch)
        try:
            columns = self.loss.run(self.request, self.names, x, y)
        except (ValueError, TypeError, IndexError) as error:
            # An index out of range is one that was found among the targets.
            culprit = self.y if self.y is not None and isinstance(error, IndexError) else self.x
            raise InputError(f"{culprit.name}: {self._globally(str(error), batch, start)}") from None
        columns = {name: column.reshape(-1) for name, column in columns.items()}
        self.summary.add(start, columns, *self._weights(y, labels, batch))
        return columns

    def _weights(
        self, y: Any, labels: Array | None, batch: tuple[int, ...]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Which rows count, their labels and their weights in the mean."""
        ignore, weights = (self.request.options.get(name) for name in ("ignore_index", "class_weight"))
        counts = None
        if ignore is not None:
            kept = y != ignore
            counts = (kept if kept.ndim == len(batch) else kept.any(axis=-1)).reshape(-1)
        if labels is None or weights is None:
            return counts, labels, None
        classes = labels.astype(np.int64)
        return counts, labels, weights[classes if counts is None else np.where(counts, classes, 0)]

    def _globally(self, message: str, batch: tuple[int, ...], start: int) -> str:
        """`message` about a row of this block, with the row's place in the whole file."""

        def renamed(match: re.Match[str]) -> str:
            place = tuple(int(i) for i in re.findall(r"\d+", match[0]))
            row = self.summary.row_name(start + int(np.ravel_multi_index(place[: len(batch)], batch)))
            inside = place[len(batch) :]  # of an element of the row
            return f"row {(*np.atleast_1d(row).tolist(), *inside) if inside else row}"

        return re.sub(r"\brow (\d+|\(\d+(, \d+)*,?\))", renamed, message)
