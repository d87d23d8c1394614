"""XGBoost and LightGBM: objectives and metrics for their native interfaces and for those of scikit-learn.

One object serves all four, since it looks at what comes::

    xgboost.train({"num_class": k}, data, obj=softmax_objective(hessian="xgboost"), custom_metric=softmax_metric())
    xgboost.XGBClassifier(objective=softmax_objective(), eval_metric=softmax_metric())
    lightgbm.train({"num_class": k, "objective": softmax_objective(hessian="lightgbm")}, data, feval=softmax_metric())
    lightgbm.LGBMClassifier(objective=softmax_objective(), metric="none").fit(x, y, eval_metric=softmax_metric())

Neither library is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from . import _arrays, _options
from ._arrays import Array
from ._trainers import Rows, class_labels, over_blocks
from .losses import binary_cross_entropy, cross_entropy

__all__ = ["logistic_metric", "logistic_objective", "softmax_metric", "softmax_objective"]

HESSIANS = ("exact", "xgboost", "lightgbm")
FORMS = ("logits", "probs")
LEAST = {"exact": 0.0, "xgboost": 1e-16, "lightgbm": 0.0}  # that a Hessian is

Objective = Callable[..., tuple[Array, Array]]
Metric = Callable[..., Any]


def softmax_objective(*, hessian: str = "exact") -> Objective:
    """The multi-class objective: gradient and Hessian of ``-log softmax(x)_y`` by the margins.

    Parameters
    ----------
    hessian : {"exact", "xgboost", "lightgbm"}
        The diagonal ``h = p·(1-p)``, ``max(2·h, 1e-16)`` as XGBoost's ``multi:softprob`` has it, or
        ``k/(k-1)·h`` as LightGBM's ``multiclass``.

    Returns
    -------
    callable
        ``objective(predictions, data)``, with a `DMatrix` or `Dataset`, or ``objective(y_true, predictions,
        sample_weight=None)``; predictions are margins of shape ``(n, k)``, labels are ``0 … k-1``. It gives
        ``(gradient, hessian)`` of the shape, dtype and memory order of the predictions; weights are multiplied in.
        It can be pickled.

    Raises
    ------
    ValueError
        Another `hessian`. When called: margins not of shape ``(n, k)`` with at least two classes.
    IndexError
        When called: a label that is no class.

    Notes
    -----
    Margins are shifted by the row's largest, so a row of very negative ones has finite results; only a row of
    nothing but ``-inf`` has none, and is NaN. Beginning at equal margins, the trees are those of the built-in
    objective with its `hessian`; where a custom objective begins is another matter in both libraries: to compare,
    set ``base_score=0.5`` for XGBoost's, and ``boost_from_average=False`` for LightGBM's.

    Examples
    --------
    >>> import numpy as np
    >>> from entrokern.gbdt import softmax_objective
    >>> gradient, hessian = softmax_objective(hessian="xgboost")([1], np.full((1, 4), -1e30))
    >>> print(gradient, hessian)
    [[ 0.25 -0.75  0.25  0.25]] [[0.375 0.375 0.375 0.375]]
    """
    return _SoftmaxObjective(_options.choice("hessian", hessian, HESSIANS))


def logistic_objective(*, hessian: str = "exact", pos_weight: float = 1.0) -> Objective:
    """The binary objective: gradient and Hessian of the binary cross-entropy by the margins.

    Parameters
    ----------
    hessian : {"exact", "xgboost", "lightgbm"}
        ``h = p·(1-p)``, which is also that of LightGBM's ``binary``, or ``max(h, 1e-16)`` as XGBoost's
        ``binary:logistic`` has it.
    pos_weight : float, default 1
        Weight of the positive class: what is ``scale_pos_weight`` for the built-in objectives.

    Returns
    -------
    callable
        As of `softmax_objective`, for margins of shape ``(n,)``, or ``(n, labels)`` with as many labels, and labels
        0 and 1, or probabilities between.

    Raises
    ------
    ValueError
        Another `hessian`; a `pos_weight` that is not positive. When called: labels of another size than the margins,
        or outside [0, 1].

    Notes
    -----
    To begin where ``binary:logistic`` begins with ``base_score=0.5``, pass ``base_score=0`` to `xgboost.train`, to
    which it is a margin with a custom objective (and 0.5 to `XGBClassifier`, to which it is a probability still).

    Examples
    --------
    >>> import numpy as np
    >>> from entrokern.gbdt import logistic_objective
    >>> logistic_objective()([0, 1], np.array([0.0, -1e30]))
    (array([ 0.5, -1. ]), array([0.25, 0.  ]))
    """
    pos_weight = _options.positive("pos_weight", pos_weight)
    return _LogisticObjective(_options.choice("hessian", hessian, HESSIANS), pos_weight)


def softmax_metric(*, form: str = "logits") -> Metric:
    """The mean cross-entropy, as XGBoost's ``mlogloss`` and LightGBM's ``multi_logloss``, but not clipped.

    Parameters
    ----------
    form : {"logits", "probs"}
        What the predictions are: with a custom objective both libraries give margins, with a built-in one
        probabilities.

    Returns
    -------
    callable
        ``metric(predictions, data)``: ``(name, value)`` for a `DMatrix`, ``(name, value, False)`` for a `Dataset` (a
        higher value is not better); ``metric(y_true, predictions, sample_weight=None)``: the value, as `XGBClassifier`
        wants it, or with weights (or None) and groups by place, as `LGBMClassifier` passes them, its triple. The
        value is ``Σ sℓ / Σ s`` in nats.

    Raises
    ------
    ValueError, IndexError
        As `softmax_objective`.

    Examples
    --------
    >>> import numpy as np
    >>> from entrokern.gbdt import softmax_metric
    >>> round(softmax_metric()([2, 0], np.zeros((2, 4))), 4)
    1.3863
    """
    return _SoftmaxMetric(_options.choice("form", form, FORMS))


def logistic_metric(*, form: str = "logits") -> Metric:
    """The mean binary cross-entropy, as XGBoost's ``logloss`` and LightGBM's ``binary_logloss``, but not clipped.

    Parameters
    ----------
    form : {"logits", "probs"}
        As of `softmax_metric`.

    Returns
    -------
    callable
        As of `softmax_metric`, for predictions and labels as of `logistic_objective`.

    Raises
    ------
    ValueError
        As `logistic_objective`.

    Examples
    --------
    >>> import numpy as np
    >>> from entrokern.gbdt import logistic_metric
    >>> round(logistic_metric(form="probs")([0, 1], np.array([0.25, 0.5])), 4)
    0.4904
    """
    return _LogisticMetric(_options.choice("form", form, FORMS))


@dataclass(frozen=True)
class _SoftmaxObjective:
    hessian: str

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        x, labels, weight = _softmax_arguments(*_predictions_first(first, second, sample_weight))
        k = x.shape[1]
        scale = {"exact": 1.0, "xgboost": 2.0, "lightgbm": k / (k - 1)}[self.hessian]
        least = LEAST[self.hessian]
        grad, hess = np.empty_like(x), np.empty_like(x)

        def block(rows: Rows) -> None:
            s, h = None if weight is None else weight[rows], hess[rows]
            cross_entropy(x[rows], labels[rows], sample_weight=s, reduction="sum", grad_out=grad[rows], hess_out=h)
            if scale != 1.0:
                np.multiply(h, scale, out=h)
            if least:
                np.maximum(h, least, out=h)

        over_blocks(x.shape, block)
        return grad, hess


@dataclass(frozen=True)
class _LogisticObjective:
    hessian: str
    pos_weight: float

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        x, labels, weight = _logistic_arguments(*_predictions_first(first, second, sample_weight))
        _, grad, hess = binary_cross_entropy(
            x, labels, sample_weight=weight, pos_weight=self.pos_weight, reduction="sum",
            return_grad=True, return_hess=True,
        )  # fmt: skip
        least = LEAST[self.hessian]
        return grad, np.maximum(hess, least, out=hess) if least else hess


class _Metric:
    """What the libraries want of a metric around its value."""

    __name__: ClassVar[str]  # by which `XGBClassifier` reports it

    def value(self, predictions: Any, labels: Any, weight: Any) -> float:
        raise NotImplementedError

    # `XGBClassifier` names its weights; `LGBMClassifier` counts these four parameters and passes them by place.
    def __call__(self, first: Any, second: Any, *weight_and_group: Any, sample_weight: Any = None) -> Any:
        weight = weight_and_group[0] if weight_and_group else sample_weight
        value = self.value(*_predictions_first(first, second, weight))
        if weight_and_group or type(second).__module__.startswith("lightgbm"):
            return self.__name__, value, False
        return (self.__name__, value) if _is_data(second) else value


@dataclass(frozen=True)
class _SoftmaxMetric(_Metric):
    __name__ = "cross_entropy"

    form: Any

    def value(self, predictions: Any, labels: Any, weight: Any) -> float:
        x, labels, weight = _softmax_arguments(predictions, labels, weight)
        return float(cross_entropy(x, labels, form=self.form, sample_weight=weight))


@dataclass(frozen=True)
class _LogisticMetric(_Metric):
    __name__ = "binary_cross_entropy"

    form: Any

    def value(self, predictions: Any, labels: Any, weight: Any) -> float:
        x, labels, weight = _logistic_arguments(predictions, labels, weight)
        return float(binary_cross_entropy(x, labels, form=self.form, sample_weight=weight))


def _is_data(value: Any) -> bool:
    """Whether `value` is XGBoost's `DMatrix` or LightGBM's `Dataset`."""
    return hasattr(value, "get_label")


def _predictions_first(first: Any, second: Any, weight: Any) -> tuple[Array, Array, Array | None]:
    """Predictions, labels and weights, whichever interface they come by; no weights are an empty array in XGBoost."""
    if not _is_data(second):
        x = _arrays.as_floating("predictions", second)
        return x, np.asarray(first), None if weight is None else np.asarray(weight)
    labels, weight = second.get_label(), second.get_weight()
    if labels is None:
        raise ValueError(f"the {type(second).__name__} has no labels; make it with label=...")
    weight = None if weight is None or len(weight) == 0 else np.asarray(weight)
    return _arrays.as_floating("predictions", first), np.asarray(labels), weight


def _softmax_arguments(x: Array, labels: Array, weight: Array | None) -> tuple[Array, Array, Array | None]:
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(
            f"predictions have shape {x.shape}; expected (n, k) with k ≥ 2 classes: set num_class, or for two classes "
            "with one margin take the logistic objective and metric"
        )
    if labels.shape != (len(x),):
        raise ValueError(f"labels have shape {labels.shape}, predictions {x.shape}; pass one class per row")
    return x, class_labels(labels, x.shape[1]), _row_weights(weight, x)


def _logistic_arguments(x: Array, labels: Array, weight: Array | None) -> tuple[Array, Array, Array | None]:
    if labels.size != x.size or labels.shape not in (x.shape, (x.size,)):  # a `DMatrix` gives a table of them flat
        raise ValueError(
            f"labels have shape {labels.shape}, predictions {x.shape}; pass one label per margin, and for more than "
            "two classes take the softmax objective and metric"
        )
    labels = labels.reshape(x.shape)
    if labels.size and not (labels.min() >= 0 and labels.max() <= 1):
        i = tuple(np.argwhere(~((labels >= 0) & (labels <= 1)))[0].tolist())
        raise ValueError(f"label {labels[i]} of row {i[0]} is out of range; pass 0 and 1, or probabilities between")
    weight = _row_weights(weight, x)
    return x, labels, weight if weight is None or x.ndim == 1 else weight[:, None]


def _row_weights(weight: Array | None, x: Array) -> Array | None:
    if weight is not None and weight.shape != (len(x),):
        raise ValueError(f"weights have shape {weight.shape}; pass one per row: {(len(x),)}")
    return weight
