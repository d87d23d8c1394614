"""A row's statistics from a slice of its classes, which merge: for arrays split along the classes.

`_merge.py` says how two slices become one; `_slices.py` has what each slice contributes, and its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from inspect import unwrap
from typing import Any

import numpy as np

from . import _arrays, _device, _guests, _merge, _options, _slices, divergences, entropies, losses
from ._call import Call, raise_empty
from ._dispatch import library_of
from ._merge import Array, Statistics, get
from ._options import Form
from .reference import times
from .score import NEEDS_LABELS, Score, output_names

QUANTITIES = ("cross_entropy", "entropy", "kl_divergence", "score")
DIVERGENCES = ("kl_divergence", "js_divergence")
MAPS = ("grad", "hess")


@dataclass(frozen=True, slots=True)
class Setting:
    """What all slices of a row must have in common."""

    quantity: str
    form: str
    target: str  # "labels", "distribution" or "none"; of a divergence, the form of q
    outputs: tuple[str, ...]
    dtype: str  # of the results
    temperature: float
    softcap: float | None
    label_smoothing: float
    z_loss: float
    unit: float
    ignore_index: int | None
    class_weight: bool  # whether classes are weighed


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """Statistics of each row from a part of its classes; `combine` merges them, `finish` turns them into results.

    Made by `partial`. It can be pickled and sent: a few arrays of one number per row.

    Attributes
    ----------
    classes : int
        How many classes it has seen.
    arrays : dict of str to ndarray
        The statistics, of the batch shape, on the device of the slice: ``max`` and ``log_Z``, whose sum is the
        slice's logsumexp, and what the quantity needs beside. Names that end in ``_lost`` hold what the additions
        of merges have rounded away.
    """

    setting: Setting
    classes: int
    class_mass: float  # Σ w_c
    arrays: Statistics

    @_guests.untraced
    def finish(self, k: int | None = None, *, reduction: str = "none", on_empty: str = "nan") -> Any:
        """The results, once all slices have been merged.

        Parameters
        ----------
        k : int, optional
            How many classes there are: checked, where given, against those that the slices held.
        reduction : {"none", "sum", "mean"}
            As in `cross_entropy`; results of ``quantity="score"`` are of rows.
        on_empty : {"nan", "zero", "raise"}
            What a mean is when its denominator is 0.

        Returns
        -------
        ndarray or Score
            One number per row, or 0-d; float32 for 16- and 32-bit slices, else float64. Of ``quantity="score"`` a
            `Score` with the outputs asked for.

        Raises
        ------
        ValueError
            The slices do not make up `k` classes, or more than one of them held a row's label.
        IndexError
            None of them held a row's label: it is out of range, or a slice is missing. (On a GPU such a row is
            NaN, and nothing waits for the device.)
        """
        if k is not None and _options.index("k", k) != self.classes:
            what = "some are missing" if k > self.classes else "some overlap"
            raise ValueError(f"the slices combined hold {self.classes} classes, not k={k}: {what}")
        _options.choice("reduction", reduction, _options.REDUCTIONS)
        _options.choice("on_empty", on_empty, _options.ON_EMPTY)
        with self._on_device(), np.errstate(all="ignore"):
            self._check_labels()
            if self.setting.quantity == "score":
                if reduction != "none":
                    raise ValueError(f"reduction={reduction!r}, but results of quantity='score' are of rows")
                return Score(**{name: self.result(name) for name in self.setting.outputs})
            loss = self.loss()
            if reduction == "none":
                return self._rounded(loss)
            total: Array = np.sum(loss, dtype=np.float64)
            if reduction == "mean":
                denominator = self.denominator() * np.ones_like(total)
                if on_empty == "raise" and bool(denominator == 0):
                    raise_empty()
                empty = math.nan if on_empty == "nan" else 0.0
                total = np.where(denominator == 0, empty, total / denominator)
            return self._rounded(total)

    @_guests.untraced
    def gradient(
        self,
        x: Any,
        target: Any = None,
        *,
        class_start: int = 0,
        axis: int = -1,
        class_weight: Any = None,
        scale: float = 1.0,
        out: Array | None = None,
    ) -> Array:
        """The gradient of each row's loss by one slice `x`, once all slices have been merged.

        Parameters
        ----------
        x, target, class_start, axis, class_weight
            The slice, as it was given to `partial`.
        scale : float, default 1
            What the gradient is multiplied by: ``1/n`` for that of a mean over n rows.
        out : ndarray, optional
            Where to write; may be exactly `x`.

        Returns
        -------
        ndarray
            Shape and dtype of `x`.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit the slices.

        Notes
        -----
        ``s·(A·p - b)/T`` with ``p = e^(z - lse)``, as in `cross_entropy`; for ``quantity="entropy"``, as in
        `entropy`. A second read of the slice, in float64.
        """
        s = self.setting
        if s.quantity == "kl_divergence":
            raise ValueError("a KL divergence has no gradient by slices; call kl_divergence on whole rows")
        if s.target == "none" and s.quantity != "entropy":
            raise ValueError("slices without a target have no loss whose gradient there could be; pass partial one")
        x, target, class_weight, out = map(_guests.unwrapped, (x, target, class_weight, out))
        array, axis, call = losses.cross_entropy_call(
            x, target, s.form, axis, class_weight, None, 0.0, None, 1.0, None, 0.0, None, False
        )
        if _kind_of_target(call) != s.target:
            came = f"{_kind_of_target(call)!r} came"
            raise ValueError(f"the slices had target {s.target!r}, and now {came}; pass the slice as it was given")
        if self.some.shape != call.row_shape:
            raise ValueError(f"x has rows of shape {call.row_shape}; the slices had rows of {self.some.shape}")
        class_start, scale = _options.index("class_start", class_start), _options.number("scale", scale)
        if not 0 <= class_start <= self.classes - call.k:
            last = f"{class_start} to {class_start + call.k - 1}"
            raise ValueError(f"classes {last} are not among the {self.classes} that have been combined")
        if (call.class_weight is not None) != s.class_weight:
            way = "pass those of the slice" if s.class_weight else "leave it out"
            raise ValueError(f"class_weight was {'' if s.class_weight else 'not '}given to the slices; {way}")
        result = _arrays.output("out", out, array.shape, _arrays.map_dtypes(array.dtype), array, alike=True)
        if out is not None:
            inputs = {"x": array, "target": target, "class_weight": class_weight}
            _arrays.refuse_overlap({"out": result}, inputs, {"out": "x"})
        call.maps["grad"] = _arrays.classes_last(result, axis)
        with self._on_device():
            _slices.write_maps(self, call, class_start, scale)
        return result

    def _on_device(self) -> AbstractContextManager[Any]:
        return _device.device_of(self.some) if _device.is_device_array(self.some) else nullcontext()

    @property
    def some(self) -> Array:
        """One of the arrays: all have a number per row, and lie in one place."""
        return next(iter(self.arrays.values()))

    def _rounded(self, value: Array) -> Array:
        return (
            value.astype(self.setting.dtype)
            if _device.is_device_array(value)
            else np.asarray(value, self.setting.dtype)
        )

    def _check_labels(self) -> None:
        """Raise for the lowest row whose label was not held by exactly one slice; a device is not waited for."""
        mass: Array = self.arrays.get("mass")
        if self.setting.target != "labels" or _device.is_device_array(mass):
            return
        held = np.atleast_1d((mass == 1.0) | self.arrays["ignored"])
        if held.all():
            return
        place = np.unravel_index(int(held.argmin()), held.shape)
        row = int(place[0]) if len(place) == 1 else tuple(int(i) for i in place)
        times_held = int(np.atleast_1d(mass)[place])
        if times_held:
            raise ValueError(f"{times_held} of the slices combined held the label of row {row}: they overlap")
        raise IndexError(
            f"none of the slices combined held the label of row {row}: it is out of range for their "
            f"{self.classes} classes, or a class_start was wrong"
        )

    @property
    def weight(self) -> Array:
        """Each row's ``s``, 0 where it does not count; None where all count as 1."""
        weight, ignored = self.arrays.get("sample_weight"), self.arrays.get("ignored")
        return weight if ignored is None else np.where(ignored, 0.0, 1.0 if weight is None else weight)

    def denominator(self) -> Array:
        """What a mean divides by: ``Σ s·w_y`` for labels, ``Σ s`` else."""
        weight = self.weight
        if "label_weight" in self.arrays:
            weight = times(weight, self.arrays["label_weight"])
        return float(math.prod(self.some.shape)) if weight is None else np.sum(weight)

    @property
    def of_logits(self) -> bool:
        return "max" in self.arrays

    def lse(self) -> Array:
        """Logsumexp of the transformed logits, float64."""
        m = self.arrays["max"]
        return np.where(np.isinf(m), m, m / self.setting.temperature + get(self.arrays, "log_Z"))

    def undefined(self) -> Array:
        """Rows without a softmax: a NaN in them, or a largest logit that is infinite."""
        return ~np.isfinite(self.arrays["max"]) if self.of_logits else np.zeros_like(self.some, dtype=bool)

    def loss(self) -> Array:
        """``ℓ`` of each row, weighted."""
        s, arrays = self.setting, self.arrays
        loss: Array = 0.0
        if s.quantity in arrays:
            undefined = self.undefined()
            if "q_max" in arrays:
                undefined = undefined | ~np.isfinite(arrays["q_max"])
            loss = np.where(undefined, np.nan, s.unit * get(arrays, s.quantity))
        else:
            eps = s.label_smoothing
            if eps < 1.0:
                loss = (1.0 - eps) * self._target_loss()
            if eps > 0.0:
                loss = loss + eps * _merge.SURPRISES / self.classes * get(arrays, "surprises")
            loss = s.unit * loss
            if self.of_logits:
                m = arrays["max"]
                if s.z_loss:
                    loss = loss + s.z_loss * self.lse() ** 2
                loss = np.where(np.isnan(m) | (m == -np.inf), np.nan, loss)
            if s.target == "labels":
                loss = np.where((arrays["mass"] == 1.0), loss, np.nan)
        weight = self.weight
        return loss if weight is None else np.where(weight == 0, 0.0, weight * loss)

    def _target_loss(self) -> Array:
        """``w_y·(lse - z_y)``, or ``Σ w·q·(lse - z)``: the target's part of the loss."""
        surprise, weight = get(self.arrays, "surprise"), self.arrays.get("label_weight")
        if weight is None:
            return surprise
        # A label of weight 0 is left out, infinite or not; of other forms than logits, a NaN stays.
        return np.where(weight == 0, 0.0, weight * surprise) if self.of_logits else times(weight, surprise)

    def result(self, name: str) -> Array:
        """A result of the rows, by its name in `score`."""
        if name == "loss":
            return self._rounded(self.loss())
        arrays, m = self.arrays, self.arrays["max"]
        if name in NEEDS_LABELS:
            ignored = arrays["ignored"] | np.isnan(m)
            if name == "rank":
                return np.where(ignored, -1, arrays["above"])
            return self._rounded(np.where(ignored | (m == -np.inf), np.nan, -get(arrays, "surprise")))
        if name == "argmax":
            return np.where(np.isnan(m), -1, arrays["argmax"])
        if name == "lse":
            return self._rounded(self.lse())
        value = self.setting.unit * get(arrays, "entropy") if name == "entropy" else np.exp(-get(arrays, "log_Z"))
        return self._rounded(np.where(self.undefined(), np.nan, value))


