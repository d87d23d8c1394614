"""scikit-learn: the compiled losses of its estimators (private, all threads), and `log_loss`."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn._loss._loss import CyHalfBinomialLoss, CyHalfMultinomialLoss
from sklearn.metrics import log_loss

from data import Case
from entrokern import _threads
from peers import Call


def half_loss(loss: Any, case: Case, *, mean: bool = False, gradient: bool = False) -> Call | None:
    """A call that writes into arrays that exist, as the estimators do; labels have the type of x there."""
    if case.x.dtype.itemsize < 4:
        return None
    x = case.x
    losses = np.empty(len(x), x.dtype)
    slope = np.empty_like(x) if gradient else None
    operands = {"raw_prediction": x, "sample_weight": None, "loss_out": losses, "n_threads": _threads.num_threads()}
    same = case.y.astype(x.dtype, copy=False) if case.y.dtype != np.uint8 else None

    def call() -> tuple[Any, ...]:
        y = case.y.astype(x.dtype) if same is None else same
        if gradient:
            loss.loss_gradient(y_true=y, gradient_out=slope, **operands)
        else:
            loss.loss(y_true=y, **operands)
        result = losses.mean() if mean else losses
        if gradient and mean:
            slope.__itruediv__(len(x))
        return (result, slope) if gradient else (result,)

    return call


def probabilities(case: Case) -> Call:
    return lambda: (log_loss(case.y, case.x),)


LOSSES = {
    "ce": lambda case: half_loss(CyHalfMultinomialLoss(), case),
    "ce+gradient": lambda case: half_loss(CyHalfMultinomialLoss(), case, gradient=True),
    "bce": lambda case: half_loss(CyHalfBinomialLoss(), case, mean=True),
    "bce+gradient": lambda case: half_loss(CyHalfBinomialLoss(), case, mean=True, gradient=True),
    "bce_probs": probabilities,
}
