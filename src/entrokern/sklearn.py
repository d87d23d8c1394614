"""scikit-learn: its log loss, a scorer, and the losses that its estimators train with, on the kernels of this library.

>>> from entrokern.sklearn import log_loss
>>> round(log_loss(["spam", "ham", "ham", "spam"], [[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]]), 5)
0.21616
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import sklearn.metrics
from sklearn._loss import loss as _loss
from sklearn.metrics import make_scorer
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_array, check_consistent_length, column_or_1d
from sklearn.utils.validation import _check_sample_weight

from . import _options, _threads
from ._arrays import Array
from ._trainers import BLOCK, Rows, class_labels, over_blocks
from .entropies import information
from .losses import binary_cross_entropy, cross_entropy
from .primitives import softmax

__all__ = ["HalfBinomialLoss", "HalfMultinomialLoss", "log_loss", "neg_log_loss_scorer"]

RENAMED = "y_proba" in inspect.signature(sklearn.metrics.log_loss).parameters  # `y_pred` until scikit-learn 1.9


def log_loss(
    y_true: Any,
    y_proba: Any = None,
    *,
    normalize: bool = True,
    sample_weight: Any = None,
    labels: Any = None,
    y_pred: Any = "deprecated",
) -> float:
    """`sklearn.metrics.log_loss`: the cross-entropy of probabilities with labels, in nats.

    The results, warnings and errors are scikit-learn's; one-hot tables are not made. Unlike anything else in
    this library, and as there, probabilities are clipped: to ``[eps, 1 - eps]`` with the eps of their dtype.

    Parameters
    ----------
    y_true : array_like, shape (n,), or label indicator matrix, shape (n, k)
        The classes: integers, strings or any that can be sorted.
    y_proba : array_like, shape (n, k) or (n,)
        Probabilities of the sorted classes, float64, float32 or float16 (else converted to float64); of one
        dimension, those of the second of two classes.
    normalize : bool, default True
        The mean over the rows, ``Σ sℓ / Σ s``, instead of the sum ``Σ sℓ``.
    sample_weight : array_like, shape (n,), optional
        Weight ``s`` of each row.
    labels : array_like, shape (k,), optional
        The classes, where `y_true` need not hold all of them.
    y_pred : array_like
        The former name of `y_proba`; since scikit-learn 1.9 with a ``FutureWarning``.

    Returns
    -------
    float
        ``ℓ = -log p_y``, averaged or summed in float64.

    Raises
    ------
    ValueError
        Probabilities outside [0, 1], NaN or infinite; inconsistent lengths; labels that are not in `labels`, or
        of less than two classes, or of another number of classes than `y_proba` has.

    Warns
    -----
    UserWarning
        Rows that do not sum to 1 (within ``√eps``); `labels` that are not sorted.

    Examples
    --------
    >>> from entrokern.sklearn import log_loss
    >>> round(log_loss([0, 1, 1], [0.1, 0.8, 0.5]), 4)
    0.3406
    """
    normalize = _options.flag("normalize", normalize)
    p = check_array(_probabilities(y_proba, y_pred), ensure_2d=False, dtype=[np.float64, np.float32, np.float16])
    lowest, highest, sums_to_one = _range_and_sums(p)
    if highest > 1:
        raise ValueError(f"y_prob contains values greater than 1: {highest}")
    if lowest < 0:
        raise ValueError(f"y_prob contains values lower than 0: {lowest}")
    check_consistent_length(p, y_true, sample_weight)
    weight = None if sample_weight is None else _check_sample_weight(sample_weight, p, dtype=np.float64)
    classes, targets = _classes_and_targets(y_true, labels)
    if not sums_to_one:
        warnings.warn(
            "The y_prob values do not sum to one. Make sure to pass probabilities.", UserWarning, stacklevel=2
        )
    binary = p.ndim == 1 or p.shape[1] == 1
    k = 2 if binary else p.shape[1]
    if len(classes) != k:
        if labels is None:
            raise ValueError(
                f"y_true and y_prob contain different number of classes: {len(classes)} vs {k}. Please provide the "
                f"true labels explicitly through the labels argument. Classes found in y_true: {classes}"
            )
        raise ValueError(
            f"The number of classes in labels is different from that in y_prob. Classes found in labels: {classes}"
        )
    losses = _losses(p, targets, binary)
    if normalize:
        return float(np.average(losses, weights=weight))
    return float(losses.sum() if weight is None else weight @ losses)


def _probabilities(y_proba: Any, y_pred: Any) -> Any:
    if isinstance(y_pred, str) and y_pred == "deprecated":
        return y_proba
    if y_proba is not None:
        raise ValueError("Cannot use both `y_pred` and `y_proba`. `y_pred` is deprecated, use `y_proba` instead.")
    if RENAMED:
        warnings.warn(
            "`y_pred` was renamed to `y_proba` in version 1.9 and will be removed in 1.11. Use `y_proba` instead.",
            FutureWarning,
            stacklevel=3,
        )
    return y_pred


def _range_and_sums(p: Array) -> tuple[float, float, bool]:
    """The smallest and the largest probability, and whether all rows sum to 1, from one read."""
    if p.ndim == 1 or p.shape[1] == 1:  # with 1 - p beside it
        return p.min(), p.max(), True
    lowest, highest, off = np.inf, -np.inf, 0.0
    ones, step = np.ones(p.shape[1], p.dtype), max(1, BLOCK // p.shape[1])
    for start in range(0, len(p), step):
        rows = p[start : start + step]
        lowest, highest = min(lowest, rows.min()), max(highest, rows.max())
        sums = rows @ ones if p.itemsize > 2 else rows.sum(axis=1)
        off = max(off, float(np.abs(sums - 1).max()))
    return lowest, highest, bool(off <= 1e-8 + np.sqrt(np.finfo(p.dtype).eps))


def _classes_and_targets(y_true: Any, labels: Any) -> tuple[Array, Array]:
    """The sorted classes and, in place of a one-hot table, the index of each row's; an indicator matrix as it is."""
    found, y = LabelBinarizer(), np.asarray(y_true)
    if labels is not None:
        classes = found.fit(labels).classes_
        if not np.array_equal(classes, labels):
            warnings.warn(
                f"Labels passed were {labels}. But this function assumes labels are ordered lexicographically. "
                f"Pass the ordered labels={classes.tolist()} and ensure that the columns of y_prob correspond to this "
                "ordering.",
                UserWarning,
                stacklevel=3,
            )
    elif _is_dense(y):
        low = int(y.min())
        classes = (np.flatnonzero(np.bincount(_distance(y, low))) + low).astype(y.dtype)
    else:
        classes = found.fit(y_true).classes_
        if found.y_type_.startswith("multilabel"):
            return classes, found.transform(y_true)
    if labels is None and len(classes) == 1:
        raise ValueError(
            f"y_true contains only one label ({classes[0]}). Please provide the list of all expected class labels "
            "explicitly through the labels argument."
        )
    if len(classes) == 1:
        raise ValueError(f"The labels array needs to contain at least two labels, got {classes}.")
    y = column_or_1d(y)
    at = _positions(y, classes)
    if labels is not None and not np.all(classes[at] == y):
        undeclared = set(y_true) - set(labels)
        raise ValueError(f"y_true contains values {undeclared} not belonging to the passed labels {labels}.")
    return classes, at


