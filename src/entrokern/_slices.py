"""What a slice of classes says of its rows, and the gradient by a slice once the whole rows are known.

The statistics come from the backend's kernels, run on the slice as if it were all there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays, _device, _dispatch, _validate
from ._call import Call, can_be, execute
from ._merge import SURPRISES, Array, Statistics, get, put
from .reference import soft_capped, times

if TYPE_CHECKING:
    from .partial import Partial

NOWHERE = -1  # a label that the slice does not hold


def statistics(call: Call, class_start: int, names: Sequence[str], target_logit: Any, precise: bool) -> Statistics:
    """The statistics of a slice, by name; `names` are the outputs of a score."""
    if call.quantity == "kl_divergence":
        found = _of_two(call, precise)
    elif call.quantity == "entropy":
        found = _of_entropy(call, precise)
    else:
        found = _of_target(call, class_start, names, precise)
        if target_logit is not None:
            put_ranks(found, call, target_logit)
    if call.sample_weight is not None:
        found["sample_weight"] = call.sample_weight.astype(np.float64)
    return found


def row_results(call: Call, *names: str, precise: bool = False) -> dict[str, Array]:
    """Row results of a call on the slice, in float64 (indices in int64).

    With `precise`, they are computed in float64 too.
    """
    if precise and _device.is_device_array(call.x):
        call = replace(call, x=call.x.astype(np.float64))  # whose kernels compute in the type of the operand
    of = np.dtype(np.float64) if precise else call.x.dtype
    dtypes = {name: _arrays.result_dtype(name, of) for name in names}
    rows = {name: _arrays.empty(call.row_shape, dtype, call.x) for name, dtype in dtypes.items()}
    execute(replace(call, rows=dict(rows), maps={}, total=False, prepared=None))
    return {name: row if row.dtype == np.int64 else row.astype(np.float64) for name, row in rows.items()}


def bare(call: Call, quantity: str, **changes: Any) -> Call:
    """`call` without its target and all that weighs: a quantity of the slice itself, in nats."""
    nothing: dict[str, Any] = {
        "y": None, "labels": None, "ignore_index": None, "sample_weight": None, "class_weight": None,
        "label_smoothing": 0.0, "z_loss": 0.0, "unit": 1.0,
    }  # fmt: skip
    return replace(call, quantity=quantity, **(nothing | changes))


def put_normaliser(found: Statistics, rows: dict[str, Array], side: str = "") -> Array:
    """The largest logit and ``log Z`` of each row of the slice; returns where there is nothing but -inf."""
    m = rows["max"]
    found[f"{side}max"] = m
    put(found, f"{side}log_Z", np.where(np.isfinite(m), rows["log_Z"], 0.0))
    return m == -np.inf


def _of_target(call: Call, class_start: int, names: Sequence[str], precise: bool) -> Statistics:
    """Logits with what a score asks of them, and in any form the surprise at labels or target distributions."""
    found: Statistics = {}
    wanted = ["max", "log_Z", *(name for name in ("entropy", "argmax") if name in names)]
    changes: dict[str, Any] = {}
    if call.labels is not None:
        # Labels of other slices are as if ignored.
        changes = {"labels": _put_labels(found, call, class_start), "ignore_index": NOWHERE}
        wanted.append("log_prob")
    elif call.y is not None:
        found["mass"] = _mass(call.y, call.class_weight)
        changes = {"y": call.y, "class_weight": call.class_weight}
        wanted.append("loss")
    if call.form == "logits":
        if precise and call.softcap is not None:
            # Capped by the same function as for the gradient: a kernel's tanh may differ in the last digit.
            capped = _arrays.empty(call.x.shape, np.dtype(np.float64), call.x)
            for piece in pieces(call.x.shape):
                capped[piece] = soft_capped(call.x[piece].astype(np.float64), call.softcap)[0]
            call = replace(call, x=capped, softcap=None)
        rows = row_results(bare(call, "score", **changes), *wanted, precise=precise)
        nothing = put_normaliser(found, rows)
        surprise: Array = -rows["log_prob"] if "log_prob" in rows else rows.get("loss")
    else:
        rows = row_results(bare(call, "cross_entropy", **changes), "loss", precise=precise)
        surprise = rows["loss"]
        nothing = np.zeros_like(surprise, dtype=bool)
    if "entropy" in names:
        put(found, "entropy", np.where(nothing, 0.0, rows["entropy"]))
    if "argmax" in names:
        found["argmax"] = rows["argmax"] + class_start
    if surprise is None:
        return found
    if call.labels is not None:
        elsewhere = 0.0 if call.form == "logits" else _nan_or_zero(call)
        surprise = np.where(found["mass"] == 0.0, elsewhere, surprise)
    # In a slice of nothing but -inf all is as improbable as can be, but what has no share adds nothing.
    put(found, "surprise", np.where(nothing, times(found["mass"], np.full_like(found["mass"], np.inf)), surprise))
    if call.label_smoothing > 0.0:
        put(found, "surprises", np.where(nothing, _infinite(call), _surprise_at_all(call, precise)))
    return found


def local_labels(call: Call, class_start: int, ignored: Array | None = None) -> Array:
    """The labels as the slice counts its classes, `NOWHERE` for those that it does not hold (or that are ignored)."""
    labels: Any = call.labels
    held = (labels >= class_start) & (labels < class_start + call.k)
    held = held if ignored is None else held & ~ignored
    return np.where(held, labels.astype(np.int64) - class_start, NOWHERE)


def _put_labels(found: Statistics, call: Call, class_start: int) -> Array:
    """Which rows are ignored, the mass and the weight of the labels that the slice holds; returns these labels."""
    labels: Any = call.labels
    found["ignored"] = np.zeros_like(labels, dtype=bool)
    if call.ignore_index is not None and can_be(labels.dtype, call.ignore_index):
        found["ignored"] = labels == call.ignore_index
    local = local_labels(call, class_start, found["ignored"])
    held = local != NOWHERE
    found["mass"] = held.astype(np.float64)
    if call.class_weight is not None:
        found["label_weight"] = np.where(held, call.class_weight[np.where(held, local, 0)], 0.0)
    return local


def _mass(q: Any, class_weight: Array | None) -> Array:
    """``Σ w·q`` of each row of the slice."""
    if class_weight is None:
        return np.sum(q, axis=-1, dtype=np.float64)
    mass = _arrays.empty(q.shape[:-1], np.dtype(np.float64), q)
    for start, rows in _validate.row_chunks(q):
        mass.reshape(-1)[start : start + len(rows)] = (rows * class_weight).sum(axis=-1)
    return mass


def _surprise_at_all(call: Call, precise: bool) -> Array:
    """``Σ_c w_c·(-log p_c)``, which smoothing asks for, in its unit: the loss of a label smoothed away."""
    labels = np.zeros_like(call.x[..., 0], dtype=np.int64)
    smoothed = bare(call, "cross_entropy", labels=labels, label_smoothing=1.0, class_weight=call.class_weight)
    return call.k / SURPRISES * row_results(smoothed, "loss", precise=precise)["loss"]


def _nan_or_zero(call: Call) -> Array:
    """NaN for rows whose slice holds what is no probability: no other slice knows. (Of logits, the largest says it.)"""
    probable = call.x >= 0 if call.form == "probs" else call.x == call.x
    return np.where(np.count_nonzero(~probable, axis=-1) > 0, np.nan, 0.0)


def _infinite(call: Call) -> float:
    return np.inf if call.class_weight is None or bool((call.class_weight > 0).any()) else 0.0


def put_ranks(found: Statistics, call: Call, target_logit: Any) -> None:
    """How many logits of the slice are larger than the label's. A softcap leaves the order as it is."""
    logit = _arrays.as_real("target_logit", target_logit)
    if logit.shape != call.row_shape:
        raise ValueError(f"target_logit has shape {logit.shape}; expected one logit per row: {call.row_shape}")
    above = np.count_nonzero(call.x > logit[..., None], axis=-1)
    found["above"] = _arrays.asarray("above", above).astype(np.int64)