@_guests.untraced
def partial(
    x: Any,
    target: Any = None,
    *,
    class_start: int = 0,
    quantity: str | None = None,
    outputs: Sequence[str] | str | None = None,
    form: Form | None = None,
    p_form: Form | None = None,
    q_form: Form | None = None,
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    base: float | None = None,
    target_logit: Any = None,
    precise: bool = False,
) -> Partial:
    """Statistics of rows from a slice of their classes, to be merged with those of the other slices.

    Parameters
    ----------
    x : array_like, shape (..., c)
        Classes ``class_start … class_start + c - 1`` of each row.
    target : array_like, optional
        Labels of the batch shape, counted over all classes (a slice need not hold them), or the same slice of
        target distributions; for ``"kl_divergence"`` the same slice of Q.
    class_start : int, default 0
        The class that the slice begins with.
    quantity : {"cross_entropy", "entropy", "kl_divergence", "score"}, optional
        What the statistics are for: ``"cross_entropy"`` by default where a target is given, else ``"score"``. JS
        needs both softmaxes before its first term and cannot be merged from one read.
    outputs : sequence of str, optional
        For ``"score"``, as in `score`, but for ``grad`` and ``hess`` (see `Partial.gradient`).
    form, p_form, q_form : {"logits", "log_probs", "probs"}
        How the slices are given: `form` for cross-entropy (``"logits"`` by default) and entropy (``"probs"``), the
        others for KL (``"probs"``).
    class_weight : array_like, shape (c,), optional
        The weights of the slice's classes.
    axis, sample_weight, label_smoothing, ignore_index, temperature, softcap, z_loss, base
        As in `cross_entropy`; the same for all slices.
    target_logit : array_like, batch shape, optional
        The label's logit of each row, which ``rank`` needs: most slices do not hold it.
    precise : bool, default False
        Compute in float64 also for 16- and 32-bit slices. For `Partial.gradient`, which with a target distribution,
        smoothing, a softcap or a z-loss is a difference of numbers that can be nearly equal.

    Returns
    -------
    Partial

    Raises
    ------
    TypeError, ValueError
        If an argument has a type, dtype, shape or value that is not allowed.

    Notes
    -----
    A slice's ``(m, log Z)`` says all about its softmax that others need: joined with another, its logsumexp rises by
    ``softplus(lse_other - lse_own)``, a loss by as much, and an entropy by the chain rule. The results keep the
    accuracy of the whole-row functions, for any split and order; KL, merged from one read, is within
    ``8·eps·Σ p·(|a - m_a| + |b - m_b|)``.

    Examples
    --------
    >>> import numpy as np
    >>> import entrokern as ek
    >>> x, y = np.array([[2.0, 0.0, -1.0, 0.5]]), np.array([3])
    >>> left = ek.partial(x[:, :2], y, class_start=0)
    >>> right = ek.partial(x[:, 2:], y, class_start=2)
    >>> ek.combine(left, right).finish(k=4)
    array([1.84234958])
    """
    x, target, class_weight, sample_weight, target_logit = map(
        _guests.unwrapped, (x, target, class_weight, sample_weight, target_logit)
    )
    given = {"x": x, "target": target, "class_weight": class_weight, "sample_weight": sample_weight}
    if _guests.guest_of(given.values()) == "dask":
        raise TypeError(
            "partial takes a slice that is there, and a Dask array came; pass cross_entropy the whole of it"
        )
    library_of(**given, target_logit=target_logit)
    if quantity is None:
        quantity = "score" if target is None else "cross_entropy"
    if quantity == "js_divergence":
        raise ValueError(
            "quantity='js_divergence' needs both softmaxes of the whole rows before its first term, so that slices "
            "cannot be merged from one read; call js_divergence on whole rows"
        )
    _options.choice("quantity", quantity, QUANTITIES)
    class_start = _options.index("class_start", class_start)
    if class_start < 0:
        raise ValueError(f"class_start={class_start} is out of range; it must be 0 or greater")
    if class_start >= 2**62:
        raise ValueError(f"class_start={class_start} is out of range; no row has so many classes")
    of_two = quantity == "kl_divergence"
    _refuse(quantity, **({"form": (form, None)} if of_two else {"p_form": (p_form, None), "q_form": (q_form, None)}))
    names: tuple[str, ...] = ()
    with _device.device_of(x, "x") if _device.is_device_array(x) else nullcontext():
        if quantity in ("cross_entropy", "score"):
            _, _, call = losses.cross_entropy_call(
                x, target, form or "logits", axis, class_weight, sample_weight, label_smoothing, ignore_index,
                temperature, softcap, z_loss, base, False, quantity,
            )  # fmt: skip
            if quantity == "score":
                names = _score_outputs(call, outputs)
            elif target is None:
                raise ValueError("quantity='cross_entropy' needs a target; pass labels or the slice's distributions")
            elif outputs is not None:
                raise ValueError(f"outputs={outputs!r} are those of quantity='score'; leave them out or pass that")
        else:
            _refuse(
                quantity, class_weight=(class_weight, None), label_smoothing=(label_smoothing, 0.0),
                ignore_index=(ignore_index, None), softcap=(softcap, None), z_loss=(z_loss, 0.0),
                outputs=(outputs, None), temperature=(temperature if quantity == "entropy" else 1.0, 1.0),
            )  # fmt: skip
            call = _call_of_distributions(
                quantity, x, target, form, p_form, q_form, axis, sample_weight, temperature, base
            )
        precise = _options.flag("precise", precise)
        if ("rank" in names) != (target_logit is not None):
            raise ValueError(
                "output 'rank' needs target_logit, each row's logit of its label: most slices do not hold it"
                if target_logit is None
                else "target_logit is for the output 'rank' of quantity='score'; leave it out"
            )
        return of_slice(call, class_start, names, target_logit, precise)