def _is_dense(y: Array) -> bool:
    """Whether `y` is a row of integers that a table of all between them is not much longer than."""
    integers = y.ndim == 1 and y.dtype.kind in "iu" and y.dtype != np.uint64 and y.size > 0
    return integers and int(y.max()) - int(y.min()) < max(y.size, 1 << 10)


def _distance(y: Array, low: int) -> Array:
    distance: Array = y.astype(np.int64, copy=False) - low
    return distance


def _positions(y: Array, classes: Array) -> Array:
    """Where each of `y` is in `classes`; some place for what is not there."""
    at: Array
    if _is_dense(y) and classes.dtype.kind in "iu":
        low, high = int(y.min()), int(y.max())
        at = np.searchsorted(classes, np.arange(low, high + 1)).clip(max=len(classes) - 1)[_distance(y, low)]
    else:
        at = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    return at


def _losses(p: Array, targets: Array, binary: bool) -> Array:
    """``-log`` of the clipped probability of each row's class, or its sum over the classes of an indicator's row."""
    eps = float(np.finfo(p.dtype).eps)
    losses: Array
    if targets.ndim == 2:
        p = np.column_stack([1 - p, p]) if binary else p
        losses = cross_entropy(p.clip(eps, 1 - eps), targets, form="probs", reduction="none")
        return losses.astype(np.float64)
    if binary:
        positive = p.reshape(-1).astype(np.float64)
        own = np.where(targets == 1, positive, 1 - positive)
    else:
        own = p[np.arange(len(p)), targets].astype(np.float64, copy=False)
    losses = information(np.clip(own, eps, 1 - eps, out=own), out=own)
    return losses


neg_log_loss_scorer = make_scorer(log_loss, greater_is_better=False, response_method="predict_proba")
"""`log_loss`, negated, of an estimator's ``predict_proba``: for ``scoring=`` of `cross_val_score`, `GridSearchCV` …"""


class HalfBinomialLoss(_loss.HalfBinomialLoss):  # type: ignore[misc]
    """The binary cross-entropy that scikit-learn's estimators train with: ``ℓ = softplus(z) - y·z``.

    The interface, and all but the kernels, is that of ``sklearn._loss.HalfBinomialLoss`` (which, private as it is,
    is the one that `HistGradientBoostingClassifier` takes as its `loss` and `LinearModelLoss` as its `base_loss`).
    `y_true` in [0, 1], `raw_prediction` ``z`` and `sample_weight` have shape ``(n,)``; results are of the dtype of
    the arrays given for them, and computed in that of `raw_prediction`. With ``n_threads=1`` it is computed in the
    calling thread, else by the threads of this library (`set_num_threads`).

    Parameters
    ----------
    sample_weight : array_like, optional
        Accepted as there; the methods take the weights.

    Examples
    --------
    >>> import numpy as np
    >>> from entrokern.sklearn import HalfBinomialLoss
    >>> HalfBinomialLoss().gradient_hessian(np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    (array([ 0.5, -0.5]), array([0.25, 0.25]))
    """

    def __init__(self, sample_weight: Any = None) -> None:
        super().__init__(sample_weight=sample_weight)
        self.closs = _Binomial()


