"""NumKong: divergences of probabilities, row by row in one call."""

from __future__ import annotations

from typing import Any

import numkong
import numpy as np

from data import Case
from peers.with_numpy import bound


def kl(case: Case) -> tuple[Any, ...]:
    return (np.asarray(numkong.kld(case.x, case.y)),)


def js(case: Case) -> tuple[Any, ...]:
    """Its result is a distance: the root of the divergence."""
    return (np.asarray(numkong.jsd(case.x, case.y)) ** 2,)


LOSSES = {"kl": bound(kl), "js": bound(js)}
