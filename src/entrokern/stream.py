"""Statistics of rows over a stream of blocks."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import array_api_compat as compat
import numpy as np

from . import _arrays, _device, _guests, _options, divergences, entropies, losses
from ._arrays import Array
from ._call import Call, can_be, check_targets, raise_empty
from ._dispatch import library_of
from ._tally import Rows, Tally, exponential
from .score import score

Nonfinite: TypeAlias = Literal["apart", "keep", "raise"]

QUANTITIES: dict[str, Callable[..., Any]] = {
    "cross_entropy": losses.cross_entropy,
    "binary_cross_entropy": losses.binary_cross_entropy,
    "entropy": entropies.entropy,
    "kl_divergence": divergences.kl_divergence,
    "js_divergence": divergences.js_divergence,
}
NONFINITE = ("apart", "keep", "raise")
FRACTIONS = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# Options of the functions that a stream has no use for; weights of rows come with the rows.
NOT_OF_A_STREAM = {"reduction", "return_grad", "return_hess", "out", "grad_out", "hess_out", "sample_weight"}


@dataclass(frozen=True, slots=True, eq=False)
class StreamSummary:
    """What an `Accumulator` found; ``None`` where a number is not known, NaN where nothing counts.

    Of each row there is a *value* ``v``, what the function of that name gives with ``reduction="none"`` and without
    sample weights, a sample weight ``s`` (1) and, in cross-entropy with labels, a class weight ``w`` (1).

    Attributes
    ----------
    quantity : str
        The name of the function.
    rows, ignored, nan_rows, inf_rows : int
        All rows of the stream; those that do not count, being ignored or of weight 0; of those that count, how many
        have a value that is NaN or infinite.
    count : int
        Rows that `weight` … `max`, `quantiles` and `class_mean` are of: those that count, without `nan_rows` and
        `inf_rows` unless ``nonfinite="keep"``.
    weight, sum, mean : float
        ``Σ s·w``, ``Σ s·v`` and their ratio: ``reduction="mean"`` of the whole stream.
    variance, std : float
        ``Σ s·(v - v̄)² / Σ s`` with ``v̄ = Σ s·v / Σ s``, which is `mean` but for class weights: the variance of the
        rows at hand, as `numpy.var` has it. And its square root.
    min, max : float
        Of the values ``v``.
    quantiles : dict of float to float
        Of the values ``v``, by fraction (0.05, 0.25, 0.5, 0.75, 0.95, 0.99): the value of the lowest fitting rank,
        as `numpy.quantile` with ``method="inverted_cdf"``. Every row counts once, whatever its weight.
    quantiles_exact : bool
        Whether they are exact, as up to 65536 rows; otherwise they are within 0.1 % of the value,
        or at the end of float32's range for values beyond it.
    perplexity : float, optional
        Of cross-entropy without a z-loss: ``exp`` of the mean in nats.
    accuracy, top5 : float, optional
        Of labelled rows that count, NaN and infinite ones too: the share whose label is the argmax, and whose label
        has fewer than five classes with a strictly larger logit. A row of value NaN is wrong.
    class_count, class_mean : ndarray of shape (k,), optional
        With ``per_class=True``: how many rows have the label, and `mean` of those alone.
    """

    quantity: str
    rows: int
    count: int
    ignored: int
    nan_rows: int
    inf_rows: int
    weight: float
    sum: float
    mean: float
    variance: float
    std: float
    min: float
    max: float
    quantiles: dict[float, float]
    quantiles_exact: bool
    perplexity: float | None = None
    accuracy: float | None = None
    top5: float | None = None
    class_count: Array | None = None
    class_mean: Array | None = None


class Accumulator:
    """Statistics of the rows of a stream, taken in block by block in bounded memory.

    Parameters
    ----------
    quantity : {"cross_entropy", "binary_cross_entropy", "entropy", "kl_divergence", "js_divergence"}
        The function that gives each row its value.
    nonfinite : {"apart", "keep", "raise"}
        What to make of rows whose value is NaN or infinite. ``"apart"`` counts them and leaves them out of all sums
        and quantiles; ``"keep"`` takes them as arithmetic does, so that one NaN makes the mean NaN; ``"raise"``
        refuses the block.
    per_class : bool, default False
        Also the mean of each class (cross-entropy with labels; all blocks must have the same ``k``).
    **options
        Those of the function but `reduction`, `sample_weight`, `return_grad` and the like, and outputs.

    Raises
    ------
    TypeError, ValueError
        If an option is not one of the function, or has a type or value that is not allowed.

    Notes
    -----
    An accumulator pickles, and two of them with the same options merge (``a.merge(b)`` changes `a`, ``a + b`` does
    not): split a stream over processes as you like. Counts and quantiles do not depend on how, sums and variance
    only by rounding: sums are carried in twice the precision of float64 (those per class, between blocks). It is not
    for two threads at a time: give each its own.

    Examples
    --------
    >>> import numpy as np, entrokern as ek
    >>> logits, labels = np.eye(4) * 3, np.array([0, 1, 2, 0])
    >>> total = ek.Accumulator("cross_entropy")
    >>> for rows in (slice(0, 3), slice(3, 4)):
    ...     _ = total.update(logits[rows], labels[rows])
    >>> found = total.compute()
    >>> found.count, found.accuracy, round(found.mean, 6), round(found.max, 6)
    (4, 0.75, 0.889206, 3.139206)
    """

    def __init__(
        self,
        quantity: str = "cross_entropy",
        *,
        nonfinite: Nonfinite = "apart",
        per_class: bool = False,
        **options: Any,
    ) -> None:
        self.quantity: str = _options.choice("quantity", quantity, tuple(QUANTITIES))
        self.nonfinite: str = _options.choice("nonfinite", nonfinite, NONFINITE)
        self.per_class = _options.flag("per_class", per_class)
        if self.per_class and quantity != "cross_entropy":
            raise ValueError(f"per_class=True needs labels, which {quantity} has not; leave it out")
        self.options = _checked(quantity, {name: _guests.unwrapped(value) for name, value in options.items()})
        self._tally = Tally()

    def update(self, x: Any, target: Any = None, sample_weight: Any = None) -> Accumulator:
        """Take the rows of a block; from arrays on a GPU, their values are waited for.

        Parameters
        ----------
        x : array_like, shape (..., k)
            What the function takes first: predictions, or the distributions `p`.
        target : array_like, optional
            What it takes second: labels, targets, or the distributions `q`. Entropy has none.
        sample_weight : array_like, optional
            Weight of each row, finite and not negative, of the shape that the function takes.

        Returns
        -------
        Accumulator
            Itself.

        Raises
        ------
        IndexError, TypeError, ValueError
            As the function; a ``ValueError`` also for sample weights that are negative or not finite, and with
            ``nonfinite="raise"`` for a row that is NaN or infinite. The accumulator is then as it was.
        """
        try:
            self._tally.merge(self._block(x, target, sample_weight))
        except Exception as error:
            error.add_note(f"(in a block that begins at row {self._tally.rows} of the stream; no row of it was taken)")
            raise
        return self

    def merge(self, other: Accumulator) -> Accumulator:
        """Take the rows that `other` has seen.

        Parameters
        ----------
        other : Accumulator
            Of the same quantity and options. It stays as it is.

        Returns
        -------
        Accumulator
            Itself.

        Raises
        ------
        TypeError, ValueError
            If `other` is no accumulator, or differs in an option.
        """
        if not isinstance(other, Accumulator):
            raise TypeError(f"a {type(other).__name__} does not merge with an Accumulator; pass one")
        mine, theirs = self._settings(), other._settings()
        for name in mine | theirs:
            a, b = mine.get(name), theirs.get(name)
            if not np.array_equal(np.asarray(a), np.asarray(b)):
                raise ValueError(
                    f"accumulators of {name}={a!r} and {name}={b!r} do not merge; make both with the same options"
                )
        self._tally.merge(other._tally)
        return self

    def __add__(self, other: Accumulator) -> Accumulator:
        if not isinstance(other, Accumulator):
            return NotImplemented
        return copy.copy(self).merge(other)

    def __copy__(self) -> Accumulator:
        """One that goes its own way: a shallow copy would share the rows."""
        return copy.deepcopy(self)

    def reset(self) -> None:
        """Forget every row."""
        self._tally = Tally()

    def quantile(self, fraction: float) -> float:
        """The quantile of the values at `fraction`, as in `StreamSummary.quantiles`.

        Parameters
        ----------
        fraction : float
            In [0, 1].

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            If `fraction` is no number in [0, 1].
        """
        return self._quantiles_at((_options.fraction("fraction", fraction),))[0]

    def compute(self) -> StreamSummary:
        """What is known of all rows so far; more may follow.

        Returns
        -------
        StreamSummary
            A frozen record.

        Raises
        ------
        ValueError
            If no row counts and the options say ``on_empty="raise"``.
        """
        tally, keep = self._tally, self.nonfinite == "keep"
        taken = tally.sums.taken(keep)
        weight, mean, variance = float(taken.weight.high), tally.mean(keep), tally.variance(keep)
        if weight == 0 and self.options.get("on_empty") == "raise":
            raise_empty()
        if weight == 0 and self.options.get("on_empty") == "zero":
            mean = 0.0
        low, high, *quantiles = self._quantiles_at((0.0, 1.0, *FRACTIONS))
        hits, classes = tally.hits, tally.classes.taken(keep) if tally.classes else None
        has_perplexity = self.quantity == "cross_entropy" and self.options["z_loss"] == 0
        return StreamSummary(
            quantity=self.quantity,
            rows=tally.rows,
            count=taken.count,
            ignored=tally.rows - tally.counted,
            nan_rows=tally.nan_rows,
            inf_rows=tally.below + tally.above,
            weight=weight,
            sum=float(taken.total.high),
            mean=mean,
            variance=variance,
            std=math.sqrt(variance),
            min=low,
            max=high,
            quantiles=dict(zip(FRACTIONS, quantiles, strict=True)),
            quantiles_exact=tally.quantiles.exact,
            perplexity=exponential(mean, self.options["base"]) if has_perplexity else None,
            accuracy=hits.accuracy if hits else None,
            top5=hits.top_accuracy if hits else None,
            class_count=classes.count.copy() if classes else None,
            class_mean=classes.mean if classes else None,
        )

    def _quantiles_at(self, fractions: tuple[float, ...]) -> list[float]:
        keep = self.nonfinite == "keep"
        if keep and self._tally.nan_rows:
            return [math.nan] * len(fractions)
        return self._tally.quantiles_at(fractions, keep)

    def _settings(self) -> dict[str, Any]:
        return {
            "quantity": self.quantity,
            "nonfinite": self.nonfinite,
            "per_class": self.per_class,
            **self.options,
        }

    def _block(self, x: Any, target: Any, sample_weight: Any) -> Tally:
        """The tally of a block."""
        x, target, sample_weight = map(_guests.unwrapped, (x, target, sample_weight))
        for name, value in {"x": x, "target": target, "sample_weight": sample_weight}.items():
            if compat.is_dask_array(value):
                raise TypeError(
                    f"{name} is a Dask array, which is lazy; pass its blocks one by one, each .compute()d, "
                    f"or call entrokern.{self.quantity} on the whole"
                )
        needed = self.quantity != "entropy"
        if needed != (target is not None):
            raise ValueError(
                f"{self.quantity} takes {'a second array: pass target' if needed else 'one array: leave target out'}"
            )
        library_of(x=x, target=target, sample_weight=sample_weight)
        x = _arrays.as_floating("x", x)
        options = {name: _beside(x, value) for name, value in self.options.items()}
        n_classes = 0
        if self.quantity == "cross_entropy":
            columns = _cross_entropy(x, target, options)
            n_classes = x.shape[options["axis"]] if self.per_class else 0
            if self.per_class and columns.get("labels") is None:
                raise ValueError("per_class=True needs labels, and target is a distribution; leave per_class out")
        else:
            operands = (x, target) if needed else (x,)
            columns = {"values": QUANTITIES[self.quantity](*operands, reduction="none", **options)}
        shape = columns["values"].shape
        rows = Rows(**{name: _on_host(column).reshape(-1) for name, column in columns.items()})
        counts = self._counts(rows.labels, target)
        if sample_weight is not None:
            elementwise = self.quantity == "binary_cross_entropy" and options["axis"] is None
            scale = _sample_weights(sample_weight, shape, elementwise)
            rows = rows._replace(scale=scale)
            counts = scale > 0 if counts is None else counts & (scale > 0)
        rows = rows._replace(weight=self._denominators(rows, counts))
        block = Tally.of(rows, counts, n_classes)
        if self.nonfinite == "raise" and block.sums.apart.count:
            bad = ~np.isfinite(rows.values) if counts is None else ~np.isfinite(rows.values) & counts
            at = int(bad.argmax())
            raise ValueError(
                f"row {self._tally.rows + at} of the stream has {self.quantity} {rows.values[at]}; "
                "pass nonfinite='apart' to count such rows apart, or 'keep'"
            )
        return block

    def _counts(self, labels: Array | None, target: Any) -> Array | None:
        """Which rows are not ignored; ``None``: all."""
        ignored = self.options.get("ignore_index")
        if ignored is None:
            return None
        if labels is not None:
            counts: Array = labels != ignored
            return counts
        target = _arrays.as_real("target", target, bools=True)
        if target.dtype.kind in "biu" and not can_be(target.dtype, ignored):
            return None
        kept = target != ignored
        axis = self.options["axis"]  # a row of several elements is ignored where all of them are
        counts = _on_host(kept if axis is None else kept.any(axis=axis)).reshape(-1)
        return counts

    def _denominators(self, rows: Rows, counts: Array | None) -> Array | None:
        """What each row adds to the denominator of the mean; ``None``: its sample weight."""
        weights = self.options.get("class_weight")
        if rows.labels is None or weights is None:
            return None
        classes = rows.labels.astype(np.int64)  # of which one that is ignored is no class
        each: Array = weights[classes if counts is None else np.where(counts, classes, 0)]
        return each if rows.scale is None else each * rows.scale


def _checked(quantity: str, given: dict[str, Any]) -> dict[str, Any]:
    """All options of the function, those given and the defaults; checked by a call of one row that is not run."""
    function = inspect.unwrap(QUANTITIES[quantity])
    signature = inspect.signature(function).parameters.values()
    options = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY and p.name not in NOT_OF_A_STREAM}
    for name in given:
        if name not in options:
            why = ": weights come with the rows, in update" if name == "sample_weight" else ""
            raise TypeError(f"an Accumulator of {quantity} takes no {name}{why}; options are {', '.join(options)}")
    options |= given
    _options.flag("validate", options["validate"])
    if options["axis"] is not None:
        options["axis"] = _options.index("axis", options["axis"])
    shape: tuple[int, ...] = (1, 2)
    for name in ("class_weight", "pos_weight"):
        if options.get(name) is not None:
            weights = _on_host(_arrays.as_real(name, options[name])).astype(np.float64)
            options[name] = weights
            shape = (1, weights.size) if name == "class_weight" else weights.shape
    row = np.zeros(shape)
    targets = {"cross_entropy": (np.zeros(1, int),), "entropy": ()}.get(quantity, (row,))
    axis = None if quantity == "binary_cross_entropy" else -1
    function(row, *targets, **options | {"axis": axis, "validate": False})
    return options


def _cross_entropy(x: Array, target: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The columns of a block: from logits in one read of them."""
    axis = _arrays.class_axis(x, options["axis"])
    labels, _ = _arrays.split_target(x, axis, target)
    order = () if labels is None else ("argmax", "rank")
    of_logits = {name: value for name, value in options.items() if name != "form"}
    if options["form"] == "logits":
        record = score(x, target, outputs=("loss", *order), **of_logits)
        values = record.loss
    else:
        values = losses.cross_entropy(x, target, reduction="none", **options)
        # Only the order of the classes matters to these, and that is the same in every form.
        record = score(x, target, outputs=order, axis=axis, ignore_index=options["ignore_index"])
    columns = {"values": values} | {name: getattr(record, name) for name in order}
    if labels is None:
        return columns
    if _device.is_device_array(x):  # where a label out of range has gone unseen
        labels = _on_host(labels)
        like = np.broadcast_to(np.float32(0), (*labels.shape, x.shape[axis]))
        check_targets(Call("cross_entropy", like, labels=labels, ignore_index=options["ignore_index"]))
    return columns | {"labels": labels}


def _sample_weights(given: Any, shape: tuple[int, ...], elementwise: bool) -> Array:
    """Weights of rows as float64 on the host, 1-d."""
    weights: Any = _on_host(_arrays.as_real("sample_weight", given)).astype(np.float64)
    if elementwise:
        weights = _arrays.broadcast_against("sample_weight", weights, shape)
    else:
        weights = _arrays.sample_weights(weights, shape)
    flat: Array = weights.reshape(-1)
    bad = ~(np.isfinite(flat) & (flat >= 0))
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(f"sample_weight of row {at} is {flat[at]}; weights must be finite and 0 or greater")
    return flat


def _beside(x: Array, value: Any) -> Any:
    """An option that is an array, where `x` lies."""
    if type(value) is not np.ndarray or not _device.is_device_array(x):
        return value
    moved = _device.empty(value.shape, value.dtype, x)
    moved.set(value)
    return moved


def _on_host(array: Any) -> Array:
    host: Array = array.get() if _device.is_device_array(array) else np.asarray(array)
    return host