def of_slice(call: Call, class_start: int, names: tuple[str, ...], target_logit: Any, precise: bool) -> Partial:
    """The `Partial` of a checked call on a slice."""
    call.class_weight = _arrays.in_float64(call.class_weight)
    with np.errstate(all="ignore"):
        return holding(call, _slices.statistics(call, class_start, names, target_logit, precise), names)


def holding(call: Call, arrays: Statistics, names: tuple[str, ...] = ()) -> Partial:
    """A `Partial` with the options of `call` and these statistics."""
    operands = {"x": call.x} if call.quantity not in DIVERGENCES else {"p": call.x, "q": call.y}
    setting = Setting(
        call.quantity, call.form, call.y_form if len(operands) > 1 else _kind_of_target(call), names,
        _arrays.row_dtype(_arrays.common_dtype(**operands)).name, call.temperature, call.softcap, call.label_smoothing,
        call.z_loss, call.unit, call.ignore_index, call.class_weight is not None,
    )  # fmt: skip
    class_mass = float(call.k) if call.class_weight is None else float(call.class_weight.sum())
    return Partial(setting, call.k, class_mass, arrays)


def _refuse(quantity: str, **options: tuple[Any, Any]) -> None:
    for name, (value, default) in options.items():
        if value is not default and value != default:
            raise ValueError(f"{name} does not apply to quantity={quantity!r}; leave it out")