class HalfMultinomialLoss(_loss.HalfMultinomialLoss):  # type: ignore[misc]
    """The cross-entropy that scikit-learn's estimators train with: ``ℓ = lse(z) - z_y``.

    As `HalfBinomialLoss`, with `raw_prediction` of shape ``(n, n_classes)``, in C or Fortran order, and labels
    ``0 … n_classes-1`` (as floats) in `y_true`; an ``IndexError`` names the first that is none. The Hessian is its
    diagonal, ``p·(1-p)``.

    Parameters
    ----------
    sample_weight : array_like, optional
        Accepted as there; the methods take the weights.
    n_classes : int, default 3
        The number of classes.

    Examples
    --------
    >>> import numpy as np
    >>> from entrokern.sklearn import HalfMultinomialLoss
    >>> HalfMultinomialLoss(n_classes=4).gradient(np.array([1.0]), np.zeros((1, 4)))
    array([[ 0.25, -0.75,  0.25,  0.25]])
    """

    def __init__(self, sample_weight: Any = None, n_classes: int = 3) -> None:
        super().__init__(sample_weight=sample_weight, n_classes=n_classes)
        self.closs = _Multinomial()

    def predict_proba(self, raw_prediction: Array) -> Array:
        """``softmax(raw_prediction)``, shape (n, n_classes)."""
        proba: Array = softmax(raw_prediction)
        return proba


class _Binomial:
    """The part of a loss that scikit-learn compiles: array methods that write into arrays of float32 or float64."""

    function: Callable[..., Any] = staticmethod(binary_cross_entropy)

    def loss(
        self, y_true: Array, raw_prediction: Array, sample_weight: Any, loss_out: Array, n_threads: int = 1
    ) -> None:
        self._run(self.function, y_true, raw_prediction, sample_weight, n_threads, out=loss_out)

    def loss_gradient(
        self, y_true: Array, raw_prediction: Array, sample_weight: Any, loss_out: Array, gradient_out: Array,
        n_threads: int = 1,
    ) -> None:  # fmt: skip
        self._run(self.function, y_true, raw_prediction, sample_weight, n_threads, out=loss_out, grad_out=gradient_out)

    def gradient(
        self, y_true: Array, raw_prediction: Array, sample_weight: Any, gradient_out: Array, n_threads: int = 1
    ) -> None:
        self._run(self.function, y_true, raw_prediction, sample_weight, n_threads, grad_out=gradient_out)

    def gradient_hessian(
        self, y_true: Array, raw_prediction: Array, sample_weight: Any, gradient_out: Array, hessian_out: Array,
        n_threads: int = 1,
    ) -> None:  # fmt: skip
        self._run(
            self.function, y_true, raw_prediction, sample_weight, n_threads,
            grad_out=gradient_out, hess_out=hessian_out,
        )  # fmt: skip

    def _run(
        self, function: Callable[..., Any], y_true: Array, raw: Array, weight: Any, n_threads: int, **outputs: Array
    ) -> None:
        """Write what `function` gives into `outputs`, by blocks where it cannot write there itself."""
        reduction = "none" if "out" in outputs else "sum"
        targets = self._targets(y_true, raw)

        def block(rows: Rows) -> None:
            found = {name: np.empty_like(out[rows], raw.dtype) for name, out in outputs.items()}
            s = None if weight is None else weight[rows]
            function(raw[rows], targets[rows], sample_weight=s, reduction=reduction, **found)
            for name, out in outputs.items():
                out[rows] = found[name]

        with _threads_of(n_threads):
            if all(out.dtype == raw.dtype and not np.may_share_memory(out, raw) for out in outputs.values()):
                function(raw, targets, sample_weight=weight, reduction=reduction, **outputs)
            else:
                over_blocks(raw.shape, block)

    def _targets(self, y_true: Array, raw: Array) -> Array:
        return y_true


class _Multinomial(_Binomial):
    function = staticmethod(cross_entropy)

    def gradient_proba(
        self, y_true: Array, raw_prediction: Array, sample_weight: Any, gradient_out: Array, proba_out: Array,
        n_threads: int = 1,
    ) -> None:  # fmt: skip
        self._run(
            _gradient_proba, y_true, raw_prediction, sample_weight, n_threads,
            grad_out=gradient_out, proba_out=proba_out,
        )  # fmt: skip

    def _targets(self, y_true: Array, raw: Array) -> Array:
        return class_labels(y_true, raw.shape[1])


def _gradient_proba(raw: Array, targets: Array, *, proba_out: Array, **options: Any) -> None:
    cross_entropy(raw, targets, **options)
    softmax(raw, out=proba_out)


def _threads_of(n_threads: int) -> AbstractContextManager[None]:
    return _threads.one_thread() if n_threads == 1 else nullcontext()
