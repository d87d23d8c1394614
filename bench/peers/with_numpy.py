"""NumPy as people write it: stable formulas, with the largest logit subtracted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from data import Array, Case

Results = tuple[Any, ...]


def wide(x: Array) -> Array:
    """16-bit types are computed in float32."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def picked(x: Array, labels: Array, axis: int = -1) -> Array:
    return np.take_along_axis(x, np.expand_dims(labels, axis), axis).squeeze(axis)


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(case: Case) -> Results:
    x, axis = wide(case.x), case.axis
    shifted = x - x.max(axis=axis, keepdims=True)
    return (np.log(np.exp(shifted).sum(axis=axis)) - picked(shifted, case.y, axis),)


def cross_entropy_gradient(case: Case) -> Results:
    x, rows = wide(case.x), np.arange(len(case.x))
    shifted = x - x.max(axis=-1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=-1, keepdims=True)
    loss = np.log(total[:, 0]) - shifted[rows, case.y]
    p /= total
    p[rows, case.y] -= 1
    return loss, p


def dense_cross_entropy(case: Case) -> Results:
    return (-(case.y * log_softmax(case.x)).sum(axis=-1),)


def dense_gradient(case: Case) -> Results:
    log_p = log_softmax(case.x)
    total = case.y.sum(axis=-1, keepdims=True)
    return -(case.y * log_p).sum(axis=-1), np.exp(log_p) * total - case.y


def logsumexp(case: Case) -> Results:
    m = case.x.max(axis=-1, keepdims=True)
    return (np.log(np.exp(case.x - m).sum(axis=-1)) + m[:, 0],)


def entropy_of_logits(case: Case) -> Results:
    log_p = log_softmax(case.x)
    return (-(np.exp(log_p) * log_p).sum(axis=-1),)


def score(case: Case) -> Results:
    """The outputs of `score`, in its order, from one log-softmax."""
    log_p = log_softmax(case.x)
    p = np.exp(log_p)
    log_prob = picked(log_p, case.y)
    return (
        -log_prob,
        picked(case.x, case.y) - log_prob,
        log_prob,
        -(p * log_p).sum(axis=-1),
        case.x.argmax(axis=-1),
        (case.x > picked(case.x, case.y)[:, None]).sum(axis=-1),
        p.max(axis=-1),
    )


def kl_of_logits(case: Case) -> Results:
    log_p, log_q = log_softmax(case.x), log_softmax(case.y)
    return ((np.exp(log_p) * (log_p - log_q)).sum(axis=-1),)


def distillation(case: Case) -> Results:
    """KL from the teacher `y` to the student `x`, and the gradient by the latter."""
    log_p, log_q = log_softmax(case.y), log_softmax(case.x)
    p = np.exp(log_p)
    return (p * (log_p - log_q)).sum(axis=-1), np.exp(log_q) - p


def kl(case: Case) -> Results:
    return ((case.x * np.log(case.x / case.y)).sum(axis=-1),)


def js(case: Case) -> Results:
    p, q = case.x, case.y
    m = (p + q) / 2
    return ((p * np.log(p / m) + q * np.log(q / m)).sum(axis=-1) / 2,)


def entropy(case: Case) -> Results:
    return (-(case.x * np.log(case.x)).sum(axis=-1),)


def binary_terms(case: Case) -> Array:
    return np.maximum(case.x, 0) - case.x * case.y + np.log1p(np.exp(-np.abs(case.x)))


def binary(case: Case) -> Results:
    return (binary_terms(case).mean(),)


def binary_gradient(case: Case) -> Results:
    e = np.exp(-np.abs(case.x))
    loss = (np.maximum(case.x, 0) - case.x * case.y + np.log1p(e)).mean()
    return loss, (np.where(case.x >= 0, 1, e) / (1 + e) - case.y) / case.x.size


def binary_of_probabilities(case: Case) -> Results:
    return (-np.log(np.where(case.y, case.x, 1 - case.x)).mean(),)


def binary_rows(case: Case) -> Results:
    return (binary_terms(case).sum(axis=-1),)


def information(case: Case) -> Results:
    return (-np.log(case.x),)


def bound(function: Callable[[Case], Results]) -> Callable[[Case], Callable[[], Results]]:
    return functools.partial(functools.partial, function)


LOSSES = {
    "ce": bound(cross_entropy),
    "ce_axis1": bound(cross_entropy),
    "ce+gradient": bound(cross_entropy_gradient),
    "ce_dense": bound(dense_cross_entropy),
    "ce_dense+gradient": bound(dense_gradient),
    "entropy_logits": bound(entropy_of_logits),
    "logsumexp": bound(logsumexp),
    "score": bound(score),
    "kl_logits": bound(kl_of_logits),
    "distillation+gradient": bound(distillation),
    "kl": bound(kl),
    "js": bound(js),
    "entropy": bound(entropy),
    "bce": bound(binary),
    "bce+gradient": bound(binary_gradient),
    "bce_probs": bound(binary_of_probabilities),
    "bce_rows": bound(binary_rows),
    "information": bound(information),
}