def _kind_of_target(call: Call) -> str:
    return "labels" if call.labels is not None else "none" if call.y is None else "distribution"


def _score_outputs(call: Call, outputs: Sequence[str] | str | None) -> tuple[str, ...]:
    names = output_names(
        outputs, targeted=call.labels is not None or call.y is not None, labelled=call.labels is not None
    )
    for name in MAPS:
        if name in names:
            raise ValueError(
                f"output {name!r} is no statistic of a slice; ask for Partial.gradient once all are merged"
            )
    return tuple(names)


def _call_of_distributions(
    quantity: str, x: Any, target: Any, form: Any, p_form: Any, q_form: Any, axis: int, sample_weight: Any,
    temperature: float, base: float | None,
) -> Call:  # fmt: skip
    """The call of an entropy or a KL divergence, checked by the function that it is of."""
    common: dict[str, Any] = {"axis": axis, "sample_weight": sample_weight, "base": base, "reduction": "none"}
    job: Any
    if quantity == "entropy":
        if target is not None:
            raise ValueError("quantity='entropy' takes no target; leave it out")
        job = unwrap(entropies.entropy)(x, form=form or "probs", **common)
    else:
        if target is None:
            raise ValueError("quantity='kl_divergence' needs the same slice of Q as its second argument")
        forms: dict[str, Any] = {"p_form": p_form or "probs", "q_form": q_form or "probs"}
        job = unwrap(divergences.kl_divergence)(x, target, temperature=temperature, **forms, **common)
    call: Call = job.call
    return call


