"""What can be asked about arrays in files: the losses of the command line, their options and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from . import divergences, entropies, losses
from ._arrays import Array
from ._bad_rows import Policy
from ._options import Form
from .files import InputError
from .score import score

Columns = dict[str, Array]


@dataclass(frozen=True)
class Request:
    """What the user asked for: `options` are those of the loss, by the library's names."""

    x: str
    y: str | None = None
    loss: str | None = None
    form: Form = "logits"
    y_form: Form | None = None
    axis: int = -1
    outputs: tuple[str, ...] = ()
    out: str | None = None
    n_hardest: int = 5
    block_rows: int | None = None
    bfloat16: bool = False
    bad_rows: Policy | None = None
    resume: bool = False
    resumable: bool = True
    by: str | None = None  # the column that says what group each row is in
    levels: tuple[float, ...] = ()  # rows whose value is above each are counted
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
        columns["entropy"] = entropies.entropy(x, form=request.form, base=request.options.get("base"))
    return columns


def _entropy(request: Request, names: tuple[str, ...], x: Array, _: None) -> Columns:
    if request.form == "logits":
        return _scored(names, score(x, outputs=names, **request.options))
    columns = {"entropy": entropies.entropy(x, form=request.form, **request.options)}
    if "argmax" in names:
        columns |= _scored(("argmax",), score(x, outputs="argmax"))
    return columns


def _binary(request: Request, _: tuple[str, ...], x: Array, y: Array) -> Columns:
    axis = None if x.ndim == 1 else -1
    loss = losses.binary_cross_entropy(x, y, form=request.form, axis=axis, reduction="none", **request.options)
    return {"loss": loss}


def _divergence(request: Request, _: tuple[str, ...], x: Array, y: Array) -> Columns:
    measure = divergences.js_divergence if request.loss == "js" else divergences.kl_divergence
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


def fitting(request: Request, y: str | None) -> Request:
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
    if request.bad_rows is not None and request.options.get("validate"):
        raise InputError("--validate is what --bad-rows raise does; leave one of them out")
    if request.resume and request.out is None:
        raise InputError("--resume needs --out FILE, whose work goes on")
    return replace(request, loss=name, y=y)