def _of_entropy(call: Call, precise: bool) -> Statistics:
    found: Statistics = {}
    if call.form == "logits":
        rows = row_results(bare(call, "score"), "max", "log_Z", "entropy", precise=precise)
        nothing = put_normaliser(found, rows)
        put(found, "entropy", np.where(nothing, 0.0, rows["entropy"]))
    else:
        put(found, "entropy", row_results(bare(call, "entropy"), "loss", precise=precise)["loss"])
    return found


def _of_two(call: Call, precise: bool) -> Statistics:
    """KL of what the two slices say on their own, and their shares in the rows."""
    found: Statistics = {}
    x, y = call.x, call.y
    if call.y_form == "logits" != call.form:
        # Only Q is known but for its share: Σ p·log p - Σ p·log q, of which the second rises by p's mass.
        p = x if call.form == "probs" else np.exp(x.astype(np.float64))
        believed = row_results(bare(call, "score", x=y, y=p, form="logits"), "max", "log_Z", "loss", precise=precise)
        nothing = put_normaliser(found, believed, "q_")
        found["mass"] = _mass(p, None)
        surprise = np.where(nothing, times(found["mass"], np.full_like(found["mass"], np.inf)), believed["loss"])
        put(found, "kl_divergence", surprise - row_results(bare(call, "entropy"), "loss", precise=precise)["loss"])
        return found
    value = row_results(bare(call, "kl_divergence", y=y), "loss", precise=precise)["loss"]
    if call.form == "logits":
        nothing = put_normaliser(found, row_results(bare(call, "score"), "max", "log_Z", precise=precise))
        value = np.where(nothing, 0.0, value)
        if call.y_form == "logits":
            normaliser = row_results(bare(call, "score", x=y), "max", "log_Z", precise=precise)
            nothing_q = put_normaliser(found, normaliser, "q_")
            value = np.where(nothing_q & ~nothing, np.inf, value)
    put(found, "kl_divergence", value)
    return found