@_guests.untraced
def combine(first: Partial, *others: Partial) -> Partial:
    """One `Partial` of all the classes that several have seen, in any order and grouping.

    Parameters
    ----------
    first, *others : Partial
        Of the same rows, made with the same options from slices that do not overlap.

    Returns
    -------
    Partial

    Raises
    ------
    TypeError, ValueError
        If one is no `Partial`, or was made of other rows or with other options.

    Examples
    --------
    >>> import entrokern as ek
    >>> slices = [ek.partial([[0.0, 0.0]], class_start=c) for c in (0, 2, 4)]
    >>> print(ek.combine(*slices).finish(k=6).lse.round(4))
    [1.7918]
    """
    parts = [first, *others]
    for part in parts:
        if not isinstance(part, Partial):
            raise TypeError(f"combine takes Partials, and a {type(part).__name__} came; make one with partial(...)")
        _refuse_others(first, part)
    with first._on_device(), np.errstate(all="ignore"):
        while len(parts) > 1:  # in pairs: each statistic goes through few merges
            pairs = [_combined(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = pairs + parts[2 * len(pairs) :]
    return parts[0]


def _refuse_others(first: Partial, other: Partial) -> None:
    for field in fields(Setting):
        one, two = getattr(first.setting, field.name), getattr(other.setting, field.name)
        if one != two:
            raise ValueError(
                f"partials of different {field.name}: {one!r} and {two!r}; give all slices the same options"
            )
    a, b = first.some, other.some
    if _device.is_device_array(a) != _device.is_device_array(b):
        raise TypeError("partials of host and device arrays; bring them to one place")
    if a.shape != b.shape:
        raise ValueError(f"partials of different rows: batch shapes {a.shape} and {b.shape}")
    if first.arrays.keys() != other.arrays.keys():
        only = sorted(first.arrays.keys() ^ other.arrays.keys())
        raise ValueError(f"partials of different options: only one has {', '.join(only)}")
    weight: Array = first.arrays.get("sample_weight")
    on_host = weight is not None and not _device.is_device_array(weight)
    if on_host and not np.array_equal(weight, other.arrays["sample_weight"], equal_nan=True):
        raise ValueError("partials of different sample_weight; give all the same: they are the rows'")


def _combined(a: Partial, b: Partial) -> Partial:
    s = a.setting
    merged = _merge.merged(a.arrays, b.arrays, s.temperature, a.class_mass, b.class_mass)
    return Partial(s, a.classes + b.classes, a.class_mass + b.class_mass, merged)
