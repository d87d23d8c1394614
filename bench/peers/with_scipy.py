"""SciPy's special functions, composed."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from data import Case
from peers.with_numpy import bound, picked, wide

Results = tuple[Any, ...]


def cross_entropy(case: Case) -> Results:
    return (-picked(special.log_softmax(wide(case.x), axis=case.axis), case.y, case.axis),)


def cross_entropy_gradient(case: Case) -> Results:
    rows = np.arange(len(case.x))
    log_p = special.log_softmax(case.x, axis=-1)
    loss = -log_p[rows, case.y]
    gradient = np.exp(log_p, out=log_p)
    gradient[rows, case.y] -= 1
    return loss, gradient


def dense_cross_entropy(case: Case) -> Results:
    return (-(case.y * special.log_softmax(case.x, axis=-1)).sum(axis=-1),)


def logsumexp(case: Case) -> Results:
    return (special.logsumexp(case.x, axis=-1),)


def entropy_of_logits(case: Case) -> Results:
    return (special.entr(special.softmax(case.x, axis=-1)).sum(axis=-1),)


def kl_of_logits(case: Case) -> Results:
    log_p, log_q = special.log_softmax(case.x, axis=-1), special.log_softmax(case.y, axis=-1)
    return ((np.exp(log_p) * (log_p - log_q)).sum(axis=-1),)


def kl(case: Case) -> Results:
    return (special.rel_entr(case.x, case.y).sum(axis=-1),)


def js(case: Case) -> Results:
    m = (case.x + case.y) / 2
    return ((special.rel_entr(case.x, m) + special.rel_entr(case.y, m)).sum(axis=-1) / 2,)


def entropy(case: Case) -> Results:
    return (special.entr(case.x).sum(axis=-1),)


def binary_terms(case: Case) -> Any:
    t = case.y.astype(case.x.dtype, copy=False)
    return -(t * special.log_expit(case.x) + (1 - t) * special.log_expit(-case.x))


def binary(case: Case) -> Results:
    return (binary_terms(case).mean(),)


def binary_rows(case: Case) -> Results:
    return (binary_terms(case).sum(axis=-1),)


LOSSES = {
    "ce": bound(cross_entropy),
    "ce_axis1": bound(cross_entropy),
    "ce+gradient": bound(cross_entropy_gradient),
    "ce_dense": bound(dense_cross_entropy),
    "entropy_logits": bound(entropy_of_logits),
    "logsumexp": bound(logsumexp),
    "kl_logits": bound(kl_of_logits),
    "kl": bound(kl),
    "js": bound(js),
    "entropy": bound(entropy),
    "bce": bound(binary),
    "bce_rows": bound(binary_rows),
}