# --- maps of a slice, once the whole rows are known -------------------------------------------------

ELEMENTS = 1 << 18  # at a time: the steps of the formula stay in cache


def pieces(shape: tuple[int, ...]) -> Iterator[Any]:
    """Index expressions for parts of the first axis, which take about `ELEMENTS` elements each."""
    if len(shape) == 1:
        yield ()
        return
    step = max(1, ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def write_maps(whole: Partial, call: Call, class_start: int, scale: float = 1.0) -> None:
    """Write the maps that `call`, of the slice, asks for; gradient and Hessian are multiplied by `scale`."""
    call.class_weight = _arrays.in_float64(call.class_weight)
    with np.errstate(all="ignore"):
        rows = _rows_of(whole, call, class_start, scale)
        # A softcap by the kernels is dearer than by these formulas: libm's tanh, one element at a time.
        if runs_on_cpu(call) and whole.setting.softcap is None and (whole.of_logits or "A" in rows):
            _write_by_kernel(whole, call, rows)
            return
        for piece in pieces(call.x.shape):
            part = {name: row[piece][..., None] for name, row in rows.items()}
            x = call.x[piece].astype(np.float64)
            y = None if call.y is None else call.y[piece].astype(np.float64)
            # What is written may be the slice itself: all is computed first.
            found = {name: _map(name, whole, call, part, x, y) for name in call.maps}
            for name, value in found.items():
                if name in ("grad", "hess"):
                    value = np.where(part["undefined"], np.nan, part["factor"] * value)
                    value = np.where(part["factor"] == 0.0, 0.0, value)
                call.maps[name][piece] = value


def runs_on_cpu(call: Call) -> bool:
    return not _device.is_device_array(call.x) and _dispatch.chosen() == "cpu"


def _write_by_kernel(whole: Partial, call: Call, rows: Statistics) -> None:
    from .cpu import slices

    s = whole.setting
    call = replace(call, temperature=s.temperature, label_smoothing=s.label_smoothing, z_loss=s.z_loss, unit=s.unit)
    of_row = np.zeros(call.row_shape)
    log_Z = rows.get("log_Z", of_row)
    S = np.expm1(log_Z)
    if call.y is not None or not whole.of_logits:
        rows = {"max": of_row, "lse": of_row, "S": S} | rows
        # NaN times anything is NaN, and a row of weight 0 is left out.
        rows["weight"] = np.where(rows["undefined"] & (rows["weight"] != 0.0), np.nan, rows["weight"])
        slices.write_target_maps(call, rows, whole.classes)
        return
    usual: Statistics = {
        "S": np.where(rows["undefined"], np.nan, S) if "undefined" in rows else S,
        "mean": (log_Z - rows["entropy"]) / np.log(2.0) if "entropy" in rows else log_Z,  # of log2 e^(z - m)
        "label": np.full(S.shape, NOWHERE), "weight": np.ones_like(S),
        "label_weight": whole.arrays.get("label_weight", np.ones_like(S)),
    }  # fmt: skip
    slices.write_maps(call, usual | rows, whole.classes, whole.class_mass, s.quantity == "entropy")


def _rows_of(whole: Partial, call: Call, class_start: int, scale: float) -> Statistics:
    """What the maps need of each row."""
    s, arrays, eps = whole.setting, whole.arrays, whole.setting.label_smoothing
    rows: Statistics = {}
    if whole.of_logits:
        rows |= {"max": arrays["max"], "log_Z": get(arrays, "log_Z"), "lse": whole.lse()}
    if not {"grad", "hess"}.intersection(call.maps):
        return rows
    loss, weight = whole.loss(), whole.weight
    rows["undefined"] = np.isnan(loss) | whole.undefined()
    rows["weight"] = scale * np.ones_like(loss) * (1.0 if weight is None else weight)
    rows["factor"] = rows["weight"] * (s.unit / s.temperature)
    if s.quantity == "entropy":
        rows["entropy"] = get(arrays, "entropy")
        return rows
    mass = arrays["label_weight"] if "label_weight" in arrays else arrays["mass"]
    rows["A"] = (1.0 - eps) * mass + eps / whole.classes * whole.class_mass
    if call.labels is not None:
        rows["label"] = local_labels(call, class_start, arrays["ignored"])
    return rows


def _map(name: str, whole: Partial, call: Call, rows: Statistics, x: Array, y: Array) -> Array:
    """A map of some rows, gradients but for their factors."""
    s, eps = whole.setting, whole.setting.label_smoothing
    b: Array = 0.0
    if name in ("grad", "hess") and s.quantity != "entropy":
        hot: Array = y if y is not None else _device.arange(call.k, x) == rows["label"]
        w: Array = 1.0 if call.class_weight is None else call.class_weight
        b = w * ((1.0 - eps) * hot + eps / whole.classes)
    if s.form == "log_probs":
        return -b if s.quantity != "entropy" else -times(np.exp(x), x) - np.exp(x)
    if s.form == "probs":
        return -times(b, 1.0 / x) if s.quantity != "entropy" else -np.log(x) - 1.0
    capped, slope = soft_capped(x, s.softcap)
    apart = capped - rows["max"]
    if name == "log_softmax":
        return np.where(rows["max"] == np.inf, apart, apart / s.temperature - rows["log_Z"])
    d = apart / s.temperature
    log_p = d - rows["log_Z"]
    p = np.exp(log_p)
    if name == "softmax":
        return np.where(np.isinf(rows["max"]), np.nan, p)
    if s.quantity == "entropy":
        return -times(p, d - (rows["log_Z"] - rows["entropy"]))
    rest = -np.expm1(log_p)  # 1 - p, with its digits
    if name == "hess":
        return rows["A"] * p * rest / s.temperature
    gradient = (rows["A"] - b) * p - b * rest
    if s.z_loss:
        gradient = gradient + 2.0 * s.z_loss / s.unit * rows["lse"] * p
    return slope * gradient
